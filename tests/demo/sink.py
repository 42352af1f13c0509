"""A gateway that keeps what it is sent in memory: OTLP/HTTP and OTLP/gRPC on free ports of loopback."""

import gzip
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import grpc
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

REQUESTS: dict[str, type[Message]] = {
    "logs": ExportLogsServiceRequest,
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
}
GRPC_SERVICES = {"LogsService": "logs", "TraceService": "traces", "MetricsService": "metrics"}
GRPC_CODES = {503: grpc.StatusCode.UNAVAILABLE, 400: grpc.StatusCode.INVALID_ARGUMENT}


class Sink:
    """Keeps every request it answers OK, as (protocol, signal, message).

    `refusal()` is asked before each answer: 0 accepts, 400 and 503 refuse, and a refused request is not kept.
    """

    def __init__(self, refusal: Callable[[], int] = lambda: 0) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self._refusal = refusal
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._http_handler())
        self._http.daemon_threads = True
        self._grpc = grpc.server(futures.ThreadPoolExecutor(4))
        self._grpc.add_generic_rpc_handlers([self._grpc_handler()])
        self.http_url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.grpc_address = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> "Sink":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self._grpc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._grpc.stop(0)

    def scopes(self, signal: str) -> Iterator[tuple[Any, Any]]:
        """Every resource with each of its scopes, of all requests of `signal`."""
        for _, sent, message in self.requests:
            if sent == signal:
                for resource in getattr(message, {"traces": "resource_spans"}.get(signal, f"resource_{signal}")):
                    scopes = getattr(resource, {"traces": "scope_spans"}.get(signal, f"scope_{signal}"))
                    yield from ((resource.resource, scope) for scope in scopes)

    def logs(self) -> list[Any]:
        return [record for _, scope in self.scopes("logs") for record in scope.log_records]

    def spans(self) -> list[Any]:
        return [span for _, scope in self.scopes("traces") for span in scope.spans]

    def metrics(self) -> list[Any]:
        """Metrics, each with its points."""
        return [metric for _, scope in self.scopes("metrics") for metric in scope.metrics]

    def counts(self) -> dict[str, int]:
        points = sum(len(getattr(metric, metric.WhichOneof("data")).data_points) for metric in self.metrics())
        return {"logs": len(self.logs()), "traces": len(self.spans()), "metrics": points}

    def _take(self, protocol: str, signal: str, body: bytes) -> int:
        refused = self._refusal()
        if not refused:
            self.requests.append((protocol, signal, REQUESTS[signal].FromString(body)))
        return refused

    def _http_handler(sink) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                refused = sink._take("http", self.path.removeprefix("/v1/"), body)
                self.send_response(refused or 200)
                if refused == 503:
                    self.send_header("Retry-After", "1")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler

    def _grpc_handler(sink) -> grpc.GenericRpcHandler:  # noqa: N805
        class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, details: Any) -> Any:
                [signal] = [signal for name, signal in GRPC_SERVICES.items() if name in details.method]

                def export(body: bytes, context: Any) -> bytes:
                    if refused := sink._take("grpc", signal, body):
                        context.abort(GRPC_CODES[refused], "refused by the test")
                    return b""

                return cast(Any, grpc.unary_unary_rpc_method_handler(export))

        return Handler()
