"""One file of the spool: rows in SQLite, held by one process at a time.

The lock is flock on a file of its own: it survives whatever becomes of the database, and ends with the process.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import structlog

from pipeline.errors import Unavailable
from pipeline.spool.message import Damaged, Id, Row, Stored, unpack
from pipeline.spool.pages import PAGE_BYTES, log_is_doubtful
from pipeline.spool.quarantine import Quarantine
from pipeline.spool.salvage import finish, log_of, salvage

log = structlog.get_logger()

VERSION = 1
LOG_PAGES = 1024  # the write-ahead log is moved into the file at 16 MiB
REOPEN_AFTER_S = 10.0
IN_USE = b"in use\n"  # in the lock file, once there is a database that must not vanish
SCHEMA = f"""
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY, spooled_at_s REAL NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL,
        records INTEGER NOT NULL, size INTEGER NOT NULL, headers TEXT NOT NULL, checksum BLOB NOT NULL,
        value BLOB NOT NULL
    );
    CREATE INDEX messages_listed ON messages (spooled_at_s, records, size);  -- totals without reading values
    PRAGMA user_version = {VERSION};
"""
TOTALS = """
    SELECT count(*), coalesce(sum(records), 0), coalesce(sum(size), 0), min(spooled_at_s)
    FROM messages INDEXED BY messages_listed
"""
INSERT = "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
# Texts as bytes: what a flipped bit leaves of them may be no UTF-8.
READ = """
    SELECT id, spooled_at_s, CAST(topic AS BLOB), partition, records, size, CAST(headers AS BLOB), checksum, value
    FROM messages ORDER BY id
"""


class Totals(NamedTuple):
    """Of a file's messages that are not deleted; `bytes` are compressed."""

    messages: int = 0
    records: int = 0
    bytes: int = 0
    oldest_at_s: float | None = None


