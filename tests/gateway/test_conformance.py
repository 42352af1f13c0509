"""The OTLP specification 1.9 about servers, sentence by sentence; `python -m pytest -v` of this file is the table."""

import gzip
import importlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from pipeline.errors import Unavailable
from pipeline.settings import GatewaySettings
from tests.gateway.served import JSON, PROTOBUF, Gateway, export, serving
from tests.otlp.as_json import as_json
from tests.otlp.requests import ONE_OF_EVERYTHING, logs

SETTINGS = GatewaySettings(max_body_bytes=100_000, max_decoded_bytes=200_000)
SIGNALS = ("logs", "metrics", "traces")
REQUEST = {
    "logs": ExportLogsServiceRequest, "metrics": ExportMetricsServiceRequest, "traces": ExportTraceServiceRequest,
}  # fmt: skip
RESPONSE = {
    "logs": ExportLogsServiceResponse, "metrics": ExportMetricsServiceResponse, "traces": ExportTraceServiceResponse,
}  # fmt: skip
ROWS: list[Any] = []
Check = Callable[[Gateway], None]


def says(section: str, sentence: str) -> Callable[[Check], Check]:
    """Make a check a row of the table."""

    def register(check: Check) -> Check:
        ROWS.append(pytest.param(check, id=f"{section}: {sentence}"))
        return check

    return register


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with serving(tmp_path_factory.mktemp("spool"), SETTINGS) as gateway:
        yield gateway


@pytest.fixture
def gateway(running: Gateway) -> Gateway:
    running.publisher.published.clear()
    return running


def bodies(gateway: Gateway) -> list[str]:
    return [record["body"] for message in gateway.publisher.published for record in message.records]


def refused(gateway: Gateway, body: bytes, signal: str = "logs", **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        gateway.export(body, signal, **options)
    return caught.value


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    return status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])


def one_bad_span() -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    request.CopyFrom(ONE_OF_EVERYTHING["traces"])  # type: ignore[arg-type]
    request.resource_spans[0].scope_spans[0].spans.add(name="no ids")
    return request


# Protocol details


@says("Compression", "All server components MUST support no compression and gzip.")
def _(gateway: Gateway) -> None:
    body = logs("a").SerializeToString()
    gateway.post(body, PROTOBUF)
    gateway.post(gzip.compress(body), {**PROTOBUF, "content-encoding": "gzip"})
    gateway.export(body)
    gateway.export(body, compression=grpc.Compression.Gzip)
    assert bodies(gateway) == ["a"] * 4


@says("OTLP/gRPC", "The client sends unary Export requests of each signal, one after another.")
def _(gateway: Gateway) -> None:
    with grpc.insecure_channel(gateway.grpc) as channel:
        for signal in SIGNALS * 2:
            assert export(channel, signal)(ONE_OF_EVERYTHING[signal].SerializeToString()) == b""
    assert len(gateway.publisher.published) >= 6


@says("OTLP/gRPC Request", "The server MUST enforce a message size limit; RESOURCE_EXHAUSTED, which is not retryable.")
def _(gateway: Gateway) -> None:
    for options in ({}, {"compression": grpc.Compression.Gzip}):
        error = refused(gateway, bytes(300_000), **options)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not status_of(error).details


@says("OTLP/gRPC Concurrent Requests", "The client SHOULD send requests without waiting for earlier ones.")
def _(gateway: Gateway) -> None:
    with grpc.insecure_channel(gateway.grpc) as channel:
        answers = [export(channel).future(logs(f"{n}").SerializeToString()) for n in range(200)]
        assert {answer.result(10) for answer in answers} == {b""}
    assert sorted(bodies(gateway)) == sorted(f"{n}" for n in range(200))


@says("OTLP/gRPC Response", "If the server receives an empty request it SHOULD respond with success.")
def _(gateway: Gateway) -> None:
    assert [gateway.export(b"", signal) for signal in SIGNALS] == [b""] * 3


