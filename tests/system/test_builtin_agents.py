"""redact → sample → enrich → span_metrics, all built in, between real topics and ClickHouse, through a kill and a rewind."""

import pathlib
import shutil
import time
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pipeline import clickhouse, topics
from pipeline.audit import audit
from pipeline.delivery import Message
from pipeline.kafka.groups import Committed, Groups
from pipeline.kafka.reader import Reader
from pipeline.settings import ROOT, RoutesSettings, Settings
from tests.agents.agent_process import Agents
from tests.agents.builtin.run import of_request, together
from tests.agents.process import Process, send, until
from tests.conftest import free_ports
from tests.drills.agents import TOPIC

CANARY = "canary.ann@secret.example"
BETWEEN = ("traces_hidden", "traces_thin")
CHAIN = """
from pipeline.agents.builtin.enrich import enrich_traces
from pipeline.agents.builtin.redact import redact_traces
from pipeline.agents.builtin.sample import sample
from pipeline.agents.builtin.span_metrics import span_metrics

hide = redact_traces.between("hide", reads="traces_raw", writes="traces_hidden")
thin = sample.between("thin", reads="traces_hidden", writes="traces_thin")
owned = enrich_traces.between("owned", reads="traces_thin", writes="traces_norm")
red = span_metrics.between("red", reads="traces_norm", writes="span_metrics")
"""
READS = {
    "hide": ["traces_raw"], "thin": ["traces_hidden"], "owned": ["traces_thin"], "red": ["traces_norm"],
    "ch_writer": ["logs_raw", "metrics_raw", "span_metrics", "traces_norm"],
}  # fmt: skip
REQUESTS, SPANS = 40, 50
RECEIVED_NS = time.time_ns() // 10**6 * 10**6


def request(number: int) -> Message:
    """Spans of a request, each with the secret wherever a span holds text."""
    made = ExportTraceServiceRequest()
    over = made.resource_spans.add()
    for key, text in (("service.name", f"service-{number % 3}"), ("owner", CANARY)):
        over.resource.attributes.add(key=key).value.string_value = text
    scope = over.scope_spans.add()
    for n in range(SPANS):
        end = RECEIVED_NS - (number * SPANS + n) * 3 * 10**6
        span = scope.spans.add(
            trace_id=(number * SPANS + n + 1).to_bytes(9, "big") + (n * (1 << 56) // SPANS).to_bytes(7, "big"),
            span_id=(n + 1).to_bytes(8, "big"), name=f"operation {n % 4}", start_time_unix_nano=end - 10**6 * n,
            end_time_unix_nano=end,
        )  # fmt: skip
        span.attributes.add(key="mail").value.string_value = f"to {CANARY}"
        span.attributes.add(key=CANARY).value.string_value = "key"
        span.status.code, span.status.message = (2, CANARY) if n % 5 == 0 else (0, "")
        span.events.add(name=CANARY).attributes.add(key="who").value.string_value = CANARY
    message = of_request("traces", made, RECEIVED_NS)
    headers = {**message.headers, "tenant": b"shop", "region": b"eu"}
    times = {"min_time": b"%d" % (RECEIVED_NS - 10**10), "max_time": b"%d" % RECEIVED_NS}
    return message._replace(headers={**headers, **times}, partition=number % 4)


def retried(first: Message, second: Message) -> Message:
    """Both again, in one message."""
    return together([first, second])._replace(
        headers={**first.headers, "records": b"%d" % (2 * SPANS)}, partition=first.partition
    )


@pytest.fixture
def chained(world: Settings, tmp_path: pathlib.Path) -> Settings:
    shutil.copytree(ROOT / "topics", tmp_path / "topics")
    for name in BETWEEN:
        for topic in (name, f"{name}_dlq"):
            text = TOPIC.format(name=topic).replace("signal: logs", "signal: traces")
            (tmp_path / "topics" / f"{topic}.yaml").write_text(text)
    (tmp_path / "table.csv").write_text("service,team\nservice-0,payments\nservice-1,stock\n")
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "chain.py").write_text(CHAIN)
    agents_port, health_port = free_ports(2)
    own: dict[str, dict[str, Any]] = {name: {"health_port": agents_port} for name in READS if name != "ch_writer"}
    own["thin"] |= {"ratio": 0.5}
    own["owned"] |= {"table": str(tmp_path / "table.csv")}
    settings = world.model_copy(
        update={
            "topics_directory": tmp_path / "topics",
            "agents": own,
            "routes": RoutesSettings(traces=("traces_norm",), metrics=("metrics_raw", "span_metrics")),
            "ch_writer": world.ch_writer.model_copy(update={"health_port": health_port}),
        }
    )
    topics.apply_all(settings)
    return settings


