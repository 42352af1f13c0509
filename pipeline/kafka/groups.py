"""Where consumer groups stand: offsets that they committed, and moving them while nobody consumes."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from pipeline.errors import Unavailable
from pipeline.kafka.connection import Heard
from pipeline.settings import KafkaSettings

TIMEOUT_S = 10.0
PATIENCE_S = 20.0  # members that were killed leave a group after their session's 15 s
POLL_S = 0.25
STILL_THERE = frozenset(
    {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP, KafkaError.GROUP_SUBSCRIBED_TO_TOPIC}
)
NOT_YET = frozenset(
    {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
)
Partition = tuple[str, int]
Answer = TypeVar("Answer")


class Committed(NamedTuple):
    """An offset that a group committed, the next to read, and what it wrote beside it."""

    offset: int
    metadata: str = ""


class Groups:
    """The groups of one cluster. Every call raises Unavailable where it does not answer, Misconfigured where it
    refuses."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._heard = Heard(settings)
        self._client = self._heard.client(AdminClient)

    def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        """What `group` committed for `partitions`; those for which it never did are left out."""
        if not partitions:
            return {}
        asked = [TopicPartition(*place) for place in partitions]
        # A consumer that joins nothing: the admin client ends the process by a segmentation fault while the group's
        # coordinator moves or loads (librdkafka issue 5040).
        consumer = self._heard.client(Consumer, **{"group.id": group, "enable.auto.commit": False})

        def ask() -> list[TopicPartition]:
            found = consumer.committed(asked, timeout=TIMEOUT_S)
            _demand_success(found)
            return found

        try:
            found = self._patiently(ask, f"tell the offsets of group {group}", NOT_YET, consumer)
        finally:
            consumer.close()
        return {
            (each.topic, each.partition): Committed(each.offset, each.metadata or "")
            for each in found
            if each.offset >= 0
        }

    def busy(self, group: str) -> bool:
        """Whether it has members, of whatever kind they are."""

        def ask() -> bool:
            return any(found.members for found in self._client.list_groups(group, timeout=TIMEOUT_S))

        return self._patiently(ask, f"describe group {group}", NOT_YET)

    def move(self, group: str, offsets: Mapping[Partition, Committed]) -> None:
        """Commit `offsets` in the name of `group`, which must have no members; those that just died are waited for."""
        wanted = [TopicPartition(*place, each.offset, each.metadata) for place, each in offsets.items()]

        def ask() -> None:
            [future] = self._client.alter_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(group, wanted)], request_timeout=TIMEOUT_S
            ).values()
            _demand_success(future.result().topic_partitions)

        self._patiently(ask, f"move the offsets of group {group}", NOT_YET | STILL_THERE)

    def names(self, prefix: str) -> list[str]:
        """The groups whose names begin so, sorted."""
        found = self._patiently(
            lambda: self._client.list_consumer_groups(request_timeout=TIMEOUT_S).result(), "list the groups", NOT_YET
        )
        return sorted(group.group_id for group in found.valid if group.group_id.startswith(prefix))

    def delete(self, group: str) -> None:
        """Forget a group, which must have no members; those that just died are waited for."""

        def ask() -> None:
            [future] = self._client.delete_consumer_groups([group], request_timeout=TIMEOUT_S).values()
            future.result()

        self._patiently(ask, f"delete group {group}", NOT_YET | STILL_THERE)

    def _patiently(self, ask: Callable[[], Answer], what: str, passing: frozenset[int], client: Any = None) -> Answer:
        """Ask again while Kafka answers one of `passing`, 20 s at most."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask()
            except KafkaException as raised:
                error: KafkaError = raised.args[0]
                if error.code() in passing and time.monotonic() < deadline:
                    time.sleep(POLL_S)
                    continue
                if error.code() in STILL_THERE:
                    raise Unavailable(
                        f"Could not {what}: it has members. Stop them all, then run this again."
                    ) from raised
                raise self._heard.failure(what, raised, client or self._client) from raised


def _demand_success(partitions: Iterable[TopicPartition]) -> None:
    for each in partitions:
        if each.error is not None:
            raise KafkaException(each.error)
