"""Native range partitions of the plain PostgreSQL: made ahead of time, dropped when all of it has expired."""

import datetime
from collections.abc import Sequence
from typing import NamedTuple

import psycopg
from psycopg import sql

from pipeline.maintain.change import Change
from pipeline.maintain.registered import Registered
from pipeline.settings import RetentionSettings

DAY = datetime.timedelta(days=1)
ORIGIN = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
# `ATTACH` would fail on a row that is in the default partition, and a writer who has read where its rows belong would
# put another one there: so writers are kept away first, then rows are moved. Readers wait for the attaching alone.
LOCK = "LOCK TABLE ONLY {table} IN SHARE ROW EXCLUSIVE MODE"
MAKE = (
    LOCK,
    "CREATE TABLE {partition} (LIKE {table} INCLUDING ALL)",
    "WITH moved AS (DELETE FROM {rest} WHERE {time} >= {start} AND {time} < {stop} RETURNING *)"
    " INSERT INTO {partition} SELECT * FROM moved",
    "ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES FROM ({start}) TO ({stop})",
)
DROP = "DROP TABLE {partition}"
DELETE = "DELETE FROM {rest} WHERE {time} < {cutoff}"
# Rollups of what is gone are final: nothing that comes late may be taken for all that there was.
FINAL = (
    "UPDATE metrics_points_kept SET since = greatest(since, {cutoff})",
    "DELETE FROM metrics_changed_hours WHERE hour < {cutoff}",
)
PARTITIONED = "SELECT to_regclass(%s) IS NOT NULL"
PARTITIONS = """
    SELECT
        c.oid::regclass::text,
        substring(pg_get_expr(c.relpartbound, c.oid) FROM $$FROM \\('([^']+)'\\)$$)::timestamptz,
        substring(pg_get_expr(c.relpartbound, c.oid) FROM $$TO \\('([^']+)'\\)$$)::timestamptz
    FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid
    WHERE inhparent = {table}::regclass AND pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT'
    ORDER BY 2
"""
IN_DEFAULT = "SELECT DISTINCT date_bin({span}, {time}, {origin}) FROM {rest} WHERE {time} >= {cutoff}"
TO_REFRESH = "SELECT DISTINCT date_bin({span}, hour, {origin}) FROM metrics_changed_hours WHERE hour >= {cutoff}"
EXPIRED = "SELECT EXISTS (SELECT FROM {rest} WHERE {time} < {cutoff})"
EXPIRED_ROLLUP = f"{EXPIRED} OR EXISTS (SELECT FROM metrics_changed_hours WHERE hour < {{cutoff}})"  # will be refreshed
POINTS = "metrics_points"
ROLLUPS = ("metrics_1m_rollup", "metrics_1h_rollup", "metrics_1d_rollup")


class Table(NamedTuple):
    """A partitioned table: the column of its time, days of a partition, days that are kept, and what stands between its
    name and that of a partition: two _ where names are given by others, who may use only single ones."""

    name: str
    time: str
    span_days: int
    kept_days: int
    between: str = "_"

    def partition(self, which: str) -> str:
        return f"{self.name}{self.between}{which}"


class Partition(NamedTuple):
    """Its name is quoted where it needs to be."""

    name: str
    start: datetime.datetime
    stop: datetime.datetime


def tables(retention: RetentionSettings, registered: Sequence[Registered]) -> list[Table]:
    """All of them; coarser rollups have fewer rows a day, so larger partitions."""
    return [
        Table(POINTS, "time", 1, retention.points_days),
        Table("metrics_histograms", "time", 1, retention.points_days),
        Table("metrics_exponential_histograms", "time", 1, retention.points_days),
        Table("metrics_summaries", "time", 1, retention.points_days),
        Table("events", "time", 1, retention.events_days),
        Table(ROLLUPS[0], "minute", 1, retention.metrics_1m_days),
        Table(ROLLUPS[1], "hour", 30, retention.metrics_1h_days),
        Table(ROLLUPS[2], "day", 360, retention.metrics_1d_days),
        *(Table(name, "time", 1, kept_days, "__") for name, kept_days in registered),
    ]


def plan(
    connected: psycopg.Connection,
    retention: RetentionSettings,
    registered: Sequence[Registered],
    now: datetime.datetime,
) -> tuple[list[Change], list[Change]]:
    """Partitions for yesterday, for the days ahead, for what is kept in the default partition and for rollups that will
    be refreshed; and what has expired, to be dropped once rollups are refreshed. What is called as a registered table
    and was not made as one is left alone."""
    today = ORIGIN + (now - ORIGIN) // DAY * DAY
    days = [today + n * DAY for n in range(-1, retention.partitions_ahead_days + 1)]
    made: list[Change] = []
    expired: list[Change] = []
    partitioned = [each for each in registered if _is_partitioned(connected, each.name)]
    for table in tables(retention, partitioned):
        names = {
            "table": sql.Identifier(table.name),
            "rest": sql.Identifier(table.partition("default")),
            "time": sql.Identifier(table.time),
            "cutoff": sql.Literal(today - table.kept_days * DAY),
            "span": sql.Literal(table.span_days * DAY),
            "origin": sql.Literal(ORIGIN),
        }
        there = [
            Partition(*row)
            for row in connected.execute(
                sql.SQL(PARTITIONS).format(table=sql.Literal(sql.Identifier(table.name).as_string()))
            )
        ]
        queries = [IN_DEFAULT, TO_REFRESH] if table.name in ROLLUPS else [IN_DEFAULT]
        strays = [row[0] for query in queries for row in connected.execute(sql.SQL(query).format(**names))]
        wanted = {_start(day, table.span_days) for day in (*days, *strays)} - {one.start for one in there}
        made += [_made(table, start, names) for start in sorted(wanted)]
        old = [one for one in there if one.stop <= today - table.kept_days * DAY]
        query = EXPIRED_ROLLUP if table.name in ROLLUPS else EXPIRED
        rest = connected.execute(sql.SQL(query).format(**names)).fetchone() == (True,)
        if old or rest:
            expired.append(_expired(table, old, names))
    return made, expired


def _is_partitioned(connected: psycopg.Connection, name: str) -> bool:
    return connected.execute(PARTITIONED, (f"{name}__default",)).fetchone() == (True,)


def _start(day: datetime.datetime, span_days: int) -> datetime.datetime:
    return day - (day - ORIGIN) % (span_days * DAY)


def _made(table: Table, start: datetime.datetime, names: dict[str, sql.Composable]) -> Change:
    name = table.partition(f"{start:%Y%m%d}")
    stop = start + table.span_days * DAY
    own = {"partition": sql.Identifier(name), "start": sql.Literal(start), "stop": sql.Literal(stop)}
    return Change(
        f"make partition {name}: {start:%Y-%m-%d} to before {stop:%Y-%m-%d}.",
        tuple(sql.SQL(statement).format(**names, **own).as_string() for statement in MAKE),
    )


def _expired(table: Table, old: list[Partition], names: dict[str, sql.Composable]) -> Change:
    """Whole partitions, and rows of the default one; there is no way back, so they are named."""
    statements = [LOCK, *(FINAL if table.name == POINTS else ()), DELETE]
    texts = [sql.SQL(statement).format(**names).as_string() for statement in statements]
    texts += [sql.SQL(DROP).format(partition=sql.SQL(one.name)).as_string() for one in old]
    what = ", ".join([*(one.name for one in old), f"old rows of {table.partition('default')}"])
    return Change(f"drop {what}: {table.name} keeps {table.kept_days} days.", tuple(texts))
