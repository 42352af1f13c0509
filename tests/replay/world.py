"""Live data of which a test knows every record, and `pipeline replay` over it as a user types it."""

import datetime
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from confluent_kafka import Producer
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pipeline import otlp
from pipeline.agents import ch_writer, pg_writer
from pipeline.agents.ch_writer import ClickHouseWriter
from pipeline.agents.pg_writer import PostgresWriter
from pipeline.clickhouse import connect
from pipeline.delivery import Message
from pipeline.record import schema
from pipeline.record.schema import SIGNALS, Signal
from pipeline.replay.folder import Folder
from pipeline.settings import ROOT, Settings, as_environment
from tests.contract import registered
from tests.drills.exporters import MAKE

MESSAGES = 60  # of each signal
RECORDS = 50  # of a message
DEBUG_OF, MAIL_OF, ERROR_OF = 4, 5, 100  # every so many-th log record
PARTITIONS = 4
EVERYTHING = "logs_raw,traces_raw,metrics_raw,events_raw"
HOUR_NS = 3600 * 10**9


class World:
    """`sent` are the messages of live's topics, `records` how many records they hold, by topic."""

    def __init__(self, live: Settings, home: pathlib.Path) -> None:
        self.live = live
        self.home = home
        self.sent: dict[str, list[Message]] = {}
        self.records: dict[str, int] = {}
        self.start_ns = self.end_ns = 0
        self.table = registered.declared("readings", registered.FIELDS)
        self.store = connect(live.clickhouse)
        self._environment = {**os.environ, **as_environment(live)}

    def close(self) -> None:
        self.store.close()

    def fill(self, now_ns: int) -> None:
        """Records of every signal of the hour before and rows of a registered table, into Kafka and by the writers into
        the stores. Of one point a later one says something else."""
        self.start_ns, self.end_ns = (now_ns - 2 * HOUR_NS) // 10**9 * 10**9, now_ns // 10**9 * 10**9
        producer = Producer({"bootstrap.servers": self.live.kafka.bootstrap_servers, "log_level": 0})
        for of in SIGNALS:
            batch = []
            bodies = [_body(of, n) for n in range(MESSAGES)]
            if of == "metrics":
                bodies.append(_said_again(bodies[0]))
            for number, body in enumerate(bodies):
                received_ns = now_ns - HOUR_NS + number * 10**9
                for group in otlp.encode(
                    of, body, otlp.Origin("default", "local", received_ns), partitions=PARTITIONS
                ).groups:
                    pairs = (
                        ("schema", schema.of(of).name.encode()),
                        ("records", b"%d" % group.records),
                        ("twice", b"1"),
                        ("twice", None),
                    )
                    message = Message(
                        schema.topic(of),
                        group.partition,
                        len(batch),
                        {k: v or b"" for k, v in pairs},
                        group.value,
                        pairs,
                    )
                    batch.append(message)
                    producer.produce(
                        message.topic, message.value, key=b"key-%d" % number, partition=message.partition,
                        timestamp=received_ns // 10**6, headers=list(pairs),
                    )  # fmt: skip
            assert producer.flush(30) == 0
            self.records[schema.topic(of)] = ClickHouseWriter(self.live.clickhouse, of).write(batch)
            if of != "traces":
                PostgresWriter(self.live.postgres, of).write(batch)
            self.sent[schema.topic(of)] = batch
        self._fill_registered(producer, now_ns - HOUR_NS)

    def _fill_registered(self, producer: Producer, received_ns: int) -> None:
        rows = registered.message(self.table, *registered.ROWS, received=received_ns)
        tables = registered.known(self.home / "tables.json", self.table)
        ch_writer.registered(self.live.clickhouse, tables).write([rows])
        pg_writer.registered(self.live.postgres, tables).write([rows])
        producer.produce(
            rows.topic, rows.value, partition=rows.partition, timestamp=received_ns // 10**6,
            headers=list(rows.headers.items()),
        )  # fmt: skip
        assert producer.flush(30) == 0

    @property
    def window(self) -> list[str]:
        """The options that cover all of it."""
        return ["--from", iso(self.start_ns), "--to", iso(self.end_ns)]

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", "replay", *words], env=self._environment, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def replay(self, *words: str) -> tuple[int, str]:
        """Exit code and output of `pipeline replay …`."""
        running = self.start(*words)
        said, _ = running.communicate(timeout=300)
        return running.returncode, said

    def plan(self, name: str, topics: str = EVERYTHING, *options: str) -> None:
        code, said = self.replay("plan", "--topics", topics, "--name", name, *self.window, *options)
        assert code == 0, said

    def run(self, name: str, *options: str) -> None:
        code, said = self.replay("run", name, *options)
        assert code == 0, said

    def compared(self, name: str, *options: str) -> tuple[int, dict[str, Any]]:
        code, said = self.replay("compare", name, "--json", *options)
        assert code in (0, 1), said
        return code, json.loads(said)

    def begun(self, name: str, *options: str) -> "subprocess.Popen[str]":
        """A run that has copied something, and not all."""
        running = self.start("run", name, "--rate", "1000/s", *options)
        deadline = time.monotonic() + 200
        folder = Folder.of(name, self.live)
        while not folder.state.get("copied_records"):
            assert running.poll() is None, running.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return running

    def count(self, query: str) -> int:
        return int(self.store.command(query))


def _numbers(number: int) -> range:
    return range(number * RECORDS, (number + 1) * RECORDS)


def _body(of: Signal, number: int) -> bytes:
    if of == "logs":
        return logs(number)
    time.sleep(RECORDS / 1e6)  # its points are a microsecond apart, and those of another message come after them
    return MAKE[of](f"service-{number % 3}", _numbers(number))


def _said_again(body: bytes) -> bytes:
    """The same point with another value: PostgreSQL keeps what came last, ClickHouse both."""
    request = ExportMetricsServiceRequest.FromString(body)
    points = request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points
    del points[1:]
    points[0].as_double = -1.0
    return request.SerializeToString()


def logs(number: int) -> bytes:
    """A request of RECORDS log records; each says which one it is."""
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    attribute = resource.resource.attributes.add(key="service.name")
    attribute.value.string_value = f"service-{number % 3}"
    scope = resource.scope_logs.add()
    for n in _numbers(number):
        record = scope.log_records.add(
            time_unix_nano=time.time_ns() - HOUR_NS,
            severity_number=5 if n % DEBUG_OF == 0 else 17 if n % ERROR_OF == 1 else 9,
        )
        mail = f" mail user-{n}@example.com" if n % MAIL_OF == 0 else ""
        record.body.string_value = f"record {n}{mail}"
    return request.SerializeToString()


def iso(time_ns: int) -> str:
    return datetime.datetime.fromtimestamp(time_ns / 1e9, datetime.UTC).isoformat()
