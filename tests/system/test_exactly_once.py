"""The whole way, from stock clients to both stores, through kills: nothing missing, nothing doubled."""

import contextlib
import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections import Counter
from threading import Event, Thread
from typing import Any

import httpx
import psycopg
import pytest
from confluent_kafka import Consumer, Producer

from pipeline import clickhouse
from pipeline.audit import audit
from pipeline.local import Stack
from pipeline.settings import as_environment
from tests.drills import registry
from tests.native.both import demand_built
from tests.otlp.as_json import as_json
from tests.otlp.requests import logs, metrics, traces
from tests.system.conftest import Running

UNDER_LOAD = 20  # different requests
KILLED = ["gateway", "ch_writer", "pg_writer", "clickhouse", "postgres", "kafka"]


def post(running: Running, name: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
    url = f"http://127.0.0.1:{running.settings.gateway.http_port}/v1/{name}"
    return httpx.post(url, content=body, headers=headers, timeout=20)


def test_a_request_sent_twice_is_one_row_an_event(running: Running) -> None:
    """The same request as protobuf and as gzipped JSON gives each event one row in each store."""
    requests: dict[str, Any] = {"logs": logs("once", "twin", "twin"), "metrics": metrics(), "traces": traces()}
    requests["traces"].resource_spans[0].scope_spans[0].spans.pop()  # the one without a time: its twins may show
    for name, request in requests.items():
        protobuf = post(running, name, request.SerializeToString(), {"Content-Type": "application/x-protobuf"})
        zipped = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        as_text = post(running, name, gzip.compress(as_json(request)), zipped)
        assert (protobuf.status_code, as_text.status_code) == (200, 200)
    audited = running.clean_audit()
    assert audited["verdict"] == "clean", audited
    counts = {name: part["kafka"] for name, part in audited["signals"].items()}
    assert {name: (kafka["records"], kafka["distinct"]) for name, kafka in counts.items()} == {
        "logs": (6, 3), "metrics": (14, 7), "traces": (2, 1)
    }  # fmt: skip
    client = clickhouse.connect(running.settings.clickhouse)
    for view, expected in (("logs", 3), ("traces", 1), ("metrics", 7)):
        assert client.query(f"SELECT count(), uniqExact(event_id) FROM {view}").result_rows == [(expected, expected)]
    with psycopg.connect(running.settings.postgres.dsn.get_secret_value()) as connection:
        tables = ("metrics_points", "metrics_histograms", "metrics_exponential_histograms", "metrics_summaries")
        rows = [connection.execute(f"SELECT count(*) FROM {table}").fetchone() for table in tables]
    assert rows == [(3,), (2,), (1,), (1,)]


@pytest.mark.timeout(300)
def test_registered_tables_are_filled_and_widened_under_kills(running: Running) -> None:
    """Two tables registered over HTTP, 2,000 rows of which 20 bad, a field more in the middle and a worker of each
    writer killed: bad rows are refused by name, all others read once in each store, and the audit agrees."""
    said = registry.proven(running.stack, running.settings, 2000, print)
    assert said == "2,000 rows posted, 20 refused by row and path, the others read once in each store"
    report = audit(running.settings, signals=["events"])
    assert report.clean, report.as_dict()
    counts = {
        (part, store): (findings.expected, findings.rows)
        for part, about in report.signals.items() for store, findings in about.stores.items()
    }  # fmt: skip
    assert sum(rows for _, rows in counts.values()) == 2 * 1980
    assert all(expected == rows for expected, rows in counts.values())


@pytest.mark.timeout(300)
def test_every_process_killed_once_under_load_loses_nothing(running: Running, tmp_path: pathlib.Path) -> None:
    """SIGKILL of each process in the middle of the shop's load, each started again: what was sent is stored once."""
    before = running.clean_audit()
    shop = running.shop(30_000, tmp_path)
    time.sleep(3)
    for name in KILLED:
        running.kill(name)
        time.sleep(1)
        running.stack.start([name])
    output, _ = shop.communicate(timeout=150)
    assert shop.returncode == 0, output
    sent = json.loads(output)["sent"]
    after = running.clean_audit(within_s=90)
    assert after["verdict"] == "clean", after
    for name, count in sent.items():
        arrived = after["signals"][name]["kafka"]["distinct"] - before["signals"][name]["kafka"]["distinct"]
        assert arrived == count, f"{name}: sent {count}, in Kafka {arrived}"


def test_without_kafka_records_are_safe_in_the_spool_also_through_kill_9(running: Running) -> None:
    """While Kafka is stopped clients hear OK, a gateway killed then loses nothing, and every record is stored once."""
    headers = {"Content-Type": "application/x-protobuf"}
    running.stack.stop(["kafka"])
    try:
        for when in ("before", "after"):
            body = logs(f"while Kafka is away, {when} the kill").SerializeToString()
            answers = [post(running, "logs", body, headers) for _ in range(2)]
            assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"")] * 2
            ready = httpx.get(f"http://127.0.0.1:{running.settings.gateway.http_port}/readyz")
            assert (ready.status_code, "spool" in ready.json()["degraded"]["kafka"]) == (200, True)
            if when == "before":
                running.kill("gateway")
                running.stack.start(["gateway"])
    finally:
        running.stack.start(["kafka"])
    deadline = time.monotonic() + 60
    while visible(running, "while Kafka is away%") < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert visible(running, "while Kafka is away%") == 2
    audited = running.clean_audit()
    assert audited["verdict"] == "clean", audited


