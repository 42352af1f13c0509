"""Policies of TimescaleDB: its own jobs drop, compress and refresh."""

import datetime
from collections.abc import Sequence
from typing import NamedTuple

import psycopg
from psycopg import sql

from pipeline.errors import Misconfigured
from pipeline.maintain.change import Change
from pipeline.maintain.registered import Registered
from pipeline.settings import RetentionSettings

JOBS = """
    SELECT
        coalesce(c.view_name, j.hypertable_name), j.proc_name, j.job_id,
        coalesce(config ->> 'start_offset', config ->> 'compress_after', config ->> 'drop_after')::interval
    FROM timescaledb_information.jobs AS j
    LEFT JOIN timescaledb_information.continuous_aggregates AS c
        ON c.materialization_hypertable_name = j.hypertable_name
    WHERE j.hypertable_name IS NOT NULL
"""
HYPERTABLES = """
    SELECT h.hypertable_name, d.time_interval, h.compression_enabled
    FROM timescaledb_information.hypertables AS h
    JOIN timescaledb_information.dimensions AS d USING (hypertable_schema, hypertable_name)
"""
CHUNK = "SELECT set_chunk_time_interval({table}, {value})"
ALTER = """
    SELECT alter_job(job_id, config => config || jsonb_build_object({key}, {value}))
    FROM timescaledb_information.jobs WHERE job_id = {job}
"""
KEEP = "SELECT add_retention_policy({table}, drop_after => {value})"


class Dialect(NamedTuple):
    """How this TimescaleDB calls its column store."""

    enable: str
    add: str


COLUMNSTORE = Dialect(
    "ALTER TABLE {name} SET (timescaledb.enable_columnstore, timescaledb.segmentby = {segment},"
    " timescaledb.orderby = {order})",
    "CALL add_columnstore_policy({table}, after => {value})",
)
BEFORE_2_18 = Dialect(
    "ALTER TABLE {name} SET (timescaledb.compress, timescaledb.compress_segmentby = {segment},"
    " timescaledb.compress_orderby = {order})",
    "SELECT add_compression_policy({table}, compress_after => {value})",
)
POINTS = "metrics_points"
HAS_COLUMNSTORE = "SELECT EXISTS (SELECT FROM pg_proc WHERE proname = 'add_columnstore_policy')"


class Table(NamedTuple):
    """A hypertable, days that are kept, and by what its column store is cut and ordered."""

    name: str
    kept_days: int
    segment: str
    order: str


class Rollup(NamedTuple):
    """A continuous aggregate, days that are kept, and days that what it is made of is kept: of what is gone a refresh
    would make nothing."""

    name: str
    kept_days: int
    source_days: int


def tables(retention: RetentionSettings, registered: Sequence[Registered]) -> list[Table]:
    of_points = [
        POINTS, "metrics_histograms", "metrics_exponential_histograms", "metrics_summaries",
    ]  # fmt: skip
    return [
        *(Table(name, retention.points_days, "series_id", "time") for name in of_points),
        Table("events", retention.events_days, "", "time, event_id"),
        *(Table(name, kept_days, "", "time, event_id") for name, kept_days in registered),
    ]


def rollups(retention: RetentionSettings) -> list[Rollup]:
    return [
        Rollup("metrics_1m", retention.metrics_1m_days, retention.points_days),
        Rollup("metrics_1h", retention.metrics_1h_days, retention.metrics_1m_days),
        Rollup("metrics_1d", retention.metrics_1d_days, retention.metrics_1h_days),
    ]


def plan(connected: psycopg.Connection, retention: RetentionSettings, registered: Sequence[Registered]) -> list[Change]:
    """What of chunk sizes, column store, retention and refresh differs from the settings. Refreshes are bounded before
    anything is dropped. What is called as a registered table and was not made as one is left alone.

    Raise Misconfigured where a table of ours is no hypertable, or a rollup is not refreshed.
    """
    current = connected.execute(HAS_COLUMNSTORE).fetchone() == (True,)
    dialect = COLUMNSTORE if current else BEFORE_2_18
    hypertables = {name: rest for name, *rest in connected.execute(HYPERTABLES)}
    if POINTS not in hypertables:
        raise Misconfigured(
            f"{POINTS} is no hypertable: the extension timescaledb came into this database after the migrations, which "
            "do not look for it again. Drop the extension, or migrate an empty database and replay into it."
        )
    policies = Policies(connected)
    changes: list[Change] = []
    for rollup in rollups(retention):
        changes += policies.altered(
            rollup.name, "policy_refresh_continuous_aggregate", "start_offset", rollup.source_days
        )
    for table in tables(retention, [each for each in registered if each.name in hypertables]):
        chunk, columnar = hypertables[table.name]
        wanted = datetime.timedelta(hours=retention.chunk_hours)
        if chunk != wanted:
            what = f"make chunks of {table.name} of {retention.chunk_hours} hours; those that are there stay."
            changes.append(Change(what, (_text(CHUNK, table.name, value=sql.Literal(wanted)),)))
        if not columnar:
            words = {"segment": sql.Literal(table.segment), "order": sql.Literal(table.order)}
            what = f"let {table.name} have a column store."
            changes.append(Change(what, (_text(dialect.enable, table.name, **words),)))
        changes += policies.set(
            table.name, "policy_compression", "compress_after", retention.columnstore_after_days, dialect.add
        )
        changes += policies.set(table.name, "policy_retention", "drop_after", table.kept_days, KEEP)
    for rollup in rollups(retention):
        changes += policies.set(rollup.name, "policy_retention", "drop_after", rollup.kept_days, KEEP)
    return changes


class Policies:
    """The jobs that there are, by table and procedure, and the interval that each has."""

    def __init__(self, connected: psycopg.Connection) -> None:
        self._jobs: dict[tuple[str, str], tuple[int, datetime.timedelta | None]] = {
            (table, procedure): (job, interval) for table, procedure, job, interval in connected.execute(JOBS)
        }

    def set(self, table: str, procedure: str, key: str, days: int, add: str) -> list[Change]:
        """Nothing where it is so, else one change."""
        if (table, procedure) in self._jobs:
            return self.altered(table, procedure, key, days)
        return [Change(_sentence(table, key, days), (_text(add, table, value=_days(days)),))]

    def altered(self, table: str, procedure: str, key: str, days: int) -> list[Change]:
        """The same, of a job that must be there."""
        if (table, procedure) not in self._jobs:
            raise Misconfigured(
                f"{table} has no job {procedure}, which the migrations made: add it again as they do, by "
                "add_continuous_aggregate_policy."
            )
        job, interval = self._jobs[table, procedure]
        if interval == datetime.timedelta(days=days):
            return []
        words = {"job": sql.Literal(job), "key": sql.Literal(key), "value": sql.SQL("{}::text").format(f"{days} days")}
        text = _text(ALTER, table, **words)
        return [Change(_sentence(table, key, days), (text,), needed=key == "start_offset")]


def _sentence(table: str, key: str, days: int) -> str:
    return {
        "start_offset": f"refresh {table} as far back as what it is made of is kept, {days} days.",
        "compress_after": f"put chunks of {table} into its column store after {days} days.",
        "drop_after": f"drop chunks of {table} after {days} days.",
    }[key]


def _days(days: int) -> sql.Literal:
    return sql.Literal(datetime.timedelta(days=days))


def _text(statement: str, table: str, **words: sql.Composable) -> str:
    return sql.SQL(statement).format(table=sql.Literal(table), name=sql.Identifier(table), **words).as_string()
