"""Dead letters seen, sent back and given up: what `pipeline dlq` does.

    overview                     what waits, by reason
    plan("replay" | "drop") → apply     what was read is what is done

Nothing is ever removed from a dead-letter topic: the audit finds there what no store has, until retention ends it. What
was replayed or dropped is remembered as committed offsets of the group `pipeline_dlq`: everything before the offset,
and the ranges after it that stand in the offset's metadata. So there is no other state, it moves in one commit a
partition, and handling letters by reason, out of order, needs no topic of markers. The commit comes after the
acknowledgement: a replay that was cut off is done again, which the stores absorb. Of two commands at the same time the
later commit may forget marks of the earlier; those letters are then pending again, not lost. So are they where Kafka
forgets the group itself, which it does `offsets.retention.minutes` after the last commit.
"""

import asyncio
import datetime
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

from pipeline import digits
from pipeline.errors import Misconfigured, Unavailable
from pipeline.kafka import dead_letters
from pipeline.kafka.connection import unseen
from pipeline.kafka.dead_letters import SUFFIX, DeadLetter
from pipeline.kafka.groups import Committed, Groups
from pipeline.kafka.producer import Publisher
from pipeline.kafka.reader import Range, Reader
from pipeline.record.readable import decode
from pipeline.record.times import parse_ns
from pipeline.settings import KafkaSettings

GROUP = "pipeline_dlq"
METADATA_BYTES = 4000  # Kafka's offset.metadata.max.bytes is 4096
AT_ONCE = 100
AT_ONCE_BYTES = 16 * 1024 * 1024
WITHIN_S = 30.0
HEAD_BYTES = 64
NAME = re.compile(r"(?P<topic>[A-Za-z0-9._-]+)/(?P<partition>[0-9]{1,9})@(?P<offset>[0-9]{1,18})")
Partition = tuple[str, int]
Origin = tuple[str, int, int, bytes]


