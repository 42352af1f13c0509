"""What every writer promises of every store, held against the fake and the real ones alike."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from typing import Any, get_args

import psycopg
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pipeline import clickhouse as clickhouse_door
from pipeline import migrations
from pipeline.agents.ch_writer import ClickHouseWriter
from pipeline.agents.pg_writer import PostgresWriter, Stored
from pipeline.delivery import Delivery, Message, Writer
from pipeline.errors import Rejected, Unavailable
from pipeline.record import schema
from pipeline.record.schema import SIGNALS, Signal
from pipeline.settings import ClickHouseSettings, PostgresSettings, Settings
from pipeline.timescale.connection import connect
from tests.contract.fake import Memory, MemoryWriter
from tests.contract.test_stores import RECEIVED, encoded, gauges, headers, messages, new_service, one
from tests.otlp import requests
from tests.otlp.decode import records
from tests.otlp.requests import T0
from tests.timescale.conftest import migrated

POINT_TABLES = ("metrics_points", "metrics_histograms", "metrics_exponential_histograms", "metrics_summaries")


class Target:
    """A migrated store, one signal of it, and the ids that its readers see."""

    signal: Signal

    def writer(self) -> Writer:
        """A new one, as after a restart."""
        raise NotImplementedError

    def writer_without_store(self) -> Writer:
        raise NotImplementedError

    def seen(self, service: str) -> list[str]:
        """The event_id of every row of the service, sorted."""
        raise NotImplementedError


class Fake(Target):
    def __init__(self, signal: Signal) -> None:
        self.signal = signal
        self._memory = Memory(signal)

    def writer(self) -> Writer:
        return MemoryWriter(self._memory)

    def writer_without_store(self) -> Writer:
        return MemoryWriter(Memory(self.signal, away=100))

    def seen(self, service: str) -> list[str]:
        return sorted(key.hex() for key, record in self._memory.records.items() if record["service"] == service)


class Postgres(Target):
    """Plain or with TimescaleDB."""

    def __init__(self, settings: PostgresSettings, signal: Stored) -> None:
        self.signal = signal
        self._stored = signal
        self._settings = settings

    def writer(self) -> Writer:
        return PostgresWriter(self._settings, self._stored)

    def writer_without_store(self) -> Writer:
        return PostgresWriter(PostgresSettings(dsn="host=127.0.0.1 port=1 user=u dbname=d"), self._stored)

    def seen(self, service: str) -> list[str]:
        query = "SELECT event_id FROM events WHERE service = %(service)s"
        if self.signal == "metrics":
            of_service = "WHERE series_id IN (SELECT series_id FROM metric_series WHERE service = %(service)s)"
            query = " UNION ALL ".join(f"SELECT event_id FROM {table} {of_service}" for table in POINT_TABLES)
        with connect(self._settings) as connection:
            return sorted(event_id.hex for (event_id,) in connection.execute(query.encode(), {"service": service}))


class ClickHouse(Target):
    def __init__(self, settings: ClickHouseSettings, signal: Signal) -> None:
        self.signal = signal
        self._settings = settings

    def writer(self) -> Writer:
        return ClickHouseWriter(self._settings, self.signal)

    def writer_without_store(self) -> Writer:
        return ClickHouseWriter(self._settings.model_copy(update={"url": "http://127.0.0.1:1"}), self.signal)

    def seen(self, service: str) -> list[str]:
        client = clickhouse_door.connect(self._settings)
        found = client.query(f"SELECT event_id FROM {self.signal} WHERE service = '{service}' ORDER BY 1").result_rows
        client.close()
        return [event_id for (event_id,) in found]


@pytest.fixture(scope="module")
def plain(postgres: str) -> Iterator[PostgresSettings]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        yield migrated(psycopg.conninfo.make_conninfo(postgres, dbname=name))
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="module")
def hypertables(timescale: str) -> PostgresSettings:
    return migrated(timescale)


@pytest.fixture(scope="module")
def columns(clickhouse: str, postgres: str) -> Iterator[ClickHouseSettings]:
    name = f"test_{uuid.uuid4().hex}"
    admin = clickhouse_door.connect(ClickHouseSettings(url=clickhouse))
    admin.command(f"CREATE DATABASE {name}")
    settings = ClickHouseSettings(url=clickhouse, database=name)
    both = Settings(clickhouse=settings, postgres=PostgresSettings(dsn=postgres))  # which holds the lock
    migrations.up_all(both, "clickhouse")
    yield settings
    admin.command(f"DROP DATABASE {name} SYNC")
    admin.close()


TARGETS = [
    ("fake", "logs"),
    *((store, signal) for store in ("plain", "hypertables") for signal in get_args(Stored)),
    *(("columns", signal) for signal in SIGNALS),
]


@pytest.fixture(scope="module", params=TARGETS, ids=" ".join)
def target(request: pytest.FixtureRequest) -> Target:
    """Shared by the tests of this module, so each uses a service of its own."""
    store, signal = request.param
    if store == "fake":
        return Fake(signal)
    settings = request.getfixturevalue(store)
    return ClickHouse(settings, signal) if store == "columns" else Postgres(settings, signal)


def request(signal: Signal, service: str, *numbers: int) -> Any:
    """Records of every kind that a store keeps apart, one of each for each number, all with a time of their own."""
    if signal == "metrics":
        return points(service, *numbers)
    made = requests.logs(*numbers) if signal == "logs" else requests.traces()
    part = made.resource_logs[0] if signal == "logs" else made.resource_spans[0]
    part.resource.attributes[0].value.string_value = service
    if signal == "traces":
        spans = part.scope_spans[0].spans
        del spans[1:]
        first = type(spans[0])()
        first.CopyFrom(spans.pop())
        for number in numbers:
            spans.add().CopyFrom(first)
            spans[-1].name = f"n{number}"
    return made


def points(service: str, *numbers: int) -> ExportMetricsServiceRequest:
    made = gauges(service, *((f"gauge {number}", T0, 1.0) for number in numbers))
    metrics = made.resource_metrics[0].scope_metrics[0].metrics
    for number in numbers:
        metrics.add(name=f"histogram {number}").histogram.data_points.add(time_unix_nano=T0, count=1)
        metrics.add(name=f"exponential {number}").exponential_histogram.data_points.add(time_unix_nano=T0, count=1)
        metrics.add(name=f"summary {number}").summary.data_points.add(time_unix_nano=T0, count=1)
    return made


def ids(signal: Signal, service: str, *numbers: int) -> list[str]:
    return sorted(record["event_id"].hex() for record in records(encoded(signal, request(signal, service, *numbers))))


def test_a_batch_is_seen_once_it_is_written(target: Target) -> None:
    """Every record of every message, and as many as `write` says."""
    service = new_service()
    batch = [one(target.signal, request(target.signal, service, *numbers)) for numbers in ((1, 2, 3), (4,))]
    expected = ids(target.signal, service, 1, 2, 3, 4)
    assert target.writer().write(batch) == len(expected)
    assert target.seen(service) == expected


def test_what_comes_again_is_seen_once(target: Target) -> None:
    """The same batch, another cut of it beside new records, a twin inside it, another region's copy, a new writer."""
    signal, service = target.signal, new_service()
    first, second, third = (one(signal, request(signal, service, n)) for n in (1, 2, 3))
    copy = one(signal, request(signal, service, 1, 2), received=RECEIVED + 5000, region="us")
    writer = target.writer()
    for batch in ([first, second], [first, second], [second, third, third, first], [copy, first]):
        writer.write(batch)
    assert target.seen(service) == ids(signal, service, 1, 2, 3)
    target.writer().write([third, copy, first])
    assert target.seen(service) == ids(signal, service, 1, 2, 3)


