"""What is compared: tables of both stores, whose rows are told in one form.

`replay_rows` has a row for each row of a side: its key, digests of its columns, and what it is grouped by. It is sorted
by key, so that any range of keys of all sides is read at once, and no other.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import psycopg
from psycopg import sql

from pipeline.errors import Misconfigured
from pipeline.replay.asked import Asked
from pipeline.replay.tables import POINT_TABLES, SEVERITY, STATUS, point_key
from pipeline.settings import KafkaSettings, PostgresSettings, RetentionSettings
from pipeline.timescale import connection

LIVE = "live"
EXAMPLE_CHARS = 300
PIECE_BYTES = 4 * 1024 * 1024
DELIVERY = frozenset({"event_id", "region", "received_time", "inserted_time"})  # of the way here, not of the event
ROWS = """
    CREATE OR REPLACE TABLE replay_rows (
        side UInt8, key FixedString(16) CODEC(NONE), event_id FixedString(16), received Int64, timestamp Int64,
        service LowCardinality(String), severity LowCardinality(String), label LowCardinality(String), error Bool,
        value Nullable(Float64), digest UInt64, digests Array(UInt32)
    ) ENGINE = MergeTree ORDER BY key SETTINGS index_granularity = 1024
"""
HASHES = "WITH [{hashes}] AS hashes SELECT {number}, {fields}, cityHash64(hashes), arrayMap(x -> toUInt32(x), hashes)"
KEY_IS_ID = "toFixedString('', 16)"
KEPT_DAYS = "(SELECT (metadata ->> 'retention_days')::bigint FROM table_registry WHERE name = %s)"


@dataclass(frozen=True, slots=True)
class Side:
    """`name` is `live` or a sandbox's; `kafka` has its dead letters and drops. Of live only the slice counts."""

    name: str
    database: str
    postgres: PostgresSettings
    kafka: KafkaSettings

    @property
    def live(self) -> bool:
        return self.name == LIVE


class Span(NamedTuple):
    """Times between which a side's rows lie, both included, in ns."""

    first_ns: int
    last_ns: int


class Place(NamedTuple):
    """Where a row stands."""

    key: bytes
    timestamp_ns: int


Values = dict[str, dict[str, str]]  # by key, as hex digits, and column


class Part(Protocol):
    """A table of one store.

    `grouped_by` says what its label is, `valued` whether its rows have a number, `writer` whose dead letters excuse
    what it lacks, `keyed` whether a row's key is another than its event_id.
    """

    name: str
    writer: str
    grouped_by: str
    valued: bool
    keyed: bool

    def columns(self, asked: Asked, sides: Sequence[Side]) -> list[str]:
        """Those that both sides have and that say something of the event."""
        ...

    def fill(self, asked: Asked, number: int, side: Side, columns: Sequence[str], span: Span | None) -> None:
        """The side's rows into replay_rows, as side `number`."""
        ...

    def values(self, asked: Asked, side: Side, columns: Sequence[str], places: Sequence[Place]) -> Values:
        """How these rows read, as texts, shortened."""
        ...

    def kept_since_ns(self, asked: Asked, side: Side) -> int:
        """From when on the side's retention keeps rows, by their time; 0 where it removes none."""
        ...


class Told(NamedTuple):
    """A table and what its rows are grouped by, as expressions of the store's SQL."""

    table: str
    severity: str = "''"
    error: str = "0"
    value: str = "NULL"
    label: str = "service"
    service: str = "service"
    received_ns: str = "toUnixTimestamp64Nano(received_time)"


SIGNAL_TABLES = {
    "logs": Told("logs_events", SEVERITY.format("severity_number"), "severity_number >= 17"),
    "traces": Told(
        "spans", STATUS.format("status_code"), "status_code = 2",
        "if(start_time > 0 AND end_time > start_time, (end_time - start_time) / 1e6, 0)",
    ),
    "metrics": Told("metrics_points", "type", value="value", label="metric_name"),
}  # fmt: skip
POINTS = {table: "value" if table == "metrics_points" else "sum" for table in POINT_TABLES.values()}


def of(registered: Sequence[str], retention: RetentionSettings) -> Iterator[Part]:
    """All parts: of the signals, and `registered`, by their names; `retention` is live's."""
    for name, told in SIGNAL_TABLES.items():
        yield ClickHouse(name, told)
    events = Told("events", SEVERITY.format("severity_number"), "(severity_number >= 17)::int")
    yield Postgres("postgres/events", events, retention.events_days)
    for table, value in POINTS.items():
        points = Told(table, "type", value=value, label="metric_name")
        yield Postgres(f"postgres/{table}", points, retention.points_days, keyed=True)
    for name in registered:
        store, _, table = name.partition("/")
        told = Told(table, label=f"'{table}'", service="''")
        if store == "clickhouse":
            yield ClickHouse(name, told._replace(table=f"{table}__rows", received_ns="received_time"))
        else:
            yield Postgres(name, told)


