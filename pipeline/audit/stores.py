"""What readers of the stores see: an id and a receipt time a row, streamed through the views that readers use."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
from psycopg import sql

from pipeline import clickhouse
from pipeline.audit.decode import KINDS, Signal
from pipeline.audit.ledger import Known
from pipeline.audit.sets import ID, Bools, Ints, Rows
from pipeline.audit.window import Window
from pipeline.errors import Misconfigured, Rejected
from pipeline.settings import Settings
from pipeline.timescale import connection

VIEWS: dict[Signal, tuple[str, str]] = {  # of ClickHouse: what readers read, and the table behind it
    "logs": ("logs", "logs_events"),
    "traces": ("traces", "spans"),
    "metrics": ("metrics", "metrics_points"),
}
TTL = re.compile(r" TTL (.*?)(?= SETTINGS |$)", re.DOTALL)
BETWEEN_TTLS = re.compile(r", (?![^(]*\))")
KEEPS_ROWS = re.compile(r" (TO (VOLUME|DISK)|RECOMPRESS) ")
TABLE_OF = {  # of PostgreSQL, by kind of point
    "gauge": "metrics_points",
    "sum": "metrics_points",
    "histogram": "metrics_histograms",
    "exponential_histogram": "metrics_exponential_histograms",
    "summary": "metrics_summaries",
}
TABLES: dict[Signal, list[str]] = {"metrics": sorted(set(TABLE_OF.values())), "logs": ["events"]}  # of PostgreSQL
ROWS_AT_ONCE = 1 << 16
POINTS_AT_ONCE = 5000
REGISTERED = """
    SELECT name, metadata -> 'stores', (metadata ->> 'retention_days')::integer FROM table_registry ORDER BY name
"""
DAY_US = 86_400 * 10**6
EPOCH_2000_US = 946_684_800 * 10**6
# Source: PostgreSQL documentation, COPY, "Binary Format".
COPY_HEADER_BYTES = 19
COPY_ROW = np.dtype([("fields", ">i2"), ("id_size", ">i4"), ("id", ID), ("time_size", ">i4"), ("time", ">i8")])


class Store(Protocol):
    """One store of one part. Every call raises Unavailable where it is away, Misconfigured where it lacks a table."""

    name: str

    def rows(self, received: Window) -> Iterator[Rows]:
        """Every row that readers see and that was received in the window, in any order, in pieces."""
        ...

    def count(self, received: Window) -> int:
        """How many those are."""
        ...

    def superseded(self, known: Known, places: Ints) -> Bools:
        """Of the ids at `places` of `known`: whose row another id holds, of a later receipt, or the same and greater.

        Never so where a row is kept for every id.
        """
        ...

    def keeps(self, known: Known) -> Bools:
        """Which ids it is to hold."""
        ...

    def expired(self, known: Known, places: Ints) -> Bools:
        """Of the ids at `places` of `known`: whose time is before what its retention keeps."""
        ...

    def close(self) -> None: ...


Open = Callable[[], Store]


def of(signal: Signal, settings: Settings) -> dict[str, list[Open]]:
    """The parts of the signal, and the stores that keep each; those must be closed."""
    if signal == "events":
        return {signal: [], **_registered(settings)}
    kept_by: list[Open] = [partial(ClickHouse, settings, *VIEWS[signal])]
    if signal in TABLES:
        kept_days = settings.retention.points_days if signal == "metrics" else settings.retention.events_days
        kept_by.append(partial(Postgres, settings, TABLES[signal], kept_days))
    return {signal: kept_by}


def _registered(settings: Settings) -> dict[str, list[Open]]:
    """Registered tables, retired ones too, by what PostgreSQL says of them. A store makes one at its first row."""
    with closing(Postgres(settings, ["table_registry"], 0)) as registry:
        tables = registry.asked(REGISTERED)
    found: dict[str, list[Open]] = {}
    for name, kept_in, kept_days in tables:
        opened: dict[str, Open] = {
            "clickhouse": partial(ClickHouse.registered, settings, name),
            "postgres": partial(Postgres.registered, settings, name, kept_days),
        }
        found[f"events/{name}"] = [opened[store] for store in sorted(kept_in)]
    return found


class Unmade:
    """A store that has not made a registered table: it holds nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def rows(self, received: Window) -> Iterator[Rows]:
        return iter(())

    def count(self, received: Window) -> int:
        return 0

    def superseded(self, known: Known, places: Ints) -> Bools:
        return np.zeros(len(places), bool)

    def keeps(self, known: Known) -> Bools:
        return np.ones(len(known.ids), bool)

    def expired(self, known: Known, places: Ints) -> Bools:
        return np.zeros(len(places), bool)

    def close(self) -> None:
        pass


