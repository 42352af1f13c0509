"""Registered tables in ClickHouse: made at their first row, widened by later versions, each row seen once.

Rows are inserted as they are into `<table>__rows`, which computes where they stand in time; readers have the view
`<table>`. Tables of signals have a Null table and a materialized view before that: here a column would have to be added
to all three, and an insert between two of these steps would lose it in silence.
"""

import re
from collections.abc import Sequence
from typing import Any

from clickhouse_connect.driver.binding import format_str
from clickhouse_connect.driver.client import Client

from pipeline.clickhouse import Error, connect, quoted, translated
from pipeline.clickhouse.inserts import Inserts
from pipeline.delivery import BrokenTable
from pipeline.errors import Misconfigured, Rejected
from pipeline.record.schema import Schema
from pipeline.settings import ClickHouseSettings
from pipeline.tables.model import Column, Kind, Table

ENVELOPE = {
    "event_id": "FixedString(16)", "region": "LowCardinality(String)", "received_time": "Int64",
    "tenant": "LowCardinality(String)", "time": "Int64", "timestamp": "DateTime64(9, 'UTC')", "ordinal": "Int32",
}  # fmt: skip
TYPES: dict[Kind, str] = {
    "boolean": "Bool", "int": "Int32", "long": "Int64", "float": "Float32", "double": "Float64", "string": "String",
    "bytes": "String", "timestamp-millis": "DateTime64(3, 'UTC')", "timestamp-micros": "DateTime64(6, 'UTC')",
    "timestamp-nanos": "DateTime64(9, 'UTC')", "date": "Date32", "map": "Map(String, String)",
}  # fmt: skip
FROM_NUMBER = {
    "timestamp-millis": "fromUnixTimestamp64Milli({}, 'UTC')",
    "timestamp-micros": "fromUnixTimestamp64Micro({}, 'UTC')",
    "timestamp-nanos": "fromUnixTimestamp64Nano({}, 'UTC')",
    "date": "toDate32({})",
}  # fmt: skip
# As in the migrations: redelivered rows have the same timestamp and event_id, so they meet in one partition and key.
MAKE = """
    CREATE TABLE IF NOT EXISTS {rows}
    (
        event_id FixedString(16) CODEC(NONE),
        region LowCardinality(String),
        received_time Int64 CODEC(Delta, ZSTD(1)),
        tenant LowCardinality(String),
        time Int64 CODEC(Delta, ZSTD(1)),
        timestamp DateTime64(9, 'UTC') MATERIALIZED fromUnixTimestamp64Nano(
            if(
                time BETWEEN 946684800000000000 AND intDiv(received_time, 1000000) * 1000000 + 86400000000000,
                time, intDiv(received_time, 1000000) * 1000000
            ), 'UTC'
        ) CODEC(Delta, ZSTD(1)),
        {columns},
        ordinal Int32
    )
    ENGINE = ReplacingMergeTree(received_time)
    PARTITION BY toDate(timestamp)
    PRIMARY KEY ({key})
    ORDER BY ({key}, event_id)
    TTL toDateTime(timestamp) + toIntervalDay({days})
    SETTINGS non_replicated_deduplication_window = 1000, ttl_only_drop_parts = 1
    COMMENT {comment}
"""
VIEW = """
    CREATE OR REPLACE VIEW {view} AS
    SELECT
        e.timestamp AS timestamp,
        lower(hex(e.event_id)) AS event_id,
        e.tenant AS tenant,
        e.region AS region,
        {columns},
        e.time AS time,
        fromUnixTimestamp64Nano(e.received_time, 'UTC') AS received_time
    FROM {rows} AS e FINAL
    SETTINGS do_not_merge_across_partitions_select_final = 1
"""
COLUMNS_OF = """
    SELECT name, type FROM system.columns
    WHERE database = currentDatabase() AND table = {table:String} ORDER BY position
"""
TABLE = """
    SELECT engine, comment, as_select, engine_full FROM system.tables
    WHERE database = currentDatabase() AND name = {table:String}
"""
VERSION = re.compile(r"version (\d+)")  # in the comment of a table
TTL = re.compile(r" TTL (.*toIntervalDay\()\d+\)(?: SETTINGS |$)", re.DOTALL)  # its last part removes, others move


