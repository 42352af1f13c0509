"""What of the pipeline a replay changes: its settings, its agents, or all of its code."""

import os
import pathlib
import socket
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from pipeline.errors import Misconfigured
from pipeline.replay.described import Described, describe
from pipeline.replay.folder import Folder, Way
from pipeline.replay.plan import Plan
from pipeline.settings import PREFIX, ROOT, RoutesSettings, Settings, as_environment

WITHIN_S = 2.0  # few large inserts: nobody waits for what they store, and live writes to the same servers


@dataclass(frozen=True, slots=True)
class Changed:
    """The sandbox's settings, the folder whose code runs, its migrations, and the agents between topics and writers."""

    settings: Settings
    code: pathlib.Path
    migrations: pathlib.Path
    agents: Mapping[str, Described] = field(default_factory=dict)


def changed(folder: Folder, live: Settings, way: Way) -> Changed:
    """Raises Misconfigured with every problem of what `way` names."""
    base = _base(way.settings, _patient(live))
    code = _worktree(folder, way.against) if way.against else ROOT
    sandbox = folder.plan.sandbox
    found: dict[str, Described] = {}
    if way.agents is not None:
        env = environment(sandbox.settings(base, live, folder.secret), code)
        found = describe(way.agents, env, code)
        _demand_apart(folder.plan, found)
        base = base.model_copy(update={"routes": _routes(base, found)})
    own = sandbox.settings(_with_ports(base, list(found)), live, folder.secret)
    return Changed(own, code, code / "migrations", found)


def environment(own: Settings, code: pathlib.Path) -> dict[str, str]:
    """Of the sandbox's processes: nothing of ours but what the sandbox's settings say; an older revision does not know
    all that there is."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    defaults = as_environment(Settings.model_construct())
    said = {key: value for key, value in as_environment(own).items() if defaults.get(key) != value}
    return {**inherited, **said, "PYTHONPATH": str(code)}


def _patient(live: Settings) -> Settings:
    """Live's settings with writers that wait for more; what `--settings` says of that still holds."""
    waits = {"batch_within_s": WITHIN_S}
    return live.model_copy(
        update={
            "pg_writer": live.pg_writer.model_copy(update=waits),
            "ch_writer": live.ch_writer.model_copy(update=waits),
        }
    )


def _base(file: pathlib.Path | None, live: Settings) -> Settings:
    if file is None:
        return live
    try:
        said = tomllib.loads(file.read_text())
        unknown = sorted(said.keys() - Settings.model_fields.keys())
        if unknown:
            raise Misconfigured([f"{file}: {name} is no setting." for name in unknown])
        parts = {name: _part(live, name, value) for name, value in said.items()}
        return live.model_copy(update=parts)
    except FileNotFoundError:
        raise Misconfigured(f"--settings: {file} is not there.") from None
    except ValidationError as invalid:
        raise Misconfigured(
            [f"{file}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in invalid.errors(include_input=False)]
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise Misconfigured(f"--settings: {file} is no TOML: {error}.") from None


def _part(live: Settings, name: str, value: object) -> object:
    """A part of live's settings with what the file says laid over it, checked."""
    now = getattr(live, name)
    if isinstance(value, dict) and not isinstance(now, dict):
        return type(now)(**{**dict(now), **value})
    return value


def _routes(base: Settings, agents: Mapping[str, Described]) -> RoutesSettings:
    """Writers store what the last agents make of a signal; what nobody touches they store as it is."""
    written: dict[str, list[str]] = {}
    read = {agent.reads for agent in agents.values()}
    for agent in agents.values():
        for signal, topic in agent.writes.items():
            if topic not in read:
                written.setdefault(signal, []).append(topic)
    return base.routes.model_copy(update={signal: tuple(dict.fromkeys(found)) for signal, found in written.items()})


def _demand_apart(plan: Plan, agents: Mapping[str, Described]) -> None:
    """Raise Misconfigured where an agent would write into the copy of what is replayed."""
    found = [(topic, agent.name) for agent in agents.values() for topic in agent.writes.values()]
    both = [f"{plan.name} replays {topic}, which {name} writes too: plan without it." for topic, name in found
            if topic in plan.topics]  # fmt: skip
    if both:
        raise Misconfigured(both)


def _with_ports(base: Settings, agents: Sequence[str]) -> Settings:
    """Health is served where nobody listens: two sandboxes and live do not meet."""
    ports = iter(_free_ports(2 + len(agents)))
    own = {name: {**base.agents.get(name, {}), "health_port": next(ports)} for name in agents}
    return base.model_copy(
        update={
            "pg_writer": base.pg_writer.model_copy(update={"health_port": next(ports), "workers": 1}),
            "ch_writer": base.ch_writer.model_copy(update={"health_port": next(ports), "workers": 1}),
            "agents": {**base.agents, **own},
        }
    )


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _worktree(folder: Folder, against: str) -> pathlib.Path:
    """The code of `git:<revision>`, beside the sandbox's files; it runs in this Python environment. A run that goes on
    has what it began with."""
    kind, _, revision = against.partition(":")
    if kind != "git" or not revision:
        raise Misconfigured(f"--against: {against!r} names no code: write git:<revision>, such as git:HEAD~1.")
    into = folder.path / "code"
    if folder.way is None:
        remove_worktree(into)  # of a run that was refused
    if not into.exists():
        done = _git("add", "--detach", str(into), revision)
        if done.returncode:
            raise Misconfigured(f"--against: git has no revision {revision!r}: {done.stderr.strip().splitlines()[-1]}.")
    return into


def remove_worktree(code: pathlib.Path) -> None:
    """Nothing where it is not there; raises Misconfigured where git refuses."""
    if code.exists():
        done = _git("remove", "--force", "--force", str(code))  # a half-made one is locked
        if done.returncode:
            raise Misconfigured(f"git does not remove {code}: {done.stderr.strip()}")


def _git(*words: str) -> "subprocess.CompletedProcess[str]":
    command = ["git", "-C", str(ROOT), "worktree", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)
