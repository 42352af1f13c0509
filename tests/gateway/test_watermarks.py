"""A spool at 79, 81, 93 and 100 %: what is taken, what is shed, and that clients and metrics say so."""

import os
import pathlib
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import REGISTRY

from pipeline.settings import SpoolSettings
from pipeline.spool.message import Message
from tests.gateway.served import JSON, PROTOBUF, Gateway, serving
from tests.otlp.as_json import as_json
from tests.otlp.requests import ONE_OF_EVERYTHING

MAX_BYTES = 4_000_000
ERROR_STATUS = 2


@pytest.fixture
def gateway(tmp_path: pathlib.Path) -> Iterator[Gateway]:
    settings = SpoolSettings(directory=tmp_path, max_bytes=MAX_BYTES, min_free_bytes=0)
    with serving(tmp_path, spool_settings=settings) as running:
        running.publisher.away = "Kafka is away"
        yield running


def fill(gateway: Gateway, level: float) -> None:
    """Up to this level, with what does not compress."""
    while (missing := int(level * MAX_BYTES) - gateway.spool.level().used_bytes) > 500:
        noise = Message("logs_raw", 0, 1, (), os.urandom(min(100_000, missing - 300)))
        gateway.spool.put(noise).result(10)
    assert gateway.spool.level().fraction == pytest.approx(level, abs=0.001)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"tenant": "default", **labels}) or 0.0


def one_of_each_severity() -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    for severity in (0, 1, 5, 9, 12, 13, 17, 21):
        scope.log_records.add(time_unix_nano=1, severity_number=severity)
    return request


def spans(count: int, *, status: int = 0, flags: int = 0) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for n in range(count):
        span = scope.spans.add(trace_id=bytes([n + 1]) * 16, span_id=b"12345678", start_time_unix_nano=1, flags=flags)
        span.status.code = status
    return request


def partial(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 200
    found: dict[str, str] = answer.json().get("partialSuccess", {})
    return found


def test_at_79_percent_all_is_taken(gateway: Gateway) -> None:
    """Nothing is shed below 80 %."""
    fill(gateway, 0.79)
    assert partial(gateway.post(as_json(one_of_each_severity()), JSON)) == {}
    assert partial(gateway.post(as_json(spans(10)), JSON, "/v1/traces")) == {}


def test_at_81_percent_logs_below_warn_are_shed(gateway: Gateway) -> None:
    """TRACE, DEBUG and INFO go; WARN, errors and logs of unknown severity stay, and so do spans and points."""
    fill(gateway, 0.81)
    before = {
        kind: counted("pipeline_gateway_shed_records_total", signal="logs", severity=kind)
        for kind in ("TRACE", "DEBUG", "INFO")
    }
    told = partial(gateway.post(as_json(one_of_each_severity()), JSON))
    assert told["rejectedLogRecords"] == "4"
    assert "2 INFO records shed: Kafka is away and the gateway's spool is nearly full" in told["errorMessage"]
    after = {
        kind: counted("pipeline_gateway_shed_records_total", signal="logs", severity=kind) - n
        for kind, n in before.items()
    }
    assert after == {"TRACE": 1, "DEBUG": 1, "INFO": 2}
    assert gateway.spool.level().records > 4
    assert partial(gateway.post(as_json(spans(10)), JSON, "/v1/traces")) == {}
    assert partial(gateway.post(as_json(ONE_OF_EVERYTHING["metrics"]), JSON, "/v1/metrics")) == {}


def test_at_93_percent_spans_that_look_unsampled_are_shed_by_trace(gateway: Gateway) -> None:
    """About half of them, the same traces each time; failed and sampled ones stay."""
    fill(gateway, 0.925)
    told = [partial(gateway.post(as_json(spans(200)), JSON, "/v1/traces")) for _ in range(2)]
    shed = [int(each["rejectedSpans"]) for each in told]
    assert 60 < shed[0] <= shed[1] < 140  # the first request made the spool fuller
    assert "SPAN records shed" in told[0]["errorMessage"]
    assert partial(gateway.post(as_json(spans(200, status=ERROR_STATUS)), JSON, "/v1/traces")) == {}
    assert partial(gateway.post(as_json(spans(200, flags=1)), JSON, "/v1/traces")) == {}


def test_at_100_percent_nothing_is_taken_and_the_client_is_asked_to_come_again(gateway: Gateway) -> None:
    """503 with a time, over and over; when Kafka is back the same request passes."""
    fill(gateway, 0.9999)
    answer = gateway.post(spans(200, status=ERROR_STATUS).SerializeToString(), PROTOBUF, "/v1/traces")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    gateway.publisher.away = None
    assert gateway.post(spans(200).SerializeToString(), PROTOBUF, "/v1/traces").content == b""
    assert gateway.publisher.published[-1].headers["records"]


def test_levels_are_metrics(gateway: Gateway) -> None:
    """Level, bytes, messages and age, within a second."""
    fill(gateway, 0.5)
    for _ in range(100):
        if (REGISTRY.get_sample_value("pipeline_spool_level_ratio") or 0) > 0.49:
            break
        httpx.get(f"{gateway.http}/none")
    assert REGISTRY.get_sample_value("pipeline_spool_level_ratio") == pytest.approx(0.5, abs=0.01)
    assert REGISTRY.get_sample_value("pipeline_spool_messages") == gateway.spool.level().messages
    assert (REGISTRY.get_sample_value("pipeline_spool_oldest_seconds") or 0) > 0
