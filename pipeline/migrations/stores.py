"""The two stores as the runner sees them: capabilities, history, and one step carried out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from typing import Literal, Protocol

from pipeline import clickhouse
from pipeline.errors import Rejected, Unavailable
from pipeline.migrations.files import Statement
from pipeline.settings import ClickHouseSettings, PostgresSettings
from pipeline.timescale import connection

ADVISORY_LOCK = int.from_bytes(b"pipeline")  # any constant that is nobody else's


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of `schema_migrations`: how far a file has come.

    The first `statements` of the file are done and `checksum` is theirs. A file is `applied`, or `dirty`: it stopped
    there, because of `problem`, or because the runner was killed where that is empty.
    """

    version: int
    name: str
    checksum: str
    statements: int
    state: Literal["applied", "dirty"]
    problem: str = ""


class StatementError(Exception):
    """The store refused a statement; `statement` is that one."""

    def __init__(self, statement: Statement, reason: str) -> None:
        super().__init__(" ".join(reason.split()).rstrip(".") + ".")
        self.statement = statement


class Store(Protocol):
    """What the runner asks of a store. Every call raises Unavailable where the store is away."""

    name: str
    transactions: bool  # statements and their history can be one transaction

    def capabilities(self) -> frozenset[str]:
        """Which of files.CAPABILITIES the store has."""

    def history(self) -> list[Entry]:
        """Every file that was begun, by version; empty where there is no history table yet."""

    def run(self, statements: Sequence[Statement], entry: Entry) -> None:
        """Run the statements and record `entry`: in one transaction, unless a single one says that it cannot.

        Raise StatementError at the first that fails; where there are transactions nothing is then done or recorded.
        """

    def record(self, entry: Entry) -> None:
        """Write `entry` over what its version has."""

    def close(self) -> None:
        """Let go of the store."""


class Postgres:
    name = "postgres"
    transactions = True

    def __init__(self, settings: PostgresSettings) -> None:
        self._connection = connection.connect(settings)

    def capabilities(self) -> frozenset[str]:
        """Before the first migration what the server offers counts, from then on what the database has."""
        query = "SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'"
        if not self.history():
            query = "SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'"
        with connection.translated():
            return frozenset({"timescaledb"} if self._connection.execute(query).fetchone() else ())

    def history(self) -> list[Entry]:
        with connection.translated():
            if self._connection.execute("SELECT to_regclass('schema_migrations')").fetchone() == (None,):
                return []
            rows = self._connection.execute(
                "SELECT version, name, checksum, statements, state, problem FROM schema_migrations ORDER BY version"
            )
            return [Entry(*row) for row in rows]

    def run(self, statements: Sequence[Statement], entry: Entry) -> None:
        alone = any(not statement.transactional for statement in statements)
        with connection.translated(), nullcontext() if alone else self._connection.transaction():
            for statement in statements:
                try:
                    with connection.translated():
                        self._connection.execute(statement.text.encode())
                except (connection.Error, Rejected) as error:
                    raise StatementError(statement, str(error)) from error
            self.record(entry)

    def record(self, entry: Entry) -> None:
        with connection.translated():
            self._connection.execute(
                """
                CREATE TABLE IF NOT EXISTS schema_migrations (
                    version integer PRIMARY KEY,
                    name text NOT NULL,
                    checksum text NOT NULL,
                    statements integer NOT NULL,
                    state text NOT NULL,
                    problem text NOT NULL,
                    applied_time timestamptz NOT NULL
                )
                """
            )
            self._connection.execute(
                """
                INSERT INTO schema_migrations (version, name, checksum, statements, state, problem, applied_time)
                VALUES (%s, %s, %s, %s, %s, %s, now())
                ON CONFLICT (version) DO UPDATE SET (name, checksum, statements, state, problem, applied_time) =
                (EXCLUDED.name, EXCLUDED.checksum, EXCLUDED.statements, EXCLUDED.state, EXCLUDED.problem, now())
                """,
                astuple(entry),
            )

    def close(self) -> None:
        self._connection.close()


class ClickHouse:
    """Has no transactions: every statement is a step, and says IF NOT EXISTS, so that a step can be repeated."""

    name = "clickhouse"
    transactions = False

    def __init__(self, settings: ClickHouseSettings) -> None:
        self._client = clickhouse.connect(settings)

    def capabilities(self) -> frozenset[str]:
        return frozenset()

    def history(self) -> list[Entry]:
        with clickhouse.translated():
            if not self._client.command("EXISTS TABLE schema_migrations"):
                return []
            rows = self._client.query(
                "SELECT version, name, checksum, statements, state, problem "
                "FROM schema_migrations FINAL ORDER BY version"
            ).result_rows
        return [Entry(*row) for row in rows]

    def run(self, statements: Sequence[Statement], entry: Entry) -> None:
        for statement in statements:
            try:
                with clickhouse.translated():
                    self._client.command(statement.text)
            except (clickhouse.Error, Rejected) as error:
                raise StatementError(statement, str(error)) from error
        self.record(entry)

    def record(self, entry: Entry) -> None:
        with clickhouse.translated():
            self._client.command(
                """
                CREATE TABLE IF NOT EXISTS schema_migrations
                (
                    version UInt32,
                    name String,
                    checksum String,
                    statements UInt32,
                    state LowCardinality(String),
                    problem String,
                    applied_time DateTime64(6, 'UTC') DEFAULT now64(6)
                )
                ENGINE = ReplacingMergeTree(applied_time) ORDER BY version
                """
            )
            self._client.insert(
                "schema_migrations",
                [astuple(entry)],
                column_names=["version", "name", "checksum", "statements", "state", "problem"],
            )

    def close(self) -> None:
        self._client.close()


@contextmanager
def locked(settings: PostgresSettings) -> Iterator[None]:
    """Keep other runners away from both stores; raise Unavailable where one is at work."""
    with connection.connect(settings) as held:
        with connection.translated():
            free = held.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_LOCK,)).fetchone() == (True,)
        if not free:
            raise Unavailable("Another runner is migrating these stores: wait until it is done and run this again.")
        try:
            yield
        finally:
            with connection.translated():
                held.execute("SELECT pg_advisory_unlock(%s)", (ADVISORY_LOCK,))