@says("OTLP/gRPC Response", "On success the response MUST be an Export<signal>ServiceResponse, partial_success unset.")
def _(gateway: Gateway) -> None:
    for signal in SIGNALS:
        answer = RESPONSE[signal].FromString(gateway.export(ONE_OF_EVERYTHING[signal].SerializeToString(), signal))
        assert not answer.HasField("partial_success")


@says("OTLP/gRPC Partial Success", "The server MUST set the number it rejected, and SHOULD say why in English.")
def _(gateway: Gateway) -> None:
    answer = ExportTraceServiceResponse.FromString(gateway.export(one_bad_span().SerializeToString(), "traces"))
    assert answer.partial_success.rejected_spans == 1
    assert "no valid trace_id" in answer.partial_success.error_message


@says("OTLP/gRPC Failures", "Retryable errors SHOULD be UNAVAILABLE and MAY carry RetryInfo.")
def _(gateway: Gateway) -> None:
    with nothing_is_safe(gateway):
        error = refused(gateway, logs().SerializeToString())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert retry_delay_s(status_of(error)) > 0


@says("OTLP/gRPC Failures", "Errors that are not retryable are INVALID_ARGUMENT and MAY carry BadRequest.")
def _(gateway: Gateway) -> None:
    error = refused(gateway, b"garbage")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad_request = error_details_pb2.BadRequest()
    assert status_of(error).details[0].Unpack(bad_request)
    assert bad_request.field_violations[0].description == error.details()


@says("OTLP/gRPC Default Port", "The default network port for OTLP/gRPC is 4317.")
def _(gateway: Gateway) -> None:
    assert GatewaySettings().grpc_port == 4317


# OTLP/HTTP


@says("Binary Protobuf Encoding", "The server MUST set Content-Type application/x-protobuf when it sends protobuf.")
def _(gateway: Gateway) -> None:
    for body in (b"", b"garbage", logs().SerializeToString()):
        assert gateway.post(body, PROTOBUF).headers["content-type"] == "application/x-protobuf"


@says("JSON Encoding", "traceId and spanId are case-insensitive hex.")
def _(gateway: Gateway) -> None:
    for trace_id, span_id in (
        ("5b8efff798038103d269b633813fc60c", "EEE19B7EC3C1B174"),
        ("5B8EFFF798038103D269B633813FC60C", "eee19b7ec3c1b174"),
    ):
        record = {"body": {"stringValue": "ids"}, "timeUnixNano": "1", "traceId": trace_id, "spanId": span_id}
        assert post_json(gateway, record).status_code == 200
    ids = {(r["trace_id"].hex(), r["span_id"].hex()) for m in gateway.publisher.published for r in m.records}
    assert ids == {("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174")}


@says("JSON Encoding", "Only integer enum values are allowed; enum name strings MUST NOT be used.")
def _(gateway: Gateway) -> None:
    assert post_json(gateway, {"severityNumber": 9}).status_code == 200
    assert post_json(gateway, {"severityNumber": "SEVERITY_NUMBER_INFO"}).status_code == 400


@says("JSON Encoding", "Receivers MUST ignore fields with unknown names, as if they were not there.")
def _(gateway: Gateway) -> None:
    assert post_json(gateway, {"body": {"stringValue": "a"}, "newField": {"deep": [1, {"x": None}]}}).status_code == 200
    assert bodies(gateway) == ["a"]


@says("JSON Encoding", "Keys are in lowerCamelCase; original field names are not valid.")
def _(gateway: Gateway) -> None:
    assert post_json(gateway, {"severity_text": "unknown", "severityText": "known"}).status_code == 200
    assert [r["severity_text"] for r in gateway.publisher.published[0].records] == ["known"]


@says("JSON Encoding", "64-bit integers are decimal strings, and numbers are accepted too.")
def _(gateway: Gateway) -> None:
    for time_ns in ("1700000000000000001", 1700000000000000001):
        post_json(gateway, {"timeUnixNano": time_ns})
    assert {r["time"] for m in gateway.publisher.published for r in m.records} == {1700000000000000001}


