"""What PostgreSQL's failures mean, raised by a real server."""

import datetime
import socket

import psycopg
import pytest

from pipeline.errors import Misconfigured, PipelineError, Rejected, Unavailable
from pipeline.settings import PostgresSettings
from pipeline.timescale.connection import connect, translated


def raised(code: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{code}'; END $$"


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("SELECT 'abc'::int", Rejected),
        ("SELECT 1 / 0", Rejected),
        ("CREATE TEMPORARY TABLE t (x int PRIMARY KEY); INSERT INTO t VALUES (1), (1)", Rejected),
        ("SET statement_timeout = 20; SELECT pg_sleep(5)", Unavailable),
        ("BEGIN READ ONLY; CREATE TABLE t (x int)", Unavailable),
        ("SELECT pg_terminate_backend(pg_backend_pid())", Unavailable),
        *[(raised(code), Unavailable) for code in ("08006", "53100", "53200", "57P03", "40001", "40P01", "58030")],
    ],
)
def test_the_worlds_and_the_datas_failures_are_told_apart(
    postgres_settings: PostgresSettings, statement: str, kind: type[PipelineError]
) -> None:
    """What may pass later is Unavailable, what never will is Rejected."""
    with connect(postgres_settings) as connection, pytest.raises(kind, match=r"^PostgreSQL: .*\.$"), translated():
        connection.execute(statement.encode())


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("SELECT * FROM nothing", r'relation "nothing" does not exist \(42P01\)\. Run `pipeline migrate up`\.'),
        (
            "CREATE TEMP TABLE t (n integer NOT NULL); INSERT INTO t VALUES (NULL)",
            r'null value in column "n" .* \(23502\)\. Run `pipeline migrate up`\.',
        ),
        (raised("42501"), r"x \(42501\)\. Let the user of postgres\.dsn do that: .*"),
    ],
)
def test_what_was_left_out_is_told_with_the_way_out(
    postgres_settings: PostgresSettings, statement: str, says: str
) -> None:
    """A missing table or right, or a column that takes fewer values than the writers know, is no bug and no fault of the
    data: whoever runs us hears what to do."""
    with connect(postgres_settings) as connection, pytest.raises(Misconfigured, match=says), translated():
        connection.execute(statement.encode())


@pytest.mark.parametrize("statement", ["SELEC 1", raised("53400"), raised("P0001")])
def test_ours_stay_what_they_are(postgres_settings: PostgresSettings, statement: str) -> None:
    """Bad SQL and the decompression limit, which has a cure of its own, are not translated."""
    with connect(postgres_settings) as connection, pytest.raises(psycopg.Error), translated():
        connection.execute(statement.encode())


@pytest.mark.parametrize("dsn", ["host=127.0.0.1 port=1 password=sesame", "postgresql://u:sesame@127.0.0.1:1/d"])
def test_a_server_that_is_away_is_unavailable(dsn: str) -> None:
    """The sentence names the address and not the password."""
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1") as caught:
        connect(PostgresSettings(dsn=dsn))
    assert "sesame" not in str(caught.value)


def test_a_dsn_that_is_none_is_ours() -> None:
    """It is named by its setting and not quoted: half of it may be a password."""
    with pytest.raises(Misconfigured, match=r"postgres\.dsn") as caught:
        connect(PostgresSettings(dsn="host=127.0.0.1 sesame"))
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(("said", "idle_s"), [("", 30), (" keepalives_idle=7", 7)])
def test_a_server_that_vanishes_is_noticed(postgres: str, said: str, idle_s: int) -> None:
    """The kernel asks after a silent server and gives it up within a minute, unless the DSN says otherwise."""
    dsn = psycopg.conninfo.make_conninfo(postgres, host="127.0.0.1") + said
    with connect(PostgresSettings(dsn=dsn)) as connection, socket.socket(fileno=connection.fileno()) as wire:
        assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle_s
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
        wire.detach()


def test_defaults_of_a_server_change_nothing_that_is_read(postgres_settings: PostgresSettings) -> None:
    """Times, intervals and every digit of a number are the same where the database has another style and zone."""
    for style in ("timezone = 'Europe/Berlin'", "datestyle = 'SQL, DMY'", "intervalstyle = 'iso_8601'"):
        alter(postgres_settings, style)
    alter(postgres_settings, "extra_float_digits = 0")
    with connect(postgres_settings) as connection:
        found = connection.execute(
            "SELECT '2026-10-25 01:30:00+00'::timestamptz, date_trunc('day', '2026-10-25 23:30:00+00'::timestamptz),"
            " interval '36 days', float8 '0.1' + float8 '0.2'"
        ).fetchone()
    assert found == (
        datetime.datetime(2026, 10, 25, 1, 30, tzinfo=datetime.UTC),
        datetime.datetime(2026, 10, 25, tzinfo=datetime.UTC),
        datetime.timedelta(days=36),
        0.1 + 0.2,
    )


def alter(settings: PostgresSettings, style: str) -> None:
    with connect(settings) as connection:
        database = connection.info.dbname
        connection.execute(f"ALTER DATABASE {database} SET {style}".encode())
