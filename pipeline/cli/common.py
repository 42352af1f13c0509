"""What commands share: options, and how a plan is shown and agreed to."""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from pipeline import workers
from pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from rich.progress import TaskID

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def show_json(value: object) -> None:
    """Print one JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, default=str)
    print()


class Change(Protocol):
    def as_json(self) -> dict[str, object]: ...


def show_plan(changes: Sequence[Change], as_json: bool) -> None:
    if as_json:
        show_json([change.as_json() for change in changes])
    else:
        for change in changes:
            print(change)
    if changes:
        raise typer.Exit(1)


def agreed(changes: Sequence[object], yes: bool) -> bool:
    for change in changes:
        print(change)
    if not changes:
        print("Nothing to do.")
        return False
    ask(yes)
    return True


def ask(yes: bool) -> None:
    """Ask whether to do what was shown; without a yes the command ends."""
    if not yes:
        with asked():
            typer.confirm("Do this?", abort=True)


@contextmanager
def asked(option: str = "--yes") -> Iterator[None]:
    """Around a question: where the answer is no, or nobody is there to give one, the command ends as by Ctrl-C."""
    try:
        yield
    except typer.Abort:
        print(f"Nothing was done{'' if sys.stdin.isatty() else f': {option} answers without asking'}.", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def files_named() -> Iterator[None]:
    """Raise Misconfigured where a command cannot read or write a file, stdout among them. What a socket says stays, and
    what a worker meets: it is started again."""
    try:
        try:
            yield
        finally:
            with suppress(BrokenPipeError):
                print(end="", flush=True)  # what is left; at the interpreter's end nobody could say what became of it
    except OSError as error:
        if workers.NUMBER_VARIABLE in os.environ or (error.filename is None and error.errno not in FULL):
            raise
        sys.stdout = sys.stderr  # what could not be printed is not tried again
        if error.filename is None:
            raise Misconfigured(f"The output cannot be written: {error.strerror}: make room for it.") from error
        raise Misconfigured(f"{error.filename} cannot be used: {error.strerror}.") from error


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar on stderr for each thing that is read, its rate and the time left; none where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, rate="")
            speed = bars.tasks[bars.task_ids.index(tasks[what])].speed
            bars.update(tasks[what], completed=done, total=total, rate=f"{speed:,.0f}/s" if speed else "")

        yield show
