"""Writers that meet other sessions: serialization failures and deadlocks pass, and every row ends as it should."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import polars_avro
import psycopg
import pytest

from pipeline.agents.pg_writer import PostgresWriter, Stored
from pipeline.delivery import Delivery, Message
from pipeline.errors import Rejected, Unavailable
from pipeline.settings import PostgresSettings
from pipeline.timescale import rows
from pipeline.timescale.connection import connect
from tests.contract.test_stores import gauges, new_service, one
from tests.otlp import requests
from tests.otlp.requests import T0
from tests.timescale.conftest import migrated

LATER = T0 + 2 * 10**9


class NoDeadLetters:
    async def put(self, message: Message, reason: Rejected) -> None:
        raise AssertionError(f"dead-lettered: {reason}")


class Watched:
    """A writer, and the SQLSTATE of each time that the store was away."""

    name = "pg_writer"

    def __init__(self, settings: PostgresSettings, signal: Stored, **options: str) -> None:
        said = " ".join(f"-c {name}={text}" for name, text in options.items())
        dsn = psycopg.conninfo.make_conninfo(settings.dsn.get_secret_value(), options=said)
        self._writer = PostgresWriter(PostgresSettings(dsn=dsn), signal)
        self.away: list[str | None] = []

    def write(self, batch: list[Message]) -> int:
        try:
            return self._writer.write(batch)
        except Unavailable as reason:
            self.away.append(getattr(reason.__cause__, "sqlstate", None))
            raise


@pytest.fixture
def settings(postgres_settings: PostgresSettings) -> PostgresSettings:
    return migrated(postgres_settings.dsn.get_secret_value())


@pytest.fixture
def other(settings: PostgresSettings) -> Iterator[psycopg.Connection]:
    """Another session."""
    with connect(settings) as connection:
        yield connection


@contextmanager
def delivering(writer: Watched, batch: list[Message], other: psycopg.Connection) -> Iterator[None]:
    """Deliver beside the block, which begins when the writer waits for a lock of the other session."""
    failures: list[BaseException] = []

    def deliver() -> None:
        try:
            asyncio.run(Delivery(writer, NoDeadLetters()).deliver(batch))  # type: ignore[arg-type]
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=deliver)
    thread.start()
    deadline = time.monotonic() + 10
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()"
    while other.execute(waits.encode()).fetchone() == (0,):
        assert time.monotonic() < deadline, "the writer never waited"
        time.sleep(0.01)
    yield
    thread.join(20)
    assert not thread.is_alive()
    assert not failures


def values(connection: psycopg.Connection) -> list[float]:
    return [value for (value,) in connection.execute("SELECT value FROM metrics_points ORDER BY time")]


def test_a_serialization_failure_is_tried_again(settings: PostgresSettings, other: psycopg.Connection) -> None:
    """Another session changes a row that the writer's upsert is about to replace, which its isolation level forbids."""
    service = new_service()
    PostgresWriter(settings, "metrics").write([one("metrics", gauges(service, ("m", T0 + 10**9, 1.0)))])
    writer = Watched(settings, "metrics", default_transaction_isolation="serializable")
    twin = one("metrics", gauges(service, ("m", T0, 2.0)))  # which COPY cannot store, so that the upsert's turn comes
    newer = one("metrics", gauges(service, ("m", T0 + 10**9, 2.0)), received=LATER)
    other.execute("BEGIN")
    other.execute("UPDATE metrics_points SET region = 'elsewhere'")
    with delivering(writer, [twin, twin, newer], other):
        other.execute("COMMIT")
    assert writer.away == ["40001"]
    assert values(other) == [2.0, 2.0]


def test_a_deadlock_is_tried_again(settings: PostgresSettings, other: psycopg.Connection) -> None:
    """The writer holds the first row and wants the second, another session the other way round."""
    service = new_service()
    points = [("m", T0, 1.0), ("m", T0 + 10**9, 1.0)]
    PostgresWriter(settings, "metrics").write([one("metrics", gauges(service, *points))])
    writer = Watched(settings, "metrics", deadlock_timeout="100ms")
    newer = gauges(service, *((name, at, 2.0) for name, at, _ in points))
    lock = "SELECT FROM metrics_points ORDER BY time {} LIMIT 1 FOR UPDATE"
    other.execute("SET deadlock_timeout = '1min'")
    other.execute("BEGIN")
    other.execute(lock.format("DESC").encode())
    with delivering(writer, [one("metrics", newer, received=LATER)], other):
        other.execute(lock.format("ASC").encode())  # granted when the writer has given up
        other.execute("COMMIT")
    assert writer.away == ["40P01"]
    assert values(other) == [2.0, 2.0]


@pytest.mark.parametrize("signal", ["metrics", "logs"])
def test_what_another_writer_is_about_to_commit_is_waited_for(
    settings: PostgresSettings, other: psycopg.Connection, signal: Stored
) -> None:
    """The same batch twice at once, as after a rebalance: the second waits, finds it there, and changes nothing."""
    request = gauges(new_service(), ("m", T0, 1.0)) if signal == "metrics" else requests.logs("twice")
    table = "metrics_points" if signal == "metrics" else "events"
    PostgresWriter(settings, signal).write([one(signal, request)])
    other.execute(f"CREATE TABLE held AS SELECT * FROM {table}".encode())
    other.execute(f"TRUNCATE {table}".encode())
    writer = Watched(settings, signal)
    other.execute("BEGIN")
    other.execute(f"INSERT INTO {table} SELECT * FROM held".encode())
    with delivering(writer, [one(signal, request)], other):
        other.execute("COMMIT")
    assert writer.away == []
    assert other.execute(f"SELECT * FROM {table}".encode()).fetchall() == other.execute("SELECT * FROM held").fetchall()


def test_a_machine_that_stood_still_dead_letters_nothing(
    settings: PostgresSettings, other: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that was not decoded in time, and is when it is tried again, was none to blame."""
    read, still_s = polars_avro.read_avro, iter([4.0])

    def read_avro(*args: Any, **options: Any) -> Any:
        time.sleep(next(still_s, 0.0))
        return read(*args, **options)

    monkeypatch.setattr(polars_avro, "read_avro", read_avro)
    monkeypatch.setattr(rows, "DECODE_WITHIN_S", 2.0)
    batch = [one("metrics", gauges(new_service(), ("m", T0, 1.0)))]
    asyncio.run(Delivery(PostgresWriter(settings, "metrics"), NoDeadLetters()).deliver(batch))
    assert values(other) == [1.0]


def test_a_store_that_comes_back_without_its_series_is_told_them_again(
    settings: PostgresSettings, other: psycopg.Connection
) -> None:
    """From a backup, or a standby that had not all of it: a point whose series is not there is one that nobody sees."""
    service = new_service()
    writer = PostgresWriter(settings, "metrics")
    writer.write([one("metrics", gauges(service, ("m", T0, 1.0)))])
    other.execute("DELETE FROM metrics_points")
    other.execute("DELETE FROM metric_series")
    other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = "
                  "current_database()")  # fmt: skip
    batch = [one("metrics", gauges(service, ("m", T0 + 10**9, 2.0)))]
    with pytest.raises(Unavailable):
        writer.write(batch)
    writer.write(batch)
    assert other.execute("SELECT value FROM metrics").fetchall() == [(2.0,)]
