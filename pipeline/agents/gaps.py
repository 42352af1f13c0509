"""What a writer still had to read and Kafka no longer has: never skipped in silence, accepted by a command."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.agents import registered
from pipeline.errors import Misconfigured
from pipeline.kafka.connection import unseen
from pipeline.kafka.groups import Committed, Groups
from pipeline.kafka.reader import Range, Reader
from pipeline.record import schema
from pipeline.settings import Settings

STORE_WRITERS = ("pg_writer", "ch_writer")  # otlp_writer fills none of ours, and runs only where it is configured
STORED: dict[str, tuple[schema.Signal, ...]] = {
    "pg_writer": ("metrics", "logs"), "ch_writer": schema.SIGNALS, "otlp_writer": schema.SIGNALS,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gap:
    """A partition in which `writer` stands at `position`, while Kafka has offsets `start` to before `end`.

    `first_ms` is the Kafka timestamp of the message at `start`, None where none is left.
    """

    writer: str
    topic: str
    partition: int
    position: int
    start: int
    end: int
    first_ms: int | None

    @property
    def offsets(self) -> int:
        """How many were removed unread; 0 where the topic was made anew."""
        return max(0, self.start - self.position)

    def __str__(self) -> str:
        where = f"{self.topic} [{self.partition}]: {self.writer} is to read offset {self.position} next, but "
        if self.offsets:
            left = (
                "nothing after them is left" if self.first_ms is None else f"what is left begins {_time(self.first_ms)}"
            )
            return (
                f"{where}Kafka begins at {self.start}: {self.offsets} offsets, {self.position} to {self.start - 1}, "
                f"were removed before they were read; {left}."
            )
        held = "it holds nothing yet" if self.first_ms is None else f"its first message is of {_time(self.first_ms)}"
        return (
            f"{where}Kafka ends at {self.end}: the topic was made anew, or its end was lost; {held}, and all "
            "that is there would be read from the first."
        )

    @property
    def command(self) -> str:
        """What accepts it."""
        return f"pipeline agents accept_gap {self.writer} --topic {self.topic} --partition {self.partition}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "offsets": self.offsets, "command": self.command}


def topics(writer: str, settings: Settings) -> tuple[str, ...]:
    """What a writer reads, mirrored topics among it."""
    stored = (topic for signal in STORED[writer] for topic in settings.stored(signal))
    return (*stored, *settings.here_and_mirrored(registered.TOPIC))


def find(writer: str, read: Sequence[str], settings: Settings) -> list[Gap]:
    """Every gap of a writer or agent in the topics that it reads, by what its group committed. Changes nothing.

    Raises Misconfigured where a topic is missing, Unavailable where Kafka is away.
    """
    reader = Reader(settings.kafka)
    topics_read = [settings.kafka.named(topic) for topic in read]
    missing = sorted(set(topics_read) - reader.topics().keys())
    if missing:
        raise Misconfigured(f"Topics {unseen(settings.kafka, missing)}.")
    retained = reader.retained(topics_read)
    group = settings.kafka.named(writer)
    committed = Groups(settings.kafka).committed(group, [(each.topic, each.partition) for each in retained])
    return _gaps(writer, {place: each.offset for place, each in committed.items()}, retained, reader)


def of(reader: str, topic: str, partition: int, settings: Settings) -> list[Gap]:
    """The gap of a writer or agent in one partition, or none; raises as `find`, and Misconfigured where it has read
    nothing there: a slip of the pen is not to look like no gap."""
    found = [gap for gap in find(reader, [topic], settings) if gap.partition == partition]
    place = settings.kafka.named(topic), partition
    if not Groups(settings.kafka).committed(settings.kafka.named(reader), [place]):
        raise Misconfigured(
            f"{reader} has read nothing of {topic} [{partition}]: `pipeline agents gaps` prints every gap and the "
            "command that accepts it."
        )
    return found


def at(writer: str, positions: Mapping[tuple[str, int], int], settings: Settings) -> list[Gap]:
    """The gaps of a writer that stands at `positions`, the next offset for each (topic, partition)."""
    reader = Reader(settings.kafka)
    return _gaps(writer, positions, reader.retained({topic for topic, _ in positions}), reader)


def accept(gaps: Iterable[Gap], settings: Settings) -> None:
    """Let the writers of `gaps` go on at the first offset that is there; what was removed is given up.

    Raises Unavailable while a writer still runs.
    """
    groups = Groups(settings.kafka)
    for gap in gaps:
        groups.move(settings.kafka.named(gap.writer), {(gap.topic, gap.partition): Committed(gap.start)})


def _gaps(
    writer: str, positions: Mapping[tuple[str, int], int], retained: Sequence[Range], reader: Reader
) -> list[Gap]:
    outside = [
        each
        for each in retained
        if not each.start <= positions.get((each.topic, each.partition), each.start) <= each.end
    ]
    return [
        Gap(writer, each.topic, each.partition, positions[each.topic, each.partition], each.start, each.end, first_ms)
        for each, first_ms in zip(outside, reader.earliest_ms(outside), strict=True)
    ]


def _time(ms: int) -> str:
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).isoformat(timespec="seconds")
