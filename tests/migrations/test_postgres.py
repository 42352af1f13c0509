"""The PostgreSQL schema: the same tables, names and rows on plain PostgreSQL and on TimescaleDB."""

import datetime
import random
import uuid

import numpy as np
import psycopg
import pytest

START = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
SHARED = ["time", "series_id", "event_id", "region", "received_time"]
TABLES = {
    "metrics_points": ["value"],
    "metrics_histograms": ["count", "sum", "min", "max", "explicit_bounds", "bucket_counts"],
    "metrics_exponential_histograms": [
        "count", "sum", "min", "max", "scale", "zero_count", "zero_threshold",
        "positive_offset", "positive_counts", "negative_offset", "negative_counts",
    ],
    "metrics_summaries": ["count", "sum", "quantiles", "quantile_values"],
}  # fmt: skip


def add_series(database: psycopg.Connection, *series: int) -> None:
    for one in series:
        database.execute(
            """
            INSERT INTO metric_series
                (series_id, tenant, metric_name, service, host, description, unit, type, temporality, monotonic, labels)
            VALUES (%s, 't', %s, 'checkout', 'h', '', 's', 'gauge', 'unspecified', false, '{"a": "b"}')
            """,
            (one, f"metric {one}"),
        )


def add_points(database: psycopg.Connection, points: list[tuple[datetime.datetime, int, float | None]]) -> None:
    with database.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO metrics_points (time, series_id, event_id, region, received_time, value) "
            "VALUES (%s, %s, %s, 'eu', now(), %s)",
            [(time, series, uuid.uuid4(), value) for time, series, value in points],
        )


def new_series(count: int) -> list[int]:
    return [random.randrange(-(1 << 63), 1 << 63) for _ in range(count)]


def test_every_points_table_has_one_key_and_no_other_burden(metrics_database: psycopg.Connection) -> None:
    """Columns in the promised order, key (series_id, time) in that order, no second index, no foreign key."""
    for table, columns in TABLES.items():
        found = metrics_database.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum", (table,)
        ).fetchall()
        assert [name for (name,) in found] == SHARED + columns
        indexes = metrics_database.execute("SELECT indexdef FROM pg_indexes WHERE tablename = %s", (table,)).fetchall()
        assert len(indexes) == 1
        assert indexes[0][0].endswith('(series_id, "time")')
        keys = metrics_database.execute(
            "SELECT contype FROM pg_constraint WHERE conrelid = %s::regclass AND contype IN ('f', 'p', 'u')", (table,)
        ).fetchall()
        assert [kind if isinstance(kind, str) else kind.decode() for (kind,) in keys] == ["p"]


def test_any_time_is_taken(metrics_database: psycopg.Connection) -> None:
    """No point is refused because no partition or chunk was made for its day."""
    [series] = new_series(1)
    add_points(metrics_database, [(START.replace(year=year), series, 1.0) for year in (2000, 2026, 2027)])
    assert metrics_database.execute(
        "SELECT count(*) FROM metrics_points WHERE series_id = %s", (series,)
    ).fetchone() == (3,)


def test_metrics_joins_points_with_what_their_series_say(metrics_database: psycopg.Connection) -> None:
    """Readers see names and labels, and the id as everywhere: 32 lower-case hex digits."""
    [series] = new_series(1)
    add_series(metrics_database, series)
    event = uuid.uuid4()
    metrics_database.execute("INSERT INTO metrics_points VALUES (%s, %s, %s, 'eu', now(), 2.5)", (START, series, event))
    cursor = metrics_database.execute("SELECT * FROM metrics WHERE metric_name = %s", (f"metric {series}",))
    assert [column.name for column in cursor.description or ()] == [
        "time", "metric_name", "service", "host", "tenant", "region", "type", "unit", "labels", "value", "event_id",
    ]  # fmt: skip
    assert cursor.fetchall() == [
        (START, f"metric {series}", "checkout", "h", "t", "eu", "gauge", "s", {"a": "b"}, 2.5, event.hex)
    ]


