"""Partitions of the plain PostgreSQL: made ahead, filled, dropped; and the command."""

import datetime
import json
import os
import subprocess
import sys
import threading

import psycopg
import pytest

from pipeline import maintain
from pipeline.errors import Misconfigured, Rejected, Unavailable
from pipeline.migrations.definitions import differences
from pipeline.migrations.stores import Postgres
from pipeline.settings import PostgresSettings, RetentionSettings, Settings
from pipeline.timescale import connection, registered
from tests.contract.registered import declared
from tests.maintain.test_rollups import VIEWS, expected, new_series, rows, store
from tests.timescale.conftest import migrated

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime(2026, 11, 20, 13, 30, tzinfo=datetime.UTC)
TODAY = NOW.replace(hour=0, minute=0)
RETENTION = RetentionSettings(points_days=10, metrics_1m_days=20)


@pytest.fixture
def settings(postgres_settings: PostgresSettings) -> Settings:
    part = migrated(postgres_settings.dsn.get_secret_value())
    return Settings(postgres=part, retention=RETENTION)


@pytest.fixture
def database(settings: Settings) -> psycopg.Connection:
    return connection.connect(settings.postgres)


def partitions(database: psycopg.Connection, table: str = "metrics_points") -> dict[str, int]:
    """Rows of each partition that has some."""
    found = database.execute(f"SELECT tableoid::regclass::text, count(*) FROM {table} GROUP BY 1".encode())
    return {name.removeprefix(f"{table}_"): count for name, count in found}


def test_partitions_are_made_ahead_and_filled(settings: Settings, database: psycopg.Connection) -> None:
    """What came before its partition moves into it, whatever its time; then there is nothing to do."""
    [series] = new_series(1)
    points = {(NOW + n * DAY, series): float(n) for n in (-5, -1, 0, 1)}
    store(database, points)
    assert partitions(database) == {"default": 4}
    planned = maintain.plan(settings, NOW, "postgres")
    assert maintain.run(planned, settings, NOW) == planned
    assert maintain.plan(settings, NOW, "postgres") == []
    assert partitions(database) == {"20261115": 1, "20261119": 1, "20261120": 1, "20261121": 1}
    store(database, {(NOW + 2 * DAY, series): 2.0, (NOW - 40 * DAY, series): 2.0})
    assert partitions(database) == {
        "20261115": 1, "20261119": 1, "20261120": 1, "20261121": 1, "20261122": 1, "default": 1
    }  # fmt: skip


def test_what_is_expired_is_dropped_and_its_rollups_stay(settings: Settings, database: psycopg.Connection) -> None:
    """Points go by their retention, minutes by theirs; a later point from before it disturbs no rollup."""
    [series] = new_series(1)
    points = {(NOW, series): 1.0, (NOW + datetime.timedelta(seconds=90), series): 2.0}
    store(database, points)
    maintain.run_all(settings, NOW + DAY, "postgres")
    [dropped] = [
        change
        for change in maintain.plan(settings, NOW + 11 * DAY, "postgres")
        if str(change).startswith("drop metrics_points_")
    ]
    assert str(dropped) == (
        "drop metrics_points_20261120, old rows of metrics_points_default: metrics_points keeps 10 days."
    )
    maintain.run_all(settings, NOW + 11 * DAY, "postgres")
    assert partitions(database) == {}
    late = {(NOW + datetime.timedelta(seconds=30), series): 50.0, (NOW - 100 * DAY, series): 50.0}
    store(database, late)
    for _ in range(2):
        for view in VIEWS:
            assert rows(database, view, [series]) == expected(points, view)
        maintain.run_all(settings, NOW + 11 * DAY, "postgres")
    assert partitions(database) == {}
    maintain.run_all(settings, NOW + 21 * DAY, "postgres")
    assert [len(rows(database, view, [series])) for view in VIEWS] == [0, 1, 1]


