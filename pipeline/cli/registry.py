"""`pipeline registry`."""

import getpass
import os
import pathlib
from typing import Annotated

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, Yes, agreed, show_json

app = typer.Typer(help="Registered tables: without a command, serve the registry over HTTP.")
File = Annotated[pathlib.Path, typer.Argument(help="The declaration, JSON.")]
Name = Annotated[str, typer.Argument(help="The table.")]
By = Annotated[str | None, typer.Option(help="Who does it, for the history; default the user of this machine.")]


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


@app.callback(invoke_without_command=True)
def serve(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        from pipeline.registry.main import run
        from pipeline.telemetry import log

        loaded = settings.load()
        log.configure("registry")
        run(loaded)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Print every table."""
    from pipeline.registry import command

    tables = command.tables(settings.load().registry)
    if as_json:
        show_json([table.as_json() for table in tables])
    for table in tables if not as_json else ():
        print(f"{table.schema_name} {table.state}, in {' and '.join(table.stores)}, of {table.owner}")


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Print one table: its fields, and who did what to it."""
    from pipeline.registry import command

    table = command.table(settings.load().registry, name)
    if as_json:
        show_json(table.as_json())
        return
    print(f"{table.schema_name} {table.state}, in {' and '.join(table.stores)} for {table.retention_days} days, "
          f"of {table.owner}")  # fmt: skip
    for column in table.columns:
        print(f"  {command.column_line(column)}")
    for change in table.history:
        print(f"{change.at} {change.action} as version {change.version} by {change.who}")


@app.command()
def register(file: File, by: By = None, yes: Yes = False) -> None:
    """Print the plan, ask, and register the table: from then on rows of it are taken."""
    from pipeline.registry import command

    own, declaration = settings.load().registry, command.read(file)
    if agreed(command.planned(declaration), yes):
        print(f"{command.register(own, declaration, by or _me()).schema_name} is registered.")


@app.command()
def evolve(file: File, by: By = None, yes: Yes = False) -> None:
    """Print what the file changes, ask, and make it the table's next version: new fields at the end."""
    from pipeline.registry import command

    own, declaration = settings.load().registry, command.read(file)
    table = command.table(own, declaration.name)
    if agreed(command.differences(table, declaration), yes):
        print(f"{command.evolve(own, table, declaration, by or _me()).schema_name} is there.")


@app.command()
def retire(name: Name, by: By = None, yes: Yes = False) -> None:
    """Let a table take no more rows, for ever; what is stored stays until its retention ends."""
    from pipeline.registry import command

    own = settings.load().registry
    table = command.table(own, name)
    if agreed([f"retire {table.schema_name}: it takes no more rows, what is stored stays"], yes):
        command.retire(own, table, by or _me())
