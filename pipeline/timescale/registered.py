"""Registered tables in PostgreSQL or TimescaleDB: made at their first row, widened by later versions, each row once."""

import json
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import polars as pl
import psycopg
from psycopg import sql

from pipeline.delivery import BrokenTable
from pipeline.errors import Misconfigured, Rejected
from pipeline.record.times import RECEIPT_NS, SANE_AHEAD_NS, SANE_FROM_NS
from pipeline.settings import PostgresSettings
from pipeline.tables.model import Column, Kind, Table
from pipeline.telemetry import metrics
from pipeline.timescale import connection, rows, upsert
from pipeline.timescale.session import Session

KEY = ("time", "event_id")
ENVELOPE = {
    "time": "timestamptz", "event_id": "uuid", "tenant": "text", "region": "text", "received_time": "timestamptz",
}  # fmt: skip
EPOCH_2000_DAYS = 10_957
NOTHING = b"\xff\xff\xff\xff"
# Of two writers the second waits here, and then finds the table made; a reader that holds it up for longer than this is
# a store that is away.
ALONE = ("SET LOCAL lock_timeout = '10s'", "SELECT pg_advisory_xact_lock(1919247216, hashtext({literal}))")
MAKE = "CREATE TABLE {name} ({columns}, PRIMARY KEY (time, event_id))"
PARTITIONED = (f"{MAKE} PARTITION BY RANGE (time)", "CREATE TABLE {default} PARTITION OF {name} DEFAULT")
HYPERTABLE = (
    MAKE,
    "SELECT create_hypertable({quoted}, by_range('time', INTERVAL '1 day'), create_default_indexes => false)",
)
ADD = "ALTER TABLE {name} ADD COLUMN {column}"
THERE = """
    SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
    WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped
"""
PRIMARY_KEY = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = to_regclass(%s) AND contype = 'p'"
HAS_TIMESCALE = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')"


class Type(NamedTuple):
    """Of a kind of column: its SQL type as `format_type` says it, the OID of that, and the bytes of a value."""

    name: str
    oid: int
    encode: Callable[[Any], bytes]


def _packed(code: str, value: Any) -> bytes:
    return struct.pack(f">{code}", value)


