"""A connection that is made when it is needed, and the two roads by which a batch goes in."""

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

import psycopg

from pipeline.settings import PostgresSettings
from pipeline.timescale.connection import connect, translated

Found = TypeVar("Found")
Road = Callable[[psycopg.Cursor], Found]
# TimescaleDB decompresses what late rows may collide with, up to a limit a transaction, or fails with 53400. That is no
# fault of the rows: they are stored without the limit.
AS_IT_IS = ()
LIMIT_LIFTED = ("SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0",)


class Session:
    """One connection, made at first use and anew after it broke. Safe to share: threads write in turn."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self.connection: psycopg.Connection | None = None

    def write(self, hopeful: Road[Found], careful: Road[Found]) -> Found:
        """What `hopeful` returns once its transaction is committed; where a row of it was there already (a unique
        violation) nothing of it is kept, and `careful` stands in, in a transaction of its own.

        Raise Unavailable where the store is away, Rejected where it can never hold these rows.
        """
        with self._lock, translated():
            try:
                if self.connection is None or self.connection.closed:
                    self.connection = connect(self._settings)
                try:
                    return _either(self.connection, AS_IT_IS, hopeful, careful)
                except psycopg.errors.ConfigurationLimitExceeded:  # late rows: their chunk is compressed
                    return _either(self.connection, LIMIT_LIFTED, hopeful, careful)
            except psycopg.OperationalError:
                self.close()
                raise

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def _either(connection: psycopg.Connection, first: Iterable[str], hopeful: Road[Found], careful: Road[Found]) -> Found:
    try:
        return _transaction(connection, first, hopeful)
    except psycopg.errors.UniqueViolation:
        return _transaction(connection, first, careful)


def _transaction(connection: psycopg.Connection, first: Iterable[str], road: Road[Found]) -> Found:
    with connection.transaction(), connection.cursor() as cursor:
        for statement in first:
            cursor.execute(statement.encode())
        return road(cursor)
