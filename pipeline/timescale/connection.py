"""Connections to PostgreSQL, and what its failures mean.

Source of the codes: PostgreSQL documentation, appendix A, "PostgreSQL Error Codes".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from pipeline.errors import Misconfigured, PipelineError, Rejected, Unavailable
from pipeline.settings import PostgresSettings

Error = psycopg.Error  # what passes `translated` when the fault is ours
UndefinedTable = psycopg.errors.UndefinedTable
CONNECT_TIMEOUT_S = 5
# A server that vanished without a word is given up after a minute; the kernel's own waits are 15 minutes and 2 hours.
VANISHED = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
# What is read is the same whatever a database has as its defaults: psycopg takes no other style of dates, to Python
# equal times of two zones differ in an hour that comes twice, and numbers have all of their digits. Statements of the
# session: poolers refuse most of what a connection asks for as it begins.
STYLE = "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET extra_float_digits = 1"
# Classes: connection, insufficient resources, system error (a full or failing disk). Codes: serialization failure,
# deadlock, read-only (a fail-over), shutdowns and crashes, lock or statement timeout.
WORLD_CLASSES = frozenset({"08", "53", "58"})
WORLD_CODES = frozenset({"40001", "40P01", "25006", "57P01", "57P02", "57P03", "57P05", "57014", "55P03"})
# Classes: data exception, constraint violation, a limit of the program (a value too long for its index).
DATA_CLASSES = frozenset({"22", "23", "54"})
# What whoever runs us left out, with the way out: a right, a table, a migration after which a column takes null: no
# client decides what is null.
LEFT_OUT = {
    "42501": "Let the user of postgres.dsn do that: grant it, or make it the owner.",
    "42P01": "Run `pipeline migrate up`.",
    "23502": "Run `pipeline migrate up`.",
}
# TimescaleDB: too many tuples of compressed chunks to decompress. The same batch passes with the limit lifted.
DECOMPRESSION_LIMIT = "53400"


def connect(settings: PostgresSettings) -> psycopg.Connection:
    """A connection in autocommit mode, of which every time is UTC: transactions are opened by name.

    Raises Unavailable where the server does not answer or does not let us in, Misconfigured where the DSN is none.
    """
    defaults = {"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "pipeline", **VANISHED}
    with translated():
        connected = psycopg.connect(**{**defaults, **parameters(settings)}, autocommit=True)
        connected.execute(STYLE)
        return connected


def parameters(settings: PostgresSettings) -> dict[str, Any]:
    """The DSN taken apart; raises Misconfigured where it is none."""
    try:
        return {**psycopg.conninfo.conninfo_to_dict(settings.dsn.get_secret_value())}
    except psycopg.Error:  # its message quotes the DSN, and with it perhaps the password
        raise Misconfigured("postgres.dsn: must be `host=… user=…` or postgresql://user@host/database.") from None


def shown(settings: PostgresSettings) -> str:
    """The DSN without what libpq calls secret; raises Misconfigured where it is none."""
    secret = {option.keyword.decode() for option in psycopg.pq.Conninfo.parse(b"") if option.dispchar == b"*"}
    return psycopg.conninfo.make_conninfo(
        **{key: value for key, value in parameters(settings).items() if key not in secret}
    )


@contextmanager
def translated() -> Iterator[None]:
    """Raise psycopg's errors as ours where the fault is the world's, the data's or of who runs us; all others pass as
    they are."""
    try:
        yield
    except psycopg.Error as error:
        kind = fault(error)
        if kind is None:
            raise
        way_out = f" {LEFT_OUT[error.sqlstate]}" if error.sqlstate in LEFT_OUT else ""
        raise kind(f"PostgreSQL: {_sentence(error)}{way_out}") from error


def fault(error: psycopg.Error) -> type[PipelineError] | None:
    """Unavailable, Rejected, Misconfigured, or None: nobody's but ours."""
    code = error.sqlstate
    if code is None:  # no answer from the server: the connection itself
        return Unavailable if isinstance(error, psycopg.OperationalError) else None
    if code == DECOMPRESSION_LIMIT:
        return None
    if code in LEFT_OUT:
        return Misconfigured
    if code in WORLD_CODES or code[:2] in WORLD_CLASSES:
        return Unavailable
    return Rejected if code[:2] in DATA_CLASSES else None


def _sentence(error: psycopg.Error) -> str:
    text = error.diag.message_primary or str(error)
    return f"{' '.join(text.split())}{f' ({error.sqlstate})' if error.sqlstate else ''}."
