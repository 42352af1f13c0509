"""Minutes, hours and days of points: the same rows on PostgreSQL and TimescaleDB, whenever they are refreshed."""

import datetime
import itertools
import math
from collections import defaultdict
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline import maintain
from pipeline.agents.pg_writer import PostgresWriter
from pipeline.settings import PostgresSettings, Settings
from pipeline.timescale.connection import connect
from tests.contract.test_stores import gauges, new_service, one
from tests.migrations.test_postgres import refresh

NOW = datetime.datetime.now(datetime.UTC)
DAY = NOW.replace(hour=0, minute=0, second=0, microsecond=0) - datetime.timedelta(days=5)
HOUR = datetime.timedelta(hours=1)
EPOCH_2000 = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
VIEWS = {
    "metrics_1m": ("minute", datetime.timedelta(minutes=1)),
    "metrics_1h": ("hour", HOUR),
    "metrics_1d": ("day", datetime.timedelta(days=1)),
}
Points = dict[tuple[datetime.datetime, int], float | None]

seconds = st.builds(
    lambda day, hour, minute, second: ((day * 24 + hour) * 60 + minute) * 60 + second,
    st.integers(0, 2), st.sampled_from([0, 1, 23]), st.sampled_from([0, 1, 59]), st.sampled_from([0, 1, 59]),
)  # fmt: skip
a_point = st.tuples(seconds, st.integers(0, 1), st.none() | st.integers(-9, 9).map(float))
batches = st.lists(st.tuples(st.lists(a_point, min_size=1, max_size=12), st.booleans()), min_size=1, max_size=4)


numbers = itertools.count(1)


def new_series(count: int) -> list[int]:
    """Ids that nobody else here uses: what `random` gives is the same in every example of hypothesis."""
    return list(itertools.islice(numbers, count))


