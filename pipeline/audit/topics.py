"""What the topics of one signal hold: the raw ones, local and mirrored, and their dead letters.

The topic of events holds the rows of all registered tables: each is a part of its own, and so judged alone.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from pipeline import digits
from pipeline.audit import decode
from pipeline.audit.decode import Signal
from pipeline.audit.ledger import Known, Ledger, Place
from pipeline.audit.sets import ID, Bools, Ids, ids_of, locate
from pipeline.audit.window import Window
from pipeline.errors import Misconfigured, Rejected
from pipeline.kafka.connection import hidden
from pipeline.kafka.reader import Message, Range, Reader
from pipeline.settings import KafkaSettings, Settings

Progress = Callable[[str, int, int | None], None]  # what is read, how much of it, of how much where that is known

# Kafka's timestamp is the receipt time but for the moment between the two and the clocks of several gateways
PADDING_US = 60 * 10**6
STORE_OF_WRITER = {b"pg_writer": "postgres", b"ch_writer": "clickhouse"}
EVERY_STORE = "*"
FAR_US = 253_402_300_800 * 10**6  # the year 10000


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A raw message whose records cannot be told, or are not as many as its header promises."""

    place: Place
    reason: str
    dead_lettered: bool


@dataclass(slots=True)
class DeadLetters:
    """The dead letters of a part. `ids`: by the store whose writer gave up, EVERY_STORE where nobody says."""

    messages: int = 0
    origins: set[Place] = field(default_factory=set)
    undecodable: list[Place] = field(default_factory=list)  # where they came from
    ids: dict[str, Ids] = field(default_factory=dict)

    def of(self, ids: Ids, store: str) -> Bools:
        """Which of `ids` were dead-lettered on their way to `store`."""
        found = np.zeros(len(ids), bool)
        for who in (store, EVERY_STORE):
            found |= locate(self.ids.get(who, np.empty(0, ID)), ids)[1]
        return found


@dataclass(frozen=True, slots=True)
class Kafka:
    """What Kafka holds of one part, read once. `messages` and `records` are those of the window.

    A signal is one part, called like it; of events each registered table is one, called `events/<table>`.
    """

    signal: Signal
    part: str
    topics: tuple[str, ...]
    ranges: list[Range]
    messages: int
    records: int
    known: Known
    unreadable: list[Unreadable]
    dead_letters: DeadLetters
    horizon_us: int  # a row received before it may have lost its message to retention; 0: none may

    def given_up(self, there: DeadLetters | None) -> "Kafka":
        """The same, for the stores of another region: excused is what its writers dead-lettered, not what ours did."""
        return replace(self, dead_letters=replace(self.dead_letters, ids=there.ids if there else {}))


class Source(NamedTuple):
    """The topics of a signal from which stores are filled: those of this region, by the routes, and the mirrors of them
    from `regions`, whose records are stored here too. Other mirrors are not: their records are stored elsewhere."""

    signal: Signal
    routed: tuple[str, ...]
    regions: tuple[str, ...]

    def names(self, topics: dict[str, int]) -> tuple[str, ...]:
        """The routed topics, then those of `topics` that are mirrored."""
        mirrored = (f"{region}.{name}" for region in self.regions for name in self.routed)
        return *self.routed, *sorted(name for name in mirrored if name in topics)


def source(signal: Signal, settings: Settings) -> Source:
    routed = ("events_raw",) if signal == "events" else settings.routes.of(signal)
    return Source(signal, routed, settings.mirrored_regions)


def demand(topics: dict[str, int], sources: Sequence[Source], kafka: KafkaSettings) -> None:
    """Raise Misconfigured with every topic that the cluster has not."""
    missing = [name for each in sources for name in each.routed if name not in topics]
    if missing:
        raise Misconfigured(
            [
                f"Kafka has no topic {name}: run `pipeline topics apply`, or correct kafka.bootstrap_servers"
                f"{hidden(kafka)}."
                for name in missing
            ]
        )


def part_of(signal: Signal, message: Message) -> str:
    """The part to which a message says that it belongs."""
    if signal != "events":
        return signal
    return f"{signal}/{message.headers.get('schema', b'').decode(errors='replace').partition('/')[0]}"


@dataclass(slots=True)
class _Reading:
    """One part while it is read."""

    ledger: Ledger
    faults: list[tuple[Place, str]] = field(default_factory=list)
    messages: int = 0
    records: int = 0


def read(
    reader: Reader, source: Source, parts: Collection[str], window: Window, progress: Progress
) -> dict[str, Kafka]:
    """Each of `parts`, in the window and a minute on either side of it, so that its edges are not taken for
    differences. A message of none of them is a fault of the part that is called like the signal."""
    present = reader.topics()
    signal, topics = source.signal, source.names(present)
    near = window.padded(PADDING_US)
    retained = reader.retained(topics)
    ranges = reader.between(retained, near.start_ms, near.end_ms)
    readings = {part: _Reading(Ledger(signal, topics)) for part in parts}
    for message in tracked(reader, ranges, f"Kafka: {signal}", progress):
        inside = bool(window.contains(np.array([message.timestamp_ms * 1000]))[0])
        part = part_of(signal, message)
        if part in readings:
            _add(readings[part], message, inside, signal)
        else:
            readings[signal].messages += inside
            if inside:
                readings[signal].faults.append((_place(message), f"it says {part}: no such table is registered"))
    dead = dead_letters(reader, source, window)
    horizon = horizon_us(reader, retained)
    found = {}
    for part, reading in readings.items():
        letters = dead.get(part, DeadLetters())
        found[part] = Kafka(
            signal=signal,
            part=part,
            topics=topics,
            ranges=ranges,
            messages=reading.messages,
            records=reading.records,
            known=reading.ledger.known(),
            unreadable=[Unreadable(place, reason, place in letters.origins) for place, reason in reading.faults],
            dead_letters=letters,
            horizon_us=horizon,
        )
    return found


