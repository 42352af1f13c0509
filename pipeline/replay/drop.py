"""A sandbox dropped: everything that has its name, on every server and on this disk."""

import datetime
import time
from dataclasses import dataclass

from pipeline.errors import Unavailable
from pipeline.replay import place
from pipeline.replay.changed import remove_worktree
from pipeline.replay.folder import Folder, every
from pipeline.settings import Settings

GONE_WITHIN_S = 30.0  # Kafka removes topics and groups a moment after it has said so


@dataclass(frozen=True, slots=True)
class Drop:
    """One sandbox to be dropped, as a plan shows it."""

    folder: Folder
    live: Settings

    def __str__(self) -> str:
        sandbox = self.folder.sandbox
        return (
            f"drop {sandbox.name}: Kafka topics, groups and principal {sandbox.prefix}…, PostgreSQL schema and role "
            f"and ClickHouse database {sandbox.owner}, and {self.folder.path}"
        )

    def as_json(self) -> dict[str, object]:
        return {"store": "sandbox", "what": str(self), "statements": []}

    def carry_out(self) -> None:
        drop(self.folder, self.live)


def expired(live: Settings, now: datetime.datetime) -> list[Drop]:
    """Those whose lifetime is over, and those half dropped, which nobody works on."""
    return [
        Drop(one, live)
        for one in every(live)
        if (one.plan.expires <= now or one.state["state"] == "dropping") and not one.running
    ]


def drop(folder: Folder, live: Settings) -> None:
    """Return when a listing shows nothing of it; what was cut off is taken up by the next call, so its files go last.

    Raises Misconfigured while it runs, Unavailable where a server is away.
    """
    sandbox = folder.sandbox
    with folder.locked():
        folder.note("dropping")
        place.remove(sandbox, live)
        remove_worktree(folder.path / "code")
        deadline = time.monotonic() + GONE_WITHIN_S
        while left := place.on_servers(sandbox, live):
            if time.monotonic() > deadline:
                raise Unavailable(f"{sandbox.name} is dropped, but there are still {', '.join(left)}: run this again.")
            time.sleep(0.5)
        folder.remove()
