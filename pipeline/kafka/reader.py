"""Bounded ranges of topics, read by assignment: no group is joined, nothing is committed, nobody is disturbed.

Offsets are those a read_committed reader sees: a range ends before the first open transaction.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import tenacity
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Fetched
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but not listed
    AdminClient,
    ConfigResource,
    ListOffsetsResultInfo,
    OffsetSpec,
    ResourceType,
)

from pipeline.errors import Unavailable
from pipeline.kafka.connection import Heard
from pipeline.settings import KafkaSettings

TIMEOUT_S = 10.0
SILENCE_S = 30.0
POLL_S = 0.25
LEADER_MOVES = frozenset(
    {
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.OFFSET_NOT_AVAILABLE,
    }
)
AT_ONCE = 100
# librdkafka would hold 64 MB of every partition, and unpack 50 MB of compressed messages at once
FETCHED_KBYTES = 4096
FETCH_BYTES = 4 * 1024 * 1024
FULL_FOR_MS = 2  # then it looks whether there is room for more; its own second would make that 4 MB a second


class Message(NamedTuple):
    """One message as it stands in Kafka; `timestamp_ms` is since 1970, `pairs` the headers with doubles and nulls, of
    which `headers` has the last of a name, and a null as empty."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    headers: dict[str, bytes]
    value: bytes
    pairs: tuple[tuple[str, bytes | None], ...] = ()
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """Offsets `start` to before `end` of one partition; there may be gaps (compaction, transaction markers)."""

    topic: str
    partition: int
    start: int
    end: int