class ClickHouse:
    name = "clickhouse"

    def __init__(self, settings: Settings, view: str, table: str) -> None:
        self._view = clickhouse.quoted(view)
        self._table = table
        self._client = clickhouse.connect(settings.clickhouse)

    @classmethod
    def registered(cls, settings: Settings, table: str) -> Store:
        store = cls(settings, table, f"{table}__rows")
        with store._translated():
            if int(str(store._client.command(f"EXISTS VIEW {store._view}"))):
                return store
        store.close()
        return Unmade(cls.name)

    def rows(self, received: Window) -> Iterator[Rows]:
        query = f"""
            SELECT
                reinterpretAsInt64(substring(unhex(event_id), 1, 8)),
                reinterpretAsInt64(substring(unhex(event_id), 9, 8)),
                toUnixTimestamp64Micro(received_time)
            FROM {self._view} WHERE {self._in(received)}
        """  # noqa: S608  # a view of ours and two integers
        with self._translated(), self._client.query_np_stream(query) as blocks:
            for block in blocks:
                halves = np.ascontiguousarray(block[:, :2], dtype="<i8")
                yield Rows(halves.view(ID).reshape(-1), np.ascontiguousarray(block[:, 2], dtype=np.int64))

    def count(self, received: Window) -> int:
        with self._translated():
            answer = self._client.command(f"SELECT count() FROM {self._view} WHERE {self._in(received)}")  # noqa: S608
        return int(str(answer))

    def superseded(self, known: Known, places: Ints) -> Bools:
        return np.zeros(len(places), bool)

    def keeps(self, known: Known) -> Bools:
        return np.ones(len(known.ids), bool)

    def expired(self, known: Known, places: Ints) -> Bools:
        """By the table's own TTL, as it is now."""
        found = np.zeros(len(places), bool)
        removals = self._removals()
        for first in range(0, len(places) if removals else 0, POINTS_AT_ONCE):
            query = f"""
                SELECT {" OR ".join(f"{when} <= now()" for when in removals)}
                FROM (SELECT fromUnixTimestamp64Micro(arrayJoin({{times:Array(Int64)}}), 'UTC') AS timestamp)
            """  # noqa: S608  # expressions of the server's own
            times = known.time_us[places[first : first + POINTS_AT_ONCE]].tolist()
            with self._translated():
                answer = self._client.query(query, parameters={"times": times}).result_rows
            found[first : first + POINTS_AT_ONCE] = [bool(row[0]) for row in answer]
        return found

    def _removals(self) -> list[str]:
        """When rows are removed, as expressions of their timestamp."""
        query = "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = {table:String}"
        with self._translated():
            rows = self._client.query(query, parameters={"table": self._table}).result_rows
        ttl = TTL.search(rows[0][0]) if rows else None
        rules = BETWEEN_TTLS.split(ttl[1]) if ttl else []
        return [re.split(" DELETE| WHERE ", rule)[0] for rule in rules if not KEEPS_ROWS.search(rule)]

    def close(self) -> None:
        self._client.close()

    @staticmethod
    def _in(received: Window) -> str:
        when = "toUnixTimestamp64Micro(received_time)"
        bounds = ((f"{when} >=", received.start_us), (f"{when} <", received.end_us))
        return " AND ".join(f"{test} {bound}" for test, bound in bounds if bound is not None) or "true"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with clickhouse.translated():
                yield
        except (clickhouse.Error, Rejected) as error:
            reason = " ".join(str(error).split())[:300]
            raise Misconfigured(f"ClickHouse cannot read {self._view}: {reason} Run `pipeline migrate up`.") from error


