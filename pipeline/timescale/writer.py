"""Metric points into PostgreSQL or TimescaleDB: each series and time holds the point of the latest receipt, once."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import polars as pl
import psycopg
from psycopg import sql

from pipeline.record.series import labels
from pipeline.settings import PostgresSettings
from pipeline.telemetry import metrics
from pipeline.timescale import rows
from pipeline.timescale.session import Session

KNOWN_SERIES = 1 << 19
INSERT_SERIES = """
    INSERT INTO metric_series
        (series_id, tenant, metric_name, service, host, description, unit, type, temporality, monotonic, labels)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (series_id) DO NOTHING
"""
# The later receipt wins, the id where two are equal: so any order of arrival, and any repetition, ends in the same row.
# RETURNING does not tell of rows that are left alone nor, of a partitioned table, which were there: those replaced and
# those whose place another event keeps are counted where it shows.
UPSERT = """
    WITH written AS (
        INSERT INTO {table} AS held ({columns})
        SELECT DISTINCT ON (series_id, time) {columns} FROM {incoming}
        ORDER BY series_id, time, received_time DESC, event_id DESC
        ON CONFLICT (series_id, time) DO UPDATE SET ({values}) = ROW ({excluded})
        WHERE CASE
            WHEN (EXCLUDED.received_time, EXCLUDED.event_id) > (held.received_time, held.event_id)
                THEN set_config({replaced}, ({replaced_count} + 1)::text, true) IS NOT NULL
            WHEN EXCLUDED.event_id <> held.event_id THEN set_config({kept}, ({kept_count} + 1)::text, true) IS NULL
            ELSE false
        END
        RETURNING 1
    ),
    counted AS MATERIALIZED (SELECT count(*) AS rows FROM written)
    SELECT rows - {replaced_count}, {replaced_count}, {kept_count} FROM counted
