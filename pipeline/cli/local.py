"""`pipeline local`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, show_json
from pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from pipeline.local import Regions, Stack

app = typer.Typer(no_args_is_help=True, help="The whole stack on this machine, for demos, tests and hands-on work.")

Names = Annotated[
    list[str] | None, typer.Argument(help="Processes, as kafka or eu/kafka; default all of the single stack.")
]


@app.command("up")
def up(
    regions: Annotated[
        str | None, typer.Option(help="Regions of the topology instead, such as eu,us,central, with MirrorMaker 2.")
    ] = None,
) -> None:
    """Start what does not run: servers, topics, migrations, registry, gateway, writers. Print every address."""
    from pipeline.local import Regions

    if regions:
        Regions.of(settings.load(), regions.split(","), _tell).up()
    else:
        _stack().up()
    _show_status(as_json=False)


@app.command("down")
def down(
    wipe: Annotated[bool, typer.Option("--wipe", help="Remove all data too; what was fetched stays.")] = False,
) -> None:
    """Stop everything, in all regions."""
    several = _regions()
    for each in (several, _stack()) if several else (_stack(),):
        if wipe:
            each.wipe()
        else:
            each.down()


@app.command("status")
def status(as_json: AsJson = False) -> None:
    """Print every address and process; exit 1 where one does not run. Where only regions are up, theirs count."""
    if not _show_status(as_json):
        raise typer.Exit(1)


@app.command("start")
def start(names: Names = None) -> None:
    """Start these processes, and wait until they are ready."""
    for stack, some in _chosen(names):
        stack.start(some)


@app.command("stop")
def stop(names: Names = None) -> None:
    """Stop these processes."""
    for stack, some in _chosen(names):
        stack.stop(some)


@app.command("restart")
def restart(names: Names = None) -> None:
    """Stop and start these processes."""
    for stack, some in _chosen(names):
        stack.restart(some)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stack() -> "Stack":
    from pipeline.local import Stack

    return Stack(settings.load(), _tell)


def _regions() -> "Regions | None":
    from pipeline.local import Regions

    return Regions.made(settings.load(), _tell)


def _chosen(names: list[str] | None) -> "list[tuple[Stack, list[str]]]":
    """The processes by stack; raises Misconfigured where a region is not up."""
    from pipeline.local import NAMES

    stacks: dict[str, Stack] = {"": _stack()}
    if any("/" in name for name in names or ()):
        several = _regions()
        stacks |= several.stacks if several else {}
    chosen: dict[str, list[str]] = {}
    for name in names or NAMES:
        region, slash, process = name.rpartition("/")
        if slash and region not in stacks:
            raise Misconfigured(f"There is no region {region!r} up: `pipeline local up --regions` starts some.")
        chosen.setdefault(region, []).append(process)
    return [(stacks[region], some) for region, some in chosen.items()]


def _show_status(as_json: bool) -> bool:
    """Print the stack's status, and the regions'; return whether all of it runs."""
    status, several = _stack().status(), _regions()
    regions = several.status() if several else {}
    if as_json:
        show_json({**status, **({"regions": regions} if regions else {})})
    else:
        for name, each in {"": status, **regions}.items():
            _print_status(name, each)
    own = {row["state"] for row in status["processes"]}
    states = {row["state"] for each in regions.values() for row in each["processes"]}
    if not regions or own != {"stopped"}:
        states |= own
    return states == {"running"}


def _print_status(region: str, status: "dict[str, Any]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("process", "pid", "state", "since", "MB")
    if region:
        print(f"\n{region}")
    for name, address in status.items():
        if name != "processes":
            print(f"{name:<12} {address}")
    for row in status["processes"]:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console().print(table)
