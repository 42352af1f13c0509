"""`pipeline local`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, show_json

if TYPE_CHECKING:
    from pipeline.local import Stack

app = typer.Typer(no_args_is_help=True, help="The whole stack on this machine, for demos, tests and hands-on work.")

Names = Annotated[list[str] | None, typer.Argument(help="Processes; default all.")]


@app.command("up")
def up() -> None:
    """Start what does not run: servers, topics, migrations, registry, gateway, writers. Print every address."""
    _stack().up()
    _show_status(as_json=False)


@app.command("down")
def down(
    wipe: Annotated[bool, typer.Option("--wipe", help="Remove all data too; what was fetched stays.")] = False,
) -> None:
    """Stop everything."""
    if wipe:
        _stack().wipe()
    else:
        _stack().down()


@app.command("status")
def status(as_json: AsJson = False) -> None:
    """Print every address and process; exit 1 where one does not run."""
    if not _show_status(as_json):
        raise typer.Exit(1)


@app.command("start")
def start(names: Names = None) -> None:
    """Start these processes, and wait until they are ready."""
    from pipeline.local import NAMES

    _stack().start(names or NAMES)


@app.command("stop")
def stop(names: Names = None) -> None:
    """Stop these processes."""
    from pipeline.local import NAMES

    _stack().stop(names or NAMES)


@app.command("restart")
def restart(names: Names = None) -> None:
    """Stop and start these processes."""
    from pipeline.local import NAMES

    _stack().restart(names or NAMES)


def _stack() -> "Stack":
    from pipeline.local import Stack

    return Stack(settings.load(), lambda line: print(line, file=sys.stderr, flush=True))


def _show_status(as_json: bool) -> bool:
    """Print the stack's status; return whether all of it runs."""
    from rich.console import Console
    from rich.table import Table

    status = _stack().status()
    rows = status.pop("processes")
    if as_json:
        show_json({**status, "processes": rows})
    else:
        for name, address in status.items():
            print(f"{name:<12} {address}")
        table = Table("process", "pid", "state", "since", "MB")
        for row in rows:
            table.add_row(*("" if value is None else str(value) for value in row.values()))
        Console().print(table)
    return all(row["state"] == "running" for row in rows)
