"""The slice into the sandbox's topics, byte for byte: keys, headers, partitions, order and timestamps as they were, and
a header that says where each message stood."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from pipeline import delivery, digits
from pipeline.agents import registered
from pipeline.agents.batch import Known, join, known
from pipeline.agents.ch_writer import token
from pipeline.clickhouse.inserts import Inserts
from pipeline.errors import Misconfigured, Rejected, Unavailable
from pipeline.kafka.producer import Outbox, Outgoing
from pipeline.kafka.reader import Message, Range, Reader
from pipeline.replay import tables
from pipeline.replay.plan import Plan, Slice
from pipeline.replay.where import Where
from pipeline.settings import Settings
from pipeline.tables.client import Tables
from pipeline.tables.model import Table

EVENTS = "events"
HEADER = "sandbox"  # `<source topic>/<partition>@<offset>`
BATCH_BYTES = 8 * 1024 * 1024
BATCH_RECORDS = 20_000
SETTLED_S = 0.5  # what a killed predecessor had sent is in the log by then
Progress = Callable[[int], None]  # records passed


class Copied(NamedTuple):
    """How far a target partition has come: the source of its last message and that one's offset."""

    source: str
    offset: int


class Copier:
    """Copies what of a plan is not in the sandbox yet. One at a time works on a sandbox."""

    def __init__(self, plan: Plan, live: Settings, own: Settings) -> None:
        self._plan = plan
        self._reader = Reader(live.kafka)
        self._targets = Reader(own.kafka)
        self._outbox = Outbox(own.kafka)
        self._where = Where(tuple(plan.where.items()))
        self._store = own.clickhouse
        self._maker = live.clickhouse.model_copy(update={"database": own.clickhouse.database})
        self._inputs = {signal: Inserts(own.clickhouse, tables.input_table(signal)) for signal in tables.SIGNALS}
        self._registered: dict[str, Inserts] = {}
        self._versions = registered.Versions(Tables(live.registry))
        self._max_bytes = live.replay.max_bytes

    def left(self) -> list[Slice]:
        """What is still to be copied, in the order in which it must be: of each target, one source after the other."""
        targets = [self._plan.sandbox.topic(name) for name in self._plan.topics]
        copied = {}
        for each in self._settled(targets):
            if each.start < each.end:
                [last] = self._targets.read([replace(each, start=each.end - 1)])
                copied[each.topic, each.partition] = _copied(last)
        found: list[Slice] = []
        for (name, partition), slices in _by_target(self._plan.slices).items():
            found += _after(slices, copied.get((self._plan.sandbox.topic(name), partition)))
        return [each for each in found if each.start < each.end]

    def copy(self, slices: Sequence[Slice], rate: int, progress: Progress, hold: Callable[[], None]) -> None:
        """Copy `slices` at no more than `rate` records a second; `hold` is called between batches and may wait.

        When it returns every message is acknowledged by all in-sync replicas, and stands in replay_input. Raises
        Misconfigured where there is more than replay.max_bytes: a plan knows no more than its sample.
        """
        copied_bytes = 0
        for stage in _stages(slices):
            started, passed_records = time.monotonic(), 0
            for batch in batches(self._reader, [each.range for each in stage], rate):
                held = time.monotonic()
                hold()
                started += time.monotonic() - held
                wanted = [part for part in map(self._where.of, batch) if part is not None]
                copied_bytes += sum(len(message.value) for message in wanted)
                if copied_bytes > self._max_bytes:
                    raise Misconfigured(
                        f"{self._plan.name} has copied {copied_bytes:,} bytes and replay.max_bytes allows no more: "
                        "raise it and run this again, or drop the sandbox and plan a smaller window."
                    )
                self._keep(wanted)
                self._outbox.publish([_outgoing(message) for message in wanted])
                records = sum(map(records_of, batch))
                progress(records)
                passed_records += records
                time.sleep(max(0.0, started + passed_records / rate - time.monotonic()))

    def _keep(self, messages: Sequence[Message]) -> None:
        for signal in tables.SIGNALS:
            mine = [one for one in messages if _signal(one) == signal]
            if mine:
                self._keep_known(self._inputs[signal], known(signal), [as_delivered(one) for one in mine])
        events = [as_delivered(one) for one in messages if _signal(one) == EVENTS]
        for said, those in registered.by_schema(events).items():
            with contextlib.suppress(Rejected):  # no such table: they must turn up in the dead letters
                table, _, accepted = self._versions.of(said)
                self._keep_known(self._of_registered(table), accepted, those)

    def _of_registered(self, table: Table) -> Inserts:
        if table.name not in self._registered:
            tables.make_registered(self._maker, table)
            self._registered[table.name] = Inserts(self._store, tables.registered_input_table(table.name))
        return self._registered[table.name]

    def _keep_known(self, into: Inserts, accepted: Known, messages: list[delivery.Message]) -> None:
        """Into replay_input; what does not decode is left out, it must turn up in the dead letters."""
        try:
            for one in join(messages, accepted):
                into.insert(one.schema, one.values, records=one.records, token=token(one.messages))
        except Rejected:
            if len(messages) > 1:
                middle = len(messages) // 2
                self._keep_known(into, accepted, messages[:middle])
                self._keep_known(into, accepted, messages[middle:])

    def _settled(self, topics: Iterable[str]) -> list[Range]:
        topics = list(topics)
        found = self._targets.retained(topics)
        for _ in range(20):
            time.sleep(SETTLED_S if any(each.end for each in found) else 0)
            again = self._targets.retained(topics)
            if again == found:
                return found
            found = again
        raise Unavailable("Somebody else writes to the sandbox's topics: look who, and run this again.")