def caught_up(settings: Settings) -> bool:
    """Whether every group has read all of its topics."""
    groups, reader = Groups(settings.kafka), Reader(settings.kafka)
    for group, names in READS.items():
        ends = {(each.topic, each.partition): each.end for each in reader.retained(names) if each.end > each.start}
        committed = groups.committed(group, list(ends))
        if any(place not in committed or committed[place].offset < end for place, end in ends.items()):
            return False
    return True


def counted(settings: Settings) -> tuple[set[Any], set[Any], set[Any]]:
    """Spans by service, name and status, as their table says, and as each of the metrics of them says."""
    client = clickhouse.connect(settings.clickhouse)
    queries = (
        "SELECT service, name, upper(status), count() FROM traces GROUP BY ALL",
        "SELECT service, attributes['span.name'], substring(attributes['status.code'], 13), sum(int_value) FROM metrics "
        "WHERE metric_name = 'traces.span.metrics.calls' GROUP BY ALL",
        "SELECT service, attributes['span.name'], substring(attributes['status.code'], 13), sum(count) FROM metrics "
        "WHERE metric_name = 'traces.span.metrics.duration' AND arraySum(bucket_counts) = count GROUP BY ALL",
    )
    spans, calls, durations = (set(map(tuple, client.query(query).result_rows)) for query in queries)
    return spans, calls, durations


@pytest.mark.timeout(400)
def test_no_secret_is_stored_and_span_metrics_are_the_count_of_spans(chained: Settings, tmp_path: pathlib.Path) -> None:
    """With requests sent twice, in other messages, agents killed, and all groups rewound to the first message."""
    sent = [request(number) for number in range(REQUESTS)]
    writer = Process("ch_writer", chained)
    agents = Agents(tmp_path / "agents", chained)
    try:
        writer.start()
        agents.start()
        send(chained, *sent[: REQUESTS // 2])
        reader = Reader(chained.kafka)
        until(lambda: any(each.end for each in reader.retained(["span_metrics"])), "no agent made metrics", 150)
        client = clickhouse.connect(chained.clickhouse)
        until(lambda: client.query("SELECT count() FROM metrics").result_rows[0][0], "no metric was stored", 150)
        agents.close()
        assert writer.stop()[0] == 0
        send(chained, *sent[REQUESTS // 2 :], retried(sent[0], sent[4]), retried(sent[9], sent[33]))
        for group, names in READS.items():
            places = [(each.topic, each.partition) for each in reader.retained(names)]
            Groups(chained.kafka).move(group, dict.fromkeys(places, Committed(0)))
        writer.start()
        agents.start()
        until(lambda: caught_up(chained), "not everything was read", 150)
        assert agents.stop()[0] == 0
        assert writer.stop()[0] == 0
    finally:
        agents.close()
        writer.close()
    spans, calls, durations = counted(chained)
    assert spans == calls == durations
    total = sum(count for *_, count in spans)
    [(estimated, owned)] = client.query(
        "SELECT sum(toFloat64(attributes['sampling.adjusted_count'])), countIf(resource_attributes['team'] != '') FROM traces"
    ).result_rows
    assert estimated == REQUESTS * SPANS
    assert 0 < owned < total < REQUESTS * SPANS
    for view in ("traces", "trace_events", "metrics"):
        assert CANARY not in str(client.query(f"SELECT * FROM {view}").result_rows)
    for topic in (*BETWEEN, "traces_norm", "span_metrics", "agent_drops"):
        assert not any(CANARY.encode() in each.value for each in reader.read(reader.retained([topic])))
    assert audit(chained, signals=("traces",)).clean
