"""What a cluster has, beside what is declared: described, brought under a file, or deleted."""

import pathlib
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.errors import Misconfigured
from pipeline.kafka.admin import Cluster, LiveTopic
from pipeline.kafka.connection import hidden
from pipeline.kafka.groups import Groups
from pipeline.kafka.reader import Reader
from pipeline.settings import KafkaSettings
from pipeline.topics.declared import Topic

HOUR_MS = 3_600_000
EDITORS = "# yaml-language-server: $schema=topic.schema.json\n"


@dataclass(frozen=True, slots=True)
class Described:
    """One topic as it is: `retained` messages, and how many each consumer group has still to read."""

    name: str
    declared: bool
    partitions: int
    replication_factor: int
    in_sync: int
    retained: int
    lag: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        waiting = ", ".join(f"{group} has {lag} to read" for group, lag in self.lag.items())
        return (
            f"{self.name}: {self.partitions} partitions, {self.in_sync} of {self.replication_factor} replicas in sync, "
            f"{self.retained} messages{'; ' if waiting else ''}{waiting}"
            f"{'' if self.declared else '; no file declares it'}"
        )


def describe(declared: list[Topic], names: list[str], settings: KafkaSettings) -> list[Described]:
    """Those of `names` that the cluster has, all of them where none is named. Raises Misconfigured for the others."""
    cluster, reader, groups = Cluster(settings), Reader(settings), Groups(settings)
    there = cluster.names()
    missing = [f"There is no topic {name} in the cluster{hidden(settings)}." for name in names if name not in there]
    if missing:
        raise Misconfigured(missing)
    files = {topic.name: topic for topic in declared}
    live = cluster.topics(names or there)
    found = []
    for name in sorted(live):
        ranges = {(each.topic, each.partition): each for each in reader.retained([name])}
        lag = {}
        for group in files[name].consumers if name in files else ():
            committed = groups.committed(group, list(ranges))
            lag[group] = sum(
                max(0, each.end - max(each.start, committed[place].offset if place in committed else each.start))
                for place, each in ranges.items()
            )
        one = live[name]
        retained = sum(each.end - each.start for each in ranges.values())
        counts = one.partitions, one.replication_factor, one.in_sync, retained
        found.append(Described(name, name in files, *counts, lag))
    return found


def import_topic(name: str, said: dict[str, str], settings: KafkaSettings, directory: pathlib.Path) -> pathlib.Path:
    """Write the file in `directory` that declares the topic as the cluster has it, and as `said`: signal, owner,
    description.

    Raises Misconfigured where there is a file, no such topic, or one that no file can declare.
    """
    path = directory / f"{name}.yaml"
    live = Cluster(settings).topics([name]).get(name)
    if live is None:
        raise Misconfigured(f"There is no topic {name} in the cluster{hidden(settings)}.")
    if path.exists():
        raise Misconfigured(f"{directory.name}/{path.name} is there already; `pipeline topics plan` shows differences.")
    fields = {"name": name, **said, **_declared(live)}
    try:
        Topic.model_validate(fields)
    except ValidationError as invalid:
        raise Misconfigured(
            [
                f"{name} cannot be declared: {'.'.join(map(str, e['loc']))}: {e['msg']}."
                for e in invalid.errors(include_input=False, include_url=False)
            ]
        ) from None
    path.write_text(EDITORS + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True))
    return path


def _declared(live: LiveTopic) -> dict[str, Any]:
    """The cluster's words in the file's; whole hours, rounded up."""
    config = live.config
    fields = {
        "partitions": live.partitions,
        "replication_factor": live.replication_factor,
        "min_insync_replicas": int(config["min.insync.replicas"]),
        "retention_hours": -(-int(config["retention.ms"]) // HOUR_MS),
        "cleanup_policy": config["cleanup.policy"],
        "compression_type": config["compression.type"],
        "max_message_bytes": int(config["max.message.bytes"]),
    }
    size = int(config["retention.bytes"])
    return fields | ({"retention_bytes": size} if size >= 0 else {})