class Postgres:
    name = "postgres"

    def __init__(self, settings: Settings, tables: Sequence[str], kept_days: int) -> None:
        self._tables = [sql.Identifier(table).as_string() for table in tables]
        self._kept_since_us = time.time_ns() // 1000 - kept_days * DAY_US
        self._connection = connection.connect(settings.postgres)

    @classmethod
    def registered(cls, settings: Settings, table: str, kept_days: int) -> Store:
        store = cls(settings, [table], kept_days)
        if store.asked("SELECT to_regclass(%s)", store._tables[0]) != [(None,)]:
            return store
        store.close()
        return Unmade(cls.name)

    def asked(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._translated():
            return self._connection.execute(query.encode(), values).fetchall()

    def rows(self, received: Window) -> Iterator[Rows]:
        for table in self._tables:
            query = f"COPY (SELECT event_id, received_time FROM {table} WHERE {self._in(received)}) TO STDOUT (FORMAT BINARY)"  # noqa: S608, E501
            with self._translated(), self._connection.cursor() as cursor, cursor.copy(query.encode()) as copy:
                pieces = bytearray()
                for piece in copy:
                    pieces += piece
                    if len(pieces) >= ROWS_AT_ONCE * COPY_ROW.itemsize:
                        yield from _copied(pieces)
                        pieces = bytearray(COPY_HEADER_BYTES)
                yield from _copied(pieces)

    def count(self, received: Window) -> int:
        total = 0
        for table in self._tables:
            with self._translated():
                query = f"SELECT count(*) FROM {table} WHERE {self._in(received)}"  # noqa: S608
                total += (self._connection.execute(query.encode()).fetchone() or (0,))[0]
        return total

    def superseded(self, known: Known, places: Ints) -> Bools:
        points = known.points
        found = np.zeros(len(places), bool)
        if points is None:
            return found
        table_of = np.array([TABLE_OF[kind] for kind in KINDS])[points.kind[places]]
        for table in np.unique(table_of):
            rows = np.flatnonzero(table_of == table)
            for first in range(0, len(rows), POINTS_AT_ONCE):
                part = rows[first : first + POINTS_AT_ONCE]
                found[part] = self._superseded(str(table), known, places[part])
        return found

    def _superseded(self, table: str, known: Known, places: Ints) -> Bools:
        assert known.points is not None
        query = f"""
            SELECT asked.number - 1
            FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::uuid[])
                WITH ORDINALITY AS asked (series_id, time_us, received_us, event_id, number)
            JOIN {table} AS held
                ON held.series_id = asked.series_id
                AND held.time = timestamptz 'epoch' + asked.time_us * interval '1 microsecond'
            WHERE held.event_id <> asked.event_id
                AND (held.received_time, held.event_id)
                    >= (timestamptz 'epoch' + asked.received_us * interval '1 microsecond', asked.event_id)
        """  # noqa: S608
        ids = [bytes(one).ljust(16, b"\0").hex() for one in known.ids[places]]
        columns = known.points.series_id[places], known.time_us[places], known.received_us[places]
        with self._translated():
            answer = self._connection.execute(query.encode(), (*(column.tolist() for column in columns), ids))
            numbers = [row[0] for row in answer]
        found = np.zeros(len(places), bool)
        found[numbers] = True
        return found

    def keeps(self, known: Known) -> Bools:
        """All points; of log records errors and events."""
        return np.ones(len(known.ids), bool) if known.event is None else known.event

    def expired(self, known: Known, places: Ints) -> Bools:
        return known.time_us[places] < self._kept_since_us

    def close(self) -> None:
        self._connection.close()

    @staticmethod
    def _in(received: Window) -> str:
        when = "received_time {} timestamptz 'epoch' + {} * interval '1 microsecond'"
        bounds = ((">=", received.start_us), ("<", received.end_us))
        return " AND ".join(when.format(test, bound) for test, bound in bounds if bound is not None) or "true"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with connection.translated():
                yield
        except (connection.Error, Rejected) as error:
            reason = " ".join(str(error).split())[:300]
            tables = ", ".join(self._tables)
            raise Misconfigured(f"PostgreSQL cannot read {tables}: {reason} Run `pipeline migrate up`.") from error


def _copied(pieces: bytearray) -> Sequence[Rows]:
    """The rows of binary COPY output that starts with a header and may end with a trailer."""
    count = (len(pieces) - COPY_HEADER_BYTES) // COPY_ROW.itemsize
    if count < 1:
        return ()
    rows = np.frombuffer(pieces, COPY_ROW, count, COPY_HEADER_BYTES)
    return [Rows(rows["id"].copy(), rows["time"].astype(np.int64) + EPOCH_2000_US)]
