"""A sandbox on disk: its plan, how it is run, how far it is, logs; one process at a time works on it."""

import contextlib
import fcntl
import json
import pathlib
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import Misconfigured
from pipeline.replay.names import Sandbox
from pipeline.replay.plan import Plan
from pipeline.settings import Settings

State = Literal["planned", "copying", "storing", "done", "dropping"]


class Way(BaseModel):
    """How a replay is run; a run that goes on takes the same. `settings`, `agents` and `against` are None for what live
    has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: pathlib.Path | None = None
    agents: pathlib.Path | None = None
    against: str | None = None
    records_per_s: int

    def __str__(self) -> str:
        changed = [("settings", self.settings), ("agents", self.agents), ("code", self.against)]
        return ", ".join(f"{name} {value}" for name, value in changed if value is not None) or "unchanged"


@dataclass(frozen=True, slots=True)
class Folder:
    """One sandbox's folder."""

    path: pathlib.Path

    @classmethod
    def of(cls, name: str, live: Settings) -> "Folder":
        """Raise Misconfigured where there is no sandbox of that name."""
        found = cls(Sandbox.called(name).folder(live))
        if not (found.path / "plan.json").exists():
            known = [one.plan.name for one in every(live)]
            raise Misconfigured(
                f"There is no sandbox {name}; there {'are ' + ', '.join(known) if known else 'is none'}: "
                "`pipeline replay plan` makes one."
            )
        return found

    @classmethod
    def made(cls, plan: Plan, live: Settings) -> "Folder":
        """Keep a new plan. Raise Misconfigured where its name is in use, or the disk takes no more."""
        found = cls(plan.sandbox.folder(live))
        fresh = found.path.with_name(f".{plan.sandbox.id}.{secrets.token_hex(4)}")  # appears in one piece
        try:
            fresh.parent.mkdir(parents=True, exist_ok=True)
            fresh.mkdir(mode=0o700)
            (fresh / "plan.json").write_text(plan.model_dump_json(indent=2) + "\n")
            (fresh / "secret").write_text(secrets.token_urlsafe(24))
            (fresh / "secret").chmod(0o600)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise Misconfigured(
                f"{fresh.parent} cannot keep the plan ({error.strerror}): make room, or let replay.directory name "
                "another folder."
            ) from None
        try:
            fresh.rename(found.path)
        except OSError:
            shutil.rmtree(fresh)
            other = found.plan
            raise Misconfigured(
                f"The name {plan.name} is in use, by {other.name} of {other.created:%Y-%m-%d %H:%M}: choose another, "
                f"or `pipeline replay drop {other.name}`."
            ) from None
        return found

    @property
    def plan(self) -> Plan:
        """Raise Misconfigured where it is damaged, or another sandbox's."""
        path = self.path / "plan.json"
        found = Plan.parse(path.read_text(errors="replace"), str(path))
        if found.sandbox.id != self.path.name:
            raise Misconfigured(
                f"{path} is the plan of {found.name}, and its folder another sandbox's: drop {self.path.name} and plan "
                "again."
            )
        return found

    @property
    def sandbox(self) -> Sandbox:
        """By its plan; where that is damaged by the folder, which has the same id."""
        try:
            return self.plan.sandbox
        except (Misconfigured, OSError):
            return Sandbox.called(self.path.name)

    @property
    def secret(self) -> str:
        return (self.path / "secret").read_text()

    @property
    def way(self) -> Way | None:
        """None before the first run. Raise Misconfigured where it is damaged."""
        path = self.path / "way.json"
        try:
            return Way.model_validate_json(path.read_text(errors="replace"))
        except FileNotFoundError:
            return None
        except ValidationError:
            raise Misconfigured(f"{path} does not say how it was run: drop the sandbox and plan again.") from None

    def keep_way(self, way: Way) -> None:
        """Raise Misconfigured where it has been run in another way: what is stored would be of both."""
        before = self.way
        if before is not None and before.model_copy(update={"records_per_s": way.records_per_s}) != way:
            raise Misconfigured(
                f"{self.plan.name} has been run with {before}, not with {way}: run it without options to go on, or "
                "plan another sandbox for this."
            )
        _write(self.path / "way.json", way.model_dump_json(indent=2))

    @property
    def state(self) -> dict[str, Any]:
        """How far it is said to be; what is done is in Kafka and the stores, so a damaged file is none."""
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            return {"state": "planned", **dict(json.loads((self.path / "state.json").read_bytes()))}
        return {"state": "planned"}

    def note(self, state: State, **more: Any) -> None:
        _write(self.path / "state.json", json.dumps({**self.state, "state": state, **more}, indent=2))

    @property
    def paused(self) -> bool:
        return (self.path / "paused").exists()

    def pause(self) -> None:
        (self.path / "paused").touch()

    def unpause(self) -> None:
        (self.path / "paused").unlink(missing_ok=True)

    @property
    def running(self) -> bool:
        with (self.path / "lock").open("w") as lock:
            return not _lock(lock, fcntl.LOCK_SH, within_s=0.0)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Raise Misconfigured where another process works on it; a killed one's lock is free."""
        with (self.path / "lock").open("w") as lock:
            if not _lock(lock, fcntl.LOCK_EX):
                raise Misconfigured(
                    f"{self.sandbox.name} is at work in another process: wait, or stop that with Ctrl-C."
                )
            yield

    def remove(self) -> None:
        shutil.rmtree(self.path)


def every(live: Settings) -> list[Folder]:
    """All sandboxes, the oldest first; one that is damaged is told on stderr and is not among them."""
    found = []
    for path in live.replay.directory.glob("[!.]*/plan.json"):
        one = Folder(path.parent)
        try:
            found.append((one.plan.created, one.way, one))
        except (Misconfigured, OSError) as damaged:
            print(damaged, file=sys.stderr)
    return [one for *_, one in sorted(found, key=lambda each: each[0])]


def _lock(lock: IO[str], kind: int, within_s: float = 1.0) -> bool:
    """Who only looks whether somebody works here has it for a moment too, so that is waited for."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def _write(path: pathlib.Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text + "\n")
    fresh.replace(path)