class Handled(NamedTuple):
    """The offsets of a partition that were replayed or dropped: all before `until`, and [start, end) of `ranges`."""

    until: int
    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, committed: Committed | None, retained: Range) -> Self:
        """As it was committed. What does not fit the partition is forgotten: then its letters are pending again."""
        if committed is None or committed.offset > retained.end:  # never, or the topic was made anew
            return cls(retained.start)
        found = re.fullmatch(r"(\d+-\d+(,\d+-\d+)*)?", committed.metadata)
        ranges = [each.split("-") for each in committed.metadata.split(",") if each] if found else []
        said = [(int(start), int(end)) for start, end in ranges]
        fits = all(start < end <= retained.end for start, end in said)
        return cls(max(committed.offset, retained.start)).adding(said if fits else ())

    def __contains__(self, offset: object) -> bool:
        if not isinstance(offset, int):
            return False
        return offset < self.until or any(start <= offset < end for start, end in self.ranges)

    def adding(self, ranges: Iterable[tuple[int, int]]) -> Self:
        """These too; ranges that meet become one."""
        until = self.until
        merged: list[tuple[int, int]] = []
        for start, end in sorted([*self.ranges, *ranges]):
            if start <= until:
                until = max(until, end)
            elif merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((start, end))
        return type(self)(until, tuple(merged))

    def committed(self) -> Committed:
        """To be committed; raises Misconfigured where it is too much for the metadata of an offset."""
        text = ",".join(f"{start}-{end}" for start, end in self.ranges)
        if len(text) > METADATA_BYTES:
            raise Misconfigured(
                f"Too many dead letters after offset {self.until} were handled out of order: first replay or drop the "
                "oldest, whatever their reason."
            )
        return Committed(self.until, text)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters; what is None or empty selects all.

    `topic` is an origin or its dead-letter topic, `reason` a part of the text, `messages` names like
    `logs_raw_dlq/0@17`, times are of the dead-lettering, in ns, `end_ns` exclusive.
    """

    topic: str | None = None
    reason: str | None = None
    messages: tuple[str, ...] = ()
    start_ns: int | None = None
    end_ns: int | None = None

    @classmethod
    def parse(cls, topic: str | None, reason: str | None, messages: Sequence[str], times: str | None) -> Self:
        """From words of a command line; `times` is `from/to`, each may be missing. Raises Misconfigured where a name or
        a time is none."""
        for name in messages:
            place(name)
        start, _, end = (times or "").partition("/")
        return cls(topic, reason, tuple(messages), parse_ns(start) if start else None, parse_ns(end) if end else None)

    def __contains__(self, letter: object) -> bool:
        return (
            isinstance(letter, DeadLetter)
            and self.topic in (None, letter.place[0], letter.place[0].removesuffix(SUFFIX))
            and (self.reason or "") in letter.reason
            and (not self.messages or letter.name in self.messages)
            and (self.start_ns is None or letter.time_ns >= self.start_ns)
            and (self.end_ns is None or letter.time_ns < self.end_ns)
        )


EVERYTHING = Selection()


@dataclass(slots=True)
class Group:
    """Pending dead letters of one topic, writer and reason; numbers in a reason do not make another one."""

    topic: str
    writer: str
    reason: str
    messages: int = 0
    records: int = 0  # as their headers promise
    attempt: int = 1  # the highest
    first_ns: int = 0
    last_ns: int = 0
    example: str = ""

    def __str__(self) -> str:
        again = f", dead-lettered up to {self.attempt} times" if self.attempt > 1 else ""
        return (
            f"{self.topic}: {self.messages} messages ({self.records} records) by {self.writer or 'nobody known'}, "
            f"{_time(self.first_ns)} to {_time(self.last_ns)}{again}, such as {self.example}: "
            f"{self.reason or 'no reason is said.'}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "topic": self.topic, "writer": self.writer, "reason": self.reason, "messages": self.messages,
            "records": self.records, "attempt": self.attempt, "first": _time(self.first_ns),
            "last": _time(self.last_ns), "example": self.example,
        }  # fmt: skip


@dataclass(slots=True)
class Change:
    """One step of a plan: pending letters that share topic, partition of the origin and reason. `offsets` are theirs,
    by their partition in the dead-letter topic. `leave` says which letters cannot be replayed, and why.
    """

    action: Literal["replay", "drop", "leave"]
    group: Group
    to: str  # the origin, or why there is none
    offsets: dict[Partition, list[int]] = field(default_factory=dict)

    def __str__(self) -> str:
        where = {"replay": f" into {self.to}", "drop": "", "leave": f", since {self.to}"}[self.action]
        return f"{self.action}{where}: {self.group}"


class Letters:
    """The dead letters of one cluster. Every call raises Unavailable where Kafka does not answer."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._reader = Reader(settings)
        self._groups = Groups(settings)

    def pending(self, selection: Selection = EVERYTHING) -> Iterator[DeadLetter]:
        """Those of `selection` that were neither replayed nor dropped. Changes nothing.

        Raises Misconfigured where Kafka shows no topic that they could stand in: that is no news of there being none.
        """
        retained = self._retained()
        self._demand({each.topic for each in retained}, selection.topic)
        handled = self._handled(retained)
        left = [
            Range(each.topic, each.partition, handled[each.topic, each.partition].until, each.end) for each in retained
        ]
        for message in self._reader.read(left):
            if message.offset not in handled[message.topic, message.partition]:
                letter = DeadLetter.of(message)
                if letter in selection:
                    yield letter

    def overview(self, selection: Selection = EVERYTHING) -> list[Group]:
        """What is pending, the most first."""
        groups: dict[tuple[str, ...], Group] = {}
        for letter in self.pending(selection):
            _count(groups, (letter.place[0], letter.writer, _kind(letter)), letter)
        return sorted(groups.values(), key=lambda group: (-group.messages, group.topic, group.reason))

    def one(self, name: str) -> DeadLetter:
        """The letter called `name`, handled or not; raises Misconfigured where there is none."""
        topic, partition, offset = place(name)
        found = [each for each in self._retained() if (each.topic, each.partition) == (topic, partition)]
        if not found:
            raise Misconfigured(f"{name}: there is no partition {topic}/{partition} of dead letters.")
        [held] = found
        if held.start <= offset < held.end:
            for message in self._reader.read([Range(topic, partition, offset, offset + 1)]):
                return DeadLetter.of(message)
        holds = f"holds offsets {held.start} to {held.end - 1}" if held.start < held.end else "is empty"
        raise Misconfigured(f"{name}: {topic}/{partition} {holds}.")

    def plan(self, action: Literal["replay", "drop"], selection: Selection) -> list[Change]:
        """What `apply` would do with the pending letters of `selection`. Changes nothing."""
        topics = self._reader.topics()
        groups: dict[tuple[str, ...], Group] = {}
        changes: dict[tuple[str, ...], Change] = {}
        for letter in self.pending(selection):
            step, to = _step(action, letter, topics)
            key = (step, to, letter.place[0], letter.writer, _kind(letter))
            group = _count(groups, key, letter)
            change = changes.setdefault(key, Change(step, group, to))
            change.offsets.setdefault(letter.place[:2], []).append(letter.place[2])
        ordered = sorted(changes.values(), key=lambda change: (change.action, change.to, change.group.reason))
        self._with([change for change in ordered if change.action != "leave"])  # whether it can be remembered
        return ordered

    def apply(self, changes: Sequence[Change]) -> None:
        """Carry out a plan. Raises Unavailable where Kafka does not acknowledge: what came before it is done."""
        doing = [change for change in changes if change.action != "leave"]
        wanted = {(*where, offset) for change in doing if change.action == "replay"
                  for where, offsets in change.offsets.items() for offset in offsets}  # fmt: skip
        asyncio.run(self._replay(wanted))
        dropped = self._with([change for change in doing if change.action == "drop"])
        if dropped:
            self._groups.move(GROUP, dropped)

    async def _replay(self, wanted: set[tuple[str, int, int]]) -> None:
        if not wanted:
            return
        ends = {where[:2] for where in wanted}
        ranges = []
        for topic, partition in sorted(ends):
            offsets = [offset for *where, offset in wanted if (*where,) == (topic, partition)]
            ranges.append(Range(topic, partition, min(offsets), max(offsets) + 1))
        publisher = Publisher(self._settings, sorted({topic.removesuffix(SUFFIX) for topic, _ in ends}),
                              within_s=WITHIN_S)  # fmt: skip
        try:
            sent: set[Origin] = set()
            some: list[DeadLetter] = []
            for message in self._reader.read(ranges):
                letter = DeadLetter.of(message)
                if letter.place in wanted:
                    some.append(letter)
                if len(some) == AT_ONCE or sum(len(each.value) for each in some) > AT_ONCE_BYTES:
                    await self._publish(publisher, some, sent)
                    some = []
            await self._publish(publisher, some, sent)
        finally:
            await asyncio.to_thread(publisher.close, WITHIN_S)

    async def _publish(self, publisher: Publisher, letters: list[DeadLetter], sent: set[Origin]) -> None:
        """Send some back; what Kafka acknowledged is handled, whatever happens to the others.

        A message that several writers dead-lettered goes back once, for all of them: its origin is in `sent` then.
        """
        new: dict[Origin, DeadLetter] = {}
        for letter in letters:
            if letter.origin not in sent:
                new.setdefault(letter.origin, letter)
        failures = await asyncio.gather(
            *(publisher.publish(each.topic, each.partition, each.value, each.replay_headers()) for each in new.values())
        )
        failed = {origin: failure for origin, failure in zip(new, failures, strict=True) if failure is not None}
        sent.update(new.keys() - failed.keys())
        done: dict[Partition, list[int]] = {}
        for letter in letters:
            if letter.origin in sent:
                done.setdefault(letter.place[:2], []).append(letter.place[2])
        if done:
            self._groups.move(GROUP, self._with_offsets(done))
        for origin, failure in failed.items():
            raise Unavailable(f"{new[origin].name} into {origin[0]} [{origin[1]}]: {failure}")

    def _with(self, changes: Sequence[Change]) -> dict[Partition, Committed]:
        offsets: dict[Partition, list[int]] = {}
        for change in changes:
            for where, some in change.offsets.items():
                offsets.setdefault(where, []).extend(some)
        return self._with_offsets(offsets)

    def _with_offsets(self, offsets: Mapping[Partition, Sequence[int]]) -> dict[Partition, Committed]:
        """What the group has to commit so that these are handled too."""
        handled = self._handled([each for each in self._retained() if (each.topic, each.partition) in offsets])
        return {
            where: before.adding((offset, offset + 1) for offset in offsets[where]).committed()
            for where, before in handled.items()
        }

    def _retained(self) -> list[Range]:
        return self._reader.retained(dead_letters.topics(list(self._reader.topics())))

    def _demand(self, there: Collection[str], wanted: str | None) -> None:
        if not there:
            raise Misconfigured(f"Topics {unseen(self._settings, [f'*{SUFFIX}'])}.")
        if wanted is not None and not {wanted, f"{wanted}{SUFFIX}"} & set(there):
            raise Misconfigured(f"Kafka shows no dead letters of {wanted}: there are {', '.join(sorted(there))}.")

    def _handled(self, retained: Sequence[Range]) -> dict[Partition, Handled]:
        committed = self._groups.committed(GROUP, [(each.topic, each.partition) for each in retained])
        return {
            (each.topic, each.partition): Handled.of(committed.get((each.topic, each.partition)), each)
            for each in retained
        }


