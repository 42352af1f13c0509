"""The door to ClickHouse: clickhouse-connect and its errors end here."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver import binding, exceptions
from clickhouse_connect.driver.client import Client

from pipeline.errors import Misconfigured, PipelineError, Rejected, Unavailable
from pipeline.settings import ClickHouseSettings

Error = exceptions.Error  # what passes `translated` when the fault is ours
# Whose fault a refused insert is, by code. Source: ClickHouse, src/Common/ErrorCodes.cpp.
# What is in neither table is ours, and stops the writer with nothing lost: a table dropped (60, 81, 218) or made
# read-only for good (774); a user shut out (516), read-only (164) or with limits too low (158, 307, 396);
# a column that is missing or of another type (8, 44, 53, 70), because the file's schema is known to be one of ours.
WORLD = {
    # too slow, or cut off
    95: "CANNOT_READ_FROM_SOCKET", 96: "CANNOT_WRITE_TO_SOCKET", 159: "TIMEOUT_EXCEEDED", 160: "TOO_SLOW",
    198: "DNS_ERROR", 209: "SOCKET_TIMEOUT", 210: "NETWORK_ERROR", 236: "ABORTED", 279: "ALL_CONNECTION_TRIES_FAILED",
    319: "UNKNOWN_STATUS_OF_INSERT", 394: "QUERY_WAS_CANCELLED", 735: "QUERY_WAS_CANCELLED_BY_CLIENT",
    # too much at once
    173: "CANNOT_ALLOCATE_MEMORY", 201: "QUOTA_EXCEEDED", 202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    203: "NO_FREE_CONNECTION", 241: "MEMORY_LIMIT_EXCEEDED", 252: "TOO_MANY_PARTS",
    364: "RECEIVED_ERROR_TOO_MANY_REQUESTS", 439: "CANNOT_SCHEDULE_TASK", 473: "DEADLOCK_AVOIDED",
    574: "DISTRIBUTED_TOO_MANY_PENDING_BYTES", 700: "USER_SESSION_LIMIT_EXCEEDED", 745: "SERVER_OVERLOADED",
    749: "TCP_CONNECTION_LIMIT_REACHED", 762: "HTTP_CONNECTION_LIMIT_REACHED", 776: "RESOURCE_LIMIT_EXCEEDED",
    777: "MEMORY_RESERVATION_KILLED", 778: "MEMORY_RESERVATION_FAILED", 1019: "QUERY_SLOT_ACQUISITION_TIMEOUT",
    1020: "MEMORY_RESERVATION_ACQUISITION_TIMEOUT",
    # disks and object storage
    74: "CANNOT_READ_FROM_FILE_DESCRIPTOR", 75: "CANNOT_WRITE_TO_FILE_DESCRIPTOR", 76: "CANNOT_OPEN_FILE",
    77: "CANNOT_CLOSE_FILE", 172: "CANNOT_CREATE_DIRECTORY", 204: "CANNOT_FSYNC", 214: "CANNOT_STATVFS",
    243: "NOT_ENOUGH_SPACE", 294: "CANNOT_WRITE_TO_FILE", 424: "CANNOT_LINK", 425: "SYSTEM_ERROR", 499: "S3_ERROR",
    500: "AZURE_BLOB_STORAGE_ERROR", 586: "CANNOT_CREATE_FILE", 641: "CANNOT_APPEND_TO_FILE", 693: "AWS_ERROR",
    1000: "POCO_EXCEPTION", 1016: "TABLE_SIZE_LIMIT_EXCEEDED",
    # replicas, Keeper, a server that starts or ends
    225: "NO_ZOOKEEPER", 242: "TABLE_IS_READ_ONLY", 244: "UNEXPECTED_ZOOKEEPER_ERROR", 285: "TOO_FEW_LIVE_REPLICAS",
    286: "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE", 384: "PART_IS_TEMPORARILY_LOCKED", 416: "REPLICA_STATUS_CHANGED",
    722: "ASYNC_LOAD_WAIT_FAILED", 733: "TABLE_IS_BEING_RESTARTED", 999: "KEEPER_EXCEPTION",
}  # fmt: skip
DATA = {
    # the Avro reader
    19: "SIZE_OF_FIXED_STRING_DOESNT_MATCH", 32: "ATTEMPT_TO_READ_AFTER_EOF", 33: "CANNOT_READ_ALL_DATA",
    117: "INCORRECT_DATA", 128: "TOO_LARGE_ARRAY_SIZE", 131: "TOO_LARGE_STRING_SIZE", 748: "AVRO_EXCEPTION",
    # conversions in views, and constraints of tables
    6: "CANNOT_PARSE_TEXT", 27: "CANNOT_PARSE_INPUT_ASSERTION_FAILED", 38: "CANNOT_PARSE_DATE",
    41: "CANNOT_PARSE_DATETIME", 69: "ARGUMENT_OUT_OF_BOUND", 72: "CANNOT_PARSE_NUMBER", 153: "ILLEGAL_DIVISION",
    190: "SIZES_OF_ARRAYS_DONT_MATCH", 321: "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE",
    349: "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN", 376: "CANNOT_PARSE_UUID", 407: "DECIMAL_OVERFLOW",
    441: "CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING", 467: "CANNOT_PARSE_BOOL", 469: "VIOLATED_CONSTRAINT",
    675: "CANNOT_PARSE_IPV4", 676: "CANNOT_PARSE_IPV6", 691: "UNKNOWN_ELEMENT_OF_ENUM",
}  # fmt: skip
ACCESS_DENIED = 497  # its text names the grant
STD_EXCEPTION = 1001  # not ClickHouse's own; its Avro reader raises such, and so do file systems
UNANSWERED = re.compile(r" executing HTTP request attempt \d+ \((\S+)\)$")  # how the client ends what it says of that
PROXY_STATUS = re.compile(r"HTTP status (429|50[0-4])\b")  # of an answer that is not from ClickHouse
QUERY_SETTINGS = {
    # An insert may touch any number of days: partitions are days, and clients send what they have kept. By default the
    # 101st day of one insert is refused, and would be for ever.
    "max_partitions_per_insert_block": 0,
}


def connect(settings: ClickHouseSettings) -> Client:
    """A client, which several threads may use.

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
            f"{sentence(error)} Correct clickhouse.user, clickhouse.password or clickhouse.database."
        ) from None


