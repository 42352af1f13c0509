"""How far each agent is behind the topic that it reads."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.agents.api import Agent
from pipeline.errors import Misconfigured
from pipeline.kafka.connection import unseen
from pipeline.kafka.groups import Groups
from pipeline.kafka.reader import Range, Reader
from pipeline.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class Status:
    """`lag` counts messages that wait for the agent, `oldest_s` is the age of the first of them, None without any."""

    agent: str
    version: int
    topic: str
    lag: int
    oldest_s: float | None

    def __str__(self) -> str:
        behind = "nothing waits" if self.oldest_s is None else f"{self.lag:,} messages wait, for {self.oldest_s:,.0f} s"
        return f"{self.agent:<24} version {self.version:<3} {self.topic:<24} {behind}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def status(agents: Iterable[Agent], kafka: KafkaSettings) -> list[Status]:
    """By what the agents' groups committed; raises Unavailable where Kafka is away, Misconfigured without a topic."""
    reader, groups = Reader(kafka), Groups(kafka)
    found = []
    present = reader.topics()
    for agent in agents:
        if agent.reads not in present:
            raise Misconfigured(f"{agent.where}: topics {unseen(kafka, [agent.reads])}.")
        retained = reader.retained([agent.reads])
        committed = groups.committed(agent.name, [(each.topic, each.partition) for each in retained])
        waiting = []
        for each in retained:
            place = committed.get((each.topic, each.partition))
            start = max(each.start, place.offset) if place else each.start
            if start < each.end:
                waiting.append(Range(each.topic, each.partition, start, each.end))
        found.append(Status(agent.name, agent.version, agent.reads, _count(waiting), _oldest_s(reader, waiting)))
    return found


def _count(waiting: list[Range]) -> int:
    return sum(each.end - each.start for each in waiting)


def _oldest_s(reader: Reader, waiting: list[Range]) -> float | None:
    firsts = [Range(each.topic, each.partition, each.start, each.start + 1) for each in waiting]
    oldest = min((message.timestamp_ms for message in reader.read(firsts)), default=None)
    return None if oldest is None else max(0.0, time.time() - oldest / 1000)
