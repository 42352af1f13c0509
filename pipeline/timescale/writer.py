"""Metric points into PostgreSQL or TimescaleDB: each series and time holds the point of the latest receipt, once."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import polars as pl
import psycopg

from pipeline import native
from pipeline.errors import Unavailable
from pipeline.record import schema
from pipeline.record.series import Scope, labels
from pipeline.settings import PostgresSettings
from pipeline.telemetry import metrics
from pipeline.timescale import rows, upsert
from pipeline.timescale.session import Session

KNOWN_SERIES = 1 << 19
NATIVE_SCHEMA = "metric_point/1"  # which the extension reads; others are left to the reference
INSERT_SERIES = """
    INSERT INTO metric_series
        (series_id, tenant, metric_name, service, host, description, unit, type, temporality, monotonic, labels)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (series_id) DO NOTHING
"""
POINTS_CHANGED = "SELECT metrics_points_changed(%s)"
HOUR_US = 3600 * 10**6


class Table(NamedTuple):
    """Rows for one table: its name and columns, how many rows, how many of them a later event of the same series and
    time beats, their hours since 2000 where it has rollups, and the rows as binary COPY."""

    name: str
    columns: tuple[str, ...]
    height: int
    beaten: int
    hours: list[int]
    rows: list[bytes]
    key: tuple[str, ...] = ("series_id", "time")


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
        tables, series = prepared(joined)
        unknown = series - self._known
        new_series = _series(joined, unknown) if unknown else []
        try:
            written = self.session.write(
                partial(_write, _copy_in, new_series, tables), partial(_write, _upsert, new_series, tables)
            )
        except Unavailable:
            self._known.clear()  # it may come back without them, from a backup or as a standby
            raise
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


def prepared(joined: bytes) -> tuple[list[Table], set[int]]:
    """Rows of all points of a container file by table, and their series; raise Rejected where it does not decode."""
    extension = native.chosen()
    found = extension.copy_rows(schema.load(NATIVE_SCHEMA).head, joined) if extension else None
    if found is None:
        points = rows.points(joined)
        return _tables(points, joined), set(points["series_id"].unique().to_list())
    parts, series = found
    tables = []
    named = (rows.POINTS_TABLE, *rows.HISTOGRAM_TABLES.values())
    for (table, columns), (height, beaten, hours, encoded) in zip(named, parts, strict=True):
        if height:
            has_rollups = table == rows.POINTS_TABLE[0]
            every = (*rows.SHARED_COLUMNS, *columns)
            tables.append(Table(table, every, height, beaten, hours if has_rollups else [], [encoded]))
    return tables, set(series)


def _tables(points: pl.DataFrame, joined: bytes) -> list[Table]:
    kind = pl.col("type").cast(pl.String)
    numbers = points.filter(kind.is_in(["gauge", "sum"]))
    tables = []
    if numbers.height:
        hours = (numbers["time"] // HOUR_US).unique().to_list()
        encoded = list(rows.number_rows(numbers))
        points_table, value = rows.POINTS_TABLE
        every = (*rows.SHARED_COLUMNS, *value)
        tables.append(Table(points_table, every, numbers.height, _beaten(numbers), hours, encoded))
    for name, (table, columns) in rows.HISTOGRAM_TABLES.items():
        part = points.filter(kind == name)
        if part.height:
            encoded = list(rows.histogram_rows(part, joined, name))
            tables.append(Table(table, (*rows.SHARED_COLUMNS, *columns), part.height, _beaten(part), [], encoded))
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
        scope = Scope(point["scope_name"], point["scope_version"], point["scope_attributes"])
        told_apart = labels(point["resource_attributes"], scope, point["attributes"])
        text = json.dumps({_storable(key): _storable(value) for key, value in told_apart.items()}, ensure_ascii=False)
        found.append((*(_storable(point[column]) for column in rows.SERIES_COLUMNS[:10]), text))
    return found


def _storable(value: Any) -> Any:
    """PostgreSQL's text holds every character but NUL, which becomes U+FFFD."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _copy_in(cursor: psycopg.Cursor, table: Table) -> Written:
    upsert.copy(cursor, table.name, table)
    return Written(table.height)


def _upsert(cursor: psycopg.Cursor, table: Table) -> Written:
    inserted, updated, held_later = upsert.upsert(cursor, table)
    return Written(inserted, updated, held_later + table.beaten)
