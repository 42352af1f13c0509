"""Policies of TimescaleDB follow the settings; its jobs are run by hand where the server has no workers."""

import datetime

import psycopg
import pytest

from pipeline import maintain
from pipeline.errors import Misconfigured
from pipeline.maintain import policies
from pipeline.maintain.registered import Registered
from pipeline.migrations.definitions import differences
from pipeline.migrations.stores import Postgres
from pipeline.settings import PostgresSettings, RetentionSettings, Settings
from tests.maintain.test_rollups import expected, new_series, rows, store

NOW = datetime.datetime.now(datetime.UTC)
TODAY = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def part(timescale: str, timescale_database: psycopg.Connection) -> PostgresSettings:
    """Of the migrated database."""
    return PostgresSettings(dsn=timescale)


def run_jobs(database: psycopg.Connection, procedure: str) -> None:
    query = "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = %s AND hypertable_name IS NOT NULL ORDER BY 1"
    for (job,) in database.execute(query.encode(), (procedure,), prepare=False).fetchall():
        database.execute(f"CALL run_job({job})".encode())


def chunks(database: psycopg.Connection) -> list[tuple[datetime.datetime, bool]]:
    return database.execute(
        "SELECT range_start, is_compressed FROM timescaledb_information.chunks"
        " WHERE hypertable_name = 'metrics_points' ORDER BY 1"
    ).fetchall()


def test_policies_are_set_and_do_their_work(part: PostgresSettings, timescale_database: psycopg.Connection) -> None:
    """Old chunks go, their rollups stay and are not refreshed to nothing; ripe ones are compressed and take late points."""
    settings = Settings(postgres=part, retention=RetentionSettings(points_days=20))
    planned = maintain.plan(settings, NOW, "postgres")
    assert maintain.run(planned, settings, NOW) == planned
    assert maintain.plan(settings, NOW, "postgres") == []
    [series] = new_series(1)
    points = {(TODAY - n * DAY + datetime.timedelta(hours=1), series): float(n) for n in (18, 10, 2)}
    store(timescale_database, points)
    run_jobs(timescale_database, "policy_refresh_continuous_aggregate")
    run_jobs(timescale_database, "policy_compression")
    assert [compressed for _, compressed in chunks(timescale_database)] == [True, True, False]
    late = {(TODAY - 10 * DAY + datetime.timedelta(hours=2), series): 5.0}
    store(timescale_database, late)
    run_jobs(timescale_database, "policy_refresh_continuous_aggregate")
    assert rows(timescale_database, "metrics_1d", [series]) == expected(points | late, "metrics_1d")

    settings = Settings(postgres=part, retention=RetentionSettings(points_days=15, chunk_hours=12))
    planned = maintain.plan(settings, NOW, "postgres")
    assert [str(change) for change in planned[:3]] == [
        "refresh metrics_1m as far back as what it is made of is kept, 15 days.",
        "make chunks of metrics_points of 12 hours; those that are there stay.",
        "drop chunks of metrics_points after 15 days.",
    ]
    assert planned[0].needed  # what is gone must not be refreshed
    maintain.run(planned, settings, NOW)
    assert maintain.plan(settings, NOW, "postgres") == []
    run_jobs(timescale_database, "policy_retention")
    assert [start for start, _ in chunks(timescale_database)] == [TODAY - 10 * DAY, TODAY - 2 * DAY]
    run_jobs(timescale_database, "policy_refresh_continuous_aggregate")
    for view in ("metrics_1m", "metrics_1h", "metrics_1d"):
        assert rows(timescale_database, view, [series]) == expected(points | late, view)


def test_upkeep_is_no_difference_to_the_files(part: PostgresSettings) -> None:
    """`migrate verify` finds nothing in what the settings have changed."""
    with Postgres.opened(part) as store:
        before = store.definitions()
        settings = Settings(postgres=part, retention=RetentionSettings(points_days=9, chunk_hours=6))
        assert maintain.run_all(settings, NOW, "postgres")
        assert list(differences("postgres", store.definitions(), before)) == []


def test_servers_before_2_18_are_asked_by_their_names(
    part: PostgresSettings, timescale_database: psycopg.Connection
) -> None:
    """Without add_columnstore_policy compression is what a column store was called."""
    rename = "ALTER PROCEDURE {} RENAME TO {}"
    old, new = "add_columnstore_policy", "hidden_columnstore_policy"
    for table in ("metrics_points", "events"):
        timescale_database.execute(f"SELECT remove_compression_policy('{table}', if_exists => true)".encode())
    timescale_database.execute(rename.format(old, new).encode())
    try:
        settings = Settings(postgres=part)
        maintain.run_all(settings, NOW, "postgres")
        assert maintain.plan(settings, NOW, "postgres") == []
    finally:
        timescale_database.execute(rename.format(new, old).encode())
    assert timescale_database.execute(
        "SELECT count(*) FROM timescaledb_information.jobs WHERE proc_name = 'policy_compression'"
    ).fetchone() == (5,)


def test_what_was_taken_away_by_hand_is_told(timescale_database: psycopg.Connection) -> None:
    """A rollup that nothing refreshes is named in a sentence; a table that is called as a registered one and is none
    is left alone."""
    somebodys = Registered("metric_series", 30)
    assert policies.plan(timescale_database, RetentionSettings(), [somebodys]) is not None
    with timescale_database.transaction(force_rollback=True):
        timescale_database.execute("SELECT remove_continuous_aggregate_policy('metrics_1m')")
        with pytest.raises(Misconfigured, match=r"^metrics_1m has no job policy_refresh_continuous_aggregate"):
            policies.plan(timescale_database, RetentionSettings(), [])
