"""The shop is a real instrumented program: what it counts as sent is what arrives, whatever the gateway does."""

import collections
import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from tests.demo.sink import Sink

ROOT = pathlib.Path(__file__).parents[2]
SIGNALS = ("logs", "traces", "metrics")
NOTHING = dict.fromkeys(SIGNALS, 0)


def start(sink: Sink, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "deploy/demo/shop/run.py"), "--json"),
            *("--otlp-http", sink.http_url, "--otlp-grpc", sink.grpc_address),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(sink: Sink, *arguments: str) -> tuple[int, dict[str, Any], str]:
    shop = start(sink, *arguments)
    stdout, stderr = shop.communicate(timeout=60)
    return shop.returncode, json.loads(stdout), stderr


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sink, dict[str, Any], pathlib.Path]:
    """A sink, the totals, and the folder of counts, after 2,000 records."""
    out = tmp_path_factory.mktemp("counts")
    with Sink() as sink:
        code, totals, stderr = run(sink, "--records", "2000", "--out", str(out))
    assert code == 0, stderr
    return sink, totals, out


Visited = tuple[Sink, dict[str, Any], pathlib.Path]


def test_what_was_emitted_is_what_was_sent_and_what_arrived(visited: Visited) -> None:
    """Counts at the source, at the exporters and in the sink are equal, for each signal."""
    sink, totals, _ = visited
    assert totals["emitted"] == totals["sent"] == sink.counts()
    assert totals["failed"] == totals["dropped"] == NOTHING
    assert sum(totals["sent"].values()) >= 2000
    assert min(totals["sent"].values()) > 100


def test_each_service_leaves_its_counts(visited: Visited) -> None:
    """--out holds one JSON file a service, and they add up to the totals."""
    _, totals, out = visited
    files = [json.loads((out / f"{name}.json").read_text()) for name in ("frontend", "checkout", "inventory")]
    assert {signal: sum(file["sent"][signal] for file in files) for signal in SIGNALS} == totals["sent"]


def test_one_service_speaks_grpc_and_the_others_http(visited: Visited) -> None:
    """Every signal arrives over both protocols, each service by its own."""
    sink, _, _ = visited
    services = collections.defaultdict(set)
    for protocol, _, message in sink.requests:
        for _, resources in message.ListFields():
            for resource in resources:
                attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
                assert attributes.keys() >= {"service.instance.id", "host.name", "service.version", "process.pid"}
                services[protocol].add(attributes["service.name"])
    assert services == {"grpc": {"checkout"}, "http": {"frontend", "inventory"}}
    assert {(protocol, name) for protocol, name, _ in sink.requests} == {(p, s) for p in services for s in SIGNALS}


def test_every_kind_of_metric_is_there(visited: Visited) -> None:
    """Gauges, counters, up-down counters, histograms of both kinds, exemplars, and both temporalities."""
    sink, _, _ = visited
    metrics = sink.metrics()
    assert {metric.WhichOneof("data") for metric in metrics} == {
        "gauge",
        "sum",
        "histogram",
        "exponential_histogram",
    }
    assert {m.sum.is_monotonic for m in metrics if m.HasField("sum")} == {True, False}
    assert {m.histogram.aggregation_temporality for m in metrics if m.HasField("histogram")} == {1, 2}
    points = [point for m in metrics if m.HasField("histogram") for point in m.histogram.data_points]
    assert any(exemplar.trace_id for point in points for exemplar in point.exemplars)


def test_traces_cross_services_and_tell_errors(visited: Visited) -> None:
    """Some trace has spans of all three services; there are links, exceptions as span events, and error status."""
    sink, _, _ = visited
    services = collections.defaultdict(set)
    for resource, scope in sink.scopes("traces"):
        [name] = [a.value.string_value for a in resource.attributes if a.key == "service.name"]
        for span in scope.spans:
            services[span.trace_id].add(name)
    assert {"frontend", "checkout", "inventory"} in services.values()
    spans = sink.spans()
    assert any(len(span.links) > 1 for span in spans)
    assert any(event.name == "exception" for span in spans for event in span.events)
    assert any(span.status.code == 2 for span in spans)


def test_logs_belong_to_traces_and_are_not_all_plain_text(visited: Visited) -> None:
    """Logs carry the ids of spans that arrived; bodies are texts and structures, names are beyond ASCII."""
    sink, _, _ = visited
    logs = sink.logs()
    spans = {(span.trace_id, span.span_id) for span in sink.spans()}
    assert all((log.trace_id, log.span_id) in spans for log in logs)
    assert {log.body.WhichOneof("value") for log in logs} == {"string_value", "kvlist_value"}
    assert any(a.value.HasField("kvlist_value") for log in logs for a in log.attributes)
    assert any(log.event_name for log in logs)
    assert not all(log.body.string_value.isascii() for log in logs)


def test_a_gateway_that_is_away_for_a_while_costs_nothing() -> None:
    """Two seconds of 503 and UNAVAILABLE, and everything arrives, once."""
    back = time.monotonic() + 3
    with Sink(lambda: 503 if time.monotonic() < back else 0) as sink:
        code, totals, stderr = run(sink, "--records", "2000")
        assert code == 0, stderr
        assert totals["emitted"] == totals["sent"] == sink.counts()


def test_what_the_gateway_refuses_is_told() -> None:
    """Records answered with an error count as failed, not as sent, and the exit code is 1."""
    with Sink(lambda: 400) as sink:
        code, totals, stderr = run(sink, "--records", "500")
    assert code == 1
    assert totals["sent"] == totals["dropped"] == NOTHING
    assert totals["failed"] == totals["emitted"]
    assert "were given up by the exporters" in stderr


def test_ctrl_c_leaves_no_child() -> None:
    """SIGINT ends the shop, its services included, with 130, and what it counted is what arrived."""
    with Sink() as sink:
        shop = start(sink, "--records", "1000000")
        while not sink.requests:
            assert shop.poll() is None
            time.sleep(0.05)
        children = psutil.Process(shop.pid).children(recursive=True)
        assert len(children) == 3
        shop.send_signal(signal.SIGINT)
        stdout, _ = shop.communicate(timeout=20)
        assert shop.returncode == 130
        assert not any(child.is_running() for child in children)
        assert json.loads(stdout)["sent"] == sink.counts()
