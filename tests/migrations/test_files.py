"""How migration files are read."""

import pathlib

import pytest

from pipeline.errors import Misconfigured
from pipeline.migrations import files


@pytest.mark.parametrize("store", ["postgres", "clickhouse"])
def test_the_shipped_files_are_numbered_from_one(store: str) -> None:
    """Both directories load, without a gap."""
    versions = [migration.version for migration in files.load(store)]
    assert versions == list(range(1, len(versions) + 1))


def test_statements_are_cut_where_the_store_would() -> None:
    """A semicolon in a string, a comment or a $$ body does not end a statement, and the text stays as written."""
    text = """
        -- über; alles
        SELECT 'é;ö', $$ a; b $$, $f$ ;; $f$ ;
        /* ; */ SELECT 2 -- ;
        ;
        -- the end;
    """
    assert [statement.text for statement in files.split(text, "postgres")] == [
        "-- über; alles\n        SELECT 'é;ö', $$ a; b $$, $f$ ;; $f$",
        "/* ; */ SELECT 2 -- ;",
    ]
    assert [statement.title for statement in files.split("SELECT 'a\\';b'; SELECT `c;d`", "clickhouse")] == [
        "SELECT 'a\\';b'",
        "SELECT `c;d`",
    ]


def test_directives_speak_of_the_statement_below_them() -> None:
    """when and unless follow the capability, transaction: none is kept, and prose directs nothing."""
    text = """
        -- Prose: with a capital is prose.
        -- when: timescaledb
        SELECT 1;
        -- unless: timescaledb
        -- transaction: none
        SELECT 2;
        SELECT 3 -- when: timescaledb
    """
    one, two, three = files.split(text, "postgres")
    plain, able = frozenset[str](), frozenset({"timescaledb"})
    assert [statement.runs(plain) for statement in (one, two, three)] == [False, True, True]
    assert [statement.runs(able) for statement in (one, two, three)] == [True, False, True]
    assert [statement.transactional for statement in (one, two, three)] == [True, False, True]


@pytest.mark.parametrize(
    ("store", "statement", "repeats"),
    [
        ("clickhouse", "CREATE TABLE a (x Int8) ENGINE = Null", False),
        ("clickhouse", "-- says IF NOT EXISTS\nDROP VIEW a", False),
        ("clickhouse", "ALTER TABLE a ADD COLUMN x Int8", False),
        ("clickhouse", "ALTER TABLE a ADD COLUMN IF NOT EXISTS x Int8, DROP INDEX i", False),
        ("clickhouse", "CREATE OR REPLACE VIEW a AS SELECT 1", True),
        ("clickhouse", "ALTER TABLE a ADD COLUMN IF NOT EXISTS x Int8, MODIFY COLUMN y Int8", True),
        ("postgres", "CREATE TABLE a ()", True),
        ("postgres", "-- transaction: none\nCREATE INDEX CONCURRENTLY i ON a (x)", False),
        ("postgres", "-- transaction: none\nDROP INDEX CONCURRENTLY IF EXISTS i", True),
    ],
)
def test_what_may_run_again_must_say_so(store: str, statement: str, repeats: bool) -> None:
    """A statement outside a transaction that would fail the second time is refused when its file is read."""
    if repeats:
        assert len(files.split(statement, store)) == 1
    else:
        with pytest.raises(Misconfigured, match="say IF NOT EXISTS, IF EXISTS or OR REPLACE"):
            files.split(statement, store)


def test_all_problems_of_all_files_are_told_at_once(tmp_path: pathlib.Path) -> None:
    """Wrong names, doubled numbers, mistyped directives, unreadable and empty files are one report."""
    folder = tmp_path / "postgres"
    folder.mkdir()
    for name, text in {
        "1_short.sql": "SELECT 1",
        "0001_a.sql": "SELECT 1",
        "0001_b.sql": "SELECT 1",
        "0002_typo.sql": "-- wen: timescaledb\nSELECT 1; -- when: orioledb\nSELECT 2",
        "0003_open.sql": "SELECT 'abc",
        "0004_empty.sql": "-- nothing\n;",
    }.items():
        (folder / name).write_text(text)
    with pytest.raises(Misconfigured) as caught:
        files.load("postgres", tmp_path)
    for expected in (
        "1_short.sql: a migration is called", "0001_b.sql: 0001_a.sql has the same number", "0002_typo.sql: `-- wen:",
        "0002_typo.sql: `-- when: orioledb`: when takes timescaledb", "0003_open.sql: cannot be cut",
        "0004_empty.sql: holds no statement",
    ):  # fmt: skip
        assert any(problem.startswith(f"migrations/postgres/{expected}") for problem in caught.value.problems), expected
    assert len(caught.value.problems) == 6
