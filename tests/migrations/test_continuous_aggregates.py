"""Continuous aggregates of TimescaleDB that a migration makes anew."""

import datetime
import pathlib
import shutil

import psycopg
import pytest

from pipeline import maintain, migrations
from pipeline.migrations import files
from pipeline.settings import PostgresSettings, Settings
from pipeline.timescale import connection
from tests.migrations import runners
from tests.migrations.test_postgres import add_points, refresh

NOW = datetime.datetime.now(datetime.UTC)
TODAY = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
DAY = datetime.timedelta(days=1)
HUGE = 1.7976931348623157e308


def rollups(database: psycopg.Connection, series: int) -> list[list[tuple[object, ...]]]:
    return [
        database.execute(
            f"SELECT {column}, count, sum, min, max, last FROM {view} WHERE series_id = %s ORDER BY 1".encode(),
            (series,),
        ).fetchall()
        for view, column in (("metrics_1m", "minute"), ("metrics_1h", "hour"), ("metrics_1d", "day"))
    ]


def test_rollups_outlive_that_they_are_made_anew(timescale: str, tmp_path: pathlib.Path) -> None:
    """Those of points that are gone too, whatever is refreshed; policies are as they were, and a point that no refresh
    could add up before is."""
    settings = Settings(postgres=PostgresSettings(dsn=timescale))
    shutil.copytree(files.DIRECTORY / "postgres", tmp_path / "postgres")
    for path in (tmp_path / "postgres").glob("*.sql"):
        if path.name > "0011":
            path.unlink()
    runners.up(settings, "postgres", tmp_path)
    with connection.connect(settings.postgres) as database:
        database.prepare_threshold = None
        ages = (400, 200, 80, 60, 20, 2)
        add_points(database, [(TODAY - age * DAY, 1, float(age)) for age in ages])
        refresh(database)
        before = rollups(database, 1)
        assert [len(rows) for rows in before] == [len(ages)] * 3
        maintain.run_all(settings, NOW, "postgres")
        database.execute("SELECT drop_chunks('metrics_points', %s)", (TODAY - 30 * DAY,))
        database.execute("SELECT drop_chunks('metrics_1m', %s)", (TODAY - 90 * DAY,))
        left = rollups(database, 1)
        add_points(database, [(TODAY - DAY + n * datetime.timedelta(seconds=1), 2, HUGE) for n in range(2)])
        with pytest.raises(psycopg.errors.NumericValueOutOfRange):
            refresh(database)

        migrations.up_all(settings, "postgres")
        assert maintain.plan(settings, NOW, "postgres") == []
        for _ in range(2):
            assert rollups(database, 1) == left
            refresh(database)
        assert [[row[2] for row in rows] for rows in rollups(database, 2)] == [[float("inf")]] * 3