class Store:
    """A file that this process holds. Safe from several threads: they take turns.

    Every call raises Unavailable, with a sentence, where the disk does not play along. Damage is salvaged when it is
    met; the call that met it raises Unavailable and may be repeated.
    """

    def __init__(self, path: Path, lock: int, quarantine: Quarantine, *, clock: Callable[[], float], vfs: str) -> None:
        self.number = _number_of(path)
        self.totals = Totals()  # replaced as a whole: may be read without waiting for the disk
        self._path = path
        self._held = lock
        self._quarantine = quarantine
        self._clock = clock
        self._vfs = vfs
        self._turn = threading.RLock()
        self._connection: apsw.Connection | None = None
        self._next_id = 1
        self._done: set[int] = set()  # delivered, and not yet deleted from a disk that refused
        self._failure: tuple[float, Unavailable] | None = None

    def open(self) -> None:
        """Ready it, or raise Unavailable; every other call does this by itself."""
        with self._turn:
            self._opened()

    def insert(self, rows: Sequence[Row]) -> None:
        """Keep them, all or none; on return they are fsynced."""
        with self._use() as connection:
            with _transaction(connection):
                connection.executemany(INSERT, rows)
            totals = self.totals
            self.totals = Totals(
                totals.messages + len(rows),
                totals.records + sum(row.records for row in rows),
                totals.bytes + sum(row.size for row in rows),
                min(row.spooled_at_s for row in rows) if totals.oldest_at_s is None else totals.oldest_at_s,
            )

    def reserve(self, count: int) -> range:
        """Ids that no row of this file had: they grow with the clock, so that an emptied file repeats none."""
        with self._turn:
            self._opened()
            first = max(self._next_id, int(self._clock() * 1_000_000))
            self._next_id = first + count
            return range(first, self._next_id)

    def oldest(self, limit_messages: int, limit_bytes: int) -> list[Stored]:
        """The first messages by id, the same ones until they are deleted: at most so many, at least one if any.

        `limit_bytes` bounds their values. A row that fails its checksum goes to the quarantine.
        """
        with self._use() as connection:
            while True:
                found, bad = self._read(connection, limit_messages, limit_bytes)
                for row, reason in bad:
                    self._quarantine.keep(self.number, row, reason)
                    self._done.add(row.id)
                if self._done:
                    with suppress(apsw.FullError, apsw.IOError):  # the next call tries again
                        self._delete(connection)
                if found or not bad:
                    break
            if not found and self.totals.messages and not self._done:
                raise Damaged("rows are missing that its index lists")
            return found

    def delete(self, ids: Iterable[int]) -> None:
        """Forget delivered messages; on return durably. After Unavailable they are still never read again here."""
        with self._turn:
            self._done.update(ids)
            with self._use() as connection:
                self._delete(connection)

    def reusable_bytes(self) -> int:
        """Of the file, free for new rows."""
        with self._use() as connection:
            return int(connection.pragma("freelist_count")) * PAGE_BYTES

    def close(self) -> None:
        """Let go of the file: other processes may take it. What the disk says now changes nothing."""
        with self._turn:
            if self._connection is not None:
                with suppress(apsw.Error):
                    self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                self._disconnect()
            os.close(self._held)

    def _opened(self) -> apsw.Connection:
        if self._failure and 0 <= self._clock() - self._failure[0] < REOPEN_AFTER_S:
            raise self._failure[1]
        if self._connection is None:
            try:
                self._connection = self._open()
            except (apsw.Error, OSError) as error:
                raise self._failed(f"cannot be opened: {error}.") from error
            self._failure = None
        return self._connection

    def _failed(self, reason: str) -> Unavailable:
        """What to raise until it is worth another try."""
        failure = Unavailable(f"The spool file {self._path} {reason}")
        self._failure = self._clock(), failure
        return failure

    def _open(self) -> apsw.Connection:
        finish(self._path, self.number, self._quarantine)
        in_use = os.pread(self._held, len(IN_USE), 0) == IN_USE
        try:
            if in_use and (not self._path.exists() or self._path.stat().st_size < PAGE_BYTES):
                raise Damaged("it was in use and is now missing or cut off")  # SQLite would begin anew
            connection = self._connect()
        except (apsw.Error, Damaged) as error:
            if not _is_damage(error):
                raise
            self._salvage(error)
            connection = self._connect()
        if not in_use:
            os.pwrite(self._held, IN_USE, 0)
            os.fsync(self._held)
        return connection

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self._path), vfs=self._vfs or None)
        try:
            _configure(connection)
            version = connection.pragma("user_version")
            accepted, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
            if version not in (0, VERSION):
                raise Damaged(f"its version is {version}, not {VERSION}")
            if log_is_doubtful(log_of(self._path), accepted):
                raise Damaged("its write-ahead log is damaged in the middle")
            if version == 0:
                with _transaction(connection):
                    connection.execute(SCHEMA)
            self.totals = Totals(*_row(connection, TOTALS))
            if not self.totals.messages:
                _give_space_back(connection)
            self._next_id = max(self._next_id, _row(connection, "SELECT coalesce(max(id), 0) + 1 FROM messages")[0])
        except BaseException:
            _close(connection)
            raise
        return connection

    def _salvage(self, damage: Exception) -> None:
        def write(path: Path, rows: Iterable[Row]) -> None:
            connection = apsw.Connection(str(path), vfs=self._vfs or None)
            try:
                _configure(connection, journal="off")  # the file is worth nothing until it is complete
                with _transaction(connection):
                    connection.execute(SCHEMA)
                    connection.executemany(INSERT, rows)
            finally:
                _close(connection)

        salvage(self._path, self.number, self._quarantine, reason=str(damage), write=write)

    @contextmanager
    def _use(self) -> Iterator[apsw.Connection]:
        """The connection, for one caller at a time, with SQLite's errors translated and damage repaired."""
        with self._turn:
            connection = self._opened()
            try:
                yield connection
            except (apsw.Error, OSError, Damaged) as error:
                if _is_damage(error):
                    raise self._repaired(error) from error
                raise Unavailable(f"The disk of the spool file {self._path} does not play along: {error}.") from error

    def _repaired(self, damage: Exception) -> Unavailable:
        """Salvage; what to raise then."""
        self._disconnect()
        try:
            self._salvage(damage)
        except (apsw.Error, OSError) as error:
            return self._failed(f"is damaged and cannot be salvaged yet: {error}.")
        return Unavailable(f"The spool file {self._path} was damaged ({damage}): try again.")

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            _close(connection)

    def _read(
        self, connection: apsw.Connection, limit_messages: int, limit_bytes: int
    ) -> tuple[list[Stored], list[tuple[Row, str]]]:
        found: list[Stored] = []
        bad: list[tuple[Row, str]] = []
        size = 0
        for columns in connection.execute(READ):
            row = Row(*columns)
            row = row._replace(topic=_text(row.topic), headers=_text(row.headers))
            if row.id in self._done:
                continue
            try:
                message = unpack(row)
            except Damaged as damage:
                bad.append((row, str(damage)))
            else:
                size += len(message.value)
                if found and size > limit_bytes:
                    break
                found.append(Stored(Id(self.number, row.id), row.spooled_at_s, message))
            if len(found) + len(bad) == limit_messages:
                break
        return found, bad

    def _delete(self, connection: apsw.Connection) -> None:
        messages = records = size = 0
        with _transaction(connection):
            for row_records, row_size in connection.executemany(
                "DELETE FROM messages WHERE id = ? RETURNING records, size", [(row,) for row in self._done]
            ):
                messages, records, size = messages + 1, records + row_records, size + row_size
        self._done.clear()
        oldest_at_s = _row(connection, "SELECT min(spooled_at_s) FROM messages INDEXED BY messages_listed")[0]
        totals = self.totals
        self.totals = Totals(totals.messages - messages, totals.records - records, totals.bytes - size, oldest_at_s)
        if not self.totals.messages:
            _give_space_back(connection)


