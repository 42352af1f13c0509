"""The crash table: each writer killed at each point of a delivery; what follows is a clean audit.

The points are met from outside: a proxy before the store holds a request or its answer back, and a broker that is
stopped keeps a dead letter unacknowledged.
"""

import re
import signal
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import psutil
import psycopg
import pytest
from confluent_kafka.admin import AdminClient

from pipeline import migrations, topics
from pipeline.audit import audit
from pipeline.clickhouse import connect as connect_clickhouse
from pipeline.delivery import Message
from pipeline.kafka.groups import Groups
from pipeline.kafka.reader import Reader
from pipeline.local import Stack
from pipeline.record.schema import Signal
from pipeline.settings import ClickHouseSettings, KafkaSettings, PostgresSettings, Settings, WriterSettings
from tests.agents.process import Process, send, until
from tests.audit.conftest import remove_topics
from tests.conftest import free_ports
from tests.contract.test_stores import gauges, one
from tests.otlp import requests
from tests.otlp.requests import T0

Hold = Literal["request", "answer"]
ACKNOWLEDGED_S = 0.15  # from the store's answer to the acknowledgement; the next commit is up to a second away
TRIES = 5


class Proxy:
    """A store's port, from which one request, or the answer to it, can be held back."""

    def __init__(self, port: int, target: int) -> None:
        self.met = threading.Event()
        self._wanted: tuple[re.Pattern[bytes], Hold] | None = None
        self._go_on = threading.Event()
        self._target = target
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, marker: re.Pattern[bytes], hold: Hold) -> None:
        """Hold back the next request that holds `marker`, or its answer; `met` says when that was done."""
        self._go_on.clear()
        self.met.clear()
        self._wanted = marker, hold

    def release(self) -> None:
        """Let everything through again."""
        self._wanted = None
        self._go_on.set()

    def close(self) -> None:
        self.release()
        self._server.close()
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
                store = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._open += [client, store]
            hold_answer = threading.Event()
            for source, sink, hears in ((client, store, self._request), (store, client, self._answer)):
                threading.Thread(target=self._pump, args=(source, sink, hears, hold_answer), daemon=True).start()

    @staticmethod
    def _pump(
        source: socket.socket, sink: socket.socket, hears: Callable[[bytes, threading.Event], None],
        hold_answer: threading.Event,
    ) -> None:  # fmt: skip
        try:
            while data := source.recv(1 << 16):
                hears(data, hold_answer)
                sink.sendall(data)
        except OSError:
            pass
        for each in (source, sink):
            each.close()

    def _request(self, data: bytes, hold_answer: threading.Event) -> None:
        wanted = self._wanted
        if wanted is None or not wanted[0].search(data):
            return
        self._wanted = None
        if wanted[1] == "request":
            self.met.set()
            self._go_on.wait(30)
        else:
            hold_answer.set()

    def _answer(self, data: bytes, hold_answer: threading.Event) -> None:
        if hold_answer.is_set():
            hold_answer.clear()
            self.met.set()
            self._go_on.wait(30)