def visible(running: Running, body: str) -> int:
    """How many logs a reader sees."""
    query = "SELECT count() FROM logs_events FINAL WHERE body LIKE {body:String}"
    return int(clickhouse.connect(running.settings.clickhouse).query(query, {"body": body}).result_rows[0][0])


def test_sigterm_of_a_gateway_under_load_answers_what_it_took(running: Running) -> None:
    """A gateway that is told to stop ends within its stated time, and what it answered OK is in Kafka."""
    answered = 0
    gateway = running.pid("gateway")
    for n in range(40):
        if n == 20:
            os.kill(gateway, signal.SIGTERM)
        try:
            answered += (
                post(
                    running,
                    "logs",
                    logs(f"sigterm {n}").SerializeToString(),
                    {"Content-Type": "application/x-protobuf"},
                ).status_code
                == 200
            )
        except httpx.HTTPError:
            break
    deadline = time.monotonic() + 20
    while running.state("gateway") == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running.state("gateway") == "stopped"
    running.stack.start(["gateway"])
    audited = running.clean_audit()
    assert audited["verdict"] == "clean", audited
    client = clickhouse.connect(running.settings.clickhouse)
    stored = client.query("SELECT count() FROM logs WHERE startsWith(body, 'sigterm ')").result_rows[0][0]
    assert stored >= answered >= 20


