"""`pipeline maintain`."""

import datetime
from typing import Annotated, Literal

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, Yes, agreed, show_plan

app = typer.Typer(
    no_args_is_help=True, help="Upkeep of both stores by the settings: retention, tiers, partitions, rollups."
)

Store = Annotated[Literal["postgres", "clickhouse"] | None, typer.Option(help="Only this store; default both.")]


@app.command("plan")
def plan(store: Store = None, as_json: AsJson = False) -> None:
    """Print what `run` would do; exit 1 where that is something."""
    from pipeline import maintain

    show_plan(maintain.plan(settings.load(), datetime.datetime.now(datetime.UTC), store), as_json)


@app.command("run")
def run(store: Store = None, yes: Yes = False) -> None:
    """Print the plan, ask, and carry out the plan that was printed. Without TimescaleDB run it every few minutes."""
    from pipeline import maintain

    loaded, now = settings.load(), datetime.datetime.now(datetime.UTC)
    planned = maintain.plan(loaded, now, store)
    if agreed(planned, yes):
        maintain.run(planned, loaded, now)