@contextmanager
def translated() -> Iterator[None]:
    """Raise the client's errors as ours where the fault is the world's, the data's or of who grants rights; all others
    pass as they are."""
    try:
        yield
    except exceptions.Error as error:
        kind = fault(error)
        if kind is None:
            raise
        raise kind(f"ClickHouse: {sentence(error)}") from error


def quoted(name: str) -> str:
    """A name as an identifier, whatever it holds."""
    return binding.quote_identifier(name)


def fault(error: exceptions.Error) -> type[PipelineError] | None:
    """Unavailable, Rejected, Misconfigured, or None: nobody's but ours."""
    code, text = getattr(error, "code", None), str(error)
    if code is None:  # no answer from the server: the connection itself, or what stands before the server
        away = isinstance(error, exceptions.OperationalError) or PROXY_STATUS.search(text)
        return Unavailable if away else None
    if code in WORLD or (code == STD_EXCEPTION and "filesystem_error" in text):
        return Unavailable
    if code == ACCESS_DENIED:
        return Misconfigured
    if code in DATA or (code == STD_EXCEPTION and "avro::Exception" in text):
        return Rejected
    return None


def sentence(error: exceptions.Error) -> str:
    """What the server or the client says, in one line; of a server that does not answer no more than the cause."""
    text = " ".join(str(error).split()).rstrip(".")
    unanswered = UNANSWERED.search(text)
    if unanswered:
        cause: BaseException = error
        while inner := cause.__cause__ or next((one for one in cause.args if isinstance(one, Exception)), None):
            cause = inner
        text = f"{unanswered[1]} does not answer: {getattr(cause, 'strerror', None) or cause}"
    return f"{text}."