class RegisteredInserts:
    """Any registered table; safe to call from several threads."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._inserts: dict[str, Inserts] = {}
        self._ready: set[tuple[str, int]] = set()  # tables and versions that have their columns

    def insert(self, table: Table, known: Schema, values: Sequence[bytes], *, records: int, token: str) -> None:
        """Insert container files of one version, up to the table's; make what their rows need.

        The same token within the last 1,000 inserts changes nothing. Raise Unavailable where the server is away,
        Rejected where it cannot read the file, BrokenTable where it has something else by this name or cannot make the
        table.
        """
        try:
            self._insert(table, known, values, records, token)
        except (Error, Misconfigured):  # dropped or changed by hand since it was seen?
            self._ready.clear()
            self._inserts.clear()
            try:
                self._insert(table, known, values, records, token)
            except (Error, Misconfigured) as error:
                reason = " ".join(str(error).split())[:300]
                raise BrokenTable(f"ClickHouse: table {table.name}: {reason}") from error

    def _insert(self, table: Table, known: Schema, values: Sequence[bytes], records: int, token: str) -> None:
        if (table.name, table.version) not in self._ready:
            if self._client is None:
                self._client = connect(self._settings)
            try:
                with translated():
                    make(self._client, table)
            except BrokenTable:
                raise
            except Rejected as reason:  # no row's fault
                raise BrokenTable(f"ClickHouse cannot make the table {table.name}. {reason}") from reason
            self._ready.add((table.name, table.version))
        into = self._inserts.get(table.name)
        if into is None:
            into = self._inserts[table.name] = Inserts(self._settings, _rows(table))
        into.insert(known, values, records=records, token=token)


def make(client: Client, table: Table) -> None:
    """Make the table, or add the columns that it lacks; narrow and drop nothing. Any number may do it at once."""
    rows, view = _rows(table), quoted(table.name)
    there = _columns(client, rows)
    if not there:
        words = {
            "rows": quoted(rows),
            "columns": ", ".join(map(_definition, table.columns)),
            "key": ", ".join(map(quoted, _key(table))),
            "days": table.retention_days,
            "comment": _comment(table),
        }
        client.command(MAKE.format(**words))
        there = _columns(client, rows)
    wanted = ENVELOPE | {column.name: _type(column) for column in table.columns}
    _demand(rows, there, {name: kind for name, kind in wanted.items() if name in there or name in ENVELOPE})
    [(_, comment, _, engine)] = _table(client, rows)
    said = VERSION.search(comment)
    changes = [
        f"ADD COLUMN IF NOT EXISTS {_definition(column)}" for column in table.columns if column.name not in there
    ]
    if said is None or int(said[1]) < table.version:
        changes.append(f"MODIFY COMMENT {_comment(table)}")
        kept = TTL.search(engine)
        until = kept[1] if kept else "toDateTime(timestamp) + toIntervalDay("
        changes.append(f"MODIFY TTL {until}{table.retention_days})")  # takes all commas
    if changes:
        client.command(f"ALTER TABLE {quoted(rows)} {', '.join(changes)}")
        there = _columns(client, rows)
        _demand(rows, there, wanted)
    found = _table(client, table.name)
    if found and (found[0][0] != "View" or rows not in found[0][2]):
        raise BrokenTable(f"ClickHouse has something else called {table.name}, not our view of {rows}. Rename it.")
    # Whoever replaces the view last looks again, so a column that another one has added meanwhile is never left out.
    while (columns := _own(there)) != _own(_columns(client, table.name)):
        named = ", ".join(f"e.{quoted(name)} AS {quoted(name)}" for name in columns)
        client.command(VIEW.format(view=view, rows=quoted(rows), columns=named))
        there = _columns(client, rows)


def _demand(rows: str, there: dict[str, str], wanted: dict[str, str]) -> None:
    other = [f"{name} is {there.get(name)}, not {kind}" for name, kind in wanted.items() if there.get(name) != kind]
    if other:
        raise BrokenTable(f"ClickHouse has another table {rows} than is registered: {', '.join(other)}. Rename it.")


def _own(columns: dict[str, str]) -> list[str]:
    return [name for name in columns if name not in ENVELOPE]


def _columns(client: Client, table: str) -> dict[str, str]:
    return dict(map(tuple, client.query(COLUMNS_OF, parameters={"table": table}).result_rows))


def _table(client: Client, table: str) -> Sequence[Sequence[Any]]:
    return client.query(TABLE, parameters={"table": table}).result_rows


def _rows(table: Table) -> str:
    return f"{table.name}__rows"


def _comment(table: Table) -> str:
    return _text(f"Registered, version {table.version}; read it through the view {table.name}.")


def _key(table: Table) -> list[str]:
    """Rows of one event must agree in it: of a table with keys only those are sure to."""
    order = [name for name in table.order if not table.keys or name in table.keys]
    return ["tenant", *order, "timestamp"]


def _definition(column: Column) -> str:
    defined = f"{quoted(column.name)} {_type(column)}"
    if column.nullable or not column.has_default or column.kind in ("map", "array", "bytes"):
        return defined  # their defaults are ClickHouse's own
    return f"{defined} DEFAULT {_literal(column)}"


def _type(column: Column) -> str:
    """Maps and arrays are never null here: without a value they are empty."""
    if column.kind == "array":
        assert column.items is not None
        return f"Array({TYPES[column.items]})"
    plain = TYPES[column.kind]
    return f"Nullable({plain})" if column.nullable and column.kind != "map" else plain


def _literal(column: Column) -> str:
    if column.kind in FROM_NUMBER:
        return FROM_NUMBER[column.kind].format(column.default)
    if column.kind == "string":
        return _text(column.default)
    return str(column.default).lower() if column.kind == "boolean" else repr(column.default)


def _text(value: str) -> str:
    literal: str = format_str(value)
    return literal
