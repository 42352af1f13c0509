"""The two stores as the runner sees them: history, one step carried out, a lock, a scratch database, definitions."""

import hashlib
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, astuple, dataclass
from typing import Any, Literal, Protocol, Self

import psycopg
from clickhouse_connect.driver.client import Client
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from pipeline import clickhouse
from pipeline.errors import Misconfigured, Rejected, Unavailable
from pipeline.migrations import definitions
from pipeline.migrations.definitions import Definitions
from pipeline.migrations.files import Statement
from pipeline.settings import ClickHouseSettings, PostgresSettings
from pipeline.timescale import connection

ADVISORY_LOCK = int.from_bytes(b"pipeline")  # any constant that is nobody else's
QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING = 216
CONCURRENT_INDEX = re.compile(
    r"CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?([\w.\"]+)", re.IGNORECASE
)


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


class LockedError(Unavailable):
    """Another runner is at work."""

    def __init__(self, store: str) -> None:
        super().__init__(f"Another runner is migrating {store}: wait until it is done and run this again.")


class Store(Protocol):
    """What the runner asks of a store. Every call raises Unavailable where the store is away."""

    name: str
    transactions: bool  # statements and their history can be one transaction

    def history(self) -> list[Entry]:
        """Every file that was begun, by version; empty where there is no history table yet."""

    def run(self, statements: Sequence[Statement], entry: Entry) -> None:
        """Run those statements that its capabilities ask for, and write `entry` over what its version has.

        Both are one transaction, unless a single statement says that it cannot be in one. Raise StatementError at the
        first that fails; where there are transactions nothing is then done or recorded.
        """

    def locked(self) -> AbstractContextManager[None]:
        """Keep other runners away, also when this process is killed; raise LockedError where one is at work.

        Where the lock is lost, `run` raises Unavailable.
        """

    def scratch(self) -> AbstractContextManager["Store"]:
        """An empty database of the same capabilities on the same server, dropped at the end; the lock must be held.

        Raise Misconfigured where the user may not make one.
        """

    def definitions(self) -> Definitions:
        """What the database holds."""


