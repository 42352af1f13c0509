"""What an agent makes of one message: a pure function, so that a redelivered message gives the same bytes again.

The law: an answer made of one record is the same event and keeps its id, received later by the agent's version in
microseconds, so that every store keeps the newest form of an event whatever arrives last. Receipts are whole
milliseconds: the rest says which form it is. Further records, and one that stores would file elsewhere (another
service, time, trace, series), are events of their own: their id is BLAKE2b-128 over the parent's id, the agent's name
and a number that counts the parent's further records.
"""

import functools
import hashlib
import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple

from pipeline import digits
from pipeline.agents.api import Agent, Drop, Topics, answers
from pipeline.delivery import Message
from pipeline.errors import Rejected, Unavailable
from pipeline.record import container, schema
from pipeline.record.avro import STRING
from pipeline.record.framing import MAX_VALUE_BYTES, largest
from pipeline.record.layout import ID_BYTES, Layout, layout
from pipeline.record.records import TYPES, MetricPoint, Record, encoded, moved, read, with_series
from pipeline.record.schema import Signal
from pipeline.record.times import FORM_NS, SANE_AHEAD_NS, SANE_FROM_NS, receipt_ns

NO_REASON = "returned None"
MAX_REASON = 200
LARGEST_RECORD = MAX_VALUE_BYTES - 10_000  # beside the head of any schema
DROPS_TOPIC = "agent_drops"
DROPPED = {
    "type": "record", "name": "drop",
    "fields": [
        {"name": "event_id", "type": {"type": "fixed", "name": "event_id", "size": 16}},
        {"name": "reason", "type": "string"},
    ],
}  # fmt: skip


Function = Callable[[Any], Any]
Progress = Callable[[int], None]  # hears the number of the record that the function is given next


class Output(NamedTuple):
    """One message to publish."""

    topic: str
    headers: list[tuple[str, bytes]]
    value: bytes
    records: int


class Failed(NamedTuple):
    """A record that the agent can do nothing with: its number in the message, and why."""

    number: int
    reason: str


class Running(NamedTuple):
    """An agent ready to be asked: `function` has its context; `topics` are those that it writes."""

    agent: Agent
    function: Function
    topics: Topics


class Made(NamedTuple):
    """Everything that became of one message. `drops`: how many records by reason."""

    records: int
    outputs: list[Output]
    drops: dict[str, int]
    failed: list[Failed]


def transform(
    running: Running,
    message: Message,
    *,
    known_bad: Mapping[int, str] | None = None,
    progress: Progress = lambda number: None,
) -> Made:
    """Give the message's records to the function. `known_bad` are those that it is not to see again, and why.

    Raises Rejected where the message holds no records of a known schema.
    """
    laid = layout_of(message)
    of = TYPES[signal_of(laid)]
    records = [read(raw, laid, of) for raw in laid.records(message.value)]
    bad = dict(known_bad or {})
    pieces = _Pieces(running, message)
    blocks = _blocks(laid, message)
    good = [number for number in range(len(records)) if number not in bad]
    parts = [list(part) for _, part in groupby(good, blocks.__getitem__)] if running.agent.aggregates else [good]
    for number, answer in _answered(running, records, parts, bad, progress):
        try:
            pieces.add(records[number], answer, blocks[number])
        except Rejected as reason:
            bad[number] = str(reason)
        except (ValueError, IndexError) as error:  # fields are read where they are asked for
            bad[number] = f"The record does not decode: {str(error) or 'a value goes on past its end'}."
    tap = of.signal not in running.topics  # what it reads goes on by another way
    return Made(
        len(records),
        pieces.outputs(tap=tap),
        {} if tap else pieces.drops(),
        [Failed(number, bad[number]) for number in sorted(bad)],
    )


def remainder(message: Message, failed: Sequence[Failed]) -> Message:
    """The message with no more than the records that failed."""
    laid = layout_of(message)
    numbers = {each.number for each in failed}
    raws = [raw for number, raw in enumerate(laid.records(message.value)) if number in numbers]
    if len(numbers) == container.count(laid.schema.head, message.value):
        return message
    value = container.value(laid.schema.head, [raw.whole for raw in raws])
    headers = {**message.headers, "records": b"%d" % len(raws)}
    pairs = tuple((name, headers[name] if name == "records" else old) for name, old in message.pairs)
    return message._replace(headers=headers, value=value, pairs=pairs)


def derived_id(parent_id: bytes, agent: str, number: int) -> bytes:
    """The id of a further record of `parent_id`."""
    return hashlib.blake2b(parent_id + agent.encode() + b"/%d" % number, digest_size=ID_BYTES).digest()


