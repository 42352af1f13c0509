"""`pipeline migrate`."""

from typing import Annotated, Literal

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, Yes, agreed, show_json, show_plan

app = typer.Typer(no_args_is_help=True, help="Migrations of PostgreSQL and ClickHouse.")

Store = Annotated[Literal["postgres", "clickhouse"] | None, typer.Option(help="Only this store; default both.")]


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
    """Print what `up` would run; exit 1 where that is something."""
    from pipeline import migrations

    with migrations.opened(settings.load(), store) as stores:
        show_plan(migrations.plan(stores), as_json)


@app.command("up")
def up(store: Store = None, yes: Yes = False) -> None:
    """Print the plan, ask, and carry out the plan that was printed."""
    from pipeline import migrations

    loaded = settings.load()
    with migrations.opened(loaded, store) as stores:
        planned = migrations.plan(stores)
        if agreed(planned, yes):
            migrations.up(planned, stores, loaded)
