"""`pipeline maintain`."""

import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, Yes, agreed, show_plan

if TYPE_CHECKING:
    from pipeline.replay.drop import Drop

app = typer.Typer(
    no_args_is_help=True, help="Upkeep by the settings: retention, tiers, partitions, rollups; and sandboxes."
)

Store = Annotated[Literal["postgres", "clickhouse"] | None, typer.Option(help="Only this store; default both.")]


@app.command("plan")
def plan(store: Store = None, as_json: AsJson = False) -> None:
    """Print what `run` would do; exit 1 where that is something."""
    from pipeline import maintain

    loaded, now = settings.load(), datetime.datetime.now(datetime.UTC)
    show_plan([*maintain.plan(loaded, now, store), *_sandboxes(loaded, now, store)], as_json)


@app.command("run")
def run(store: Store = None, yes: Yes = False) -> None:
    """Print the plan, ask, and carry out the plan that was printed. Without TimescaleDB run it every few minutes."""
    from pipeline import maintain

    loaded, now = settings.load(), datetime.datetime.now(datetime.UTC)
    planned = maintain.plan(loaded, now, store)
    sandboxes = _sandboxes(loaded, now, store)
    if agreed([*planned, *sandboxes], yes):
        try:
            maintain.run(planned, loaded, now)
        finally:
            for one in sandboxes:
                one.carry_out()


def _sandboxes(loaded: settings.Settings, now: datetime.datetime, store: Store) -> "list[Drop]":
    """Those of `pipeline replay` whose lifetime is over; none where a store is named: they have a part in each."""
    from pipeline.replay.drop import expired

    return [] if store else expired(loaded, now)