def layout_of(message: Message) -> Layout:
    """How the message's records lie; raises Rejected where its header names no locked schema."""
    said = message.headers.get("schema", b"").decode(errors="replace")
    if said not in _locked():
        raise Rejected(f"The header `schema` says {said[:60]!r}, which is none of {', '.join(_locked())}.")
    return layout(said)


def signal_of(laid: Layout) -> Signal:
    record = laid.schema.name.partition("/")[0]
    for signal, name in schema.CURRENT.items():
        if name.partition("/")[0] == record:
            return signal
    raise Rejected(f"The header `schema` says {laid.schema.name!r}, which are no records of a signal.")


def why(agent: Agent, error: BaseException) -> str:
    """Where in the agent's file, or that of its function, it was raised, or else who it is, and the traceback's last
    line."""
    files = agent.file, inspect.unwrap(agent.function).__code__.co_filename
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    at = f"{own[-1].filename}:{own[-1].lineno}" if own else agent.where
    return f"{at}: {' '.join(traceback.format_exception_only(error)[-1].split())}"


def _blocks(laid: Layout, message: Message) -> list[int]:
    """The block in which each record lies."""
    sizes = container.blocks(laid.schema.head, message.value)
    return [block for block, size in enumerate(sizes) for _ in range(size)]


def _answered(
    running: Running, records: list[Record], parts: list[list[int]], bad: dict[int, str], progress: Progress
) -> Iterable[tuple[int, Any]]:
    """The answer for each of the parts' records; what raises becomes bad."""
    if running.agent.batch:
        yield from _of_batch(running, records, parts, bad, progress)
        return
    for number in chain.from_iterable(parts):
        progress(number)
        try:
            answer = running.function(records[number])
        except Unavailable:
            raise
        except BaseException as error:  # SystemExit, a panic of Rust's
            bad[number] = why(running.agent, error)
        else:
            yield number, answer


def _of_batch(
    running: Running, records: list[Record], parts: list[list[int]], bad: dict[int, str], progress: Progress
) -> Iterable[tuple[int, Any]]:
    """Halve what raises until the bad record is alone; a message that is to be aggregated is bad as a whole."""
    agent = running.agent
    parts = [part for part in reversed(parts) if part]
    while parts:
        part = parts.pop()
        progress(part[0])
        try:
            found = running.function([records[number] for number in part])
            _demand_answers(agent, found, len(part))
        except Unavailable:
            raise
        except BaseException as error:
            reason = str(error) if isinstance(error, Rejected) else why(agent, error)
            if agent.aggregates:
                raise Rejected(reason) from error
            if len(part) == 1:
                bad[part[0]] = reason
            else:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
        else:
            yield from zip(part, found, strict=True)


def _demand_answers(agent: Agent, found: Any, count: int) -> None:
    if not isinstance(found, list | tuple):
        raise Rejected(f"{agent.where}: {agent.name} returned {type(found).__name__}, not a list of answers.")
    if len(found) != count:
        raise Rejected(f"{agent.where}: {agent.name} returned {len(found)} answers for {count} records.")