class ClickHouse:
    """A table of ClickHouse, whose rows never leave it."""

    writer = "ch_writer"
    keyed = False

    def __init__(self, name: str, told: Told) -> None:
        self.name = name
        self.grouped_by = "metric" if told.label == "metric_name" else "service"
        self.valued = told.value != "NULL"
        self._told = told

    def columns(self, asked: Asked, sides: Sequence[Side]) -> list[str]:
        found = asked.rows(
            "SELECT name FROM system.columns WHERE table = {table:String} AND database IN {databases:Array(String)}"
            " GROUP BY name HAVING uniqExact(database) = {sides:UInt8} ORDER BY min(position)",
            table=self._told.table,
            databases=[side.database for side in sides],
            sides=len({side.database for side in sides}),
        )
        return [row["name"] for row in found if row["name"] not in DELIVERY]

    def fill(self, asked: Asked, number: int, side: Side, columns: Sequence[str], span: Span | None) -> None:
        told = self._told
        if not asked.rows(
            "SELECT 1 FROM system.tables WHERE database = {database:String} AND name = {table:String}",
            database=side.database, table=told.table,
        ):  # fmt: skip
            return  # made at its first row
        hashes = HASHES.format(
            hashes=", ".join(f"ifNull(cityHash64(toString(`{column}`)), 0)" for column in columns) or "toUInt64(0)",
            number=number,
            fields=f"event_id, {KEY_IS_ID}, {told.received_ns}, toUnixTimestamp64Nano(timestamp), {told.service},"
            f" {told.severity}, {told.label}, {told.error}, {told.value}",
        )
        asked.command(f"INSERT INTO replay_rows {hashes} FROM {side.database}.{told.table} WHERE {_between(span)}")

    def values(self, asked: Asked, side: Side, columns: Sequence[str], places: Sequence[Place]) -> Values:
        if not places:
            return {}
        texts = ", ".join(f"substring(ifNull(toString(`{column}`), 'null'), 1, {EXAMPLE_CHARS})" for column in columns)
        rows = asked.rows(
            f"SELECT lower(hex(event_id)) AS key, argMax([{texts}], {self._told.received_ns}) AS texts"
            f" FROM {side.database}.{self._told.table} WHERE timestamp IN"
            " (SELECT fromUnixTimestamp64Nano(arrayJoin({times:Array(Int64)}), 'UTC'))"
            " AND lower(hex(event_id)) IN {keys:Array(String)} GROUP BY event_id",
            times=[place.timestamp_ns for place in places],
            keys=[place.key.hex() for place in places],
        )
        return {row["key"]: dict(zip(columns, row["texts"], strict=True)) for row in rows}

    def kept_since_ns(self, asked: Asked, side: Side) -> int:
        """By the table's own TTL, of which the longest interval is that of its removal."""
        rows = asked.rows(
            "SELECT toUnixTimestamp(now()) - 86400 * arrayMax(arrayMap(n -> toUInt32(n),"
            " extractAll(engine_full, 'toIntervalDay\\((\\d+)\\)'))) AS since_s FROM system.tables"
            " WHERE database = {database:String} AND name = {table:String} AND engine_full LIKE '%toIntervalDay(%'",
            database=side.database, table=self._told.table,
        )  # fmt: skip
        return max(0, rows[0]["since_s"]) * 10**9 if rows else 0


def _between(span: Span | None) -> str:
    if span is None:
        return "1"
    first, last = (f"fromUnixTimestamp64Nano(toInt64({ns}), 'UTC')" for ns in span)
    return f"timestamp BETWEEN {first} AND {last}"


