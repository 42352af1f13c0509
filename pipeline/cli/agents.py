"""`pipeline agents`."""

import pathlib
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, Yes, agreed, show_json, show_plan
from pipeline.errors import Misconfigured, Unavailable

if TYPE_CHECKING:
    from pipeline.agents import Agent
    from pipeline.agents.graph import Graph
    from pipeline.agents.isolated import Isolated
    from pipeline.agents.load import Loaded
    from pipeline.delivery import Message
    from pipeline.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Agents that change records between topics, and where readers stand.")
DEFAULT = pathlib.Path("my_agents")
SAMPLES = 3  # messages a partition
Paths = Annotated[list[pathlib.Path] | None, typer.Argument(help="Files, or folders of them; default my_agents.")]
Ours = Annotated[list[pathlib.Path] | None, typer.Option("--agents", help="Files or folders of agents; default none.")]
Last = Annotated[str, typer.Option(help="Received in this time: 90s, 5m, 2h, 1d.")]


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="As mask_emails.")],
    folder: Annotated[pathlib.Path, typer.Option(help="Where it is written.")] = DEFAULT,
    signal: Annotated[Literal["logs", "metrics", "traces"], typer.Option(help="What it reads and writes.")] = "logs",
    reads: Annotated[str | None, typer.Option(help="Default <signal>_raw.")] = None,
    writes: Annotated[str | None, typer.Option(help="Default <signal>_norm.")] = None,
) -> None:
    """Write an agent, its test, and the topics that it writes where no file declares them."""
    from pipeline.agents import scaffold

    loaded = settings.load()
    topics = reads or f"{signal}_raw", writes or f"{signal}_norm"
    for path, text in scaffold.files(name, signal, topics, folder, loaded.topics_directory).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path)