class Postgres:
    name = "postgres"
    transactions = True

    def __init__(
        self, connected: psycopg.Connection, settings: PostgresSettings, capabilities: frozenset[str] | None = None
    ) -> None:
        """`capabilities` are probed where none are given."""
        self._connection = connected
        self._settings = settings
        self._capabilities = capabilities

    @classmethod
    @contextmanager
    def opened(cls, settings: PostgresSettings, capabilities: frozenset[str] | None = None) -> Iterator[Self]:
        with closing(connection.connect(settings)) as connected:
            yield cls(connected, settings, capabilities)

    def capabilities(self) -> frozenset[str]:
        """Before the first migration what the server offers counts, from then on what the database has."""
        if self._capabilities is not None:
            return self._capabilities
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
        capabilities = self.capabilities()
        alone = any(not statement.transactional for statement in statements)
        with connection.translated(), nullcontext() if alone else self._connection.transaction():
            for statement in statements:
                if statement.runs(capabilities):
                    try:
                        with connection.translated():
                            self._execute(statement)
                    except (connection.Error, Misconfigured, Rejected) as error:
                        raise StatementError(statement, str(error)) from error
            self._record(entry)

    def _execute(self, statement: Statement) -> None:
        index = None if statement.transactional else CONCURRENT_INDEX.search(statement.text)
        if index:
            self._drop_unfinished(index[1])
        self._connection.execute(statement.text.encode())

    def _drop_unfinished(self, index: str) -> None:
        """What a build leaves that was cut off: an invalid index, which IF NOT EXISTS would take for a whole one."""
        query = "SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND NOT indisvalid"
        if self._connection.execute(query, (index,)).fetchone() is not None:
            self._connection.execute(f"DROP INDEX CONCURRENTLY {index}".encode())

    def _record(self, entry: Entry) -> None:
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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The connection that runs the statements holds an advisory lock: one ends with the other."""
        with connection.translated():
            free = self._connection.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_LOCK,)).fetchone() == (True,)
        if not free:
            raise LockedError("PostgreSQL")
        try:
            yield
        finally:
            with connection.translated():
                self._connection.execute("SELECT pg_advisory_unlock(%s)", (ADVISORY_LOCK,))

    @contextmanager
    def scratch(self) -> Iterator["Postgres"]:
        name = _scratch_name(self._connection.info.dbname)
        drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        dsn = make_conninfo(self._settings.dsn.get_secret_value(), dbname=name)
        try:
            with connection.translated():
                self._connection.execute(drop)  # a killed runner leaves it
                self._connection.execute(
                    sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
                )  # fmt: skip
        except Misconfigured as error:
            raise Misconfigured(
                "The user of postgres.dsn may not create the scratch database that this needs: "
                "give it CREATEDB, or name another user in PIPELINE_POSTGRES__DSN for this command."
            ) from error
        try:
            with self.opened(PostgresSettings(dsn=SecretStr(dsn)), self.capabilities()) as store:
                if store._connection.execute("SELECT current_database()").fetchone() != (name,):
                    raise Misconfigured(
                        "postgres.dsn leads to the same database whichever it names: "
                        "name the server itself, and no pooler, in PIPELINE_POSTGRES__DSN for this command."
                    )
                yield store
        finally:
            with connection.translated():
                self._connection.execute(drop)

    def definitions(self) -> Definitions:
        with connection.translated():
            return definitions.postgres(self._connection)


class ClickHouse:
    """Has no transactions: every statement is a step, and says IF NOT EXISTS, so that a step can be repeated."""

    name = "clickhouse"
    transactions = False

    def __init__(self, client: Client, settings: ClickHouseSettings) -> None:
        self._client = client
        self._settings = settings
        self._lock = ""

    @classmethod
    @contextmanager
    def opened(cls, settings: ClickHouseSettings) -> Iterator[Self]:
        with closing(clickhouse.connect(settings)) as client:
            yield cls(client, settings)

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
            if statement.runs(frozenset()):
                self._check_lock()
                try:
                    with clickhouse.translated():
                        self._execute(statement)
                except (clickhouse.Error, Misconfigured, Rejected) as error:
                    raise StatementError(statement, str(error)) from error
        with clickhouse.translated():
            self._record(entry)

    def _execute(self, statement: Statement) -> None:
        self._client.command(statement.text)

    def _record(self, entry: Entry) -> None:
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
        self._client.command(
            "INSERT INTO schema_migrations (version, name, checksum, statements, state, problem) SELECT "
            "{version:UInt32}, {name:String}, {checksum:String}, {statements:UInt32}, {state:String}, {problem:String}",
            parameters=asdict(entry),
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A query that runs as long as the lock is held, since a server runs no two of one id.

        It ends with the connection that asked for it, within a second when this process is killed.
        """
        lock = uuid.uuid4().hex
        try:
            with clickhouse.translated():
                held: Any = self._client.raw_stream(
                    "SELECT sleepEachRow(0.02) FROM system.numbers",
                    settings={
                        "query_id": self._lock_id(),
                        "log_comment": lock,
                        "max_block_size": 1,
                        "max_execution_time": 0,
                        "cancel_http_readonly_queries_on_client_close": 1,
                    },
                )
        except clickhouse.Error as error:
            if getattr(error, "code", None) == QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING:
                raise LockedError("ClickHouse") from None
            raise
        self._lock = lock
        try:
            yield
        finally:
            self._lock = ""
            held.close()

    def _lock_id(self) -> str:
        return f"migrations of {self._settings.database}"

    def _check_lock(self) -> None:
        with clickhouse.translated():
            found = self._client.query(
                "SELECT count() FROM system.processes "
                "WHERE query_id = {id:String} AND Settings['log_comment'] = {lock:String}",
                parameters={"id": self._lock_id(), "lock": self._lock},
            ).result_rows
        if found != [(1,)]:
            raise Unavailable(
                "ClickHouse has ended the query that kept other runners away: look who kills queries there, "
                "and run this again."
            )

    @contextmanager
    def scratch(self) -> Iterator["ClickHouse"]:
        name = _scratch_name(self._settings.database)
        drop = f"DROP DATABASE IF EXISTS {name} SYNC"
        try:
            with clickhouse.translated():
                self._client.command(drop)  # a killed runner leaves it
                self._client.command(f"CREATE DATABASE {name}")
        except (clickhouse.Error, Misconfigured) as error:
            raise Misconfigured(
                f"ClickHouse makes no scratch database {name}, which this needs: {' '.join(str(error).split())} "
                f"GRANT ALL ON {name}.* to clickhouse.user, or name another in PIPELINE_CLICKHOUSE__USER for this."
            ) from error
        try:
            with self.opened(self._settings.model_copy(update={"database": name})) as store:
                yield store
        finally:
            with clickhouse.translated():
                self._client.command(drop)

    def definitions(self) -> Definitions:
        with clickhouse.translated():
            return definitions.clickhouse(self._client)


def _scratch_name(database: str) -> str:
    """One for each database, so that what a killed runner leaves is found; short enough for any server."""
    return f"migrations_scratch_{hashlib.blake2b(database.encode(), digest_size=8).hexdigest()}"