def take(directory: Path, number: int, quarantine: Quarantine, *, clock: Callable[[], float], vfs: str) -> Store | None:
    """The spool file of this number, or None while another process holds it. Raise OSError."""
    path = directory / f"spool-{number}.sqlite"
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return Store(path, lock, quarantine, clock=clock, vfs=vfs)


def numbers(directory: Path) -> list[int]:
    """Of the spool files in the directory, whoever holds them."""
    files = [path for suffix in ("lock", "sqlite") for path in directory.glob(f"spool-*.{suffix}")]
    return sorted({_number_of(path) for path in files if path.stem[6:].isdecimal()})


def _number_of(path: Path) -> int:
    return int(path.stem.removeprefix("spool-"))


def _configure(connection: apsw.Connection, journal: str = "wal") -> None:
    # Else SQLite would delete a log that it cannot read, and what is to be salvaged with it.
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    for pragma in (
        f"page_size = {PAGE_BYTES}",
        "locking_mode = EXCLUSIVE",  # before the log is touched: then its index needs no shared memory
        "synchronous = FULL",  # every commit is fsynced
        f"wal_autocheckpoint = {LOG_PAGES}",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")
    # Where the disk refuses, SQLite stays with its other journal, and FULL does not make that one's commits durable.
    if connection.pragma("journal_mode", journal) != journal:
        raise OSError("its journal could not be changed")


@contextmanager
def _transaction(connection: apsw.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _close(connection: apsw.Connection) -> None:
    """What the disk says to this changes nothing: what was committed is in the log."""
    with suppress(apsw.Error):
        connection.close(force=True)


def _row(connection: apsw.Connection, query: str) -> tuple[Any, ...]:
    rows: list[tuple[Any, ...]] = connection.execute(query).fetchall()
    return rows[0]


def _text(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _give_space_back(connection: apsw.Connection) -> None:
    """Shrink an empty file, if the disk allows it: where it does not, the next emptying or opening does."""
    with suppress(apsw.FullError, apsw.IOError):
        if connection.pragma("freelist_count"):
            connection.execute("VACUUM")
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


def _is_damage(error: Exception) -> bool:
    """Whether the file itself is to blame: what cannot be read now may be salvaged around."""
    if isinstance(error, apsw.IOError):
        return bool(getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_READ)  # a bad sector
    return isinstance(error, apsw.CorruptError | apsw.NotADBError | Damaged)
