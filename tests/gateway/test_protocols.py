"""The two protocols' answers, against a gateway whose Kafka is a fake."""

import asyncio
import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import grpc
import httpx
import pytest
from aiohttp import web
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from pipeline.gateway import grpc as otlp_grpc
from pipeline.gateway import http as otlp_http
from pipeline.gateway.intake import Intake
from pipeline.settings import GatewaySettings
from tests.gateway.fake import FakePublisher
from tests.otlp.as_json import as_json
from tests.otlp.requests import ONE_OF_EVERYTHING, logs

PROTOBUF = {"content-type": "application/x-protobuf"}
JSON = {"content-type": "application/json"}
SETTINGS = GatewaySettings(max_body_bytes=100_000, max_decoded_bytes=200_000)


class Gateway:
    def __init__(self) -> None:
        self.publisher = FakePublisher()
        self.http = ""
        self.grpc = ""

    def post(self, body: bytes, headers: dict[str, str], path: str = "/v1/logs") -> httpx.Response:
        return httpx.post(self.http + path, content=body, headers=headers)

    def export(self, body: bytes, service: str = "logs.v1.LogsService", **options: Any) -> bytes:
        with grpc.insecure_channel(self.grpc) as channel:
            method = channel.unary_unary(f"/opentelemetry.proto.collector.{service}/Export")
            return bytes(method(body, timeout=10, **options))


@contextmanager
def serving() -> Iterator[Gateway]:
    gateway = Gateway()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main(started: Any) -> None:
        intake = Intake(gateway.publisher, "local", within_s=5)  # type: ignore[arg-type]
        runner = web.AppRunner(otlp_http.application(intake, SETTINGS, "default"), auto_decompress=False)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server = otlp_grpc.server(intake, SETTINGS, "default")
        gateway.grpc = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        gateway.http = f"http://127.0.0.1:{runner.addresses[0][1]}"
        await server.start()
        started()
        await stop.wait()
        await server.stop(0)
        await runner.cleanup()

    ready = Event()
    thread = Thread(target=lambda: loop.run_until_complete(main(ready.set)))
    thread.start()
    assert ready.wait(10)
    try:
        yield gateway
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


@pytest.fixture(scope="module")
def running() -> Iterator[Gateway]:
    with serving() as gateway:
        yield gateway


@pytest.fixture
def gateway(running: Gateway) -> Gateway:
    running.publisher.published.clear()
    running.publisher.away = None
    return running


@pytest.mark.parametrize("signal", ["logs", "metrics", "traces"])
def test_full_success_is_an_empty_answer_in_the_requests_encoding(gateway: Gateway, signal: str) -> None:
    """200 and an empty message: no bytes in protobuf, {} in JSON; both, gzipped or not, publish the same ids."""
    request = ONE_OF_EVERYTHING[signal]
    path = f"/v1/{signal}"
    plain = gateway.post(request.SerializeToString(), PROTOBUF, path)
    zipped = gateway.post(gzip.compress(request.SerializeToString()), {**PROTOBUF, "content-encoding": "gzip"}, path)
    as_text = gateway.post(as_json(request), JSON, path)
    assert [(answer.status_code, answer.content) for answer in (plain, zipped, as_text)] == [
        (200, b""),
        (200, b""),
        (200, b"{}"),
    ]
    assert plain.headers["content-type"] == "application/x-protobuf"
    assert as_text.headers["content-type"].startswith("application/json")
    ids = [sorted(r["event_id"] for r in message.records) for message in gateway.publisher.published]
    assert len(ids) == 3
    assert ids[0] == ids[1] == ids[2]


def test_grpc_and_http_publish_the_same_ids(gateway: Gateway) -> None:
    """The protocol leaves no trace in an id."""
    body = logs("a", "a").SerializeToString()
    gateway.post(body, PROTOBUF)
    assert gateway.export(body, compression=grpc.Compression.Gzip) == b""
    http_message, grpc_message = gateway.publisher.published
    assert [r["event_id"] for r in http_message.records] == [r["event_id"] for r in grpc_message.records]


def spans_with_a_bad_one() -> bytes:
    request = ExportTraceServiceRequest()
    request.CopyFrom(ONE_OF_EVERYTHING["traces"])  # type: ignore[arg-type]
    request.resource_spans[0].scope_spans[0].spans.add(name="no ids")
    return request.SerializeToString()


