"""What exists in a Kafka cluster: the admin door.

Topics only; records go through the producer and the reader. A topic's configuration is what applies to it
(cluster defaults included), and `overrides` names what was set on the topic itself.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its public names, which it does not list
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from pipeline.errors import Unavailable
from pipeline.kafka.connection import Heard
from pipeline.settings import KafkaSettings

TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 5.0  # of the first word from a cluster
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class LiveTopic:
    """A topic as the cluster has it; `config` holds every key in force, `overrides` the keys set on the topic."""

    partitions: int
    replication_factor: int
    in_sync: int  # replicas of the partition that has the fewest
    config: dict[str, str]
    overrides: frozenset[str]


class Cluster:
    """One Kafka cluster's topics. Every call waits for the answer, 10 s at most, and one that changes something waits
    until the change can be read.

    Raises Unavailable where the cluster does not answer, Misconfigured where it refuses. The client lives as long as
    this object: its futures die with it.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._servers = settings.bootstrap_servers
        self._heard = Heard(settings)
        self._client = self._heard.client(AdminClient)

    def id(self) -> str:
        """What the cluster calls itself; another one at the same address has another id."""
        with self._translated("tell its id"):
            return str(self._client.list_topics(timeout=ANSWER_TIMEOUT_S).cluster_id)

    def names(self) -> list[str]:
        """Every topic that is not Kafka's own, sorted."""
        with self._translated("list the topics"):
            found = self._client.list_topics(timeout=ANSWER_TIMEOUT_S).topics
            return sorted(name for name in found if not name.startswith("__"))

    def topics(self, names: Iterable[str]) -> dict[str, LiveTopic]:
        """Those of `names` that exist."""
        with self._translated("describe topics and their configs"):
            present = self._client.list_topics(timeout=ANSWER_TIMEOUT_S).topics
            wanted = [name for name in names if name in present]
            if not wanted:
                return {}
            described = self._client.describe_topics(TopicCollection(wanted), request_timeout=TIMEOUT_S)
            resources = {name: ConfigResource(ResourceType.TOPIC, name) for name in wanted}
            configs = self._client.describe_configs(list(resources.values()), request_timeout=TIMEOUT_S)
            return {name: _live(described[name].result(), configs[resources[name]].result()) for name in wanted}

    def racks(self) -> dict[int, str]:
        """The rack of each broker; one that names none is a rack of its own."""
        with self._translated("describe the cluster"):
            nodes = self._client.describe_cluster(request_timeout=TIMEOUT_S).result().nodes
            return {node.id: node.rack or f"broker {node.id}" for node in nodes}

    def replicas(self, names: Iterable[str]) -> dict[str, list[list[int]]]:
        """Of those of `names` that exist, the brokers of each partition, the preferred leader first."""
        with self._translated("read the topics"):
            found = self._client.list_topics(timeout=ANSWER_TIMEOUT_S).topics
            return {
                name: [list(found[name].partitions[number].replicas) for number in sorted(found[name].partitions)]
                for name in names
                if name in found
            }

    def create(self, name: str, *, partitions: int, replication_factor: int, config: dict[str, str]) -> None:
        """Create a topic that is not there."""
        topic = NewTopic(name, num_partitions=partitions, replication_factor=replication_factor, config=config)
        with self._translated(f"create topic {name}"):
            self._wait(self._client.create_topics([topic], operation_timeout=TIMEOUT_S, request_timeout=TIMEOUT_S))
        self._until(name, lambda live: live.partitions == partitions)

    def configure(self, name: str, changes: dict[str, str | None]) -> None:
        """Set each key on the topic, or with None remove what was set; other keys stay."""
        entries = [
            ConfigEntry(
                key, value or "",
                incremental_operation=AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET,
            )
            for key, value in changes.items()
        ]  # fmt: skip
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        with self._translated(f"configure topic {name}"):
            self._wait(self._client.incremental_alter_configs([resource], request_timeout=TIMEOUT_S))
        wanted = {key: value for key, value in changes.items() if value is not None}
        removed = changes.keys() - wanted.keys()
        self._until(name, lambda live: wanted.items() <= live.config.items() and not removed & live.overrides)

    def grow(self, name: str, partitions: int) -> None:
        """Raise the topic's partitions to `partitions`."""
        with self._translated(f"grow topic {name}"):
            self._wait(
                self._client.create_partitions(
                    [NewPartitions(name, partitions)], operation_timeout=TIMEOUT_S, request_timeout=TIMEOUT_S
                )
            )
        self._until(name, lambda live: live.partitions == partitions)

    def delete(self, name: str) -> None:
        """Delete the topic and all its messages."""
        with self._translated(f"delete topic {name}"):
            self._wait(self._client.delete_topics([name], operation_timeout=TIMEOUT_S, request_timeout=TIMEOUT_S))

    def _until(self, name: str, shows: Callable[[LiveTopic], bool]) -> None:
        """Brokers follow the controller: what it has confirmed they know a moment later."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(Unavailable):  # one broker may know the topic while the next does not
                if any(shows(live) for live in self.topics([name]).values()):
                    return
            time.sleep(POLL_S)
        raise Unavailable(f"Kafka at {self._servers} confirmed a change of topic {name} but does not show it yet.")

    @staticmethod
    def _wait(futures: dict[Any, Future[Any]]) -> None:
        for future in futures.values():
            future.result()

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except KafkaException as raised:
            raise self._heard.failure(what, raised, self._client) from raised


def _live(description: Any, config: dict[str, ConfigEntry]) -> LiveTopic:
    return LiveTopic(
        partitions=len(description.partitions),
        replication_factor=min(len(partition.replicas) for partition in description.partitions),
        in_sync=min(len(partition.isr) for partition in description.partitions),
        config={key: entry.value for key, entry in config.items() if entry.value is not None},
        overrides=frozenset(
            key for key, entry in config.items() if ConfigSource(entry.source) is ConfigSource.DYNAMIC_TOPIC_CONFIG
        ),
    )