def test_metrics_1m_is_the_same_sums_everywhere(metrics_database: psycopg.Connection) -> None:
    """Random points, late ones included, give the minutes that the points themselves add up to."""
    chance, series = random.Random(7), new_series(3)
    points = {
        (START + datetime.timedelta(milliseconds=chance.randrange(600_000)), chance.choice(series)):
            None if chance.random() < 0.1 else float(chance.randrange(-50, 50))
        for _ in range(400)
    }  # fmt: skip
    silent = new_series(1)[0]
    points[START, silent] = None
    rows = [(time, one, value) for (time, one), value in points.items()]
    add_points(metrics_database, rows[:200])
    refresh(metrics_database)
    add_points(metrics_database, rows[200:])
    refresh(metrics_database)
    minutes: dict[tuple[datetime.datetime, int], list[float]] = {}
    for time, one, value in sorted(rows):
        if value is not None:
            minutes.setdefault((time.replace(second=0, microsecond=0), one), []).append(value)
    assert metrics_database.execute(
        "SELECT minute, series_id, count, sum, min, max, last FROM metrics_1m WHERE series_id = ANY(%s) ORDER BY 1, 2",
        ([*series, silent],),
    ).fetchall() == [
        (minute, one, len(values), sum(values), min(values), max(values), values[-1])
        for (minute, one), values in sorted(minutes.items())
    ]


def refresh(database: psycopg.Connection) -> None:
    """What the policy's job does by itself on a full server."""
    job = database.execute("SELECT to_regclass('timescaledb_information.jobs')").fetchone()
    if job != (None,):
        row = database.execute(
            "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = 'policy_refresh_continuous_aggregate'"
        ).fetchone()
        assert row
        database.execute(f"CALL run_job({row[0]})".encode())


def test_the_newest_minute_is_there_at_once(metrics_database: psycopg.Connection) -> None:
    """A point of this minute is in metrics_1m before anything was refreshed."""
    [series] = new_series(1)
    add_points(metrics_database, [(datetime.datetime.now(datetime.UTC), series, 3.0)])
    assert metrics_database.execute(
        "SELECT count, sum, min, max, last FROM metrics_1m WHERE series_id = %s", (series,)
    ).fetchall() == [(1, 3.0, 3.0, 3.0, 3.0)]


QUANTILES: list[tuple[float, list[float] | None, list[int], float | None]] = [
    (0.5, [1, 2, 4], [10, 10, 0, 0], 1.0),
    (0.75, [1, 2, 4], [10, 10, 0, 0], 1.5),
    (0.25, [1, 2, 4], [10, 10, 0, 0], 0.5),
    (0.99, [1, 2, 4], [0, 0, 0, 5], 4.0),  # the last bucket is open: its lower bound is all that is known
    (0.5, [-1, 1], [10, 0, 0], -1.0),  # so is the first, below zero
    (1.0, [1, 2], [0, 4, 0], 2.0),
    (0.0, [1, 2], [0, 4, 0], 1.0),
    (0.5, [1, 2], [0, 0, 0], None),
    (0.5, [], [7], None),
    (0.5, [1, 2], [1, 2], None),
    (1.5, [1, 2], [0, 4, 0], None),
    (0.5, None, [1], None),
]


def test_histogram_quantile_by_hand(metrics_database: psycopg.Connection) -> None:
    """Linear interpolation inside a bucket, the open buckets and the cases without an answer."""
    for q, bounds, counts, quantile in QUANTILES:
        assert metrics_database.execute(
            "SELECT histogram_quantile(%s, %s::double precision[], %s::bigint[])", (q, bounds, counts)
        ).fetchone() == (quantile,), (q, bounds, counts)


def test_histogram_quantile_by_numpy(metrics_database: psycopg.Connection) -> None:
    """For random histograms it is the inverse of the piecewise linear distribution."""
    chance = np.random.default_rng(5)
    for _ in range(30):
        bounds = np.cumsum(chance.uniform(0.1, 3, size=8))
        counts = chance.integers(1, 50, size=8)
        q = float(chance.uniform(0.01, 0.99))
        expected = np.interp(q * counts.sum(), [0, *np.cumsum(counts)], [0, *bounds])
        row = metrics_database.execute(
            "SELECT histogram_quantile(%s, %s::double precision[], %s::bigint[])",
            (q, bounds.tolist(), [*counts.tolist(), 0]),
        ).fetchone()
        assert row
        assert row[0] == pytest.approx(expected)