class _Group:
    """Records of one topic and schema."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.parents: list[bytes] = []
        self.blocks: list[int] = []
        self.derived = False
        self.times: list[int] = []


class _Pieces:
    """Encoded records as they are made, by topic and schema, and what was dropped."""

    def __init__(self, running: Running, message: Message) -> None:
        self._agent, _, self._topics = running
        self._message = message
        self._shift_ns = self._agent.version * FORM_NS
        self._groups: dict[tuple[str, str], _Group] = {}  # by topic and name of the schema
        self._dropped: list[tuple[bytes, str]] = []
        self._last: tuple[type, Layout, _Group] | None = None
        self._block = 0

    def add(self, parent: Record, answer: Any, block: int) -> None:
        """All of one answer, or nothing of it: then raises Rejected. `block` is the parent's."""
        self._block = block
        if answer is parent:  # most answers; a field that is looked at would be kept in the record
            event_id = parent._raw.event_id if parent._raw else parent.event_id
            self._put(parent, event_id, parent, self._encoded(parent, event_id, parent))
            return
        if answer is None or isinstance(answer, Drop):
            self._drop(parent, answer)
            return
        things = list(answers(answer))
        kept, further = False, 0
        ready: list[tuple[Record, bytes, bytes]] = []
        for thing in things:
            record = self._checked(thing)
            if isinstance(record, MetricPoint):
                record = with_series(record, parent)
            if not kept and record.event_id == parent.event_id and not moved(record, parent):
                kept, event_id = True, parent.event_id
            else:
                event_id = derived_id(parent.event_id, self._agent.name, further)
                further += 1
            ready.append((record, event_id, self._encoded(record, event_id, parent)))
        if not ready:
            self._drop(parent, None)
        for record, event_id, data in ready:
            self._put(record, event_id, parent, data)

    def _checked(self, thing: Any) -> Record:
        where, name = self._agent.where, self._agent.name
        if not isinstance(thing, Record):
            raise Rejected(
                f"{where}: {name} returned {type(thing).__name__}; it may return a record, None, drop(…) or a list of "
                "records."
            )
        if thing.signal not in self._topics:
            raise Rejected(
                f"{where}: {name} returned a {type(thing).__name__}, but writes no topic of {thing.signal}: it writes "
                f"{', '.join(self._agent.writes)}."
            )
        return thing

    def _encoded(self, record: Record, event_id: bytes, parent: Record) -> bytes:
        data = encoded(record, event_id, parent, self._shift_ns)
        if len(data) > LARGEST_RECORD:
            raise Rejected(f"{self._agent.where}: made a record of {len(data):,} bytes; {LARGEST_RECORD:,} fit.")
        return data

    def _put(self, record: Record, event_id: bytes, parent: Record, data: bytes) -> None:
        if self._last is not None and self._last[0] is type(record) and self._last[1] is record._layout:
            group = self._last[2]
        else:
            key = self._topics[self._checked(record).signal], record._layout.schema.name
            group = self._groups.setdefault(key, _Group())
            self._last = type(record), record._layout, group
        group.records.append(data)
        group.parents.append(parent.event_id)
        group.blocks.append(self._block)
        if event_id is not parent.event_id:
            group.derived = True
            group.times.append(_time(record, parent))

    def _drop(self, parent: Record, answer: Drop | None) -> None:
        reason = str(answer.reason).encode(errors="backslashreplace").decode() if answer else NO_REASON
        self._dropped.append((parent.event_id, reason[:MAX_REASON]))

    def drops(self) -> dict[str, int]:
        counted: dict[str, int] = {}
        for _, reason in self._dropped:
            counted[reason] = counted.get(reason, 0) + 1
        return counted

    def outputs(self, *, tap: bool) -> list[Output]:
        """Messages of all groups; and one of what was dropped, or, where nothing else tells of it, of the message."""
        made = [
            output
            for (topic, name), group in self._groups.items()
            for output in self._messages(topic, schema.load(name), group)
        ]
        if (self._dropped and not tap) or not made:
            dropped = [] if tap else self._dropped
            pieces = [one + STRING[reason] for one, reason in dropped]
            of = _drop_schema()
            value = container.value(of.head, pieces) if pieces else of.head
            made.append(Output(DROPS_TOPIC, self._headers(of, "drops", len(pieces)), value, len(pieces)))
        return made

    def _messages(self, topic: str, of: schema.Schema, group: _Group) -> Iterable[Output]:
        start = size = 0
        sizes, most = [*map(len, group.records), MAX_VALUE_BYTES], largest(of.head)
        for end in range(1, len(sizes)):
            size += sizes[end - 1]
            if size + sizes[end] <= most:
                continue
            headers = self._headers(of, _signal_name(of), end - start)
            headers += self._times(group)
            if group.derived:
                headers.append(("parents", b"".join(group.parents[start:end])))
            value = container.in_blocks(of.head, group.records[start:end], group.blocks[start:end])
            yield Output(topic, headers, value, end - start)
            start, size = end, 0

    def _headers(self, of: schema.Schema, signal: str, records: int) -> list[tuple[str, bytes]]:
        given = self._message.headers
        return [
            *((name, given[name]) for name in ("tenant", "region", "traceparent") if name in given),
            ("signal", signal.encode()),
            ("records", b"%d" % records),
            ("schema", of.name.encode()),
            ("agent", self._agent.name.encode()),
            ("agent_version", b"%d" % self._agent.version),
            ("source", f"{self._message.topic}/{self._message.partition}@{self._message.offset}".encode()),
        ]

    def _times(self, group: _Group) -> list[tuple[str, bytes]]:
        """Of the message that came, widened by records that are events of their own."""
        given = self._message.headers
        said = [digits.number(given.get(name, b""), 19, -1) for name in ("min_time", "max_time")]
        known = [time for time in said if time >= 0]
        times = [*known, *group.times]
        return [("min_time", b"%d" % min(times)), ("max_time", b"%d" % max(times))] if times else []


def _time(record: Record, parent: Record) -> int:
    """Where stores file the record, ns."""
    names = {"logs": ("time", "observed_time"), "traces": ("start_time",), "metrics": ("time",)}[record.signal]
    sent: int = next((value for name in names if (value := getattr(record, name))), 0)
    received = receipt_ns(parent.received_time)
    return sent if SANE_FROM_NS <= sent <= received + SANE_AHEAD_NS else received


@functools.cache
def _drop_schema() -> schema.Schema:
    return schema.made("drop/1", DROPPED)


_locked = functools.cache(schema.locked)


def _signal_name(of: schema.Schema) -> str:
    return signal_of(layout(of.name))