def _add(reading: _Reading, message: Message, inside: bool, signal: Signal) -> None:
    reading.messages += inside
    try:
        records = decode.records(message.value, signal)
    except Rejected as reason:
        if inside:
            reading.faults.append((_place(message), str(reason)))
        return
    promised = message.headers.get("records", b"")
    if inside and promised != b"%d" % len(records):
        said = promised.decode(errors="replace")[:20]
        reading.faults.append((_place(message), f"its header `records` says {said!r}, it holds {len(records)}"))
    reading.records += len(records) if inside else 0
    reading.ledger.add(message, records, inside)


def _place(message: Message) -> Place:
    return Place(message.topic, message.partition, message.offset)


def elsewhere(reader: Reader, source: Source, kafka: Kafka, ids: Ids, progress: Progress) -> Bools:
    """Which of the sorted, distinct `ids` are in the topics outside what was read of them: before it, or come since.

    And in the raw topics, from which a store was filled before agents stood between.
    """
    was_read = {(each.topic, each.partition): (each.start, each.end) for each in kafka.ranges}
    since, before = [], []
    raw = source._replace(routed=(f"{source.signal}_raw",)).names(reader.topics())
    for now in reader.retained(dict.fromkeys((*kafka.topics, *raw))):
        start, end = was_read.get((now.topic, now.partition), (now.start, now.start))
        since.append(replace(now, start=max(now.start, end)))
        before.append(replace(now, end=min(now.end, start)))
    found = np.zeros(len(ids), bool)
    for ranges in (since, before):  # a partition is read at one place at a time
        for message in tracked(reader, ranges, f"Kafka: {kafka.part}, outside the window", progress):
            if found.all():
                break
            if part_of(kafka.signal, message) != kafka.part:
                continue
            try:
                records = decode.records(message.value, kafka.signal)
            except Rejected:
                continue  # it is not in the window, and no id can be told from it
            places, present = locate(ids, ids_of(b"".join([record["event_id"] for record in records])))
            found[places[present]] = True
    return found


def tracked(reader: Reader, ranges: list[Range], what: str, progress: Progress) -> Iterator[Message]:
    """Every message of the ranges, while `progress` hears how far it is."""
    total = sum(max(0, each.end - each.start) for each in ranges)
    done = 0

    def advance(offsets: int) -> None:
        nonlocal done
        done += offsets
        progress(what, done, total)

    progress(what, 0, total)
    return reader.read(ranges, advance)


def horizon_us(reader: Reader, retained: list[Range]) -> int:
    """Where messages were removed from a partition, its rows before the first that is left may be theirs."""
    cut = [each for each in retained if each.start > 0]
    horizon = 0
    now_ms = time.time_ns() // 10**6
    for each, first_ms in zip(cut, reader.earliest_ms(cut), strict=True):
        if first_ms is None:  # nothing is left: what was there is older than the retention, where time alone decides
            retention_ms = reader.retention_ms(each.topic)
            if retention_ms is None:
                return FAR_US
            horizon = max(horizon, (now_ms - retention_ms) * 1000 + PADDING_US)
        else:
            horizon = max(horizon, first_ms * 1000 + PADDING_US)
    return horizon


def dead_letters(reader: Reader, source: Source, window: Window) -> dict[str, DeadLetters]:
    """By part, from the window's start to now: a message may be dead-lettered long after its receipt."""
    present, signal = reader.topics(), source.signal
    topics = [name for name in (f"{topic}_dlq" for topic in source.names(present)) if name in present]
    parts: dict[str, DeadLetters] = defaultdict(DeadLetters)
    ids: dict[tuple[str, str], bytearray] = defaultdict(bytearray)
    ranges = reader.between(reader.retained(topics), window.start_ms, None)
    for message in reader.read(ranges):
        part = part_of(signal, message)
        origin = _origin(message)
        for dead in {part: parts[part], signal: parts[signal]}.values():
            dead.messages += 1
            if f"{origin.topic}_dlq" == message.topic:  # else it was mirrored here, and its origin is another cluster's
                dead.origins.add(origin)
        try:
            records = decode.records(message.value, signal)
        except Rejected:
            for dead in {part: parts[part], signal: parts[signal]}.values():
                dead.undecodable.append(origin)
            continue
        writer = message.headers.get("dlq_writer", b"")
        store = STORE_OF_WRITER.get(writer, f"agent {writer.decode(errors='replace')}" if writer else EVERY_STORE)
        ids[part, store] += b"".join([record["event_id"] for record in records])
    for (part, store), found in ids.items():
        parts[part].ids[store] = np.unique(ids_of(found))
    return parts


def _origin(message: Message) -> Place:
    """Where a dead letter says it came from; -1 for a number that it does not say."""
    header = message.headers.get
    partition, offset = (digits.number(header(name, b""), 19, -1) for name in ("dlq_partition", "dlq_offset"))
    return Place(header("dlq_topic", b"").decode(errors="replace"), partition, offset)