def test_partial_success_counts_and_says_why(gateway: Gateway) -> None:
    """A bad record inside a good request is counted with its reason, and its neighbours are published."""
    over_http = ExportTraceServiceResponse.FromString(
        gateway.post(spans_with_a_bad_one(), PROTOBUF, "/v1/traces").content
    )
    over_grpc = ExportTraceServiceResponse.FromString(gateway.export(spans_with_a_bad_one(), "trace.v1.TraceService"))
    assert over_http == over_grpc
    assert over_http.partial_success.rejected_spans == 1
    assert "1 refused: a span has no valid trace_id" in over_http.partial_success.error_message
    assert [len(message.records) for message in gateway.publisher.published] == [2, 2]


@pytest.mark.parametrize(
    ("body", "headers", "status", "sentence"),
    [
        (b"garbage", PROTOBUF, 400, "is not a protobuf ExportLogsServiceRequest"),
        (b"garbage", JSON, 400, "is not JSON"),
        (b"x", {"content-type": "text/plain"}, 415, "send application/x-protobuf or application/json"),
        (b"x", {}, 415, "application/octet-stream is not supported"),
        (b"x", {**PROTOBUF, "content-encoding": "br"}, 415, "br is not supported"),
        (b"no gzip at all", {**PROTOBUF, "content-encoding": "gzip"}, 400, "is not gzip"),
        (gzip.compress(b"x" * 1000)[:-9], {**PROTOBUF, "content-encoding": "gzip"}, 400, "cut short"),
        (bytes(100_001), PROTOBUF, 413, "larger than 100000 bytes"),
        (gzip.compress(bytes(50_000_000)), {**PROTOBUF, "content-encoding": "gzip"}, 413, "when decompressed"),
    ],
)  # fmt: skip
def test_http_refusals_name_what_was_wrong(
    gateway: Gateway, body: bytes, headers: dict[str, str], status: int, sentence: str
) -> None:
    """Each kind of bad request has its status and a sentence in google.rpc.Status."""
    answer = gateway.post(body, headers)
    assert answer.status_code == status
    if answer.headers["content-type"] == "application/x-protobuf":
        message = status_pb2.Status.FromString(answer.content).message
    else:
        message = json.loads(answer.content)["message"]
    assert sentence in message
    assert gateway.publisher.published == []


def test_other_paths_and_methods_are_not_found(gateway: Gateway) -> None:
    """An unknown path is 404, a GET of a known one 405."""
    assert gateway.post(b"", PROTOBUF, "/v1/nothing").status_code == 404
    assert httpx.get(f"{gateway.http}/v1/logs").status_code == 405


def test_not_now_over_http_has_retry_after_and_retry_info(gateway: Gateway) -> None:
    """While Kafka is away the answer is 503 with both ways of saying when to come again."""
    gateway.publisher.away = "Kafka is away"
    answer = gateway.post(logs().SerializeToString(), PROTOBUF)
    assert answer.status_code == 503
    assert 3 <= int(answer.headers["retry-after"]) <= 8
    status = status_pb2.Status.FromString(answer.content)
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    assert 2.5 <= retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 <= 7.5
    as_text = gateway.post(as_json(logs()), JSON)
    assert (as_text.status_code, as_text.json()["message"]) == (503, "Kafka is away")


def test_not_now_over_grpc_has_retry_info(gateway: Gateway) -> None:
    """While Kafka is away gRPC says UNAVAILABLE with RetryInfo."""
    gateway.publisher.away = "Kafka is away"
    with pytest.raises(grpc.RpcError) as caught:
        gateway.export(logs().SerializeToString())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    trailers = dict(caught.value.trailing_metadata())
    in_status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details[0]
    assert in_status.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    assert trailers["google.rpc.retryinfo-bin"] == in_status.value


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"garbage", grpc.StatusCode.INVALID_ARGUMENT),
        (bytes(300_000), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (bytes(50_000_000), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_grpc_refusals(gateway: Gateway, body: bytes, code: grpc.StatusCode) -> None:
    """Undecodable and oversized requests, also when they are small until decompressed, have the codes of OTLP."""
    with pytest.raises(grpc.RpcError) as caught:
        gateway.export(body, compression=grpc.Compression.Gzip)
    assert caught.value.code() is code
    assert gateway.export(logs().SerializeToString()) == ExportLogsServiceResponse().SerializeToString()
