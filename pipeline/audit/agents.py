"""Agents between the topics: every id that an agent read is in what it wrote, in a drop, or in a dead letter.

Who they are is read from the messages alone, from the topics that stores read back to the gateway's: each message names
in its headers the agent that made it and the message that it was made of. Both have the same timestamp, so a window
holds both or neither.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipeline import digits
from pipeline.audit import decode
from pipeline.audit.decode import SIGNALS, Form, Signal
from pipeline.audit.ledger import Place
from pipeline.audit.sets import Bools, Ids, Ints, ids_of, locate, text
from pipeline.audit.topics import Progress, horizon_us, tracked
from pipeline.audit.window import Window
from pipeline.errors import Rejected
from pipeline.kafka.reader import Message, Reader

DROPS = "agent_drops"
NOBODY = "(no agent)"
EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class AgentFindings:
    """Counts of distinct event_ids that `agent` read from `topic` in the window.

    emitted        in what it wrote, with the same content
    changed        in what it wrote, with other content, or as other events that are made of it
    dropped        said to be dropped, and not in what it wrote; `reasons` counts them
    dead_lettered  none of these, but in the dead letters of `topic`
    missing        nowhere
    extra          in what it wrote, and made of nothing that is in `topic`

    An agent that passes nothing on of the signal that it reads answers for messages: one that no output and no receipt
    in the topic of drops names is missing with all its records, the others are emitted.
    """

    agent: str
    topic: str
    read: int
    emitted: int
    changed: int
    dropped: int
    dead_lettered: int
    missing: int
    extra: int
    reasons: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.missing or self.extra)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Beside(NamedTuple):
    """An agent that read `topic` in the window and was not looked at: not all that it made of it is in the topics that
    the audited stores read."""

    agent: str
    topic: str


@dataclass(slots=True)
class _Wrote:
    """What one agent made of one topic."""

    parents: bytearray = field(default_factory=bytearray)
    ids: bytearray = field(default_factory=bytearray)
    contents: bytearray = field(default_factory=bytearray)
    dropped: bytearray = field(default_factory=bytearray)
    reasons: list[str] = field(default_factory=list)
    sources: set[Place] = field(default_factory=set)
    signals: set[str] = field(default_factory=set)


class _Read(NamedTuple):
    """What a topic holds in the window: a row a record, and its dead letters by who gave up."""

    ids: Ids
    contents: Ids
    places: list[Place]
    message: Ints
    dead: dict[str, bytearray]
    signal: Signal


def audit(
    reader: Reader, routes: Mapping[Signal, Sequence[str]], window: Window, progress: Progress
) -> tuple[list[AgentFindings], list[Beside]]:
    """Every agent that the window shows on the way to the stores of the signals in `routes`; and, as NOBODY's, each raw
    topic that no agent read though the stores read only what agents make of it. Then the agents beside that way."""
    present = reader.topics()
    wrote: dict[tuple[str, str], _Wrote] = {}
    seen = {DROPS}
    raw = {f"{signal}_raw" for signal in SIGNALS}

    @functools.cache
    def signal_of(topic: str) -> Signal:
        first = None if topic in raw else next(_messages(reader, topic, window, progress), None)
        return _signal(first, _named(topic))

    def follow(left: list[str]) -> None:
        while left:
            topic = left.pop()
            if topic in seen or topic not in present or topic.endswith("_raw") or signal_of(topic) not in routes:
                continue
            seen.add(topic)
            left += {_wrote(message, wrote) for message in _messages(reader, topic, window, progress)} - {""}

    follow([topic for routed in routes.values() for topic in routed])
    passed_on = {topic for (_, topic), its in wrote.items() if topic in present and signal_of(topic) in its.signals}
    for message in _messages(reader, DROPS, window, progress) if DROPS in present else ():
        _wrote(message, wrote)
    # of what came of these signals the stores got nothing: who dropped it may have been the one on the way to them
    cut_off = {signal for signal, routed in routes.items() if f"{signal}_raw" not in {*routed, *passed_on}}
    follow([topic for _, topic in wrote if topic in present and signal_of(topic) in cut_off])

    def on_the_way(who: tuple[str, str]) -> bool:
        its, signal = wrote[who], signal_of(who[1])
        passes = signal in its.signals or (its.signals and not its.dropped)  # who drops would pass on its own signal
        return signal in cut_off or bool(signal in routes and passes)

    known = sorted(who for who in wrote if who[1] in present)
    judged = [who for who in known if on_the_way(who)]
    inputs = {topic: _read(reader, topic, window, progress) for topic in sorted({topic for _, topic in judged})}
    found = [_judge(who, inputs[who[1]], wrote[who], reader) for who in judged]
    for signal, routed in routes.items():
        topic = f"{signal}_raw"
        if topic not in inputs and topic not in routed and topic in present:
            found.append(_judge((NOBODY, topic), _read(reader, topic, window, progress), _Wrote(), reader))
    return found, [Beside(*who) for who in known if not on_the_way(who)]


def _messages(reader: Reader, topic: str, window: Window, progress: Progress) -> Iterator[Message]:
    ranges = reader.between(reader.retained([topic]), window.start_ms, None)
    for message in tracked(reader, ranges, f"Kafka: agents, {topic}", progress):
        if window.contains(np.array([message.timestamp_ms * 1000]))[0]:
            yield message


def _said(message: Message, name: str) -> str:
    return message.headers.get(name, b"").decode(errors="replace")


def _named(topic: str) -> Signal:
    return next((each for each in SIGNALS if topic.startswith(each)), "logs")


def _signal(message: Message | None, otherwise: Signal) -> Signal:
    said = _said(message, "signal") if message else ""
    return next((each for each in SIGNALS if each == said), otherwise)


def _wrote(message: Message, wrote: dict[tuple[str, str], _Wrote]) -> str:
    """Add what the message tells; return the topic that it was made of, nothing where no agent made it."""
    agent, source = _said(message, "agent"), _said(message, "source")
    topic, _, place = source.rpartition("/")
    partition, offset = (digits.number(part, 19, -1) for part in place.partition("@")[::2])
    if not (agent and topic and min(partition, offset) >= 0):
        return ""
    its = wrote.setdefault((agent, topic), _Wrote())
    its.sources.add(Place(topic, partition, offset))
    signal = _said(message, "signal")
    if signal == "drops":
        for event_id, reason in _dropped(message.value):
            its.dropped += event_id
            its.reasons.append(reason)
    elif signal in SIGNALS:
        its.signals.add(signal)
        forms = _forms(message.value, signal)
        ids = b"".join([form.event_id for form in forms])
        parents = message.headers.get("parents", ids)
        its.ids += ids
        its.parents += parents if len(parents) == len(ids) else ids
        its.contents += b"".join([form.content for form in forms])
    return topic


def _read(reader: Reader, topic: str, window: Window, progress: Progress) -> _Read:
    ids, contents = bytearray(), bytearray()
    places: list[Place] = []
    numbers: list[int] = []
    signal = _named(topic)
    for message in _messages(reader, topic, window, progress):
        signal = _signal(message, signal)
        forms = _forms(message.value, signal)
        ids += b"".join([form.event_id for form in forms])
        contents += b"".join([form.content for form in forms])
        numbers += [len(places)] * len(forms)
        places.append(Place(message.topic, message.partition, message.offset))
    dead: dict[str, bytearray] = {}
    letters = f"{topic}_dlq"
    if letters in reader.topics():
        for message in reader.read(reader.between(reader.retained([letters]), window.start_ms, None)):
            dead.setdefault(_said(message, "dlq_writer"), bytearray()).extend(
                b"".join([form.event_id for form in _forms(message.value, signal)])
            )
    return _Read(ids_of(ids), ids_of(contents), places, np.asarray(numbers, np.int64), dead, signal)


def _forms(value: bytes, signal: Signal) -> list[Form]:
    """No forms where they do not decode: what nobody can read is judged where it is dead-lettered."""
    try:
        return decode.forms(value, signal)
    except Rejected:
        return []


def _dropped(value: bytes) -> list[tuple[bytes, str]]:
    """No drops where they do not decode: the ids that they meant are missing."""
    try:
        return decode.drops(value)
    except Rejected:
        return []


def _judge(who: tuple[str, str], read: _Read, wrote: _Wrote, reader: Reader) -> AgentFindings:
    agent, topic = who
    ids, firsts = np.unique(read.ids, return_index=True)
    parents = np.unique(ids_of(wrote.parents))
    dropped = np.unique(ids_of(wrote.dropped))
    dead = np.unique(ids_of(read.dead.get(agent, b"")))
    if wrote.signals and read.signal not in wrote.signals and not len(dropped):  # it passes nothing on
        done = np.array([place in wrote.sources for place in read.places], bool)
        emitted = done[read.message[firsts]] if len(ids) else np.empty(0, bool)
        changed = np.zeros(len(ids), bool)
    else:
        same = np.isin(_pairs(ids, read.contents[firsts]), _pairs(ids_of(wrote.ids), ids_of(wrote.contents)))
        written = locate(parents, ids)[1]
        emitted, changed = written & same, written & ~same
    is_dropped = locate(dropped, ids)[1] & ~emitted & ~changed
    is_dead = locate(dead, ids)[1] & ~emitted & ~changed & ~is_dropped
    missing = ~(emitted | changed | is_dropped | is_dead)
    extra = parents[~locate(ids, parents)[1]]
    if len(extra) and horizon_us(reader, reader.retained([topic])):
        extra = extra[:0]  # what they were made of may have been removed
    reason_of = dict(zip(ids_of(wrote.dropped).tolist(), wrote.reasons, strict=True))
    reasons = Counter(reason_of[one] for one in ids[is_dropped].tolist())
    return AgentFindings(
        agent, topic, len(ids), _count(emitted), _count(changed), _count(is_dropped), _count(is_dead), _count(missing),
        len(extra), dict(sorted(reasons.items())), _examples(read, ids, firsts, missing),
    )  # fmt: skip


def _pairs(ids: Ids, contents: Ids) -> Any:
    """Ids with the content that they had, as one sortable value each."""
    both = np.empty((len(ids), 2), "S16")
    both[:, 0], both[:, 1] = ids, contents
    return np.ascontiguousarray(both).view("S32").reshape(-1)


def _count(which: Bools) -> int:
    return int(which.sum())


def _examples(read: _Read, ids: Ids, firsts: Any, missing: Bools) -> list[dict[str, Any]]:
    return [
        {"event_id": text(ids[at]), **read.places[read.message[firsts[at]]]._asdict()}
        for at in np.flatnonzero(missing)[:EXAMPLES]
    ]
