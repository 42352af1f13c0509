"""`pipeline migrate`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, Yes, agreed, show_json, show_plan

if TYPE_CHECKING:
    from pipeline.migrations import State

app = typer.Typer(no_args_is_help=True, help="Migrations of PostgreSQL and ClickHouse.")

Store = Annotated[Literal["postgres", "clickhouse"] | None, typer.Option(help="Only this store; default both.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Run every file on scratch databases, which are dropped.")]


@app.command("status")
def status(store: Store = None, as_json: AsJson = False) -> None:
    """Print every migration and its state; exit 1 where one is not applied."""
    from pipeline import migrations

    with migrations.opened(settings.load(), store) as stores:
        states = migrations.status(stores)
    if as_json:
        show_json([state.as_json() for state in states])
    else:
        for state in states:
            print(state)
    if any(state.state != "applied" for state in states):
        raise typer.Exit(1)


@app.command("plan")
def plan(store: Store = None, as_json: AsJson = False) -> None:
    """Print what `up` would run, statement by statement; exit 1 where that is something."""
    from pipeline import migrations

    with migrations.opened(settings.load(), store) as stores:
        planned = migrations.plan(stores)
    if as_json:
        show_json([state.as_json() for state in planned])
    else:
        for line in _lines(planned):
            print(line)
    if planned:
        raise typer.Exit(1)


@app.command("up")
def up(store: Store = None, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Print the plan, ask, and carry out the plan that was printed."""
    from pipeline import migrations

    with migrations.opened(settings.load(), store) as stores:
        planned = migrations.plan(stores)
        if dry_run:
            for line in _lines(planned):
                print(line)
            migrations.rehearse(stores)
            print("Every file ran on a scratch database, which is dropped; nothing else was changed.")
        elif agreed(_lines(planned), yes):
            migrations.up(planned, stores)


@app.command("verify")
def verify(store: Store = None, as_json: AsJson = False) -> None:
    """Print where the stores are not what the applied files make of a scratch database; exit 1 where they are not."""
    from pipeline import migrations

    with migrations.opened(settings.load(), store) as stores:
        show_plan(migrations.verify(stores), as_json)


def _lines(planned: Sequence["State"]) -> list[str]:
    return [line for state in planned for line in [str(state), *(f"    {step}" for step in state.steps)]]
