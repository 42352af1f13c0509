"""Status, plan and up against real stores."""

import pathlib
from contextlib import suppress

import pytest

from pipeline import migrations
from pipeline.errors import Misconfigured, Unavailable
from pipeline.migrations import files
from pipeline.migrations.stores import ClickHouse, Entry, Postgres, locked
from pipeline.settings import PostgresSettings, Settings
from pipeline.timescale import connection


class KilledError(BaseException):
    """Stands for SIGKILL: no handler of the runner sees it."""


class DyingPostgres(Postgres):
    """Dies after its statements have run and before they are recorded: the worst moment, the `after`th time."""

    after = 0

    def record(self, entry: Entry) -> None:
        self.after -= 1
        if self.after < 0:
            raise KilledError
        super().record(entry)


class DyingClickHouse(ClickHouse):
    """Dies in the same way."""

    after = 0

    def record(self, entry: Entry) -> None:
        self.after -= 1
        if self.after < 0:
            raise KilledError
        super().record(entry)


def write(directory: pathlib.Path, **texts: str) -> pathlib.Path:
    """Migration files of PostgreSQL, called after the keywords: `m0001_a` is 0001_a.sql."""
    folder = directory / "postgres"
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name.removeprefix('m')}.sql").write_text(text)
    return directory


def up(settings: Settings, directory: pathlib.Path) -> None:
    with migrations.opened(settings, "postgres") as stores:
        migrations.up(migrations.plan(stores, directory), stores, settings)


def states(settings: Settings, directory: pathlib.Path) -> list[str]:
    with migrations.opened(settings, "postgres") as stores:
        return [state.state for state in migrations.status(stores, directory)]


def test_up_from_empty_and_again(settings: Settings) -> None:
    """Everything is pending, then applied in order, then there is nothing to do."""
    with migrations.opened(settings) as stores:
        pending = migrations.plan(stores)
        assert [state.migration for state in pending] == [*files.load("postgres"), *files.load("clickhouse")]
        migrations.up(pending, stores, settings)
        assert {state.state for state in migrations.status(stores)} == {"applied"}
        assert migrations.plan(stores) == []
    assert migrations.up_all(settings) == []


def test_one_store_alone(settings: Settings) -> None:
    """`--store` reads and changes that store only."""
    with migrations.opened(settings, "clickhouse") as stores:
        migrations.up(migrations.plan(stores), stores, settings)
    with migrations.opened(settings) as stores:
        assert {state.migration.store for state in migrations.plan(stores)} == {"postgres"}


def test_timescaledb_is_switched_on_where_it_is_available(timescale: str, settings: Settings) -> None:
    """The same files make hypertables and a continuous aggregate there."""
    part = PostgresSettings(dsn=timescale)
    migrations.up_all(Settings(postgres=part, clickhouse=settings.clickhouse))
    store = Postgres(part)
    assert store.capabilities() == {"timescaledb"}
    store.close()
    with connection.connect(part) as connected:
        tables = connected.execute("SELECT hypertable_name FROM timescaledb_information.hypertables").fetchall()
        assert {
            ("metrics_points",), ("metrics_histograms",), ("metrics_exponential_histograms",), ("metrics_summaries",),
        } <= set(tables)  # fmt: skip
        assert connected.execute(
            "SELECT view_name, materialized_only FROM timescaledb_information.continuous_aggregates"
        ).fetchall() == [("metrics_1m", False)]


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
    text = "CREATE TABLE a (x int);\n-- transaction: none\nCREATE INDEX CONCURRENTLY i ON {} (x);\nCREATE TABLE c ();"
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


def test_killed_anywhere_up_finishes(settings: Settings) -> None:
    """After a death between any statement's effect and its record, in either store, `up` ends with all applied."""
    lives = 0
    for kind, part in ((DyingPostgres, settings.postgres), (DyingClickHouse, settings.clickhouse)):
        while True:
            store = kind(part)
            store.after = 1  # gets one step further each time, and dies in the next
            planned = migrations.plan([store])
            if planned:
                lives += 1
                with suppress(KilledError):
                    migrations.up(planned, [store], settings)
            store.close()
            if not planned:
                break
    assert lives == len(files.load("postgres")) + sum(len(file.statements) for file in files.load("clickhouse"))
    with migrations.opened(settings) as stores:
        assert migrations.plan(stores) == []


def test_two_runners_exclude_each_other(settings: Settings) -> None:
    """While one holds the lock another is told so, for ClickHouse too, and afterwards it gets in."""
    with migrations.opened(settings, "clickhouse") as stores:
        planned = migrations.plan(stores)
        with locked(settings.postgres), pytest.raises(Unavailable, match="Another runner"):
            migrations.up(planned, stores, settings)
        migrations.up(planned, stores, settings)


def test_a_plan_that_was_overtaken_does_not_run(settings: Settings) -> None:
    """Between reading and applying somebody else applied: the plan is refused."""
    with migrations.opened(settings) as stores:
        planned = migrations.plan(stores)
        migrations.up_all(settings)
        with pytest.raises(Misconfigured, match="changed since this plan was read"):
            migrations.up(planned, stores, settings)


def test_a_store_that_is_away_is_the_worlds(settings: Settings) -> None:
    """No server is Unavailable, and the password is in no sentence."""
    away = Settings(
        postgres=PostgresSettings(dsn="host=127.0.0.1 port=1 user=u password=sesame"), clickhouse=settings.clickhouse
    )
    with pytest.raises(Unavailable) as caught:
        migrations.up_all(away)
    assert "sesame" not in str(caught.value)
