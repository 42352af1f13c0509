"""`pipeline dlq`."""

import json
from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, Yes, agreed, show_json, show_plan

app = typer.Typer(no_args_is_help=True, help="Dead letters: messages that no store could take.")

DeadTopic = Annotated[str | None, typer.Option("--topic", help="Origin or dead-letter topic; default all.")]
Reason = Annotated[str | None, typer.Option("--reason", help="A part of the reason's text.")]
Messages = Annotated[list[str] | None, typer.Option("--message", help="As logs_raw_dlq/0@17; may be repeated.")]
Interval = Annotated[
    str | None, typer.Option("--time", help="Dead-lettered from/to before, as 2026-11-20T10:00/2026-11-20T11:00.")
]


@app.command("list")
def overview(topic: DeadTopic = None, as_json: AsJson = False) -> None:
    """Count the dead letters that were neither replayed nor dropped, by topic, writer and reason; exit 1 with any."""
    from pipeline import dlq

    show_plan(dlq.Letters(settings.load().kafka).overview(dlq.Selection(topic=topic)), as_json)


@app.command("show")
def one(name: Annotated[str, typer.Argument(help="As logs_raw_dlq/0@17.")], as_json: AsJson = False) -> None:
    """Print one dead letter: why, where from, headers, its records as far as they decode, its first bytes."""
    from pipeline import dlq

    described = dlq.describe(dlq.Letters(settings.load().kafka).one(name))
    if as_json:
        show_json(described)
        return
    records = described.pop("records")
    for key, value in described.items():
        print(f"{key:<14} {value}")
    print(f"{'records':<14} {len(records)}")
    for record in records:
        print(f"  {json.dumps(record, ensure_ascii=False, default=str)}")


@app.command("replay")
def replay(
    topic: DeadTopic = None,
    reason: Reason = None,
    message: Messages = None,
    time: Interval = None,
    yes: Yes = False,
) -> None:
    """Print what goes back to which topic, ask, and send it there as it came; it is not listed any more."""
    _handle("replay", (topic, reason, message or (), time), yes)


@app.command("drop")
def drop(
    topic: DeadTopic = None,
    reason: Reason = None,
    message: Messages = None,
    time: Interval = None,
    yes: Yes = False,
) -> None:
    """Print what is given up, ask, and list it no more; it stays in Kafka until retention removes it."""
    _handle("drop", (topic, reason, message or (), time), yes)


def _handle(
    action: Literal["replay", "drop"], selected: tuple[str | None, str | None, Sequence[str], str | None], yes: bool
) -> None:
    from pipeline import dlq

    selection = dlq.Selection.parse(*selected)
    letters = dlq.Letters(settings.load().kafka)
    changes = letters.plan(action, selection)
    for change in changes:
        if change.action == "leave":
            print(change)
    doing = [change for change in changes if change.action != "leave"]
    if agreed(doing, yes):
        letters.apply(doing)
