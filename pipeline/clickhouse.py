"""The door to ClickHouse: clickhouse-connect and its errors end here."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver import exceptions
from clickhouse_connect.driver.client import Client

from pipeline.errors import Misconfigured, PipelineError, Rejected, Unavailable
from pipeline.settings import ClickHouseSettings

Error = exceptions.Error  # what passes `translated` when the fault is ours
INSERT_SETTINGS = {
    "insert_deduplicate": 1,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "wait_end_of_query": 1,  # the answer, and the count in it, come when all views have written
}
# Source of the codes: ClickHouse, src/Common/ErrorCodes.cpp.
WORLD_CODES = frozenset(
    {
        159, 160, 209, 210, 319, 394,  # timeouts, network, unknown status of an insert, cancelled
        202, 203, 241, 252, 439,  # too many queries, connections, parts; memory, threads
        74, 75, 76, 236, 242, 243, 499, 999,  # disk, shutdown, read-only table, space, object storage, Keeper
    }
)  # fmt: skip
DATA_CODES = frozenset(
    {
        6, 26, 27, 32, 33, 38, 41, 44, 53, 69, 70, 72, 117, 131, 321, 349, 441,  # cannot parse, read or convert
        8,  # a field that the table needs is not in the file's schema
    }
)  # fmt: skip
FOREIGN_EXCEPTION = 1001  # the code of an exception that is not ClickHouse's own; its Avro reader raises such
QUERY_SETTINGS = {
    # An insert may touch any number of days: partitions are days, and clients send what they have kept. By default the
    # 101st day of one insert is refused, and would be for ever.
    "max_partitions_per_insert_block": 0,
}


def connect(settings: ClickHouseSettings) -> Client:
    """A client for one thread at a time.

    Raises Unavailable where the server does not answer, Misconfigured where it does not know the user or database.
    """
    url = urlsplit(settings.url)
    try:
        with translated():
            return clickhouse_connect.get_client(
                host=url.hostname or "",
                port=url.port or 0,
                interface="https" if url.scheme == "https" else "http",
                username=settings.user,
                password=settings.password.get_secret_value(),
                database=settings.database,
                settings=QUERY_SETTINGS,
                connect_timeout=5,
                autogenerate_session_id=False,  # a session allows one query at a time
            )
    except exceptions.DatabaseError as error:
        raise Misconfigured(
            f"ClickHouse at {settings.url} refuses user {settings.user} or database {settings.database}: "
            f"{_sentence(error)} Correct clickhouse.user, clickhouse.password or clickhouse.database."
        ) from None


@contextmanager
def translated() -> Iterator[None]:
    """Raise the client's errors as ours where the fault is the world's or the data's; all others pass as they are."""
    try:
        yield
    except exceptions.Error as error:
        kind = fault(error)
        if kind is None:
            raise
        raise kind(f"ClickHouse: {_sentence(error)}") from error


def fault(error: exceptions.Error) -> type[PipelineError] | None:
    """Unavailable, Rejected, or None: nobody's but ours."""
    code = getattr(error, "code", None)
    if code is None:  # no answer from the server: the connection itself
        return Unavailable if isinstance(error, exceptions.OperationalError) else None
    if code in WORLD_CODES:
        return Unavailable
    if code in DATA_CODES or (code == FOREIGN_EXCEPTION and "avro::Exception" in str(error)):
        return Rejected
    return None


class Inserts:
    """Container files into one `*_in` table; safe to call from several threads."""

    def __init__(self, settings: ClickHouseSettings, table: str) -> None:
        self._settings = settings
        self._table = table
        self._opened: tuple[Client, int] | None = None

    def insert(self, joined: bytes, *, records: int, token: str) -> None:
        """Insert one container file of `records` records through the table's views.

        The same token within the last 1,000 inserts changes nothing. Raise Unavailable where the server is away or
        cannot take more now; Rejected where it cannot read the file or read another number of records than promised.
        """
        if self._opened is None:
            self._opened = self._open()
        client, views = self._opened
        with translated():
            summary = client.raw_insert(
                self._table,
                insert_block=joined,
                fmt="Avro",
                settings={**INSERT_SETTINGS, "insert_deduplication_token": token},
            )
        # A record is read once by the insert and once by each view.
        read = int(summary.summary["read_rows"])
        if read != records * (1 + views):
            raise Rejected(f"ClickHouse read {read / (1 + views):g} records where {records} were promised.")

    def _open(self) -> tuple[Client, int]:
        """A client, and how many views read the table."""
        client = connect(self._settings)
        with translated():
            found = client.query(
                "SELECT length(dependencies_table) FROM system.tables"
                " WHERE database = currentDatabase() AND name = {table:String}",
                parameters={"table": self._table},
            ).result_rows
        if not found or not found[0][0]:
            raise Misconfigured(f"ClickHouse has no table {self._table} with views: run `pipeline migrate up`.")
        return client, found[0][0]


def _sentence(error: exceptions.Error) -> str:
    return " ".join(str(error).split()).rstrip(".") + "."