def _timestamp(per_us: int, us_per: int, value: int) -> bytes:
    return struct.pack(">q", value * us_per // per_us - rows.EPOCH_2000_US)


TYPES: dict[Kind, Type] = {
    "boolean": Type("boolean", 16, partial(_packed, "?")),
    "int": Type("integer", 23, partial(_packed, "i")),
    "long": Type("bigint", 20, partial(_packed, "q")),
    "float": Type("real", 700, partial(_packed, "f")),
    "double": Type("double precision", 701, partial(_packed, "d")),
    "string": Type("text", 25, str.encode),
    "bytes": Type("bytea", 17, bytes),
    "timestamp-millis": Type("timestamp with time zone", 1184, partial(_timestamp, 1, 1000)),
    "timestamp-micros": Type("timestamp with time zone", 1184, partial(_timestamp, 1, 1)),
    "timestamp-nanos": Type("timestamp with time zone", 1184, partial(_timestamp, 1000, 1)),
    "date": Type("date", 1082, lambda days: struct.pack(">i", days - EPOCH_2000_DAYS)),
    "map": Type("jsonb", 3802, lambda pairs: b"\x01" + json.dumps(pairs, ensure_ascii=False).encode()),
}


class Incoming(NamedTuple):
    """Rows for one table."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[bytes]
    key: tuple[str, ...] = KEY


class RegisteredStore:
    """Any registered table. `store` is safe to call from several threads."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._session = Session(settings)
        self._ready: set[tuple[str, int]] = set()  # tables and versions that have their columns

    def store(self, table: Table, version: int, joined: bytes) -> None:
        """Commit the rows of one container file, which `version` wrote, in one transaction; make what they need.

        Raise Unavailable where the store is away, Rejected where it can never hold these rows, BrokenTable where it has
        something else by this name or cannot make the table.
        """
        columns = table.fields_of(version)
        incoming = Incoming(
            table.name, (*ENVELOPE, *(column.name for column in columns)), list(_encoded(joined, columns))
        )
        try:
            counts = self._written(table, incoming)
        except (connection.Error, Misconfigured):  # dropped or changed by hand since it was seen?
            self._ready.clear()
            try:
                counts = self._written(table, incoming)
            except (connection.Error, Misconfigured) as error:
                raise BrokenTable(f"PostgreSQL: table {table.name}: {_sentence(error)}") from error
        metrics.INSERTED.labels(table.name).inc(counts.inserted)
        metrics.UPDATED.labels(table.name).inc(counts.updated)
        metrics.UNCHANGED.labels(table.name).inc(len(incoming.rows) - counts.inserted - counts.updated)

    def _written(self, table: Table, incoming: Incoming) -> upsert.Counts:
        if (table.name, table.version) not in self._ready:
            try:
                self._session.write(partial(make, table=table), partial(make, table=table))
            except BrokenTable:
                raise
            except Rejected as reason:  # no row's fault
                raise BrokenTable(f"PostgreSQL cannot make the table {table.name}. {reason}") from reason
            self._ready.add((table.name, table.version))
        return self._session.write(partial(_copy, incoming), partial(_upsert, incoming))


def _copy(incoming: Incoming, cursor: psycopg.Cursor) -> upsert.Counts:
    upsert.copy(cursor, incoming.name, incoming)
    return upsert.Counts(len(incoming.rows), 0, 0)


def _upsert(incoming: Incoming, cursor: psycopg.Cursor) -> upsert.Counts:
    return upsert.upsert(cursor, incoming)


def make(cursor: psycopg.Cursor, table: Table) -> None:
    """Make the table, or add the columns that it lacks; narrow and drop nothing."""
    name = sql.Identifier(table.name)
    wanted = {column.name: _type(column).name for column in table.columns}
    there = _there(cursor, name)
    if wanted.keys() - there.keys():
        for statement in ALONE:
            cursor.execute(sql.SQL(statement).format(literal=sql.Literal(table.name)))
        there = _there(cursor, name)
        if not there:
            hypertable = cursor.execute(HAS_TIMESCALE).fetchone() == (True,)
            definitions: list[sql.Composable] = [
                sql.SQL("{} {} NOT NULL").format(sql.Identifier(c), sql.SQL(t)) for c, t in ENVELOPE.items()
            ]
            definitions += map(_definition, table.columns)
            words = {
                "name": name,
                "quoted": sql.Literal(name.as_string()),
                "default": sql.Identifier(f"{table.name}__default"),
                "columns": sql.SQL(", ").join(definitions),
            }
            for statement in HYPERTABLE if hypertable else PARTITIONED:
                cursor.execute(sql.SQL(statement).format(**words))
        else:
            for column in table.columns:
                if column.name not in there:
                    cursor.execute(sql.SQL(ADD).format(name=name, column=_definition(column)))
        there = _there(cursor, name)
    other = {column: there[column] for column, kind in wanted.items() if there[column] != kind}
    key = cursor.execute(PRIMARY_KEY, (name.as_string(),)).fetchone()
    if other or key != ('PRIMARY KEY ("time", event_id)',):
        found = ", ".join(f"{column} is {kind}, not {wanted[column]}" for column, kind in other.items())
        raise BrokenTable(
            f"PostgreSQL has another table {table.name} than is registered: "
            f"{found or 'its primary key is not (time, event_id)'}. Rename it; the rows wait in the dead letters."
        )


def _there(cursor: psycopg.Cursor, name: sql.Identifier) -> dict[str, str]:
    return dict(cursor.execute(THERE, (name.as_string(),)).fetchall())


def _definition(column: Column) -> sql.Composable:
    """A default is for rows of before: PostgreSQL then need not rewrite them."""
    defined: sql.Composable = sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(_type(column).name))
    if column.nullable:
        return defined
    defined = sql.SQL("{} NOT NULL").format(defined)
    if not column.has_default:
        return defined
    return sql.SQL("{} DEFAULT {}").format(defined, _default(column))


