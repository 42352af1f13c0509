"""What commands share: options, and how a plan is shown and agreed to."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

if TYPE_CHECKING:
    from rich.progress import TaskID

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


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
    if not yes:
        with asked():
            typer.confirm("Do this?", abort=True)
    return True


@contextmanager
def asked(option: str = "--yes") -> Iterator[None]:
    """Around a question: where the answer is no, or nobody is there to give one, the command ends as by Ctrl-C."""
    try:
        yield
    except typer.Abort:
        print(f"Nothing was done{'' if sys.stdin.isatty() else f': {option} answers without asking'}.", file=sys.stderr)
        raise typer.Exit(130) from None


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