def test_what_expired_before_it_was_refreshed_is_in_the_rollups(
    settings: Settings, database: psycopg.Connection
) -> None:
    """Where nobody maintained for longer than points are kept, and of what a first run finds, rollups are made before
    the points go; they do not go where that fails, and one run leaves nothing to do."""
    [series] = new_series(1)
    points = {(TODAY - n * DAY, series): float(n) for n in (0, 11, 15, 19, 30)}
    store(database, points)
    database.execute("ALTER TABLE metrics_1d_rollup ADD CONSTRAINT not_yet CHECK (sum <> 15)")
    with pytest.raises(Rejected, match=r"^Could not refresh .* of 2026-11-05: points .* \(23514\)\. What comes after"):
        maintain.run_all(settings, NOW, "postgres")
    for view in VIEWS:
        assert rows(database, view, [series]) == expected(points, view)
    database.execute("ALTER TABLE metrics_1d_rollup DROP CONSTRAINT not_yet")
    maintain.run_all(settings, NOW, "postgres")
    assert maintain.plan(settings, NOW, "postgres") == []
    assert partitions(database) == {"20261120": 1}
    kept = {at: value for at, value in points.items() if at[0] >= TODAY - 20 * DAY}
    assert rows(database, "metrics_1m", [series]) == expected(kept, "metrics_1m")
    for view in ("metrics_1h", "metrics_1d"):
        assert rows(database, view, [series]) == expected(points, view)


def test_writers_go_on_while_partitions_are_made(settings: Settings, database: psycopg.Connection) -> None:
    """None is refused a row because its partition was made under its feet, and no row is lost."""
    stop = threading.Event()
    sent: list[int] = []
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with connection.connect(settings.postgres) as own:
                while not stop.is_set():
                    with own.transaction(), own.cursor() as cursor:
                        for day in range(4):
                            at = TODAY + (day - 1) * DAY + datetime.timedelta(seconds=len(sent))
                            with cursor.copy("COPY metrics_points FROM STDIN") as copy:
                                copy.write_row((at, 1, "00" * 16, "", at, 1.0))
                    sent.append(1)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        while len(sent) < 20 and not failures:
            pass
        maintain.run_all(settings, NOW, "postgres")
    finally:
        stop.set()
        thread.join(20)
    assert not failures
    assert partitions(database) == dict.fromkeys(("20261119", "20261120", "20261121", "20261122"), len(sent))


def test_upkeep_is_no_difference_to_the_files(settings: Settings) -> None:
    """`migrate verify` finds nothing in what the settings have changed."""
    with Postgres.opened(settings.postgres) as store:
        before = store.definitions()
        assert maintain.run_all(settings, NOW, "postgres")
        assert list(differences("postgres", store.definitions(), before)) == []


def test_of_two_runners_one_works(settings: Settings) -> None:
    """The other is told; what the first has done the other leaves out."""
    planned = maintain.plan(settings, NOW, "postgres")
    with connection.connect(settings.postgres) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (maintain.ADVISORY_LOCK,))
        with pytest.raises(Unavailable, match="Another runner"):
            maintain.run(planned, settings, NOW)
    assert maintain.run(planned, settings, NOW) == planned
    assert maintain.run(planned, settings, NOW) == []


def test_tables_that_are_not_there_are_told(postgres_settings: PostgresSettings) -> None:
    """The way out is `migrate up`."""
    with pytest.raises(Misconfigured, match="pipeline migrate up"):
        maintain.plan(Settings(postgres=postgres_settings), NOW, "postgres")


def test_the_command_plans_runs_and_then_has_nothing_to_do(settings: Settings) -> None:
    """Exit 1 with a plan as JSON, 0 when it is carried out and when nothing is left, 3 where the server is away."""

    def command(*words: str, dsn: str = settings.postgres.dsn.get_secret_value()) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "pipeline", "maintain", *words, "--store", "postgres"],
            env=os.environ | {"PIPELINE_POSTGRES__DSN": dsn}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    planned = command("plan", "--json")
    assert planned.returncode == 1, planned.stderr
    assert json.loads(planned.stdout)[0]["what"].startswith("make partition metrics_points_")
    assert command("run", "--yes").returncode == 0
    assert command("plan").returncode == 0
    assert command("run", "--yes").stdout == "Nothing to do.\n"
    assert command("plan", dsn="host=127.0.0.1 port=1").returncode == 3