def test_switching_the_implementation_under_load_changes_no_row(running: Running) -> None:
    """The same requests to a native, a Python and again a native gateway, restarted under load, are one row an event."""
    demand_built()
    requests: dict[str, Any] = {"logs": logs("same", "twin", "twin"), "metrics": metrics(), "traces": traces()}
    requests["traces"].resource_spans[0].scope_spans[0].spans.pop()  # the one without a time: its twins may show
    for name, request in requests.items():
        [part] = getattr(request, f"resource_{'spans' if name == 'traces' else name}")
        [service] = [each for each in part.resource.attributes if each.key == "service.name"]
        service.value.string_value = "switched"
    answered, stop = Counter[str](), Event()
    load = Thread(target=_again_and_again, args=(running, answered, stop))
    load.start()
    try:
        for wanted in ("native", "python", "native"):
            Stack(running.settings.model_copy(update={"implementation": wanted}), print).restart(["gateway"])
            health = httpx.get(f"http://127.0.0.1:{running.settings.gateway.http_port}/readyz").json()
            assert health["implementation"].startswith(wanted)
            for name, request in requests.items():
                body = request.SerializeToString()
                assert post(running, name, body, {"Content-Type": "application/x-protobuf"}).status_code == 200
            answered.clear()
            deadline = time.monotonic() + 30
            while len(answered) < UNDER_LOAD and time.monotonic() < deadline:
                time.sleep(0.05)
            assert len(answered) == UNDER_LOAD, "the load was not answered by this one"
    finally:
        stop.set()
        load.join()
        running.stack.restart(["gateway"])
    audited = running.clean_audit()
    assert audited["verdict"] == "clean", audited
    client = clickhouse.connect(running.settings.clickhouse)
    for view, expected in (("logs", 3), ("traces", 1), ("metrics", 7)):
        counted = f"SELECT count(), uniqExact(event_id) FROM {view} WHERE service = 'switched'"
        assert client.query(counted).result_rows == [(expected, expected)]
    loaded = client.query("SELECT count() FROM logs WHERE startsWith(body, 'switched ')").result_rows
    assert loaded == [(UNDER_LOAD,)]


def _again_and_again(running: Running, answered: "Counter[str]", stop: Event) -> None:
    """The same few requests over and over; a gateway that is not there for the moment is tried again."""
    bodies = {text: logs(text).SerializeToString() for text in (f"switched {n}" for n in range(UNDER_LOAD))}
    while not stop.is_set():
        for text, body in bodies.items():
            with contextlib.suppress(httpx.TransportError):
                if post(running, "logs", body, {"Content-Type": "application/x-protobuf"}).status_code == 200:
                    answered[text] += 1


def test_poison_is_dead_lettered_alone(running: Running) -> None:
    """What is no container file goes to the dead letters, from each writer with its reason; its neighbours are stored."""
    servers = running.settings.kafka.bootstrap_servers
    producer = Producer({"bootstrap.servers": servers})
    known = [("schema", b"log_record/1"), ("records", b"1")]
    poison = [(b"poison", known), (b"", [("schema", None)]), (None, None), (b"x", [("schema", b"log_record/9")])]
    for value, headers in poison:
        producer.produce("logs_raw", value, headers=headers)
    body = logs("beside poison").SerializeToString()
    assert post(running, "logs", body, {"Content-Type": "application/x-protobuf"}).status_code == 200
    assert producer.flush(10) == 0
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "test", "auto.offset.reset": "earliest"})
    consumer.subscribe(["logs_raw_dlq"])
    found = [consumer.poll(30) for _ in range(2 * len(poison))]
    consumer.close()
    assert None not in found
    reasons = {message.value(): dict(message.headers()) for message in found}
    assert set(reasons) == {b"poison", b"", b"x"}
    assert b"does not start with the head of its schema" in reasons[b"poison"]["dlq_reason"]
    assert b"'log_record/9'; this writer knows log_record/1" in reasons[b"x"]["dlq_reason"]
    letters = Counter((message.value(), dict(message.headers())["dlq_writer"]) for message in found)
    assert letters == {
        (value, writer): 1 + (value == b"") for value in reasons for writer in (b"ch_writer", b"pg_writer")
    }
    client = clickhouse.connect(running.settings.clickhouse)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if client.query("SELECT count() FROM logs WHERE body = 'beside poison'").result_rows == [(1,)]:
            return
        time.sleep(0.2)
    pytest.fail("the neighbour of the poison was not stored")


def test_a_port_in_use_is_told_by_number_and_owner(running: Running) -> None:
    """A second gateway on the same port ends with one sentence and exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "gateway"], capture_output=True, text=True, timeout=30, check=False,
        env={**os.environ, **as_environment(running.settings)},
    )  # fmt: skip
    assert done.returncode == 2
    assert str(running.settings.gateway.http_port) in done.stderr
