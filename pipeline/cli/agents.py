"""`pipeline agents`."""

from enum import StrEnum
from typing import Annotated

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, Yes, agreed, show_plan

app = typer.Typer(no_args_is_help=True, help="Where the writers stand in Kafka.")


class Writer(StrEnum):
    pg_writer = "pg_writer"
    ch_writer = "ch_writer"


@app.command("gaps")
def gaps(as_json: AsJson = False) -> None:
    """Print what Kafka removed before the writers read it; exit 1 where that is something."""
    from pipeline.agents import gaps

    loaded = settings.load()
    show_plan([gap for writer in Writer for gap in gaps.find(writer.value, loaded)], as_json)


@app.command("accept_gap")
def accept_gap(
    writer: Writer,
    topic: Annotated[str, typer.Option()],
    partition: Annotated[int, typer.Option(min=0)],
    yes: Yes = False,
) -> None:
    """Let a stopped writer go on at the first message that a partition has; print what is given up, and ask."""
    from pipeline.agents import gaps

    loaded = settings.load()
    found = [gap for gap in gaps.find(writer.value, loaded) if (gap.topic, gap.partition) == (topic, partition)]
    if agreed(found, yes):
        gaps.accept(found, loaded)
