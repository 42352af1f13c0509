"""`pipeline agents`."""

import pathlib
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, Yes, agreed, show_plan
from pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from pipeline.agents.load import Loaded
    from pipeline.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Agents that change records between topics, and where readers stand.")
Paths = Annotated[list[pathlib.Path] | None, typer.Argument(help="Files, or folders of them; default my_agents.")]
DEFAULT = pathlib.Path("my_agents")


class Writer(StrEnum):
    pg_writer = "pg_writer"
    ch_writer = "ch_writer"


@app.command("run")
def run(
    paths: Paths = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes an agent; default its settings'.")
    ] = None,
) -> None:
    """Run agents, each in processes of its own, until SIGTERM; a file that is not good is told and the others run."""
    from pipeline import workers as processes
    from pipeline.agents import graph
    from pipeline.agents.load import settings_of
    from pipeline.telemetry import log

    loaded = settings.load()
    log.configure("agents")
    found = _load(paths)
    declared = _declared(loaded)
    groups = []
    for agent in found.agents.values():
        try:
            own, _ = settings_of(agent, loaded)
            graph.topics_of(agent, declared)
        except Misconfigured as error:
            _tell(error.problems)
            continue
        command = ["agents", "worker", agent.file, agent.name]
        groups.append(processes.Group(agent.name, command, workers or own.workers))
    if not groups:
        raise Misconfigured("There is no agent to run.")
    sys.exit(processes.supervise(groups))


@app.command("worker", hidden=True)
def worker(file: pathlib.Path, name: str) -> None:
    """One process of one agent."""
    from pipeline import workers as processes
    from pipeline.agents import graph
    from pipeline.agents.worker import run_agent
    from pipeline.telemetry import log

    number = processes.number()
    loaded = settings.load()
    log.configure(name)
    agent = _load([file]).agents[name]
    run_agent(agent, loaded, graph.topics_of(agent, _declared(loaded)), number or 0)


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


def _load(paths: Sequence[pathlib.Path] | None) -> "Loaded":
    """The agents; what is wrong with a file is told on stderr."""
    from pipeline.agents.load import load

    found = load(paths or [DEFAULT])
    _tell(found.problems)
    return found


def _tell(problems: Sequence[str]) -> None:
    for problem in problems:
        print(problem, file=sys.stderr)


def _declared(loaded: "Settings") -> dict[str, str]:
    from pipeline import topics

    return {topic.name: topic.signal for topic in topics.load(environment=loaded.environment)}
