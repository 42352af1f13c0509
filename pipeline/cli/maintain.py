"""`pipeline maintain`."""

import datetime

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, Yes, agreed, show_plan

app = typer.Typer(
    no_args_is_help=True, help="Upkeep of PostgreSQL: retention, partitions, policies and rollups, by the settings."
)


@app.command("plan")
def plan(as_json: AsJson = False) -> None:
    """Print what `run` would do; exit 1 where that is something."""
    from pipeline import maintain

    show_plan(maintain.plan(settings.load(), datetime.datetime.now(datetime.UTC)), as_json)


@app.command("run")
def run(yes: Yes = False) -> None:
    """Print the plan, ask, and carry out the plan that was printed. Without TimescaleDB run it every few minutes."""
    from pipeline import maintain

    loaded, now = settings.load(), datetime.datetime.now(datetime.UTC)
    planned = maintain.plan(loaded, now)
    if agreed(planned, yes):
        maintain.run(planned, loaded, now)