@says("JSON Encoding", "The server MUST set Content-Type application/json when it sends JSON.")
def _(gateway: Gateway) -> None:
    for body in (b"{}", b"garbage", as_json(logs())):
        assert gateway.post(body, JSON).headers["content-type"].split(";")[0] == "application/json"


@says("OTLP/HTTP Request", "Data is sent by POST to /v1/traces, /v1/metrics and /v1/logs.")
def _(gateway: Gateway) -> None:
    for signal in SIGNALS:
        assert gateway.post(ONE_OF_EVERYTHING[signal].SerializeToString(), PROTOBUF, f"/v1/{signal}").status_code == 200
        assert gateway.post(as_json(ONE_OF_EVERYTHING[signal]), JSON, f"/v1/{signal}").status_code == 200
        assert httpx.get(f"{gateway.http}/v1/{signal}").status_code == 405


@says("OTLP/HTTP Request", "The client MAY gzip the content, with Content-Encoding: gzip.")
def _(gateway: Gateway) -> None:
    headers = {"content-encoding": "gzip"}
    assert gateway.post(gzip.compress(as_json(logs("a"))), {**JSON, **headers}).status_code == 200
    assert gateway.post(gzip.compress(logs("a").SerializeToString()), {**PROTOBUF, **headers}).status_code == 200
    assert bodies(gateway) == ["a", "a"]


@says("OTLP/HTTP Request", "The server MUST limit the body, also after decompression; it SHOULD respond with 413.")
def _(gateway: Gateway) -> None:
    assert gateway.post(bytes(100_001), PROTOBUF).status_code == 413
    assert gateway.post(iter([bytes(60_000)] * 2), PROTOBUF).status_code == 413
    assert gateway.post(gzip.compress(bytes(200_001)), {**PROTOBUF, "content-encoding": "gzip"}).status_code == 413


@says("OTLP/HTTP Response", "The server MUST use the same Content-Type in the response as it received.")
def _(gateway: Gateway) -> None:
    for headers, good in ((PROTOBUF, logs().SerializeToString()), (JSON, as_json(logs()))):
        for body in (good, b"garbage", bytes(100_001)):
            answer = gateway.post(body, headers)
            assert answer.headers["content-type"].split(";")[0] == headers["content-type"]


@says("OTLP/HTTP Full Success", "If the server receives an empty request it SHOULD respond with success.")
def _(gateway: Gateway) -> None:
    for signal in SIGNALS:
        assert gateway.post(b"", PROTOBUF, f"/v1/{signal}").status_code == 200
        assert gateway.post(b"{}", JSON, f"/v1/{signal}").status_code == 200


@says("OTLP/HTTP Full Success", "On success 200 OK with an Export<signal>ServiceResponse, partial_success unset.")
def _(gateway: Gateway) -> None:
    for signal in SIGNALS:
        answer = gateway.post(ONE_OF_EVERYTHING[signal].SerializeToString(), PROTOBUF, f"/v1/{signal}")
        assert (answer.status_code, answer.content) == (200, b"")
        as_text = gateway.post(as_json(ONE_OF_EVERYTHING[signal]), JSON, f"/v1/{signal}")
        assert (as_text.status_code, as_text.json()) == (200, {})


@says("OTLP/HTTP Partial Success", "200 OK; the server MUST set the number it rejected, and SHOULD say why in English.")
def _(gateway: Gateway) -> None:
    answer = gateway.post(one_bad_span().SerializeToString(), PROTOBUF, "/v1/traces")
    partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert (answer.status_code, partial.rejected_spans) == (200, 1)
    as_text = gateway.post(as_json(one_bad_span()), JSON, "/v1/traces").json()
    assert as_text["partialSuccess"]["rejectedSpans"] == "1"
    assert as_text["partialSuccess"]["errorMessage"] == partial.error_message
    assert "no valid trace_id" in partial.error_message


