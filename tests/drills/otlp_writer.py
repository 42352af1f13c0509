"""otlp_writer as a process: its back end is away, then busy, then takes requests in part; then another gateway of ours
takes everything again, while both are killed."""

import json
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from confluent_kafka import Producer

from pipeline import otlp
from pipeline.audit import decode
from pipeline.kafka.groups import Committed, Groups
from pipeline.kafka.reader import Reader
from pipeline.record import schema
from pipeline.record.times import receipt_ns
from pipeline.settings import GatewaySettings, OtlpWriterSettings, RoutesSettings, Settings, SpoolSettings
from tests.agents.backend_server import Say, Server, partly
from tests.agents.group import Group
from tests.agents.process import Process
from tests.conftest import free_ports
from tests.drills import proof
from tests.drills.context import Context, Failed
from tests.otlp.requests import logs

AWAY_S, SHORT_AWAY_S = 600.0, 2.0
WITHIN_S = 180.0
BUSY = 8  # RESOURCE_EXHAUSTED
ASKED_FOR_S = 2.0
REFUSED = (3, 2)  # records of two requests
SCRIPT = [*[Say(BUSY, retry_s=ASKED_FOR_S)] * 2, *(partly(records, "too old") for records in REFUSED)]
EVERY_S = 0.1  # a message
RECORDS = 10  # of each
REQUEST_RECORDS = 20
READS = "logs_norm"  # the other gateway writes logs_raw of the same Kafka


def drill(context: Context) -> str:
    """Ten minutes without a back end, then 429 with RetryInfo, then partial success, then kills: nothing lost, nothing
    twice but after a crash, and everything counted."""
    with context.gateway_and_kafka() as (stack, settings):
        stack.stop(["gateway"])
        return sent_on(context, settings)


def sent_on(context: Context, settings: Settings) -> str:
    """With all topics empty and nobody at work."""
    port, health_port, http_port, grpc_port = free_ports(4)
    own = OtlpWriterSettings(signals=("logs",), health_port=health_port, request_records=REQUEST_RECORDS)

    def to(port: int, protocol: str) -> Process:
        where = own.model_copy(update={"endpoint": f"http://127.0.0.1:{port}", "protocol": protocol})
        routes = RoutesSettings(logs=(READS,))
        return Process("otlp_writer", settings.model_copy(update={"otlp_writer": where, "routes": routes}))

    spool = SpoolSettings(directory=context.home / "spool", min_free_bytes=0)
    gateway_settings = GatewaySettings(http_port=http_port, grpc_port=grpc_port)
    gateway = Process("gateway", settings.model_copy(update={"gateway": gateway_settings, "spool": spool}))
    first, second = to(port, "grpc"), to(http_port, "http")
    load = Load(settings)
    load.start()
    try:
        said = _away_busy_and_in_part(context, first, port, load)
        _again_to_a_gateway(context, second, gateway)
        ids, found = _ids(settings, READS), _ids(settings, "logs_raw")
        if ids.keys() != found.keys():
            raise Failed(f"Of {len(ids):,} records the gateway has {len(ids.keys() & found.keys()):,}.")
        twice = found.total() - len(found)
        return f"{said}; by another gateway of ours the same ids, {twice} twice after two kills: nothing lost"
    finally:
        load.finish()
        for each in (first, second, gateway):
            each.close()