def _after(slices: list[Slice], copied: Copied | None) -> list[Slice]:
    if copied is None:
        return slices
    at = [each.topic for each in slices].index(copied.source)
    return [slices[at].model_copy(update={"start": copied.offset + 1}), *slices[at + 1 :]]


def batches(reader: Reader, ranges: Sequence[Range], rate: int) -> Iterator[list[Message]]:
    """All messages in batches for a store, of two seconds at `rate` records a second or less; none is empty."""
    most = min(BATCH_RECORDS, rate * 2)
    batch: list[Message] = []
    size = records = 0
    for message in reader.read(ranges):
        batch.append(message)
        size, records = size + len(message.value), records + records_of(message)
        if size >= BATCH_BYTES or records >= most:
            yield batch
            batch, size, records = [], 0, 0
    if batch:
        yield batch


def as_delivered(message: Message) -> delivery.Message:
    return delivery.Message(
        message.topic, message.partition, message.offset, message.headers, message.value, message.pairs
    )


def records_of(message: Message) -> int:
    said = message.headers.get("records") or b""
    return digits.number(said, 9, 1)


def _outgoing(message: Message) -> Outgoing:
    place = f"{message.topic}/{message.partition}@{message.offset}".encode()
    name = message.topic.rpartition(".")[2]
    headers = (*message.pairs, (HEADER, place))
    return Outgoing(name, message.partition, message.timestamp_ms, headers, message.value, message.key)


def _copied(message: Message) -> Copied:
    source, _, offset = message.headers.get(HEADER, b"").decode(errors="replace").rpartition("@")
    topic, _, _ = source.rpartition("/")
    at = digits.number(offset, 19, -1)
    if not topic or at < 0:
        raise Unavailable(f"{message.topic} [{message.partition}] holds what no replay wrote: drop the sandbox.")
    return Copied(topic, at)


def _by_target(slices: Sequence[Slice]) -> dict[tuple[str, int], list[Slice]]:
    found: dict[tuple[str, int], list[Slice]] = {}
    for each in slices:
        found.setdefault((each.name, each.partition), []).append(each)
    return found


def _stages(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Slices that can be read side by side: of different targets."""
    stages: list[list[Slice]] = []
    for parts in _by_target(slices).values():
        for number, each in enumerate(parts):
            if number == len(stages):
                stages.append([])
            stages[number].append(each)
    return stages


def _signal(message: Message) -> str:
    return message.topic.rpartition(".")[2].partition("_")[0]