@says("OTLP/HTTP Failures", "The body of every 4xx and 5xx MUST be a Status; its message SHOULD be for developers.")
def _(gateway: Gateway) -> None:
    with nothing_is_safe(gateway):
        away = gateway.post(logs().SerializeToString(), PROTOBUF)
    for answer, code in (
        (gateway.post(b"garbage", PROTOBUF), 400),
        (gateway.post(b"", PROTOBUF, "/v1/nothing"), 404),
        (httpx.put(f"{gateway.http}/v1/logs", headers=PROTOBUF), 405),
        (gateway.post(bytes(100_001), PROTOBUF), 413),
        (gateway.post(b"", {**PROTOBUF, "content-encoding": "br"}), 415),
        (away, 503),
    ):
        assert answer.status_code == code
        assert status_pb2.Status.FromString(answer.content).message.endswith(".")
    assert gateway.post(b"garbage", JSON).json()["message"].startswith("The body is not JSON")
    assert gateway.post(b"", JSON, "/v1/nothing").json()["message"].startswith("Not Found")
    assert "is not supported" in gateway.post(b"", {"content-type": "text/plain"}).json()["message"]


@says("OTLP/HTTP Bad Data", "What cannot be decoded MUST be 400, and its details SHOULD contain a BadRequest.")
def _(gateway: Gateway) -> None:
    answer = gateway.post(b"garbage", PROTOBUF)
    status = status_pb2.Status.FromString(answer.content)
    bad_request = error_details_pb2.BadRequest()
    assert answer.status_code == 400
    assert status.details[0].Unpack(bad_request)
    assert bad_request.field_violations[0].description == status.message
    as_text = gateway.post(b"garbage", JSON)
    assert as_text.json()["details"][0]["@type"] == "type.googleapis.com/google.rpc.BadRequest"


@says("OTLP/HTTP Throttling", "Overloaded, the server SHOULD respond with 429 or 503 and MAY include Retry-After.")
def _(gateway: Gateway) -> None:
    with nothing_is_safe(gateway):
        answer = gateway.post(logs().SerializeToString(), PROTOBUF)
    assert answer.status_code == 503
    delay_s = retry_delay_s(status_pb2.Status.FromString(answer.content))
    assert int(answer.headers["retry-after"]) - 1 <= delay_s <= int(answer.headers["retry-after"])


@says("OTLP/HTTP Connection", "The client SHOULD keep the connection alive between requests.")
def _(gateway: Gateway) -> None:
    body = logs("a").SerializeToString()
    head = f"POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.http_port)) as connection:
        connection.settimeout(5)
        for _ in range(3):
            connection.sendall(head.encode() + body)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK")
            time.sleep(0.05)


@says("OTLP/HTTP Connection", "Protobuf and JSON SHOULD be accepted on the same port, told apart by Content-Type.")
def _(gateway: Gateway) -> None:
    with httpx.Client(base_url=gateway.http) as client:
        for _ in range(2):
            assert client.post("/v1/logs", content=logs("a").SerializeToString(), headers=PROTOBUF).status_code == 200
            assert client.post("/v1/logs", content=as_json(logs("a")), headers=JSON).status_code == 200
            charset = {"content-type": "application/json; charset=utf-8"}
            assert client.post("/v1/logs", content=as_json(logs("a")), headers=charset).status_code == 200
    assert bodies(gateway) == ["a"] * 6


@says("OTLP/HTTP Default Port", "The default network port for OTLP/HTTP is 4318.")
def _(gateway: Gateway) -> None:
    assert GatewaySettings().http_port == 4318


@says("Empty Telemetry Envelopes", "Receivers MAY ignore empty envelopes.")
def _(gateway: Gateway) -> None:
    for signal, (resources, scopes) in {
        "logs": ("resource_logs", "scope_logs"),
        "metrics": ("resource_metrics", "scope_metrics"),
        "traces": ("resource_spans", "scope_spans"),
    }.items():
        request = REQUEST[signal]()
        getattr(request, resources).add()
        getattr(getattr(request, resources).add(), scopes).add()
        assert gateway.post(request.SerializeToString(), PROTOBUF, f"/v1/{signal}").content == b""
    assert gateway.publisher.published == []


