"""Status, plan, up and verify against real stores."""

import pathlib
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import get_args

import psycopg
import pytest

from pipeline import clickhouse as clickhouse_door
from pipeline import migrations
from pipeline.clickhouse import registered as clickhouse_tables
from pipeline.errors import Misconfigured, Unavailable
from pipeline.migrations import files
from pipeline.migrations.definitions import differences
from pipeline.migrations.stores import Entry, LockedError, Postgres, Store
from pipeline.settings import PostgresSettings, Settings
from pipeline.tables.model import Table
from pipeline.timescale import connection
from pipeline.timescale import registered as postgres_tables
from tests.contract.registered import declared
from tests.migrations import runners

BOTH = pytest.mark.parametrize("only", get_args(migrations.StoreName))


def write(directory: pathlib.Path, **texts: str) -> pathlib.Path:
    """Migration files of PostgreSQL, called after the keywords: `m0001_a` is 0001_a.sql."""
    folder = directory / "postgres"
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name.removeprefix('m')}.sql").write_text(text)
    return directory


def up(settings: Settings, directory: pathlib.Path) -> None:
    runners.up(settings, "postgres", directory)


def states(settings: Settings, directory: pathlib.Path) -> list[str]:
    with migrations.opened(settings, "postgres") as stores:
        return [state.state for state in migrations.status(stores, directory)]


def test_up_from_empty_and_again(settings: Settings) -> None:
    """Everything is pending, then applied in order, then there is nothing to do."""
    with migrations.opened(settings) as stores:
        pending = migrations.plan(stores)
        assert [state.migration for state in pending] == [*files.load("postgres"), *files.load("clickhouse")]
        migrations.up(pending, stores)
        assert {state.state for state in migrations.status(stores)} == {"applied"}
        assert migrations.plan(stores) == []
    assert migrations.up_all(settings) == []


def test_one_store_alone(settings: Settings) -> None:
    """`--store` reads and changes that store only."""
    migrations.up_all(settings, "clickhouse")
    with migrations.opened(settings) as stores:
        assert {state.migration.store for state in migrations.plan(stores)} == {"postgres"}


def test_timescaledb_is_switched_on_where_it_is_available(timescale: str, settings: Settings) -> None:
    """The same files make hypertables and a continuous aggregate there; again, there is nothing to do."""
    part = PostgresSettings(dsn=timescale)
    both = Settings(postgres=part, clickhouse=settings.clickhouse)
    assert migrations.up_all(both)
    assert migrations.up_all(both) == []
    with Postgres.opened(part) as store:
        assert store.capabilities() == {"timescaledb"}
    with connection.connect(part) as connected:
        tables = connected.execute("SELECT hypertable_name FROM timescaledb_information.hypertables").fetchall()
        assert {
            ("metrics_points",), ("metrics_histograms",), ("metrics_exponential_histograms",), ("metrics_summaries",),
        } <= set(tables)  # fmt: skip
        assert connected.execute(
            "SELECT view_name, materialized_only FROM timescaledb_information.continuous_aggregates ORDER BY 1"
        ).fetchall() == [("metrics_1d", False), ("metrics_1h", False), ("metrics_1m", False)]


def test_an_edited_file_is_refused_by_name(settings: Settings, tmp_path: pathlib.Path) -> None:
    """A changed, an extended and a lost applied file, and a late-comer before them, are all told, and nothing runs."""
    write(tmp_path, m0002_a="CREATE TABLE a (x int)", m0003_b="CREATE TABLE b (x int)", m0004_c="SELECT 1")
    up(settings, tmp_path)
    write(tmp_path, m0001_late="SELECT 1", m0002_a="CREATE TABLE a (x bigint)",
          m0003_b="CREATE TABLE b (x int); CREATE TABLE c (x int)")  # fmt: skip
    (tmp_path / "postgres" / "0004_c.sql").unlink()
    with pytest.raises(Misconfigured) as caught:
        up(settings, tmp_path)
    assert [problem.split(" ")[:4] for problem in caught.value.problems] == [
        ["migrations/postgres/0004_c.sql", "is", "applied", "but"],
        ["migrations/postgres/0001_late.sql", "comes", "before", "files"],
        ["migrations/postgres/0002_a.sql", "was", "edited", "after"],
        ["migrations/postgres/0003_b.sql", "was", "edited", "after"],
    ]