class Postgres:
    """A table of PostgreSQL, whose rows come over as digests. Points are told with their series."""

    writer = "pg_writer"
    TO_ROWS = """
        INSERT INTO replay_rows SELECT {number}, unhex(key), unhex(id), received_us * 1000, time_us * 1000, service,
            severity, label, error, value, cityHash64(digests), arrayMap(x -> reinterpretAsUInt32(x), digests)
        FROM input('key String, id String, received_us Int64, time_us Int64, service String, severity String,
            label String, error Bool, value Nullable(Float64), digests Array(Int64)')
    """

    def __init__(self, name: str, told: Told, kept_days: int | None = None, *, keyed: bool = False) -> None:
        """Of a registered table the registry knows what `kept_days` are."""
        self.name = name
        self.keyed = keyed
        self.grouped_by = "metric" if told.label == "metric_name" else "service"
        self.valued = told.value != "NULL"
        self._told = told
        self._kept_days = kept_days
        self._source = f'"{told.table}"' + (" JOIN metric_series USING (series_id)" if keyed else "")

    def columns(self, asked: Asked, sides: Sequence[Side]) -> list[str]:
        found: list[list[str]] = []
        for side in sides:
            with self._opened(side) as open_:
                if open_ is not None:
                    described = open_.execute(f"SELECT * FROM {self._source} LIMIT 0".encode()).description or []
                    found.append([column.name for column in described])
        left_out = {"created_time", *DELIVERY} - ({"event_id"} if self.keyed else set())
        return [name for name in (found or [[]])[0] if name not in left_out and all(name in each for each in found)]

    def fill(self, asked: Asked, number: int, side: Side, columns: Sequence[str], span: Span | None) -> None:
        told = self._told
        hashes = ", ".join(f"coalesce(hashtextextended({_pg_name(column)}::text, 0), 0)" for column in columns) or "0"
        fields = [
            self._key, "''" if not self.keyed else _hex("event_id"), _us("received_time"), _us("time"), told.service,
            told.severity, told.label, told.error, f"({told.value})::float8",
            f"translate(ARRAY[{hashes}]::text, '{{}}', '[]')",
        ]  # fmt: skip
        query = f"COPY (SELECT {', '.join(fields)} FROM {self._source} WHERE {self._between(span)}) TO STDOUT"
        into = self.TO_ROWS.format(number=number)
        with self._opened(side) as open_:
            if open_ is None:
                return
            with open_.cursor() as cursor, cursor.copy(query.encode()) as copy:
                piece: list[bytes] = []
                size = 0
                for line in copy:
                    piece.append(bytes(line))
                    size += len(line)
                    if size >= PIECE_BYTES:
                        asked.insert_text(into, piece)
                        piece, size = [], 0
                if piece:
                    asked.insert_text(into, piece)

    def values(self, asked: Asked, side: Side, columns: Sequence[str], places: Sequence[Place]) -> Values:
        texts = ", ".join(f"left(coalesce({_pg_name(column)}::text, 'null'), {EXAMPLE_CHARS})" for column in columns)
        query = (
            f"SELECT {self._key}, ARRAY[{texts}] FROM {self._source} WHERE {self._key} = ANY(%s) AND time = ANY(ARRAY("
            "SELECT timestamptz 'epoch' + n * interval '1 microsecond' FROM unnest(%s::bigint[]) AS n))"
        )
        times, keys = [place.timestamp_ns // 1000 for place in places], [place.key.hex() for place in places]
        with self._opened(side) as open_:
            found = [] if open_ is None else open_.execute(query.encode(), (keys, times)).fetchall()
        return {key: dict(zip(columns, said, strict=True)) for key, said in found}

    def kept_since_ns(self, asked: Asked, side: Side) -> int:
        """By the settings, or a registered table's declaration; of a sandbox nobody removes rows."""
        if not side.live:
            return 0
        with self._opened(side) as open_:
            if open_ is None:
                return 0
            kept = "%s::integer" if self._kept_days is not None else KEPT_DAYS
            row = open_.execute(
                f"SELECT (extract(epoch FROM now()))::bigint - 86400 * {kept}".encode(),
                (self._kept_days if self._kept_days is not None else self._told.table,),
            ).fetchone()
        return max(0, row[0]) * 10**9 if row and row[0] else 0

    @property
    def _key(self) -> str:
        if not self.keyed:
            return _hex("event_id")
        return f"md5({point_key(sql.Literal(self._told.table).as_string(), 'series_id', _us('time'))})"

    def _between(self, span: Span | None) -> str:
        if span is None:
            return "true"
        first, last = span.first_ns // 1000, span.last_ns // 1000 + 1
        return " AND ".join(
            f"time {test} timestamptz 'epoch' + {us} * interval '1 microsecond'"
            for test, us in ((">=", first), ("<=", last))
        )

    @contextmanager
    def _opened(self, side: Side) -> Iterator[psycopg.Connection | None]:
        """None where the side has no such table: it is made at its first row."""
        with closing(connection.connect(side.postgres)) as opened:
            try:
                with connection.translated():
                    there = opened.execute("SELECT to_regclass(%s)", (f'"{self._told.table}"',)).fetchone()
                    yield opened if there != (None,) else None
            except connection.Error as error:
                reason = " ".join(str(error).split())[:300]
                raise Misconfigured(f"PostgreSQL cannot read {self._told.table} of {side.name}: {reason}") from error


def _pg_name(column: str) -> str:
    return sql.Identifier(column).as_string()


def _hex(column: str) -> str:
    return f"replace({column}::text, '-', '')"


def _us(column: str) -> str:
    return f"(extract(epoch FROM {column}) * 1000000)::bigint"