class Reader:
    """One cluster, read. Every call raises Unavailable where the cluster does not answer, Misconfigured where it
    refuses."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._servers = settings.bootstrap_servers
        self._heard = Heard(settings)
        self._admin = self._heard.client(AdminClient)

    def topics(self) -> dict[str, int]:
        """Every topic of the cluster and how many partitions it has."""
        with self._translated("list the topics"):
            found = self._admin.list_topics(timeout=TIMEOUT_S).topics
            return {name: len(topic.partitions) for name, topic in found.items()}

    def retained(self, topics: Iterable[str]) -> list[Range]:
        """All that is there now, a range for each partition of `topics`, which must exist."""
        counts = self.topics()
        every = [(topic, partition) for topic in topics for partition in range(counts[topic])]
        first = self._offsets(every, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        last = self._offsets(every, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return [
            Range(*place, start, max(start, end))
            for place, (start, _), (end, _) in zip(every, first, last, strict=True)
        ]

    def between(self, ranges: Sequence[Range], start_ms: int | None, end_ms: int | None) -> list[Range]:
        """`ranges` from their first message of `start_ms` or later to before their first of `end_ms` or later.

        Timestamps in a partition need not be in order: earlier messages may be in there, and others behind it.
        """
        places = [(each.topic, each.partition) for each in ranges]
        narrowed = list(ranges)
        if start_ms is not None:
            found = self._offsets(places, OffsetSpec.for_timestamp(max(0, start_ms)))
            narrowed = [
                replace(each, start=each.end if offset < 0 else min(max(each.start, offset), each.end))
                for each, (offset, _) in zip(narrowed, found, strict=True)
            ]
        if end_ms is not None:
            found = self._offsets(places, OffsetSpec.for_timestamp(max(0, end_ms)))
            narrowed = [
                replace(each, end=each.end if offset < 0 else max(each.start, min(each.end, offset)))
                for each, (offset, _) in zip(narrowed, found, strict=True)
            ]
        return narrowed

    def earliest_ms(self, ranges: Sequence[Range]) -> list[int | None]:
        """The timestamp of the first message that each range's partition retains, None where it retains none."""
        found = self._offsets([(each.topic, each.partition) for each in ranges], OffsetSpec.for_timestamp(0))
        return [timestamp_ms if offset >= 0 else None for offset, timestamp_ms in found]

    def retention_ms(self, topic: str) -> int | None:
        """How long the topic keeps a message at least; None where size limits it too."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        with self._translated(f"describe topic {topic}"):
            config = self._admin.describe_configs([resource], request_timeout=TIMEOUT_S)[resource].result()
        if int(config["retention.bytes"].value) >= 0:
            return None
        return int(config["retention.ms"].value)

    def read(
        self, ranges: Iterable[Range], on_batch: Callable[[int], None] = lambda offsets: None
    ) -> Iterator[Message]:
        """Every message of `ranges`, in order within a partition; `on_batch` hears how many offsets were passed.

        Raises Unavailable where the cluster is silent for 30 s, or retention removes what is still to be read.
        """
        consumer = self._heard.client(
            Consumer,
            **{
                "group.id": "pipeline-audit",  # the client insists on a name; assignment never uses it
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "check.crcs": True,
                "queued.max.messages.kbytes": FETCHED_KBYTES,
                "fetch.max.bytes": FETCH_BYTES,
                "fetch.queue.backoff.ms": FULL_FOR_MS,
            },
        )
        try:
            with self._translated("read"):
                yield from self._read(consumer, ranges, on_batch)
        finally:
            consumer.close()

    def _read(self, consumer: Consumer, ranges: Iterable[Range], on_batch: Callable[[int], None]) -> Iterator[Message]:
        left = {(each.topic, each.partition): each for each in ranges if each.start < each.end}
        consumer.assign([TopicPartition(each.topic, each.partition, each.start) for each in left.values()])
        heard = time.monotonic()
        while left:
            batch = consumer.consume(AT_ONCE, timeout=POLL_S)
            if batch:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_S:
                waiting = ", ".join(f"{topic} [{partition}]" for topic, partition in left)
                raise Unavailable(f"Kafka at {self._servers} gave nothing for {SILENCE_S:.0f} s of {waiting}.")
            passed = 0
            for fetched in batch:
                place = (fetched.topic() or "", fetched.partition() or 0)
                if place not in left:
                    _demand_right(fetched)
                    continue
                wanted = left[place]
                position = wanted.end if _at_end(fetched) else min((fetched.offset() or 0) + 1, wanted.end)
                if not _at_end(fetched) and (fetched.offset() or 0) < wanted.end:
                    yield _message(fetched)
                passed += position - wanted.start
                left[place] = replace(wanted, start=position)
                if position == wanted.end:
                    del left[place]
                    consumer.pause([TopicPartition(*place)])
            on_batch(passed)

    def _offsets(self, places: Sequence[tuple[str, int]], spec: OffsetSpec) -> list[tuple[int, int]]:
        """(offset, timestamp in ms) for each place; an offset of -1 where no message fits."""
        if not places:
            return []
        asked = {TopicPartition(*place): spec for place in places}

        def ask() -> dict[tuple[str, int], ListOffsetsResultInfo]:
            futures = self._admin.list_offsets(
                asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=TIMEOUT_S
            )
            return {(place.topic, place.partition): future.result() for place, future in futures.items()}

        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_leader_moves),
            stop=tenacity.stop_after_delay(TIMEOUT_S),
            wait=tenacity.wait_fixed(POLL_S),
            reraise=True,
        )
        with self._translated("tell offsets"):
            found = patiently(ask)
            return [(found[place].offset, found[place].timestamp) for place in places]

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except KafkaException as raised:
            raise self._heard.failure(what, raised, self._admin) from raised


def _leader_moves(error: BaseException) -> bool:
    """Whether a broker has just started or lost a partition, which the client's next question knows."""
    return isinstance(error, KafkaException) and error.args[0].code() in LEADER_MOVES


def _demand_right(fetched: Fetched) -> None:
    """That a topic may not be read is told of none of its partitions; what is told of the group, which is never joined,
    does not matter."""
    error = fetched.error()
    if error is not None and error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        raise KafkaException(error)


def _at_end(fetched: Fetched) -> bool:
    """Whether this is no message but the news that its partition has no more; raises what else it may be."""
    error = fetched.error()
    if error is None:
        return False
    if error.code() == KafkaError._PARTITION_EOF:
        return True
    if error.code() == KafkaError._AUTO_OFFSET_RESET:
        raise Unavailable(
            f"Kafka removed messages of {fetched.topic()} [{fetched.partition()}] while they were read; run this again."
        )
    raise KafkaException(error)


def _message(fetched: Fetched) -> Message:
    pairs: tuple[tuple[str, bytes | None], ...] = tuple(fetched.headers() or ())  # type: ignore[arg-type]  # a list
    return Message(
        topic=fetched.topic() or "",
        partition=fetched.partition() or 0,
        offset=fetched.offset() or 0,
        timestamp_ms=fetched.timestamp()[1],
        headers={name: value or b"" for name, value in pairs},
        value=fetched.value() or b"",
        pairs=pairs,
        key=fetched.key(),
    )