class Writer:
    """One writer behind a proxy, and what it writes."""

    def __init__(self, name: str, world: Settings, stack: Stack) -> None:
        self._stack = stack
        health, port = free_ports(2)
        own = {name: WriterSettings(health_port=health, batch_bytes=1 << 22)}
        self.signal: Signal
        if name == "ch_writer":
            target = int(world.clickhouse.url.rsplit(":", 1)[1])
            own["clickhouse"] = world.clickhouse.model_copy(update={"url": f"http://127.0.0.1:{port}"})
            self.signal, self.insert, self.commit = "logs", re.compile(rb"INSERT"), re.compile(rb"INSERT")
        else:
            dsn = world.postgres.dsn.get_secret_value()
            target = int(psycopg.conninfo.conninfo_to_dict(dsn)["port"])
            own["postgres"] = PostgresSettings(dsn=psycopg.conninfo.make_conninfo(dsn, port=port))
            self.signal, self.insert, self.commit = "metrics", re.compile(rb"COPY "), re.compile(rb"COMMIT")
        self.proxy = Proxy(port, target)
        self.process = Process(name, world.model_copy(update=own))
        self.name, self._world = name, world
        self.topic = f"{self.signal}_raw"
        self.process.start()

    def send(self, *more: Message) -> int:
        """One new message and these into partition 0, at once; return the offset of the first."""
        return send(self._world, self.message(), *more)[0]

    def message(self) -> Message:
        word = uuid.uuid4().hex
        request = requests.logs(word) if self.signal == "logs" else gauges(word, ("m", T0, 1.0))
        return one(self.signal, request)._replace(partition=0)

    def poison(self) -> Message:
        message = self.message()
        return message._replace(value=message.value[:-1])

    def stored(self) -> int:
        """How many records the store has, asked past the proxy."""
        if self.signal == "logs":
            return int(connect_clickhouse(self._world.clickhouse).query("SELECT count() FROM logs").result_rows[0][0])
        with psycopg.connect(self._world.postgres.dsn.get_secret_value()) as connection:
            return int((connection.execute("SELECT count(*) FROM metrics_points").fetchone() or (0,))[0])

    def committed(self) -> int:
        place = (self.topic, 0)
        found = Groups(self._world.kafka).committed(self.name, [place])
        return found[place].offset if place in found else 0

    def dead_letters(self) -> int:
        return sum(each.end - each.start for each in Reader(self._world.kafka).retained([f"{self.topic}_dlq"]))

    def kill(self) -> None:
        """SIGKILL; the group is told at once, as its session's end would tell it after 15 s."""
        self.process.child.send_signal(signal.SIGKILL)
        self.process.child.wait()
        self.proxy.release()
        _leave(self._world.kafka.bootstrap_servers, self.name)

    @contextmanager
    def kafka_stopped(self) -> Iterator[None]:
        """SIGSTOP of the broker, and SIGCONT."""
        [pid] = [row["pid"] for row in self._stack.status()["processes"] if row["name"] == "kafka"]
        broker = psutil.Process(pid)
        family = [broker, *broker.children(recursive=True)]
        try:
            for each in family:
                each.suspend()
            yield
        finally:
            for each in family:
                each.resume()

    def audited(self) -> dict[str, Any]:
        report = audit(self._world, signals=[self.signal])
        store = {"logs": "clickhouse", "metrics": "postgres"}[self.signal]
        about = report.as_dict()["signals"][self.signal]
        clean = report.signals[self.signal].stores[store].clean and not report.signals[self.signal].kafka.unreadable
        return {"clean": clean, **about["stores"][store], "kafka": about["kafka"]}

    def close(self) -> None:
        self.process.close()
        self.proxy.close()


def _leave(servers: str, group: str) -> None:
    """Send LeaveGroup for every member. Source: Kafka protocol guide, LeaveGroup request, version 1."""
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    described = admin.describe_consumer_groups([group])[group].result()
    host, _, port = servers.partition(":")
    for member in described.members:
        words = b"".join(
            struct.pack(">h", len(word)) + word for word in (b"test", group.encode(), member.member_id.encode())
        )
        body = struct.pack(">hhi", 13, 1, 1) + words
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            connection.recv(64)


@pytest.fixture(scope="module")
def world(kafka: str, postgres: str, clickhouse: str) -> Iterator[Settings]:
    """Empty topics and stores of this module's own."""
    name = f"crashes_{uuid.uuid4().hex}"
    remove_topics(kafka)
    settings = Settings(
        kafka=KafkaSettings(bootstrap_servers=kafka),
        postgres=PostgresSettings(dsn=psycopg.conninfo.make_conninfo(postgres, dbname=name)),
        clickhouse=ClickHouseSettings(url=clickhouse, database=name),
    )
    admin = connect_clickhouse(ClickHouseSettings(url=clickhouse))
    admin.command(f"CREATE DATABASE {name}")
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        topics.apply_all(settings)
        migrations.up_all(settings)
        yield settings
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    admin.command(f"DROP DATABASE {name} SYNC")
    remove_topics(kafka)


