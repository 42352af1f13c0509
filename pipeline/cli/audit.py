"""`pipeline audit`."""

from enum import StrEnum
from typing import Annotated

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, show_json

app = typer.Typer()
Signal = StrEnum("Signal", ["logs", "metrics", "traces", "events"])  # Typer takes no list of Literals
Signals = Annotated[list[Signal] | None, typer.Option("--signal", help="May be repeated; default all.")]
From = Annotated[str | None, typer.Option("--from", help="Receipt time, ISO 8601; UTC where no zone is said.")]
To = Annotated[str | None, typer.Option("--to", help="To before this receipt time; default now.")]


@app.command()
def audit(signal: Signals = None, start: From = None, end: To = None, as_json: AsJson = False) -> None:
    """Prove from Kafka and the stores alone that nothing is missing or doubled; exit 1 where something is."""
    from rich.console import Console

    from pipeline import audit as room

    window = room.Window.parse(start, end)
    loaded = settings.load()
    with room.progress_bars() as progress:
        wanted = [name for name in room.SIGNALS if not signal or name in signal]
        report = room.audit(loaded, signals=wanted, window=window, progress=progress)
    if as_json:
        show_json(report.as_dict())
    else:
        report.show(Console())
    if not report.clean:
        raise typer.Exit(1)