def _default(column: Column) -> sql.Composable:
    """As its binary form would be, written as SQL."""
    kind = sql.SQL(_type(column).name)
    match column.kind:
        case "timestamp-millis" | "timestamp-micros" | "timestamp-nanos":
            per_second = {"timestamp-millis": 10**3, "timestamp-micros": 10**6, "timestamp-nanos": 10**9}[column.kind]
            us = sql.Literal(f"{column.default * 10**6 // per_second} microseconds")
            return sql.SQL("timestamptz 'epoch' + CAST({} AS interval)").format(us)
        case "date":
            return sql.SQL("date 'epoch' + {}").format(sql.Literal(column.default))
        case "array" | "map":
            return sql.SQL("'{{}}'::{}").format(kind)
        case "bytes":
            return sql.SQL("''::bytea")
        case "float" | "double":  # as text, since numeric knows no -0.0, and float refuses what it rounds to 0
            form = ">f" if column.kind == "float" else ">d"
            [held] = struct.unpack(form, struct.pack(form, column.default))
            return sql.SQL("CAST({} AS {})").format(sql.Literal(repr(held)), kind)
        case _:
            return sql.SQL("CAST({} AS {})").format(sql.Literal(column.default), kind)


def _type(column: Column) -> Type:
    if column.kind != "array":
        return TYPES[column.kind]
    assert column.items is not None
    of = TYPES[column.items]
    return Type(f"{of.name}[]", 0, partial(_array, of))


def _array(of: Type, values: Sequence[Any]) -> bytes:
    """One-dimensional, starting at 1; an empty one has no dimension."""
    if not values:
        return struct.pack(">iii", 0, 0, of.oid)
    elements = [of.encode(value) for value in values]
    return struct.pack(">iiiii", 1, 0, of.oid, len(elements), 1) + b"".join(map(_field, elements))


def _field(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


def _encoded(joined: bytes, columns: Sequence[Column]) -> "list[bytes]":
    """The rows as binary COPY, of rows that are one the last of the latest receipt.

    `time` is the row's own; the receipt where that is missing or absurd. Raise Rejected where the file does not decode.
    """
    received, time = pl.col("received_time"), pl.col("time")
    receipt = received // RECEIPT_NS * RECEIPT_NS
    stands = pl.when(time.is_between(SANE_FROM_NS, receipt + SANE_AHEAD_NS)).then(time).otherwise(receipt)
    names = [column.name for column in columns]
    frame = (
        rows.decoded(joined, ["event_id", "region", "received_time", "tenant", "time", *names])
        .with_columns((stands // 1000).alias("time"), *map(_number, columns))
        .sort("time", "event_id", "received_time", maintain_order=True)
        .unique(["time", "event_id"], keep="last", maintain_order=True)
        .with_columns(received // 1000)
        .select(*ENVELOPE, *names)
    )
    timestamp = TYPES["timestamp-micros"].encode
    encoders = [timestamp, bytes, str.encode, str.encode, timestamp, *(_type(column).encode for column in columns)]
    start = struct.pack(">h", len(encoders))
    try:
        return [
            start
            + b"".join(
                [
                    NOTHING if value is None else _field(encode(value))
                    for encode, value in zip(encoders, row, strict=True)
                ]
            )
            for row in frame.iter_rows()
        ]
    except struct.error as error:
        raise Rejected(f"A value is out of PostgreSQL's range: {error}.") from None


def _number(column: Column) -> pl.Expr:
    """Times and dates as the numbers that they are on the wire."""
    if column.kind == "array":
        return pl.col(column.name).list.eval(pl.element().to_physical())
    return pl.col(column.name) if column.kind == "map" else pl.col(column.name).to_physical()


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