def _away_busy_and_in_part(context: Context, writer: Process, port: int, load: "Load") -> str:
    """To a back end that answers by a script, once it is there."""
    writer.start()
    _until(lambda: _metric(writer, "pipeline_writer_store_away"), "the writer does not miss its back end")
    time.sleep(SHORT_AWAY_S if context.short else AWAY_S)
    server = Server("grpc", SCRIPT, port)
    context.tell(f"the back end is back, {load.sent:,} records wait or are sent")
    try:
        _until(lambda: len(server.asked) > len(SCRIPT), "the back end was not asked")
        load.finish()
        _until(lambda: not proof.lag(writer.settings, "otlp_writer"), "not everything was sent on")
        counted = [_metric(writer, f"pipeline_otlp_writer_{what}_records_total") for what in ("sent", "rejected")]
        code, text = writer.stop()
    finally:
        server.stop()
    taken = Counter(body for asked in server.asked if asked.taken for body in asked.bodies)
    if code or len(taken) != load.sent or taken.total() != load.sent:
        raise Failed(
            f"Of {load.sent:,} records {len(taken):,} were taken, {taken.total():,} with repeats; {text[-300:]}"
        )
    if counted != [load.sent - sum(REFUSED), sum(REFUSED)]:
        raise Failed(f"Of {load.sent:,} records {sum(REFUSED)} were refused; counted are {counted}.")
    early = [later.at_s - each.at_s for each, later in pairwise(server.asked) if not each.taken]
    if min(early) < ASKED_FOR_S:
        raise Failed(f"The back end asked for {ASKED_FOR_S} s and was left alone for {early}.")
    return f"{load.sent:,} records after a back end away and busy, each taken once, {sum(REFUSED)} refused in part and counted"


def _again_to_a_gateway(context: Context, writer: Process, gateway: Process) -> None:
    """From the first message on, the gateway and the writer killed meanwhile."""
    settings = writer.settings
    reader = Reader(settings.kafka)
    places = [(each.topic, each.partition) for each in reader.retained([READS])]
    Groups(settings.kafka).move("otlp_writer", dict.fromkeys(places, Committed(0)))
    gateway.start()
    writer.start()
    _until(lambda: any(each.end for each in reader.retained(["logs_raw"])), "the gateway got nothing")
    group = Group(settings.kafka.bootstrap_servers, "otlp_writer")
    members = group.members() if context.short else set()
    for each in (gateway, writer):
        each.child.kill()
        each.child.wait()
    group.leave(members)
    gateway.start()
    writer.start()
    _until(lambda: not proof.lag(settings, "otlp_writer"), "not everything was sent on to the gateway")


def _until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not true():
        if time.monotonic() > deadline:
            raise Failed(f"After {WITHIN_S:.0f} s: {what}.")
        time.sleep(0.3)


def _metric(writer: Process, name: str) -> float:
    """Of all labels; 0 while the writer starts."""
    url = f"http://127.0.0.1:{writer.settings.otlp_writer.health_port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def _ids(settings: Settings, topic: str) -> Counter[bytes]:
    reader = Reader(settings.kafka)
    return Counter(
        form.event_id
        for message in reader.read(reader.retained([topic]))
        for form in decode.forms(message.value, "logs")
    )


class Load(threading.Thread):
    """Log messages as an agent writes them, each record with a body of its own."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="load", daemon=True)
        self._producer = Producer(
            {"bootstrap.servers": settings.kafka.bootstrap_servers, "acks": "all", "log_level": 0}
        )
        self._ending = threading.Event()
        self.sent = 0

    def run(self) -> None:
        number = 0
        while not self._ending.wait(EVERY_S):
            origin = otlp.Origin("default", "local", receipt_ns(time.time_ns()))
            body = logs(*(json.dumps([number, n]) for n in range(RECORDS))).SerializeToString()
            [group] = otlp.encode("logs", body, origin, partitions=1).groups
            headers: list[tuple[str, str | bytes | None]] = [
                ("tenant", b"default"), ("region", b"local"), ("signal", b"logs"),
                ("schema", schema.CURRENT["logs"].encode()), ("records", b"%d" % group.records),
                ("min_time", b"%d" % group.min_time), ("max_time", b"%d" % group.max_time),
            ]  # fmt: skip
            self._producer.produce(READS, group.value, partition=number % 4, headers=headers)
            self.sent += group.records
            number += 1

    def finish(self) -> None:
        """Return when Kafka has everything."""
        self._ending.set()
        self.join(10)
        if self._producer.flush(60):
            raise Failed("Kafka did not take the load.")