def damaged(message: Message) -> Message:
    """Whole in its framing; the first string of its records claims to be longer than all of it."""
    place = message.value.index(b"\4eu", message.value.index(b"pipeline-ocf-v01"))
    return message._replace(value=message.value[:place] + b"\xfe\xff\xff\x0f" + message.value[place + 4 :])


SPOILS: dict[str, Callable[[Message], Message]] = {
    "records": damaged,
    "cut": lambda m: m._replace(value=m.value[:-1]),
    "half": lambda m: m._replace(value=m.value[: len(m.value) // 2]),
    "empty": lambda m: m._replace(value=b""),
    "no avro": lambda m: m._replace(value=b"no avro"),
    "wrong count": lambda m: m._replace(headers=m.headers | {"records": b"999"}),
    "no count": lambda m: m._replace(headers={"schema": m.headers["schema"]}),
    "newer schema": lambda m: m._replace(headers=m.headers | {"schema": m.headers["schema"][:-1] + b"2"}),
    "no schema": lambda m: m._replace(headers={"records": m.headers["records"]}),
}


@pytest.mark.parametrize("how", SPOILS)
def test_a_batch_with_a_message_that_is_not_what_it_says_is_rejected(target: Target, how: str) -> None:
    """The reason names it where framing tells; nothing is seen; without it the batch is stored by the same writer."""
    signal, service = target.signal, new_service()
    batch = [one(signal, request(signal, service, n)) for n in (1, 2, 3)]
    writer = target.writer()
    place = rf"^{signal}_raw \[0\] @ {batch[1].offset}: .*\.$"
    with pytest.raises(Rejected, match=place if how != "records" else None):
        writer.write([batch[0], SPOILS[how](batch[1]), batch[2]])
    assert target.seen(service) == []
    writer.write([batch[0], batch[2]])
    assert target.seen(service) == ids(signal, service, 1, 3)


def test_delivery_dead_letters_the_bad_and_stores_the_good(target: Target) -> None:
    """One message in each way it can be bad among good ones: exactly those are dead-lettered."""
    signal, service = target.signal, new_service()
    batch = [one(signal, request(signal, service, n)) for n in range(2 * len(SPOILS))]
    bad = dict(zip(range(1, len(batch), 2), SPOILS.values(), strict=True))
    buried: list[int] = []

    class Dead:
        async def put(self, message: Message, reason: Rejected) -> None:
            buried.append(message.offset)

    sent = [bad[n](message) if n in bad else message for n, message in enumerate(batch)]
    asyncio.run(Delivery(target.writer(), Dead()).deliver(sent))
    assert buried == [batch[n].offset for n in sorted(bad)]
    assert target.seen(service) == ids(signal, service, *range(0, len(batch), 2))


def test_an_empty_message_is_nothing(target: Target) -> None:
    """A container file without records is stored at once, and what comes beside it too."""
    signal, service = target.signal, new_service()
    empty = Message(f"{signal}_raw", 0, 0, headers(signal, 0), schema.of(signal).head)
    writer = target.writer()
    assert writer.write([empty]) == 0
    [message] = messages(signal, encoded(signal, request(signal, service, 1)))
    assert writer.write([empty, message, empty]) == len(target.seen(service)) > 0


def test_a_store_that_is_away_is_unavailable(target: Target) -> None:
    """The world's fault, each time: nothing is dead-lettered for it."""
    writer = target.writer_without_store()
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"\.$"):
            writer.write([one(target.signal, request(target.signal, "nobody", 1))])