def test_a_refused_statement_is_named_and_its_file_undone(settings: Settings, tmp_path: pathlib.Path) -> None:
    """In a transaction nothing of the file stays, so that the corrected file runs as a whole."""
    write(tmp_path, m0001_a="CREATE TABLE a (x int);\nCREATE TABLE a (y int);")
    with pytest.raises(Misconfigured, match=r"0001_a\.sql: statement 2, `CREATE TABLE a \(y int\)`, failed: .*exists"):
        up(settings, tmp_path)
    assert states(settings, tmp_path) == ["pending"]
    write(tmp_path, m0001_a="CREATE TABLE a (x int);\nCREATE TABLE b (y int);")
    up(settings, tmp_path)
    assert states(settings, tmp_path) == ["applied"]


def test_outside_a_transaction_a_file_is_dirty_and_goes_on(settings: Settings, tmp_path: pathlib.Path) -> None:
    """What is done stays done, the failed statement and the repair are named, and `up` goes on from there."""
    text = "CREATE TABLE a (x int);\n-- transaction: none\nCREATE INDEX CONCURRENTLY IF NOT EXISTS i ON {} (x);\nCREATE TABLE c ();"
    write(tmp_path, m0001_a=text.format("b"))
    with pytest.raises(Misconfigured, match="statement 2, `CREATE INDEX"):
        up(settings, tmp_path)
    with migrations.opened(settings, "postgres") as stores:
        [state] = migrations.status(stores, tmp_path)
    assert (state.state, state.done) == ("dirty", 1)
    assert 'relation "b" does not exist' in str(state)
    assert "To repair: " in str(state)
    write(tmp_path, m0001_a="CREATE TABLE changed (x int);" + text.format("a"))
    with pytest.raises(Misconfigured, match="was edited after it was applied"):
        up(settings, tmp_path)
    write(tmp_path, m0001_a=text.format("a"))
    up(settings, tmp_path)
    assert states(settings, tmp_path) == ["applied"]


@contextmanager
def opened(settings: Settings, only: migrations.StoreName) -> Iterator[Store]:
    with migrations.opened(settings, only) as (store,):
        yield store


def test_killed_at_any_statement_up_finishes(settings: Settings) -> None:
    """`up` is killed by SIGKILL after each statement of each store in turn, before it is recorded, and then finishes."""
    for only in get_args(migrations.StoreName):
        for statement in [statement for migration in files.load(only) for statement in migration.statements]:
            if statement.runs(frozenset()):
                process = runners.started(runners.killed_at, statement, settings, only)
                process.join(60)
                assert process.exitcode == -signal.SIGKILL, statement.title
        with opened(settings, only) as store:
            assert migrations.plan([store])
            migrations.up(migrations.plan([store]), [store])
            assert (migrations.plan([store]), migrations.verify([store])) == ([], [])


def test_an_index_whose_building_was_cut_off_is_built_anew(settings: Settings, tmp_path: pathlib.Path) -> None:
    """The server lost the builder and keeps an invalid index, which IF NOT EXISTS would take for a whole one."""
    write(tmp_path, m0001_a="CREATE TABLE a (x int);\n-- transaction: none\n"
          "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON a (x);")  # fmt: skip
    with connection.connect(settings.postgres) as admin, connection.connect(settings.postgres) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with reader.transaction():
            reader.execute("SELECT 1")  # a build waits for everybody with an older snapshot
            process = runners.started(runners.up, settings, "postgres", tmp_path)
            builder = None
            while builder is None:
                assert process.is_alive()
                time.sleep(0.05)
                builder = admin.execute(
                    "SELECT pid FROM pg_stat_activity WHERE query LIKE '%%CONCURRENTLY%%' AND wait_event_type = 'Lock' "
                    "AND datname = current_database() AND pid <> pg_backend_pid()"
                ).fetchone()
            process.kill()
            process.join(60)
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", builder)
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass"
        assert admin.execute(valid).fetchone() == (False,)
        up(settings, tmp_path)
        assert admin.execute(valid).fetchone() == (True,)


def test_two_runners_exclude_each_other(settings: Settings) -> None:
    """Two processes start at once from the same plan: in each store one carries it out, and the other is told."""
    start = runners.barrier(3)
    processes = [runners.started(runners.up_when, start, settings) for _ in range(2)]
    start.wait(60)
    for process in processes:
        process.join(60)
    assert sorted(process.exitcode for process in processes) == [0, 1]
    with migrations.opened(settings) as stores:
        assert {state.state for state in migrations.status(stores)} == {"applied"}


def test_a_lock_dies_with_its_process(settings: Settings) -> None:
    """While another process has the locks neither store is touched, whoever asks; killed, it keeps nobody out."""
    held = runners.event()
    process = runners.started(runners.hold, settings, held)
    assert held.wait(60)
    for only in get_args(migrations.StoreName):
        with pytest.raises(LockedError, match="Another runner is migrating"):
            migrations.up_all(settings, only)
        with opened(settings, only) as store:
            assert store.history() == []
    process.kill()
    process.join(60)
    migrations.up_all(settings)


