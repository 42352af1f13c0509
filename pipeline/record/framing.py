"""From encoded records to container files of one partition each; what all signals share."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.record.container import value
from pipeline.record.times import SANE_AHEAD_NS, SANE_FROM_NS

MAX_VALUE_BYTES = 900_000  # a Kafka message; brokers take 1 MB
EVENT_ID_BYTES = 16
FRAMING_BYTES = 64  # of a container file behind its head: two varints, the sync marker; and a twin's longer ordinal
FIRST = b"\0"  # the ordinal of a record that has no equal before it, and the end of every record added


class Origin(NamedTuple):
    """Where a request came from: what the gateway knows and the client cannot say. `received_time` in ns since 1970."""

    tenant: str
    region: str
    received_time: int


class Group(NamedTuple):
    """One container file: `records` of one partition, their span of effective times in ns, and the bytes."""

    partition: int
    records: int
    min_time: int
    max_time: int
    value: bytes


@dataclass(slots=True)
class Lane:
    """The records of one partition: event_id, prefix and tail of each in a row, so that bytes are copied once."""

    pieces: list[bytes] = field(default_factory=list)
    times: list[int] = field(default_factory=list)


def largest(head: bytes) -> int:
    """How many bytes of records a container file with this head takes."""
    return MAX_VALUE_BYTES - len(head) - FRAMING_BYTES


def place_untimed(times: list[int], received: int) -> int:
    """Let the receipt stand for times that are none; return how many."""
    latest, untimed = received + SANE_AHEAD_NS, 0
    if min(times) >= SANE_FROM_NS and max(times) <= latest:
        return 0
    for n, time in enumerate(times):
        if not SANE_FROM_NS <= time <= latest:
            times[n] = received
            untimed += 1
    return untimed


def groups(partition: int, lane: Lane, head: bytes) -> Iterator[Group]:
    """The lane in order, cut where a value would become larger than MAX_VALUE_BYTES."""
    pieces, times, most = lane.pieces, lane.times, largest(head)
    first = filled = 0
    for n in range(len(times)):
        size = sum(map(len, pieces[3 * n : 3 * n + 3]))
        if filled + size > most:
            yield _group(partition, pieces[3 * first : 3 * n], times[first:n], head)
            first, filled = n, 0
        filled += size
    yield _group(partition, pieces[3 * first :], times[first:], head)


def _group(partition: int, pieces: list[bytes], times: list[int], head: bytes) -> Group:
    return Group(partition, len(times), min(times), max(times), value(head, pieces, len(times)))
