"""A sandbox dropped: everything that has its name, on every server and on this disk."""

import subprocess

from pipeline.errors import Misconfigured, Unavailable
from pipeline.replay import place
from pipeline.replay.folder import Folder
from pipeline.settings import ROOT, Settings


def lines(folder: Folder) -> list[str]:
    """What `drop` would remove."""
    sandbox = folder.plan.sandbox
    return [
        f"drop {folder.plan.name}: Kafka topics, groups and principal {sandbox.prefix}…, PostgreSQL schema and role "
        f"and ClickHouse database {sandbox.owner}, and {folder.path}"
    ]


def drop(folder: Folder, live: Settings) -> None:
    """Return when a listing shows nothing of it; what was cut off is taken up by the next call.

    Raises Misconfigured while it runs, Unavailable where a server is away.
    """
    plan = folder.plan
    with folder.locked():
        folder.note("dropping")
        place.remove(plan.sandbox, live)
        code = folder.path / "code"
        if code.exists():
            command = ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(code)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Misconfigured(f"git does not remove {code}: {done.stderr.strip()}")
        folder.remove()
    left = place.left(plan.sandbox, live)
    if left:
        raise Unavailable(f"{plan.name} is dropped, but still there are {', '.join(left)}: run this again in a moment.")