@pytest.fixture(scope="module", params=["ch_writer", "pg_writer"])
def writer(request: pytest.FixtureRequest, world: Settings, stack: Stack) -> Iterator[Writer]:
    """A running writer; each test kills it and leaves its successor."""
    own = Writer(request.param, world, stack)
    own.send()
    until(lambda: own.stored() == 1, "the writer stores nothing")
    yield own
    own.close()


def before_insert(writer: Writer) -> None:
    """The store has not seen the insert."""
    had = writer.stored()
    writer.proxy.arm(writer.insert, "request")
    writer.send()
    assert writer.proxy.met.wait(20)
    writer.process.child.send_signal(signal.SIGKILL)
    assert writer.stored() == had


def after_insert(writer: Writer) -> None:
    """The store has committed, the writer does not know."""
    had = writer.stored()
    writer.proxy.arm(writer.commit, "answer")
    offset = writer.send()
    assert writer.proxy.met.wait(20)
    until(lambda: writer.stored() == had + 1, "the insert was not committed")
    writer.process.child.send_signal(signal.SIGKILL)
    assert writer.committed() <= offset


def after_acknowledge(writer: Writer) -> None:
    """The writer has acknowledged, Kafka does not know."""
    for _ in range(TRIES):
        writer.proxy.arm(writer.commit, "answer")
        offset = writer.send()
        assert writer.proxy.met.wait(20)
        writer.proxy.release()
        time.sleep(ACKNOWLEDGED_S)
        writer.process.child.send_signal(signal.SIGKILL)
        writer.process.child.wait()
        if writer.committed() <= offset:
            return
        revive(writer)  # it committed just then
    pytest.fail("every time the commit came first")


def during_dead_letter(writer: Writer) -> None:
    """The dead letter is under way to a broker that stands still: it may be written or not."""
    writer.proxy.arm(writer.insert, "request")
    offset = writer.send(writer.poison())  # of one batch, so the writer has the poison when the other is inserted
    assert writer.proxy.met.wait(20)
    had = writer.stored()
    with writer.kafka_stopped():
        writer.proxy.release()
        until(lambda: writer.stored() == had + 1, "the neighbour was not stored")
        time.sleep(0.5)
        writer.process.child.send_signal(signal.SIGKILL)
        writer.process.child.wait()
    assert writer.committed() <= offset


def after_dead_letter(writer: Writer) -> None:
    """The dead letter is safe, its offset not committed: it is dead-lettered twice at most."""
    for _ in range(TRIES):
        had = writer.dead_letters()
        offset = writer.send(writer.poison()) + 1
        until(lambda: writer.dead_letters() > had, "no dead letter")  # noqa: B023 - called at once
        writer.process.child.send_signal(signal.SIGKILL)
        writer.process.child.wait()
        if writer.committed() <= offset:
            return
        revive(writer)
    pytest.fail("every time the commit came first")


def during_shutdown(writer: Writer) -> None:
    """Told to stop while the store has not answered, killed before that was done."""
    writer.proxy.arm(writer.commit, "answer")
    writer.send()
    assert writer.proxy.met.wait(20)
    writer.process.child.terminate()
    time.sleep(0.3)
    writer.process.child.send_signal(signal.SIGKILL)


def revive(writer: Writer) -> None:
    writer.kill()
    writer.process.close()
    writer.process.start()


POINTS = [before_insert, after_insert, after_acknowledge, during_dead_letter, after_dead_letter, during_shutdown]


@pytest.mark.parametrize("crash", POINTS, ids=[point.__name__ for point in POINTS])
def test_a_writer_killed_at_any_point_loses_and_doubles_nothing(
    writer: Writer, crash: Callable[[Writer], None]
) -> None:
    """After SIGKILL the next process stores everything once, commits to the end, and the audit is clean."""
    crash(writer)
    revive(writer)
    end = writer.send() + 1
    until(lambda: writer.committed() == end, "the successor did not come to the end")
    found = writer.audited()
    assert found["clean"], found
    assert (found["missing"], found["duplicates"], found["extra"]) == (0, 0, 0)
