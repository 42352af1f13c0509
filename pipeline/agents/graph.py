"""Who reads and writes which topic: gateways, agents and writers as one graph, and what cannot be right in it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from pipeline.agents.api import Agent, Topics
from pipeline.errors import Misconfigured
from pipeline.record.schema import CURRENT, SIGNALS, Signal
from pipeline.record.times import FORM_NS, RECEIPT_NS
from pipeline.settings import RoutesSettings

Declared = Mapping[str, str]  # the signal of each topic, as topics/*.yaml say
GATEWAY = "gateway"
WRITERS: dict[Signal, tuple[str, ...]] = {
    "logs": ("ch_writer", "pg_writer"),
    "metrics": ("ch_writer", "pg_writer"),
    "traces": ("ch_writer",),
}
DLQ = "_dlq"
LARGEST_RANK = RECEIPT_NS // FORM_NS - 1
BOX = (200, 34, 70, 14)  # of the drawing: width, height, and the spaces between columns and rows


class Node(NamedTuple):
    """A topic, or a process: an agent may be called as a topic is."""

    name: str
    is_topic: bool = False

    def __str__(self) -> str:
        return self.name


class Edge(NamedTuple):
    """One process that reads a topic or writes it."""

    source: Node
    target: Node


class Graph:
    """Agents between the topics that are declared, and the routes to the stores."""

    def __init__(self, agents: Sequence[Agent], declared: Declared, routes: RoutesSettings) -> None:
        self._agents, self._declared, self._routes = agents, declared, routes

    @property
    def edges(self) -> list[Edge]:
        """From the gateway to the writers, agents by their names."""
        topics = [Edge(Node(GATEWAY), _topic(f"{signal}_raw")) for signal in SIGNALS]
        agents = [
            edge
            for agent in self._agents
            for edge in (
                Edge(_topic(agent.reads), Node(agent.name)),
                *(Edge(Node(agent.name), _topic(topic)) for topic in agent.writes),
            )
        ]
        stored = [
            Edge(_topic(topic), Node(writer))
            for signal in SIGNALS
            for topic in self._routes.of(signal)
            for writer in WRITERS[signal]
        ]
        return topics + agents + stored

    def problems(self) -> list[str]:
        """A sentence for each thing that cannot be right."""
        found: list[str] = []
        for agent in self._agents:
            try:
                topics_of(agent, self._declared)
            except Misconfigured as error:
                found += error.problems
        return [*found, *self._owners(), *self.cycles().values(), *self._unstored(), *self._routed(), *self._ranks()]

    def _owners(self) -> Iterable[str]:
        owners: dict[str, list[Agent]] = defaultdict(list)
        for agent in self._agents:
            for topic in agent.writes:
                owners[topic].append(agent)
        for topic, several in sorted(owners.items()):
            if len(several) > 1:
                who = " and ".join(f"{each.name} ({each.where})" for each in several)
                yield f"{topic} has more than one owner: {who}; let each write a topic of its own."
            if topic in (f"{signal}_raw" for signal in SIGNALS):
                yield f"{several[0].where}: {several[0].name} writes {topic}, which is the gateway's."

    def cycles(self) -> dict[frozenset[str], str]:
        """By the agents in it, a sentence for each cycle: records would go round in it for ever."""
        after: dict[Node, list[Node]] = defaultdict(list)
        for edge in self.edges:
            after[edge.source].append(edge.target)

        def to(goal: Node, at: Node, way: tuple[Node, ...]) -> tuple[Node, ...] | None:
            for following in after[at]:
                if following == goal:
                    return (*way, goal)
                if following not in way and (found := to(goal, following, (*way, following))):
                    return found
            return None

        told: dict[frozenset[str], str] = {}
        for agent in self._agents:
            itself = Node(agent.name)
            way = to(itself, itself, (itself,))
            if way:
                names = frozenset(each.name for each in way if not each.is_topic)
                told.setdefault(names, f"{agent.where}: a cycle: {' → '.join(map(str, way))}.")
        return told

    def _unstored(self) -> Iterable[str]:
        used = {agent.reads for agent in self._agents}.union(*(self._routes.of(signal) for signal in SIGNALS))
        for agent in self._agents:
            for topic in agent.writes:
                if topic not in used:
                    signal = self._declared.get(topic, "logs")
                    yield (
                        f"{agent.where}: nobody stores {topic} of {agent.name}, and no agent reads it: name it in the "
                        f"setting routes.{signal}."
                    )

    def _routed(self) -> Iterable[str]:
        written = {topic for agent in self._agents for topic in agent.writes}
        for signal in SIGNALS:
            routed = self._routes.of(signal)
            for topic in routed:
                where = f"settings: routes.{signal}: {topic}"
                if self._declared.get(topic) != signal:
                    yield f"{where} is no declared topic of {signal}."
                elif f"{topic}{DLQ}" not in self._declared:
                    yield f"{where}: its dead letters have no topic: write topics/{topic}{DLQ}.yaml."
                elif topic != f"{signal}_raw" and topic not in written:
                    yield f"{where} is written by no agent: the stores would get nothing."
                for before in self._made_of(topic, signal) & set(routed):
                    yield f"{where} is made of {before}, which is routed too: the stores would get two forms of it."

    def _made_of(self, topic: str, signal: Signal) -> set[str]:
        """The topics of the signal from which agents make it."""
        found: set[str] = set()
        left = [topic]
        while left:
            here = left.pop()
            for agent in self._agents:
                if here in agent.writes and self._declared.get(agent.reads) == signal and agent.reads not in found:
                    found.add(agent.reads)
                    left.append(agent.reads)
        return found

    def _ranks(self) -> Iterable[str]:
        total = sum(agent.version for agent in self._agents)
        if total > LARGEST_RANK:
            yield f"The versions of all agents add up to {total}; a record's receipt can tell {LARGEST_RANK} forms."

    def text(self) -> list[str]:
        """A line a way from the gateway to where it ends."""
        after: dict[Node, list[Node]] = defaultdict(list)
        for edge in self.edges:
            after[edge.source].append(edge.target)

        def ways(at: Node, way: tuple[Node, ...]) -> Iterable[tuple[Node | str, ...]]:
            following = [each for each in dict.fromkeys(after[at]) if each not in way]
            ends = [each for each in following if not after[each]]
            if ends or not following:
                yield (*way, ", ".join(map(str, ends))) if ends else way
            for each in following:
                if each not in ends:
                    yield from ways(each, (*way, each))

        sources = dict.fromkeys(edge.source for edge in self.edges)
        targets = {edge.target for edge in self.edges}
        starts = [each for each in sources if each not in targets]
        return [" → ".join(map(str, way)) for start in starts for way in ways(start, (start,))]

    def svg(self) -> str:
        """The same as a drawing: a column for each step from the gateway."""
        edges = self.edges
        column: dict[Node, int] = {}
        for _ in range(len(edges)):  # the longest way to each; a cycle ends it
            for source, target in edges:
                column[target] = max(column.get(target, 0), min(column.setdefault(source, 0) + 1, len(edges)))
        columns = sorted(set(column.values()))
        rows = {n: [node for node in column if column[node] == n] for n in columns}
        width, height, between, under = BOX
        place = {
            node: (10 + columns.index(n) * (width + between), 10 + row * (height + under))
            for n, nodes in rows.items()
            for row, node in enumerate(nodes)
        }
        size = max(x for x, _ in place.values()) + width + 10, max(y for _, y in place.values()) + height + 10
        drawn = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" '
            f'height="{size[1]}" font-family="sans-serif" font-size="13">',
            "<title>Topics, agents and writers</title>",
        ]
        for source, target in dict.fromkeys(edges):
            (x, y), (to_x, to_y) = place[source], place[target]
            start, end = (x + width, y + height // 2), (to_x, to_y + height // 2)
            bend = between // 2
            drawn.append(
                f'<path d="M{start[0]},{start[1]} C{start[0] + bend},{start[1]} {end[0] - bend},{end[1]} '
                f'{end[0]},{end[1]}" fill="none" stroke="#888"/>'
            )
        for (name, is_topic), (x, y) in place.items():
            drawn.append(
                f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{3 if is_topic else 16}" '
                f'fill="{"#eef4ff" if is_topic else "#fff5e0"}" stroke="#888"/>'
                f'<text x="{x + width // 2}" y="{y + height // 2 + 5}" text-anchor="middle">{escape(name)}</text>'
            )
        return "\n".join([*drawn, "</svg>"]) + "\n"


def _topic(name: str) -> Node:
    return Node(name, is_topic=True)


def topics_of(agent: Agent, declared: Declared) -> Topics:
    """Where the agent writes the records of each signal; raises Misconfigured where that is not told, or twice."""
    found: Topics = {}
    problems = [
        f"{agent.where}: {topic} of {agent.name} is no declared topic of records: write topics/{topic}.yaml, or let "
        "`pipeline agents new` write it."
        for topic in (agent.reads, *agent.writes)
        if declared.get(topic) not in CURRENT
    ]
    if f"{agent.reads}{DLQ}" not in declared:
        problems.append(
            f"{agent.where}: dead letters of {agent.reads} have no topic: write topics/{agent.reads}{DLQ}.yaml."
        )
    for topic in () if problems else agent.writes:
        signal: Signal = declared[topic]  # type: ignore[assignment]
        if signal in found:
            problems.append(f"{agent.where}: {agent.name} writes two topics of {signal}: {found[signal]} and {topic}.")
        found[signal] = topic
    if problems:
        raise Misconfigured(problems)
    return found