"""
COUNT = "coalesce(nullif(current_setting({}, true), ''), '0')::integer"
POINTS_CHANGED = "SELECT metrics_points_changed(%s)"
HOUR_US = 3600 * 10**6


class Table(NamedTuple):
    """Rows for one table: its name, columns after the shared ones, how many rows, how many of them a later event of the
    same series and time beats, their hours since 2000 where it has rollups, and the rows as binary COPY."""

    name: str
    columns: tuple[str, ...]
    height: int
    beaten: int
    hours: list[int]
    rows: list[bytes]


class Written(NamedTuple):
    """What became of the rows for one table."""

    inserted: int
    updated: int = 0
    superseded: int = 0


class MetricStore:
    """Points by series and time. `store` is safe to call from several threads: they prepare side by side and write in
    turn."""

    def __init__(self, settings: PostgresSettings) -> None:
        self.session = Session(settings)
        self._known: set[int] = set()

    def store(self, joined: bytes) -> None:
        """Commit all points of one container file in one transaction, new series with them.

        First road: COPY straight in, for what is new. Where a row is there already (redelivery, a late twin) the
        transaction rolls back and takes the second: COPY into a temporary table, then upsert.
        Raise Unavailable where the store is away, Rejected where it can never hold these points.
        """
        points = rows.points(joined)
        tables = _tables(points, joined)
        unknown = set(points["series_id"].unique().to_list()) - self._known
        new_series = _series(joined, unknown) if unknown else []
        written = self.session.write(
            partial(_write, _copy_in, new_series, tables), partial(_write, _upsert, new_series, tables)
        )
        if len(self._known) + len(unknown) > KNOWN_SERIES:
            self._known.clear()
        self._known.update(unknown)
        for table, counts in zip(tables, written, strict=True):
            metrics.INSERTED.labels(table.name).inc(counts.inserted)
            metrics.UPDATED.labels(table.name).inc(counts.updated)
            metrics.SUPERSEDED.labels(table.name).inc(counts.superseded)
            metrics.UNCHANGED.labels(table.name).inc(table.height - sum(counts))


def _write(
    write_one: Callable[[psycopg.Cursor, Table], Written],
    new_series: list[tuple[object, ...]],
    tables: list[Table],
    cursor: psycopg.Cursor,
) -> list[Written]:
    if new_series:
        cursor.executemany(INSERT_SERIES, new_series)
    written = []
    for table in tables:
        written.append(write_one(cursor, table))
        if table.hours:
            cursor.execute(POINTS_CHANGED, (table.hours,), prepare=False)
    return written


def _tables(points: pl.DataFrame, joined: bytes) -> list[Table]:
    kind = pl.col("type").cast(pl.String)
    numbers = points.filter(kind.is_in(["gauge", "sum"]))
    tables = []
    if numbers.height:
        hours = (numbers["time"] // HOUR_US).unique().to_list()
        encoded = list(rows.number_rows(numbers))
        tables.append(Table(*rows.POINTS_TABLE, numbers.height, _beaten(numbers), hours, encoded))
    for name, (table, columns) in rows.HISTOGRAM_TABLES.items():
        part = points.filter(kind == name)
        if part.height:
            encoded = list(rows.histogram_rows(part, joined, name))
            tables.append(Table(table, columns, part.height, _beaten(part), [], encoded))
    return tables


def _beaten(points: pl.DataFrame) -> int:
    """Of points sorted by series and time: how many have a later event of the same beside them."""
    twin = (pl.col("series_id") == pl.col("series_id").shift()) & (pl.col("time") == pl.col("time").shift())
    twins = int(points.select(twin.sum()).item())
    return points.n_unique(["series_id", "time", "event_id"]) - (points.height - twins) if twins else 0


def _series(joined: bytes, unknown: set[int]) -> list[tuple[object, ...]]:
    """Rows of metric_series, sorted by id so that two writers never wait for each other in a ring."""
    frame = rows.read(joined, rows.SERIES_COLUMNS).filter(pl.col("series_id").is_in(unknown))
    found = []
    for point in frame.unique("series_id").sort("series_id").iter_rows(named=True):
        scope = point["scope_name"], point["scope_version"]
        told_apart = labels(point["resource_attributes"], scope, point["attributes"])
        text = json.dumps({_storable(key): _storable(value) for key, value in told_apart.items()}, ensure_ascii=False)
        found.append((*(_storable(point[column]) for column in rows.SERIES_COLUMNS[:10]), text))
    return found


def _storable(value: Any) -> Any:
    """PostgreSQL's text holds every character but NUL, which becomes U+FFFD."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _copy_in(cursor: psycopg.Cursor, table: Table) -> Written:
    _copy(cursor, sql.Identifier(table.name), table)
    return Written(table.height)


def _copy(cursor: psycopg.Cursor, target: sql.Identifier, table: Table) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, (*rows.SHARED_COLUMNS, *table.columns)))
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(target, columns)
    with cursor.copy(statement) as copy:
        copy.write(rows.SIGNATURE)
        for block in table.rows:
            copy.write(block)
        copy.write(rows.END)


def _upsert(cursor: psycopg.Cursor, table: Table) -> Written:
    incoming = sql.Identifier(f"incoming_{table.name}")
    cursor.execute(
        sql.SQL("CREATE TEMPORARY TABLE {} (LIKE {}) ON COMMIT DROP").format(incoming, sql.Identifier(table.name))
    )
    _copy(cursor, incoming, table)
    columns = [sql.Identifier(column) for column in (*rows.SHARED_COLUMNS, *table.columns)]
    values = columns[2:]
    comma = sql.SQL(", ")
    replaced, kept = (sql.Literal(f"pipeline.{what}_{table.name}") for what in ("replaced", "kept"))
    count = sql.SQL(COUNT)
    cursor.execute(
        sql.SQL(UPSERT).format(
            table=sql.Identifier(table.name),
            incoming=incoming,
            columns=comma.join(columns),
            values=comma.join(values),
            excluded=comma.join(sql.SQL("EXCLUDED.{}").format(column) for column in values),
            replaced=replaced,
            kept=kept,
            replaced_count=count.format(replaced),
            kept_count=count.format(kept),
        )
    )
    inserted, updated, held_later = cursor.fetchone() or (0, 0, 0)
    return Written(inserted, updated, held_later + table.beaten)