def test_a_change_that_is_refused_ends_no_other(settings: Settings, database: psycopg.Connection) -> None:
    """It is told with its reason when all others are done; the command ends with 3 and its sentence."""
    [series] = new_series(1)
    store(database, {(TODAY - n * DAY, series): float(n) for n in (3, 2, 1)})
    database.execute("ALTER TABLE metrics_1d_rollup ADD CHECK (sum <> 2)")
    with pytest.raises(
        Rejected, match=r"^Could not refresh .* of 2026-11-18: points .* PostgreSQL: .*\(23514\)\. .*again\.$"
    ):
        maintain.run_all(settings, NOW, "postgres")
    [left] = maintain.plan(settings, NOW, "postgres")
    assert "2026-11-18" in str(left)
    again = subprocess.run(
        [sys.executable, "-m", "pipeline", "maintain", "run", "--yes", "--store", "postgres"],
        env=os.environ | {"PIPELINE_POSTGRES__DSN": settings.postgres.dsn.get_secret_value()},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (again.returncode, again.stderr.count("\n")) == (3, 1)
    assert again.stderr.startswith("Could not refresh ")


def test_a_right_that_is_missing_ends_no_other(settings: Settings, database: psycopg.Connection) -> None:
    """Of a user who may refresh but not make partitions what it may is done, and what it may not is told."""
    [series] = new_series(1)
    store(database, {(TODAY, series): 1.0})
    database.execute(
        "CREATE ROLE poor LOGIN; GRANT USAGE ON SCHEMA public TO poor; "
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO poor"
    )
    dsn = psycopg.conninfo.make_conninfo(settings.postgres.dsn.get_secret_value(), user="poor")
    poor = settings.model_copy(update={"postgres": PostgresSettings(dsn=dsn)})
    refreshes = [change for change in maintain.plan(poor, NOW, "postgres") if "refresh" in str(change)]
    assert refreshes
    try:
        with pytest.raises(Misconfigured, match=r"\(42501\)\. Let the user of postgres\.dsn do that"):
            maintain.run_all(poor, NOW, "postgres")
        assert not set(refreshes) & set(maintain.plan(settings, NOW, "postgres"))
    finally:
        database.execute("DROP OWNED BY poor; DROP ROLE poor")


def register(database: psycopg.Connection, name: str, kept_days: int) -> None:
    """As the registry and a writer's first row leave it."""
    table = declared(name, {"n": "long"}, retention_days=kept_days)
    database.execute(
        "INSERT INTO table_registry VALUES (%s, 1, 'active', %s::jsonb)", (name, json.dumps(table.as_json()))
    )
    with database.transaction(), database.cursor() as cursor:
        registered.make(cursor, table)


def test_registered_tables_are_kept_as_long_as_they_say(settings: Settings, database: psycopg.Connection) -> None:
    """Partitions are made and dropped by each table's own retention; one that is not made yet is left alone."""
    register(database, "deployments", 5)
    register(database, "deployments_default", 50)  # no partition of the other
    database.execute(
        "INSERT INTO table_registry VALUES ('later', 1, 'active', %s::jsonb)",
        (json.dumps(declared("later", {"n": "long"}).as_json()),),
    )
    for name in ("deployments", "deployments_default"):
        for days in (20, 2, 0):
            at = NOW - days * DAY
            database.execute(
                f"INSERT INTO {name} VALUES (%s, gen_random_uuid(), 'acme', 'eu', now(), 1)".encode(), (at,)
            )
    maintain.run_all(settings, NOW, "postgres")
    assert maintain.plan(settings, NOW, "postgres") == []
    assert partitions(database, "deployments") == {"_20261118": 1, "_20261120": 1}
    assert partitions(database, "deployments_default") == {"_20261031": 1, "_20261118": 1, "_20261120": 1}
    assert "deployments__20261118" in str(maintain.plan(settings, NOW + 4 * DAY, "postgres"))


def test_somebodys_table_of_a_registered_name_is_left_alone(settings: Settings, database: psycopg.Connection) -> None:
    """It stood there before the table was registered: what is ours is kept up all the same."""
    database.execute("CREATE TABLE orders (id bigint)")
    database.execute("INSERT INTO orders VALUES (1)")
    database.execute(
        "INSERT INTO table_registry (name, version, state, metadata) VALUES ('orders', 1, 'active', %s)",
        ['{"stores": ["postgres"], "retention_days": 30}'],
    )
    assert maintain.run_all(settings, NOW, "postgres")
    assert maintain.plan(settings, NOW, "postgres") == []
    assert database.execute("SELECT count(*) FROM orders").fetchone() == (1,)