def store(database: psycopg.Connection, points: Points) -> None:
    """As a writer does: what is there already is replaced, and the hours are told."""
    hours = {(time - EPOCH_2000) // HOUR for time, _ in points}
    with database.transaction():
        for (time, series), value in points.items():
            database.execute(
                "INSERT INTO metrics_points VALUES (%s, %s, gen_random_uuid(), '', now(), %s)"
                " ON CONFLICT (series_id, time) DO UPDATE SET value = EXCLUDED.value",
                (time, series, value),
                prepare=False,
            )
        database.execute("SELECT metrics_points_changed(%s)", (list(hours),), prepare=False)


def rows(database: psycopg.Connection, view: str, series: list[int]) -> list[tuple[Any, ...]]:
    column, _ = VIEWS[view]
    query = (
        f"SELECT {column}, series_id, count, sum, min, max, last FROM {view} WHERE series_id = ANY (%s) ORDER BY 1, 2"
    )
    return database.execute(query.encode(), (series,), prepare=False).fetchall()


def expected(points: Points, view: str) -> list[tuple[Any, ...]]:
    _, width = VIEWS[view]
    groups: dict[tuple[datetime.datetime, int], list[float]] = defaultdict(list)
    for (time, series), value in sorted(points.items(), key=lambda item: item[0]):
        if value is not None:
            groups[time - (time - EPOCH_2000) % width, series].append(value)
    return [
        (time, series, len(found), sum(found), min(found), max(found), found[-1])
        for (time, series), found in sorted(groups.items())
    ]


@hypothesis_settings(max_examples=6, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(batches)
def test_rollups_are_the_same_rows_everywhere(
    plain: PostgresSettings,
    plain_database: psycopg.Connection,
    timescale_database: psycopg.Connection,
    arrivals: list[tuple[list[tuple[int, int, float | None]], bool]],
) -> None:
    """Random points in any order of time, late and replaced ones included, with refreshes between: PostgreSQL shows at
    once what they add up to, TimescaleDB the same after a refresh."""
    series = new_series(2)
    held: Points = {}
    for batch, then_refresh in arrivals:
        points: Points = {(DAY + datetime.timedelta(seconds=at), series[n]): value for at, n, value in batch}
        held |= points
        for database in (plain_database, timescale_database):
            store(database, points)
        if then_refresh:
            maintain.run_all(Settings(postgres=plain), NOW, "postgres")
            refresh(timescale_database)
        for view in VIEWS:
            assert rows(plain_database, view, series) == expected(held, view)
    refresh(timescale_database)
    maintain.run_all(Settings(postgres=plain), NOW, "postgres")
    assert plain_database.execute("SELECT count(*) FROM metrics_changed_hours").fetchone() == (0,)
    for view in VIEWS:
        assert rows(plain_database, view, series) == rows(timescale_database, view, series) == expected(held, view)


HUGE = 1.7976931348623157e308
SUMS = [
    ([HUGE, HUGE], math.inf),
    ([-HUGE, 1.0, -HUGE], -math.inf),
    ([HUGE, HUGE, -HUGE], HUGE),
    ([HUGE, 1e269, 1.0], HUGE),
    ([1e300, -1e300, 1.0], 1.0),
    ([math.inf, -math.inf], math.nan),
    ([math.nan, HUGE, HUGE], math.nan),
    ([1.5, 2.5], 4.0),
]


@pytest.mark.parametrize("apart", [datetime.timedelta(seconds=1), datetime.timedelta(minutes=1), HOUR])
def test_a_sum_that_no_double_holds_is_infinite(
    plain: PostgresSettings,
    plain_database: psycopg.Connection,
    timescale_database: psycopg.Connection,
    apart: datetime.timedelta,
) -> None:
    """And only such a one: of minutes, hours and days, of points and when stored. Other series have their own sums."""
    series = new_series(len(SUMS))
    sums = {one: total for one, (_, total) in zip(series, SUMS, strict=True)}
    points: Points = {
        (DAY + n * apart, one): value
        for one, (values, _) in zip(series, SUMS, strict=True)
        for n, value in enumerate(values)
    }
    for database in (plain_database, timescale_database):
        store(database, points)

    def found(database: psycopg.Connection) -> list[dict[int, float]]:
        coarse = [view for view, (_, width) in VIEWS.items() if width > apart]
        return [{row[1]: row[3] for row in rows(database, view, series)} for view in coarse]

    for each in found(plain_database):
        assert each == pytest.approx(sums, rel=1e-15, nan_ok=True)
    maintain.run_all(Settings(postgres=plain), NOW, "postgres")
    refresh(timescale_database)
    for each in found(plain_database) + found(timescale_database):
        assert each == pytest.approx(sums, rel=1e-15, nan_ok=True)


@pytest.mark.parametrize("switch", [datetime.datetime(2026, 3, 29), datetime.datetime(2026, 10, 25)])
def test_a_day_has_24_hours_in_every_time_zone(
    plain: PostgresSettings, plain_database: psycopg.Connection, switch: datetime.datetime
) -> None:
    """Rows are those of UTC for a reader in whose zone clocks change that day, before a refresh of his and after it."""
    series = new_series(1)
    day = switch.replace(tzinfo=datetime.UTC)
    points: Points = {(day + n * HOUR, series[0]): float(n) for n in range(-24, 48)}
    store(plain_database, points)
    with connect(plain) as reader:
        reader.execute("SET timezone = 'Europe/Berlin'")
        for _ in range(2):
            for view in VIEWS:
                found = [(time.astimezone(datetime.UTC), *rest) for time, *rest in rows(reader, view, series)]
                assert found == expected(points, view)
            for n in range(-1, 2):
                reader.execute("CALL refresh_metrics_rollups(%s, %s)", (day + 24 * n * HOUR, NOW))


def test_the_writer_says_which_hours_changed(plain: PostgresSettings, plain_database: psycopg.Connection) -> None:
    """Points that a writer stores after a refresh, by either of its roads, are in the rollups; so are those of this hour."""
    service = new_service()
    writer = PostgresWriter(plain, "metrics")
    now_ns, day_ns = (int(time.timestamp()) * 10**9 for time in (NOW, DAY))

    def sums(view: str) -> list[float]:
        query = f"SELECT sum FROM {view} JOIN metric_series USING (series_id) WHERE service = %s ORDER BY 1"
        return [value for (value,) in plain_database.execute(query.encode(), (service,))]

    for value, total in ((1.0, 3.0), (5.0, 7.0)):
        points = [("m", day_ns, value), ("m", day_ns + 10**9, 2.0), ("m", now_ns, 100.0)]
        writer.write([one("metrics", gauges(service, *points), received=now_ns + int(value) * 1000)])
        for _ in range(2):
            assert [sums(view) for view in VIEWS] == [[total, 100.0]] * 3
            maintain.run_all(Settings(postgres=plain), NOW, "postgres")


def test_a_refresh_and_a_writer_do_not_wait_for_each_other(
    plain: PostgresSettings, plain_database: psycopg.Connection
) -> None:
    """Points that are committed while a refresh runs, or that it could not see yet, are read from the points."""
    series = new_series(1)
    refreshing = b"CALL refresh_metrics_rollups(%s, %s)"
    held: Points = {}

    def added(second: int) -> Points:
        held.update(new := {(DAY + datetime.timedelta(seconds=second), series[0]): float(second)})
        return new

    with connect(plain) as other:
        for database in (plain_database, other):
            database.execute("SET lock_timeout = '5s'")
        store(plain_database, added(1))
        with other.transaction():
            other.execute(refreshing, (DAY, NOW))
            store(plain_database, added(2))
        assert rows(plain_database, "metrics_1h", series) == expected(held, "metrics_1h")
        with other.transaction():
            store(other, added(3))
            plain_database.execute(refreshing, (DAY, NOW))
        for _ in range(2):
            for view in VIEWS:
                assert rows(plain_database, view, series) == expected(held, view)
            plain_database.execute(refreshing, (DAY, NOW))