def describe(letter: DeadLetter) -> dict[str, Any]:
    """One letter for people: where from, why, its headers, its records as far as they decode, and its first bytes."""
    records, error = decode(letter.value)
    return {
        "name": letter.name,
        "reason": letter.reason,
        "exception": letter.exception,
        "origin": {"topic": letter.topic, "partition": letter.partition, "offset": letter.offset},
        "writer": letter.writer,
        "schema": letter.schema,
        "attempt": letter.attempt,
        "replayed_from": letter.from_,
        "time": _time(letter.time_ns),
        "headers": [[name, None if value is None else _text(value)] for name, value in letter.headers],
        "bytes": len(letter.value),
        "head": letter.value[:HEAD_BYTES].hex(" "),
        "error": error,
        "records": records,
    }


def place(name: str) -> tuple[str, int, int]:
    """Topic, partition and offset of `logs_raw_dlq/0@17`; raises Misconfigured where it is none of dead letters."""
    found = NAME.fullmatch(name)
    if found is None or not found["topic"].endswith(SUFFIX):
        raise Misconfigured(f"{name[:100]!r} names no dead letter: it is written logs_raw_dlq/0@17, as `list` does.")
    return found["topic"], int(found["partition"]), int(found["offset"])


def _step(
    action: Literal["replay", "drop"], letter: DeadLetter, topics: Mapping[str, int]
) -> tuple[Literal["replay", "drop", "leave"], str]:
    """What becomes of a letter, and where it goes or why it cannot."""
    if action == "drop":
        return "drop", ""
    if not letter.topic:
        return "leave", "they do not say where they came from"
    if f"{letter.topic}{SUFFIX}" != letter.place[0]:  # so never into itself either
        return "leave", f"they came from {letter.topic} and stand in {letter.place[0]}: replay them where they failed"
    if not 0 <= letter.partition < topics.get(letter.topic, 0):
        return "leave", f"{letter.topic} [{letter.partition}] does not exist here"
    return "replay", f"{letter.topic} [{letter.partition}]"


def _count(groups: dict[tuple[str, ...], Group], key: tuple[str, ...], letter: DeadLetter) -> Group:
    group = groups.get(key)
    if group is None:
        group = groups[key] = Group(
            letter.place[0], letter.writer, letter.reason, first_ns=letter.time_ns, example=letter.name
        )
    elif group.reason != letter.reason:
        group.reason = _kind(letter)
    promised = dict(letter.headers).get("records") or b""
    group.messages += 1
    group.records += digits.number(promised, 9, 0)
    group.attempt = max(group.attempt, letter.attempt)
    group.first_ns, group.last_ns = min(group.first_ns, letter.time_ns), max(group.last_ns, letter.time_ns)
    return group


def _kind(letter: DeadLetter) -> str:
    return re.sub(r"\d+", "#", letter.reason)[:300]


def _text(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"
    return text if text.isprintable() else f"0x{value.hex()}"


def _time(ns: int) -> str:
    return datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC).isoformat()
