"""The PostgreSQL schema: the same tables, names and rows on plain PostgreSQL and on TimescaleDB."""

import datetime
import random
import uuid

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
    """As a writer does, who says of which hours they are."""
    epoch = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
    hours = list({(time - epoch) // datetime.timedelta(hours=1) for time, _, _ in points})
    with database.transaction(), database.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO metrics_points (time, series_id, event_id, region, received_time, value) "
            "VALUES (%s, %s, %s, 'eu', now(), %s)",
            [(time, series, uuid.uuid4(), value) for time, series, value in points],
        )
        cursor.execute("SELECT metrics_points_changed(%s)", (hours,), prepare=False)


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


def test_events_have_one_key(metrics_database: psycopg.Connection) -> None:
    """By time first, and no second index: what comes again is found where readers look."""
    found = metrics_database.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'events'").fetchall()
    assert [index.partition(" USING ")[2] for (index,) in found] == ['btree ("time", event_id)']


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
        jobs = database.execute(
            "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = 'policy_refresh_continuous_aggregate'"
            " ORDER BY 1"  # the finer one first
        ).fetchall()
        assert len(jobs) == 3
        for (job,) in jobs:
            database.execute(f"CALL run_job({job})".encode())


def test_the_newest_minute_is_there_at_once(metrics_database: psycopg.Connection) -> None:
    """A point of this minute is in metrics_1m before anything was refreshed."""
    [series] = new_series(1)
    add_points(metrics_database, [(datetime.datetime.now(datetime.UTC), series, 3.0)])
    assert metrics_database.execute(
        "SELECT count, sum, min, max, last FROM metrics_1m WHERE series_id = %s", (series,)
    ).fetchall() == [(1, 3.0, 3.0, 3.0, 3.0)]


EXPLICIT = "(explicit_bounds, bucket_counts)::explicit_histogram AS buckets FROM metrics_histograms"
EXPONENTIAL = """
    (scale, zero_count, zero_threshold, positive_offset, positive_counts, negative_offset, negative_counts)
    ::exponential_histogram AS buckets FROM metrics_exponential_histograms
"""
BETWEEN = "histogram_delta(lag(buckets) OVER (PARTITION BY series_id ORDER BY time), buckets)"


def test_histograms_add_up_over_series_and_time(metrics_database: psycopg.Connection) -> None:
    """Quantiles by minute over two series: of all counts, and of what came between the points of cumulative ones."""
    one, other = new_series(2)
    times = [START + datetime.timedelta(seconds=seconds) for seconds in (0, 30, 60)]
    counts = {one: [[5, 0, 0], [5, 10, 0], [5, 10, 20]], other: [[0, 0, 0], [10, 0, 0], [10, 20, 0]]}
    for series, of_series in counts.items():
        for time, each in zip(times, of_series, strict=True):
            shared = "(%s, %s, gen_random_uuid(), 'eu', now(), 0, 0, 0, 0"
            metrics_database.execute(
                f"INSERT INTO metrics_histograms VALUES {shared}, '{{1,2}}', %s)".encode(), (time, series, each)
            )
            metrics_database.execute(
                f"INSERT INTO metrics_exponential_histograms VALUES {shared}, 0, 0, 0, 0, %s, 0, '{{}}')".encode(),
                (time, series, each),
            )
    for buckets, source, first, second in [
        ("buckets", EXPLICIT, 7.5 / 20, 1 + 1.25 / 30),
        (BETWEEN, EXPLICIT, 0.5, 1.5),
        (BETWEEN, EXPONENTIAL, 2**0.5, 2**1.5),
    ]:
        found = metrics_database.execute(
            f"""
            SELECT date_trunc('minute', time), histogram_quantile(0.25, histogram_sum(buckets))
            FROM (
                SELECT time, {buckets} AS buckets FROM (SELECT time, series_id, {source}) AS kept WHERE series_id = ANY (%s)
            ) AS used
            GROUP BY 1 ORDER BY 1
            """.encode(),
            ([one, other],),
        )
        assert found.fetchall() == [(START, pytest.approx(first)), (times[2], pytest.approx(second))]
