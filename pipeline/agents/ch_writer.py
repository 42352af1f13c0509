"""Kafka → ClickHouse: many messages an insert, no record decoded."""

import hashlib
from collections.abc import Iterator, Sequence

from pipeline import digits
from pipeline.agents.batch import Joined, Known, join, known
from pipeline.agents.registered import RegisteredWriter, Version
from pipeline.clickhouse.inserts import Inserts
from pipeline.clickhouse.registered import RegisteredInserts
from pipeline.delivery import Message
from pipeline.record import container
from pipeline.record.layout import layout
from pipeline.record.schema import Signal
from pipeline.settings import ClickHouseSettings
from pipeline.tables.client import Tables

DAYS_AN_INSERT = 10
MOST_DAYS_AN_INSERT = 400  # ClickHouse takes 0.3 MB for each
DAY_NS = 86_400 * 10**9
TABLES: dict[Signal, str] = {"logs": "logs_in", "traces": "spans_in", "metrics": "metrics_points_in"}


class ClickHouseWriter:
    """Writer of one signal; safe to call from several threads."""

    def __init__(self, settings: ClickHouseSettings, signal: Signal) -> None:
        self.name = "ch_writer"
        self._inserts = Inserts(settings, TABLES[signal])
        self._known = known(signal)

    def write(self, batch: Sequence[Message]) -> int:
        """Insert the whole batch, by days and schemas, each once: the token makes a repeated insert change nothing."""
        joined = _joined(batch, self._known)
        for one in joined:
            for values, records, name in pieces(one):
                self._inserts.insert(one.schema, values, records=records, token=name)
        return sum(one.records for one in joined)


def registered(settings: ClickHouseSettings, tables: Tables) -> RegisteredWriter:
    """Writer of the registered tables that ClickHouse keeps, as ClickHouseWriter is of a signal."""
    inserts = RegisteredInserts(settings)

    def keep(version: Version, batch: Sequence[Message]) -> int:
        joined = _joined(batch, version.accepted)
        for one in joined:
            inserts.insert(version.table, one.schema, one.values, records=one.records, token=token(one.messages))
        return sum(one.records for one in joined)

    return RegisteredWriter("ch_writer", "clickhouse", tables, keep)


def _joined(batch: Sequence[Message], accepted: Known) -> list[Joined]:
    return [one for part in by_days(batch) for one in join(part, accepted)]


def by_days(batch: Sequence[Message]) -> list[list[Message]]:
    """The batch in parts that hold few days each: a day is a partition, and each insert writes a part to each.

    Late data of many days is sorted by day, so that each day is written once. Messages that hold over DAYS_AN_INSERT
    days themselves are apart, together as many days as an insert may touch; one of more is for `pieces`. Looks at the
    headers alone.
    """
    spans = [(_day(message, "min_time"), _day(message, "max_time"), message) for message in batch]
    wide = [span for span in spans if span[1] - span[0] >= DAYS_AN_INSERT]
    few = [span for span in spans if span[1] - span[0] < DAYS_AN_INSERT]
    return [*_packed(wide, MOST_DAYS_AN_INSERT), *_packed(few, DAYS_AN_INSERT)]


def _packed(spans: Sequence[tuple[int, int, Message]], days: int) -> list[list[Message]]:
    """In parts that hold so many days, or messages of more."""
    parts: list[list[Message]] = []
    start = 0
    for first, last, message in sorted(spans, key=lambda span: span[:2]):
        if not parts or last - start >= days:
            start = first
            parts.append([])
        parts[-1].append(message)
    return parts


def pieces(joined: Joined) -> Iterator[tuple[Sequence[bytes], int, str]]:
    """What goes into one insert each: container files, how many records they hold, and the token.

    Messages of more days than an insert may touch are cut between records, of which each can be of its own day.
    """
    name = token(joined.messages)
    if all(_day(each, "max_time") - _day(each, "min_time") < MOST_DAYS_AN_INSERT for each in joined.messages):
        yield joined.values, joined.records, name
        return
    laid = layout(joined.schema.name)
    records = [raw.whole for value in joined.values for raw in laid.records(value)]
    for start in range(0, len(records), MOST_DAYS_AN_INSERT):
        part = records[start : start + MOST_DAYS_AN_INSERT]
        yield [container.value(joined.schema.head, part)], len(part), f"{name}/{start}"


def _day(message: Message, header: str) -> int:
    return digits.number(message.headers.get(header, b""), 19, 0) // DAY_NS


def token(batch: Sequence[Message]) -> str:
    """Names the messages of a batch, by place and by the end of their content: a topic made anew starts again at 0."""
    named = hashlib.blake2b(digest_size=16)
    for message in batch:
        named.update(f"{message.topic}/{message.partition}/{message.offset}/".encode())
        named.update(message.value[-64:])
    return named.hexdigest()