def test_a_lock_that_was_lost_stops_the_runner(settings: Settings) -> None:
    """Somebody kills the query that is ClickHouse's lock: the next statement does not run."""
    with opened(settings, "clickhouse") as store:
        planned = migrations.plan([store])
        admin = clickhouse_door.connect(settings.clickhouse)
        with store.locked():
            admin.command(f"KILL QUERY WHERE query_id = 'migrations of {settings.clickhouse.database}' SYNC")
            with pytest.raises(Unavailable, match="has ended the query that kept other runners away"):
                store.run(planned[0].migration.statements[:1], Entry(1, "", "", 1, "applied"))
        admin.close()
        assert store.history() == []


@BOTH
def test_any_earlier_version_comes_to_the_same_schema(
    settings: Settings, tmp_path: pathlib.Path, only: migrations.StoreName
) -> None:
    """From empty and from each version on the way the files end in the same definitions."""
    migrations.up_all(settings, only)
    with opened(settings, only) as store:
        whole = store.definitions()
        (tmp_path / only).mkdir()
        for migration in files.load(only)[:-1]:
            (tmp_path / only / migration.name).write_text((files.DIRECTORY / only / migration.name).read_text())
            with store.scratch() as earlier:
                migrations.up(migrations.plan([earlier], tmp_path), [earlier])
                migrations.up(migrations.plan([earlier]), [earlier])
                assert earlier.definitions() == whole


def test_a_dry_run_finds_what_up_would_and_changes_nothing(settings: Settings, tmp_path: pathlib.Path) -> None:
    """Applied and pending files run on a scratch database; the refused statement is named, and nothing is left."""
    write(tmp_path, m0001_a="CREATE TABLE a (x int)")
    up(settings, tmp_path)
    write(tmp_path, m0002_b="ALTER TABLE a ADD COLUMN y int; ALTER TABLE a ADD COLUMN x int")
    with opened(settings, "postgres") as store:
        before = store.definitions()
        with pytest.raises(Misconfigured, match=r"0002_b\.sql: statement 2, .*already exists"):
            migrations.rehearse([store], tmp_path)
        write(tmp_path, m0002_b="ALTER TABLE a ADD COLUMN y int")
        migrations.rehearse([store], tmp_path)
        assert store.definitions() == before
        assert [state.state for state in migrations.status([store], tmp_path)] == ["applied", "pending"]
    with connection.connect(settings.postgres) as connected:
        assert connected.execute("SELECT FROM pg_database WHERE datname LIKE 'migrations_scratch%%'").fetchall() == []


DRIFT: dict[migrations.StoreName, list[tuple[str, str]]] = {
    "postgres": [
        ("DROP INDEX metric_series_by_service", "postgres metric_series: index metric_series_by_service is missing: `C"),
        (
            "ALTER TABLE metrics_histograms ALTER COLUMN region TYPE varchar(20)",
            "postgres metrics_histograms: column region is `character varying(20) not null`, and `text not null` in the files.",
        ),
        ("ALTER TABLE events ADD COLUMN more int", "postgres events: column more is in no file: `integer`."),
        ("DROP TABLE metrics_summaries", "postgres metrics_summaries: is missing."),
        ("CREATE VIEW left_over AS SELECT 1 AS x", "postgres left_over: is in no file: "),
        ("ALTER TABLE metrics_histograms DROP CONSTRAINT metrics_histograms_pkey", "constraint metrics_histograms_pkey is m"),
        ("ALTER TABLE events ALTER COLUMN body SET DEFAULT ''", "postgres events: column body is `text not null default ''::text`, and"),
        (
            "CREATE OR REPLACE FUNCTION checked_quantile(q double precision) RETURNS double precision "
            "LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS 'SELECT q'",
            "postgres checked_quantile(double precision): definition is `",
        ),
    ],
    "clickhouse": [
        ("ALTER TABLE logs_events DROP INDEX trace_id_bloom", "clickhouse logs_events: index trace_id_bloom is missing: `trace"),
        ("ALTER TABLE spans MODIFY COLUMN kind Int64", "clickhouse spans: column kind is `Int64"),
        ("ALTER TABLE logs_in ADD COLUMN more String", "clickhouse logs_in: column more is in no file: `String`."),
        ("DROP TABLE span_events", "clickhouse span_events: is missing."),
        ("ALTER TABLE metrics_points MODIFY SETTING ttl_only_drop_parts = 0", "clickhouse metrics_points: kind"),
        ("CREATE TABLE left_over (x Int8) ENGINE = Memory", "clickhouse left_over: is in no file: "),
        ("CREATE OR REPLACE VIEW metrics_1m AS SELECT 1 AS minute", "clickhouse metrics_1m: query is `"),
    ],
}  # fmt: skip