@app.command("try")
def try_(
    file: pathlib.Path,
    topic: Annotated[str | None, typer.Option("--from", help="Default: the one that it reads.")] = None,
    last: Last = "5m",
    most: Annotated[int, typer.Option("-n", min=1, help="Records to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what an agent makes of what a topic holds, before and after; nothing is written anywhere."""
    from pipeline.agents import trial
    from pipeline.topics.tail import ago_ms

    loaded = settings.load()
    shown: list[trial.Tried] = []
    for agent in _demanded([file]):
        with _isolated(agent, loaded) as isolated:
            from_ms = ago_ms(last, time.time_ns() // 10**6)
            for message in trial.newest(loaded.kafka, topic or agent.reads, from_ms, most):
                shown += trial.tried(isolated, message)
                if len(shown) >= most:
                    break
    if as_json:
        show_json([each.as_json() for each in shown[:most]])
    else:
        for each in shown[:most]:
            print(each)
        print(f"{len(shown[:most])} records; nothing was written.")


@app.command("test")
def hold(
    paths: Paths = None,
    last: Last = "1h",
    as_json: AsJson = False,
) -> None:
    """Hold agents to the laws, on records of their topics and generated ones; exit 1 where one breaks a law."""
    from pipeline.agents import graph, laws

    loaded = settings.load()
    declared = _declared(loaded)
    verdicts = []
    found = _load(paths)
    for agent in found.agents.values():
        graph.topics_of(agent, declared)
    samples = _samples({agent.reads for agent in found.agents.values()}, loaded, last)
    for agent in found.agents.values():
        with _isolated(agent, loaded) as one, _isolated(agent, loaded) as other:
            verdict = laws.judge(agent, declared[agent.reads], (one, other), samples[agent.reads])  # type: ignore[arg-type]
        verdicts.append(verdict)
        if not as_json:
            print(verdict)
    if as_json:
        show_json([each.as_json() for each in verdicts])
    _end(found)
    if any(each.broken for each in verdicts):
        raise typer.Exit(1)


@app.command("run")
def run(
    paths: Paths = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Of each agent; default: its settings.")] = None,
) -> None:
    """Run agents, each in processes of its own, until SIGTERM; one that is not good is told and the others run."""
    from pipeline import workers as processes
    from pipeline.agents import graph
    from pipeline.agents.load import settings_of
    from pipeline.telemetry import log

    loaded = settings.load()
    log.configure("agents")
    declared = _declared(loaded)
    groups = []
    found = _load(paths)
    cycles = graph.Graph(list(found.agents.values()), declared, loaded.routes).cycles()
    _tell([f"{cycle} Its agents do not run: records would go round for ever." for cycle in cycles.values()])
    for agent in found.agents.values():
        if any(agent.name in cycle for cycle in cycles):
            continue
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
    agent = next((each for each in _demanded([file]) if each.name == name), None)
    if agent is None:
        raise Misconfigured(f"{file} has no agent {name} any more.")
    run_agent(agent, loaded, graph.topics_of(agent, _declared(loaded)), number or 0)


@app.command("list")
def list_(paths: Paths = None, as_json: AsJson = False) -> None:
    """Print every agent: its version, what it reads and writes, and where it stands."""
    found = _load(paths)
    rows = [
        {"agent": one.name, "version": one.version, "reads": one.reads, "writes": one.writes, "where": one.where}
        for one in found.agents.values()
    ]
    if as_json:
        show_json(rows)
    else:
        for one in found.agents.values():
            print(f"{one.name:<24} version {one.version:<3} {one.reads} → {', '.join(one.writes)}   {one.where}")
    _end(found)


@app.command("status")
def status(paths: Paths = None, as_json: AsJson = False) -> None:
    """Print how many messages wait for each agent, and for how long the first of them."""
    from pipeline.agents import status as room

    found = _load(paths)
    rows = room.status(found.agents.values(), settings.load().kafka) if found.agents else []
    if as_json:
        show_json([each.as_json() for each in rows])
    else:
        for each in rows:
            print(each)
    _end(found)


@app.command("check")
def check(paths: Paths = None) -> None:
    """Check agents, their topics and settings, and the routes to the stores as one graph; exit 2 with what is wrong."""
    from pipeline.agents.load import settings_of

    loaded = settings.load()
    found = _load(paths)
    problems = _graph(found, loaded).problems()
    for agent in found.agents.values():
        try:
            settings_of(agent, loaded)
        except Misconfigured as error:
            problems += error.problems
    problems += [
        f"settings: agents.{name}: there is no such agent." for name in loaded.agents if name not in found.agents
    ]
    _tell(problems)
    if problems or found.problems:
        raise typer.Exit(2)
    print(f"{len(found.agents)} agents between their topics and the stores are declared well.")


@app.command("graph")
def graph(
    paths: Paths = None,
    svg: Annotated[pathlib.Path | None, typer.Option(help="Write a drawing there.")] = None,
) -> None:
    """Print the ways from the gateway through agents to the stores, a line each."""
    found = _load(paths)
    drawn = _graph(found, settings.load())
    if svg:
        svg.write_text(drawn.svg())
    for line in drawn.text():
        print(line)
    _end(found)


@app.command("show")
def show(
    name: Annotated[str | None, typer.Argument(help="A built-in agent; default: all their names.")] = None,
) -> None:
    """Print the page of a built-in agent: what it does, reads, writes and can be set."""
    from pipeline.agents import builtin

    if name is None:
        for each in builtin.names():
            print(f"{each:16}{builtin.page(each).splitlines()[0]}")
    elif name in builtin.names():
        print(builtin.page(name))
    else:
        raise Misconfigured(f"There is no built-in agent {name!r}; there are {', '.join(builtin.names())}.")


@app.command("gaps")
def gaps(agents: Ours = None, as_json: AsJson = False) -> None:
    """Print what Kafka removed before the writers, and these agents, read it; exit 1 where that is something."""
    from pipeline.agents import gaps

    loaded = settings.load()
    readers = {writer: gaps.topics(writer, loaded) for writer in gaps.STORED}
    readers |= {agent.name: (agent.reads,) for agent in (_load(agents).agents.values() if agents else ())}
    show_plan([gap for name, topics in readers.items() for gap in gaps.find(name, topics, loaded)], as_json)


@app.command("accept_gap")
def accept_gap(
    reader: Annotated[str, typer.Argument(help="A writer or an agent.")],
    topic: Annotated[str, typer.Option()],
    partition: Annotated[int, typer.Option(min=0)],
    yes: Yes = False,
) -> None:
    """Let a stopped reader go on at the first message that a partition has; print what is given up, and ask."""
    from pipeline.agents import gaps

    loaded = settings.load()
    found = gaps.of(reader, topic, partition, loaded)
    if agreed(found, yes):
        gaps.accept(found, loaded)


def _load(paths: Sequence[pathlib.Path] | None) -> "Loaded":
    """The agents; what is wrong with a file is told on stderr."""
    from pipeline.agents.load import load

    found = load(paths or [DEFAULT])
    _tell(found.problems)
    return found


def _end(found: "Loaded") -> None:
    """With 2 where something was wrong with a file, which has been told."""
    if found.problems:
        raise typer.Exit(2)


def _demanded(paths: Sequence[pathlib.Path]) -> "list[Agent]":
    from pipeline.agents.load import load

    found = load(paths)
    if found.problems:
        raise Misconfigured(found.problems)
    return list(found.agents.values())


def _tell(problems: Sequence[str]) -> None:
    for problem in problems:
        print(problem, file=sys.stderr)


def _declared(loaded: "Settings") -> dict[str, str]:
    from pipeline import topics

    return {topic.name: topic.signal for topic in topics.load(loaded.topics_directory, environment=loaded.environment)}


def _graph(found: "Loaded", loaded: "Settings") -> "Graph":
    from pipeline.agents.graph import Graph

    return Graph(list(found.agents.values()), _declared(loaded), loaded.routes)


@contextmanager
def _isolated(agent: "Agent", loaded: "Settings") -> "Iterator[Isolated]":
    """The agent in a process that gives up a record after a few seconds."""
    from pipeline.agents import graph
    from pipeline.agents.isolated import Isolated
    from pipeline.agents.load import settings_of

    own, _ = settings_of(agent, loaded)
    hasty = own.model_copy(update={"record_within_s": min(own.record_within_s, 5.0)})
    with closing(Isolated(agent, hasty, loaded, graph.topics_of(agent, _declared(loaded)))) as isolated:
        yield isolated


def _samples(topics: Collection[str], loaded: "Settings", last: str) -> "dict[str, list[Message]]":
    """What each of the topics holds; nothing, and a word on stderr, for one that Kafka lacks, or once it is away."""
    from pipeline.agents import trial
    from pipeline.topics.tail import ago_ms

    found: dict[str, list[Message]] = {topic: [] for topic in topics}
    for topic in sorted(topics):
        try:
            found[topic] = trial.newest(loaded.kafka, topic, ago_ms(last, time.time_ns() // 10**6), SAMPLES)
        except Misconfigured as error:
            print(f"{topic}: on generated records alone: {error}", file=sys.stderr)
        except Unavailable as error:
            print(f"on generated records alone: {error}", file=sys.stderr)
            break
    return found