@says("Future Versions", "Unknown fields of newer clients are accepted and passed over.")
def _(gateway: Gateway) -> None:
    unknown = b"\xfa\x3e\x03new" + b"\xf0\x3e\x07"
    assert gateway.post(logs("a").SerializeToString() + unknown, PROTOBUF).content == b""
    assert bodies(gateway) == ["a"]


@pytest.mark.parametrize("check", ROWS)
def test_the_specification_holds(gateway: Gateway, check: Check) -> None:
    """Each sentence about servers is a row with its check."""
    check(gateway)


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_receipt_is_a_whole_millisecond(gateway: Gateway, signal: str) -> None:
    """What is below tells the forms of an event apart, and stores file a record without a time under its receipt."""
    for _ in range(3):
        gateway.post(ONE_OF_EVERYTHING[signal].SerializeToString(), PROTOBUF, f"/v1/{signal}")
    received = [record["received_time"] for message in gateway.publisher.published for record in message.records]
    assert {time % 1_000_000 for time in received} == {0}


# Stock exporters


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_stock_exporters_deliver_every_signal(gateway: Gateway, protocol: str) -> None:
    """The SDK's own exporters hear success, plain and gzipped, and what they sent is what arrives."""
    stock = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{protocol}")
    at = {"endpoint": gateway.grpc, "insecure": True} if protocol == "grpc" else {}
    modules = [
        importlib.import_module(f"{stock.__name__}.{name}")
        for name in ("_log_exporter", "metric_exporter", "trace_exporter")
    ]
    for compression in (
        (stock.Compression.NoCompression, stock.Compression.Gzip)
        if protocol == "http"
        else (None, grpc.Compression.Gzip)
    ):

        def made(module: Any, kind: str, path: str) -> Any:
            where = at or {"endpoint": f"{gateway.http}/v1/{path}"}
            return getattr(module, f"OTLP{kind}Exporter")(**where, compression=compression)  # noqa: B023

        logger = LoggerProvider()
        logger.add_log_record_processor(SimpleLogRecordProcessor(made(modules[0], "Log", "logs")))
        logger.get_logger("stock").emit(body="from the SDK", severity_text="INFO")
        meter = MeterProvider([PeriodicExportingMetricReader(made(modules[1], "Metric", "metrics"))])
        meter.get_meter("stock").create_counter("sales").add(3)
        tracer = TracerProvider()
        tracer.add_span_processor(SimpleSpanProcessor(made(modules[2], "Span", "traces")))
        with tracer.get_tracer("stock").start_as_current_span("checkout"):
            pass
        for provider in (logger, meter, tracer):
            provider.shutdown()
    found = [
        (m.topic, r.get("body") or r.get("metric_name") or r.get("name"))
        for m in gateway.publisher.published
        for r in m.records
    ]
    assert sorted(found) == sorted(
        [("logs_raw", "from the SDK"), ("metrics_raw", "sales"), ("traces_raw", "checkout")] * 2
    )


# What rows share


def post_json(gateway: Gateway, record: dict[str, Any]) -> httpx.Response:
    document = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}
    return gateway.post(json.dumps(document).encode(), JSON)


class nothing_is_safe:  # noqa: N801
    """While the block runs Kafka is away and the spool takes nothing."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def __enter__(self) -> None:
        self._put = self._gateway.spool.put
        self._gateway.publisher.away = "Kafka is away"
        self._gateway.spool.put = full  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self._gateway.publisher.away = None
        self._gateway.spool.put = self._put  # type: ignore[method-assign]


def full(_: object) -> Any:
    refused: Future[None] = Future()
    refused.set_exception(Unavailable("The spool is full."))
    return refused


def retry_delay_s(status: status_pb2.Status) -> float:
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    return retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
