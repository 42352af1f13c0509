"""`pipeline audit`."""

from enum import StrEnum
from typing import Annotated

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, progress_bars, show_json
from pipeline.errors import Misconfigured
from pipeline.settings import Settings

app = typer.Typer()
Signal = StrEnum("Signal", ["logs", "metrics", "traces", "events"])  # Typer takes no list of Literals
Signals = Annotated[list[Signal] | None, typer.Option("--signal", help="May be repeated; default all.")]
From = Annotated[str | None, typer.Option("--from", help="Receipt time, ISO 8601; UTC where no zone is said.")]
To = Annotated[str | None, typer.Option("--to", help="To before this receipt time; default now.")]


Region = Annotated[str | None, typer.Option(help="Of the topology, with its own Kafka and stores.")]
At = Annotated[str | None, typer.Option(help="With --region: in the stores of that one, which hold it too.")]


@app.command()
def audit(  # noqa: PLR0913, PLR0917 - options
    signal: Signals = None,
    start: From = None,
    end: To = None,
    region: Region = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Prove from Kafka and the stores alone that nothing is missing or doubled; exit 1 where something is."""
    from rich.console import Console

    from pipeline import audit as room

    window = room.Window.parse(start, end)
    loaded = settings.load()
    if at and not region:
        raise Misconfigured("--at needs --region: whose records are to be there.")
    there = _of(at, loaded) if at else None
    loaded = _of(region, loaded) if region else loaded
    with progress_bars() as progress:
        wanted = [name for name in room.SIGNALS if not signal or name in signal]
        report = room.audit(loaded, signals=wanted, window=window, progress=progress, stores_of=there)
    if as_json:
        show_json(report.as_dict())
    else:
        report.show(Console())
    if not report.clean:
        raise typer.Exit(1)


def _of(region: str, loaded: Settings) -> Settings:
    """The settings with Kafka and stores of a region of the topology, and the regions whose records it stores."""
    from pipeline import regions

    topology = regions.load(loaded)
    if region not in topology.regions:
        raise Misconfigured(f"There is no region {region!r}; there are {', '.join(topology.regions)}.")
    own = topology.regions[region]
    parts = {
        "kafka": own.kafka,
        "postgres": own.postgres_settings,
        "clickhouse": own.clickhouse,
        "mirrored_regions": topology.mirrored_into(region),
    }
    return loaded.model_copy(update=parts)