@BOTH
def test_verify_names_every_difference(settings: Settings, only: migrations.StoreName) -> None:
    """Nothing after `up`, nothing for registered tables, a sentence for each thing that is not as the files make it."""
    migrations.up_all(settings, only)
    with opened(settings, only) as store:
        make_registered(settings, only, declared("deployments", {"version": "string"}))
        assert migrations.verify([store]) == []
        for statement, _ in DRIFT[only]:
            execute(settings, only, statement)
        told = [str(difference) for difference in migrations.verify([store])]
    for _, sentence in DRIFT[only]:
        assert sum(sentence in line for line in told) == 1, (sentence, told)
    assert len(told) == len(DRIFT[only])


def make_registered(settings: Settings, only: migrations.StoreName, table: Table) -> None:
    """As a writer does at its first row."""
    if only == "clickhouse":
        with closing(clickhouse_door.connect(settings.clickhouse)) as client:
            clickhouse_tables.make(client, table)
        return
    with connection.connect(settings.postgres) as connected, connected.transaction(), connected.cursor() as cursor:
        cursor.execute("INSERT INTO table_registry VALUES (%s, 1, 'active', '{}')", (table.name,))
        postgres_tables.make(cursor, table)


def execute(settings: Settings, only: migrations.StoreName, statement: str) -> None:
    if only == "postgres":
        with connection.connect(settings.postgres) as connected:
            connected.execute(statement.encode())
    else:
        client = clickhouse_door.connect(settings.clickhouse)
        client.command(statement)
        client.close()


def test_timescaledb_is_verified_too(timescale: str) -> None:
    """A lost refresh is a difference; chunk intervals and column stores, which follow the settings, are none."""
    part = PostgresSettings(dsn=timescale)
    migrations.up_all(Settings(postgres=part), "postgres")
    with Postgres.opened(part) as store:
        made = store.definitions()
        connected = store._connection
        with connected.transaction(force_rollback=True):
            for statement in (
                "SELECT remove_continuous_aggregate_policy('metrics_1m')",
                "SELECT set_chunk_time_interval('metrics_points', INTERVAL '2 days')",
                "ALTER TABLE events SET (timescaledb.compress, timescaledb.compress_segmentby = 'service')",
            ):
                connected.execute(statement.encode())
            told = " ".join(str(difference) for difference in differences("postgres", store.definitions(), made))
        assert "metrics_1m: job policy_refresh_continuous_aggregate is missing" in told
        assert "metrics_points" not in told
        assert "events" not in told
        assert list(differences("postgres", store.definitions(), made)) == []


def test_a_scratch_database_that_is_none_is_not_used(timescale: str) -> None:
    """Where every connection leads to one database, as through a pooler, nothing runs in it."""
    part = PostgresSettings(dsn=timescale)
    migrations.up_all(Settings(postgres=part), "postgres")
    with Postgres.opened(part) as store:
        before = store.definitions()
        with pytest.raises(Misconfigured, match="leads to the same database whichever it names"):
            migrations.verify([store])
        assert store.definitions() == before


def test_who_may_not_make_a_scratch_database_is_told(postgres_settings: PostgresSettings) -> None:
    """A user of PostgreSQL without the right hears which right, and of a way without it."""
    dsn = postgres_settings.dsn.get_secret_value()
    with connection.connect(postgres_settings) as admin:
        admin.execute("CREATE ROLE poor LOGIN; GRANT ALL ON SCHEMA public TO poor")
        poor = Settings(postgres=PostgresSettings(dsn=psycopg.conninfo.make_conninfo(dsn, user="poor")))
        with opened(poor, "postgres") as store, pytest.raises(Misconfigured, match="give it CREATEDB"):
            migrations.verify([store])
        admin.execute("DROP OWNED BY poor; DROP ROLE poor")


def test_a_plan_that_was_overtaken_does_not_run(settings: Settings) -> None:
    """Between reading and applying somebody else applied: the plan is refused."""
    with migrations.opened(settings) as stores:
        planned = migrations.plan(stores)
        migrations.up_all(settings)
        with pytest.raises(Misconfigured, match="changed since this plan was read"):
            migrations.up(planned, stores)


def test_a_store_that_is_away_is_the_worlds(settings: Settings) -> None:
    """No server is Unavailable, and the password is in no sentence."""
    away = Settings(
        postgres=PostgresSettings(dsn="host=127.0.0.1 port=1 user=u password=sesame"), clickhouse=settings.clickhouse
    )
    with pytest.raises(Unavailable) as caught:
        migrations.up_all(away)
    assert "sesame" not in str(caught.value)
