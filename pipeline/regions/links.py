"""What MirrorMaker 2 has written down at its target: how far it read the source, and where groups would stand here.

Sources: Kafka, connect/mirror: `MirrorUtils.wrapPartition` (positions, as JSON), `Checkpoint` (Kafka's own struct
format: big-endian integers, strings with a length of two bytes).
"""

import json
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from pipeline.kafka.reader import Message, Range, Reader

CONNECTOR = "MirrorSourceConnector"
RECENT = 500  # offsets of a partition: where MirrorMaker stands is written again and again
Partition = tuple[str, int]  # by the name at the source
HEARTBEATS: Partition = ("heartbeats", 0)


class Checkpoint(NamedTuple):
    """A group that stands at `upstream` in the source would stand at `offset` in the mirrored topic, or later."""

    group: str
    topic: str  # as mirrored
    partition: int
    upstream: int
    offset: int
    time_ms: int


class Position(NamedTuple):
    """Where MirrorMaker stands in a partition of the source: the next offset that it will bring, and since when."""

    offset: int
    time_ms: int


def positions(target: Reader, source: str, wanted: Iterable[Partition]) -> dict[Partition, Position]:
    """By partition, for those of `wanted` of which MirrorMaker brought any."""
    topic = offsets_topic(source)
    if topic not in target.topics():
        return {}
    places = set(wanted)
    retained = target.retained([topic])
    recent = [replace(each, start=max(each.start, each.end - RECENT)) for each in retained]
    found = _positions(target, source, recent)
    if not places <= found.keys():
        found = _positions(target, source, retained)
    return {place: position for place, position in found.items() if place in places}


def _positions(target: Reader, source: str, ranges: Sequence[Range]) -> dict[Partition, Position]:
    found: dict[Partition, Position] = {}
    for message in target.read(ranges):
        place = _place(message, source)
        if place is None:
            continue
        if message.value:
            found[place] = Position(json.loads(message.value)["offset"] + 1, message.timestamp_ms)
        else:
            found.pop(place, None)
    return found


def offsets_topic(source: str) -> str:
    return f"mm2-offsets.{source}.internal"


def keys(target: Reader, source: str, wanted: Iterable[Partition]) -> dict[Partition, tuple[int, bytes]]:
    """By what key, and in which partition of `offsets_topic`, MirrorMaker keeps the position of each of `wanted`."""
    places, found = set(wanted), {}
    for message in target.read(target.retained([offsets_topic(source)])):
        place = _place(message, source)
        if place in places:
            found[place] = message.partition, message.key or b""
    return found


def _place(message: Message, source: str) -> Partition | None:
    connector, place = json.loads(message.key or b"")
    if connector != CONNECTOR or place.get("cluster") != source:
        return None
    return place["topic"], place["partition"]


def checkpoints(target: Reader, source: str) -> list[Checkpoint]:
    """The last one for each group and partition."""
    topic = f"{source}.checkpoints.internal"
    if topic not in target.topics():
        return []
    found: dict[bytes, Checkpoint] = {}
    for message in target.read(target.retained([topic])):
        if message.value:
            found[(message.key or b"")] = _checkpoint(message)
    return sorted(found.values())


def _checkpoint(message: Message) -> Checkpoint:
    group, rest = _string(message.key or b"")
    topic, rest = _string(rest)
    upstream, offset = struct.unpack(">qq", message.value[2:18])
    return Checkpoint(group, topic, int.from_bytes(rest, "big"), upstream, offset, message.timestamp_ms)


def _string(data: bytes) -> tuple[str, bytes]:
    size = int.from_bytes(data[:2], "big")
    return data[2 : 2 + size].decode(), data[2 + size :]


def heartbeat_age_s(target: Reader, source: str) -> float | None:
    """How old the newest heartbeat of the source is that came here; None where none ever came."""
    topic = f"{source}.heartbeats"
    if topic not in target.topics():
        return None
    retained = target.retained([topic])
    newest = [replace(each, start=max(each.start, each.end - 10)) for each in retained]  # markers have offsets too
    times = [message.timestamp_ms for message in target.read(newest)]
    return max(0.0, time.time() - max(times) / 1000) if times else None
