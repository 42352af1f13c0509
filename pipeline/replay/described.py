"""Agents' files described, in a process of its own with a sandbox's settings: already when it is imported a file can do
no harm. `python -m pipeline.replay.described PATH` prints JSON."""

import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

from pipeline import settings, topics
from pipeline.agents import graph
from pipeline.agents.load import load, settings_of
from pipeline.errors import Misconfigured

WITHIN_S = 60.0


class Described(NamedTuple):
    """An agent: what it reads, and the topics that it writes by signal."""

    name: str
    file: str
    reads: str
    writes: dict[str, str]


def describe(path: pathlib.Path, env: dict[str, str], code: pathlib.Path) -> dict[str, Described]:
    """The agents of a file or folder by name; raises Misconfigured with every problem of theirs."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(path.resolve())], env=env, cwd=code, timeout=WITHIN_S,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        said = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise Misconfigured(f"--agents: {path} takes over {WITHIN_S:.0f} s to import.") from None
    except (ValueError, IndexError):
        raise Misconfigured(f"--agents: {path} does not import: {done.stderr.strip()[-300:]}") from None
    if said["problems"]:
        raise Misconfigured(said["problems"])
    return {one["name"]: Described(**one) for one in said["agents"]}


def main(path: pathlib.Path) -> None:
    own = settings.load()
    found = load([path])
    problems = list(found.problems)
    if not found.agents and not problems:
        problems.append(f"{path} holds no agent.")
    declared = {topic.name: topic.signal for topic in topics.load(own.topics_directory, environment=own.environment)}
    agents = []
    for agent in found.agents.values():
        try:
            settings_of(agent, own)
            writes = graph.topics_of(agent, declared)
        except Misconfigured as error:
            problems += error.problems
        else:
            agents.append(
                Described(
                    agent.name, agent.file, agent.reads, {str(signal): topic for signal, topic in writes.items()}
                )._asdict()
            )
    print(json.dumps({"agents": agents, "problems": problems}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
