"""What commands share: options, and how a plan is shown and agreed to."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Protocol

import typer

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def show_json(value: object) -> None:
    """Print one JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, default=str)
    print()


class Change(Protocol):
    def as_json(self) -> dict[str, object]: ...


def show_plan(changes: Sequence[Change], as_json: bool) -> None:
    if as_json:
        show_json([change.as_json() for change in changes])
    else:
        for change in changes:
            print(change)
    if changes:
        raise typer.Exit(1)


def agreed(changes: Sequence[object], yes: bool) -> bool:
    for change in changes:
        print(change)
    if not changes:
        print("Nothing to do.")
        return False
    return yes or typer.confirm("Do this?", abort=True)
