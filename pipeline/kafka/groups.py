"""Where consumer groups stand: offsets that they committed, and moving them while nobody consumes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.errors import Unavailable
from pipeline.kafka.connection import configuration
from pipeline.settings import KafkaSettings

TIMEOUT_S = 10.0
EMPTY_WITHIN_S = 20.0  # members that were killed leave a group after their session's 15 s
POLL_S = 0.5
NOTHING = -1001  # Kafka's word for an offset that was never committed
STILL_THERE = frozenset(
    {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP, KafkaError.GROUP_SUBSCRIBED_TO_TOPIC}
)
Partition = tuple[str, int]


class Committed(NamedTuple):
    """An offset that a group committed, the next to read, and what it wrote beside it."""

    offset: int
    metadata: str = ""


class Groups:
    """The groups of one cluster. Every call raises Unavailable where the cluster does not answer."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._servers = settings.bootstrap_servers
        # log_level 0: what goes wrong is raised by the calls below, once, and not also printed by librdkafka
        self._client = AdminClient({**configuration(settings), "log_level": 0})

    def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        """What `group` committed for `partitions`; those for which it never did are left out."""
        if not partitions:
            return {}
        asked = ConsumerGroupTopicPartitions(group, [TopicPartition(*place) for place in partitions])
        with self._translated(f"tell the offsets of group {group}"):
            [future] = self._client.list_consumer_group_offsets([asked], request_timeout=TIMEOUT_S).values()
            found = future.result().topic_partitions
        return {
            (each.topic, each.partition): Committed(each.offset, each.metadata or "")
            for each in found
            if each.error is None and each.offset >= 0
        }

    def move(self, group: str, offsets: Mapping[Partition, Committed]) -> None:
        """Commit `offsets` in the name of `group`, which must have no members; those that just died are waited for."""
        wanted = [TopicPartition(*place, each.offset, each.metadata) for place, each in offsets.items()]
        deadline = time.monotonic() + EMPTY_WITHIN_S
        while True:
            try:
                with self._translated(f"move the offsets of group {group}"):
                    [future] = self._client.alter_consumer_group_offsets(
                        [ConsumerGroupTopicPartitions(group, wanted)], request_timeout=TIMEOUT_S
                    ).values()
                    for each in future.result().topic_partitions:
                        if each.error is not None:
                            raise KafkaException(each.error)
                return
            except Unavailable as unavailable:
                if not _has_members(unavailable):
                    raise
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"Group {group} still has members: stop every {group}, then run this again."
                    ) from None
            time.sleep(POLL_S)

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except KafkaException as raised:
            reason = str(raised.args[0].str()).rstrip(".")
            raise Unavailable(
                f"Kafka at {self._servers} could not {what}: {reason}. Start it, or correct kafka.bootstrap_servers."
            ) from raised


def _has_members(unavailable: Unavailable) -> bool:
    cause = unavailable.__cause__
    return isinstance(cause, KafkaException) and cause.args[0].code() in STILL_THERE
