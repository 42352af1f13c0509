"""The crash table: each writer killed at each point of a delivery; what follows is a clean audit.

The points are met from outside: a proxy before the store holds a request or its answer back, and a broker that is
stopped keeps a dead letter unacknowledged.
"""

import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import psutil
import psycopg
import pytest

from pipeline.audit import audit
from pipeline.clickhouse import connect as connect_clickhouse
from pipeline.delivery import Message
from pipeline.kafka.groups import Groups
from pipeline.kafka.reader import Reader
from pipeline.local import Stack
from pipeline.record.schema import Signal
from pipeline.settings import PostgresSettings, Settings, WriterSettings
from tests.agents.group import Group
from tests.agents.process import Process, send, until
from tests.conftest import free_ports
from tests.contract.test_stores import gauges, one
from tests.otlp import requests
from tests.otlp.requests import T0

Hold = Literal["request", "answer"]
ACKNOWLEDGED_S = 0.15  # from the store's answer to the acknowledgement; the next commit is up to a second away
TRIES = 5
STOPS_WITHIN_S = 5.0


class Proxy:
    """A store's port, at which requests, or the answers to them, can be held back, and which can be closed."""

    def __init__(self, port: int, target: int) -> None:
        self.met = threading.Event()
        self._wanted: tuple[re.Pattern[bytes], Hold] | None = None
        self._go_on = threading.Event()
        self._closed = False
        self._target = target
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, marker: re.Pattern[bytes], hold: Hold) -> None:
        """Hold back requests that hold `marker`, or their answers; `met` says when the first was."""
        self._go_on.clear()
        self.met.clear()
        self._wanted = marker, hold

    def refuse(self) -> None:
        """End every connection, those that are made later too; `met` says when the first of these came."""
        self.met.clear()
        self._closed = True
        for each in self._open:
            _end(each)

    def release(self) -> None:
        """Let everything through again."""
        self._wanted = None
        self._closed = False
        self._go_on.set()

    def close(self) -> None:
        self.release()
        self._server.close()
        for each in self._open:
            _end(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
                if self._closed:
                    client.close()
                    self.met.set()
                    continue
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
            _end(each)

    def _request(self, data: bytes, hold_answer: threading.Event) -> None:
        wanted = self._wanted
        if wanted is None or not wanted[0].search(data):
            return
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


def _end(connection: socket.socket) -> None:
    """Close it for the other side too: while a thread waits to receive, close() alone tells nobody, and PostgreSQL would
    keep the locks of a writer that is dead."""
    with suppress(OSError):  # it has ended
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


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
        self._settings = world.model_copy(update=own)
        self.process = Process(name, self._settings)
        self._started = [self.process]
        self.group = Group(world.kafka.bootstrap_servers, name)
        self.name, self._world = name, world
        self.topic = f"{self.signal}_raw"
        self.process.start()

    def another(self) -> Process:
        """A second process of the same writer, started."""
        [port] = free_ports(1)
        own = getattr(self._settings, self.name).model_copy(update={"health_port": port})
        process = Process(self.name, self._settings.model_copy(update={self.name: own}))
        self._started.append(process)
        process.start()
        return process

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
        self.process.child.kill()
        self.process.child.wait()
        self.proxy.release()
        self.group.leave(self.group.members())

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
        for each in self._started:
            each.close()
        self.proxy.close()


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
    all_is_stored_once(writer)


def while_one_joins(writer: Writer) -> None:
    """The first holds a batch and is killed before the group has settled; the second goes on alone."""
    first, members = writer.process, writer.group.members()
    writer.proxy.arm(writer.commit, "answer")
    writer.send()
    assert writer.proxy.met.wait(20)
    writer.process = writer.another()
    until(writer.group.rebalancing, "nobody joined")
    first.close()
    writer.group.leave(members)
    writer.proxy.release()


def while_one_leaves(writer: Writer) -> None:
    """Both hold batches; the second is told to stop, the first killed before the group has settled."""
    members, second = writer.group.members(), writer.another()
    until(lambda: writer.group.settled(2), "the second did not join")
    writer.proxy.arm(writer.commit, "answer")
    writer.send(*(writer.message()._replace(partition=n) for n in range(1, 4)))
    assert writer.proxy.met.wait(20)
    second.child.terminate()
    until(writer.group.rebalancing, "nobody left")
    writer.process.close()
    writer.group.leave(members)
    writer.proxy.release()
    second.ended()
    writer.process.start()


MOVES = [while_one_joins, while_one_leaves]


@pytest.mark.parametrize("crash", MOVES, ids=[move.__name__ for move in MOVES])
def test_a_writer_killed_while_its_group_rebalances_loses_and_doubles_nothing(
    writer: Writer, crash: Callable[[Writer], None]
) -> None:
    """Batches that were in flight when their partitions moved are stored once, and the audit is clean."""
    crash(writer)
    all_is_stored_once(writer)


@pytest.mark.parametrize("store", ["refuses", "is silent"])
def test_a_writer_told_to_stop_while_its_store_is_away_stops_at_once(writer: Writer, store: str) -> None:
    """SIGTERM does not wait for the store; the batch is stored by the next process."""
    if store == "refuses":
        writer.proxy.refuse()
    else:
        writer.proxy.arm(writer.insert, "request")
    offset = writer.send()
    assert writer.proxy.met.wait(20)
    told = time.monotonic()
    code, _ = writer.process.stop()
    took_s = time.monotonic() - told
    assert (code, took_s < STOPS_WITHIN_S) == (0, True), f"{took_s:.1f} s"
    writer.proxy.release()
    assert writer.committed() <= offset
    writer.process.start()
    all_is_stored_once(writer)


def all_is_stored_once(writer: Writer) -> None:
    end = writer.send() + 1
    until(lambda: writer.committed() == end, "nobody came to the end")
    found = writer.audited()
    assert found["clean"], found
    assert (found["missing"], found["duplicates"], found["extra"]) == (0, 0, 0)
