"""A back end that answers as a script says, over HTTP or gRPC, and keeps what it took."""

import gzip
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

LOGS = "/v1/logs"
TAKEN = ExportLogsServiceResponse().SerializeToString()


class Asked(NamedTuple):
    headers: dict[str, str]
    bodies: list[str]
    at_s: float  # of a clock that only goes forward
    taken: bool


class Say(NamedTuple):
    """One answer: an HTTP status or gRPC code by number, headers (or RetryInfo's seconds), and a body."""

    status: int = 0  # the protocol's own for success
    retry_s: float | None = None
    body: bytes = TAKEN
    raw: bytes = b""  # instead of all that: the whole answer over HTTP, RetryInfo's bytes over gRPC


def partly(rejected: int, why: str) -> Say:
    made = ExportLogsServiceResponse()
    made.partial_success.rejected_log_records, made.partial_success.error_message = rejected, why
    return Say(body=made.SerializeToString())


class Server:
    """Answers by the script, then that all was taken; over HTTP, 404 to what is of the path `unknown`."""

    def __init__(self, protocol: str, script: Sequence[Say] = (), port: int = 0, unknown: str = "") -> None:
        self.asked: list[Asked] = []
        self._script = list(script)
        self._wanted = port
        self._unknown = unknown
        self._lock = threading.Lock()
        self.port, self.stop = {"http": self._http, "grpc": self._grpc}[protocol]()

    def _answer(self, headers: dict[str, str], body: bytes) -> Say:
        path = headers.get("path", LOGS)
        request = ExportLogsServiceRequest.FromString(body if path == LOGS else b"")
        bodies = [
            record.body.string_value
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]
        with self._lock:
            say = Say(404) if path == self._unknown else self._script.pop(0) if self._script else Say()
            self.asked.append(Asked(headers, bodies, time.monotonic(), not say.status))
            return say

    def _http(self) -> tuple[int, Callable[[], None]]:
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                headers = {key.lower(): value for key, value in self.headers.items()}
                body = self.rfile.read(int(headers["content-length"]))
                plain = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
                say = answer({**headers, "path": self.path}, plain)
                if say.raw:
                    self.wfile.write(say.raw)
                    self.close_connection = True
                    return
                self.send_response(say.status or 200)
                if say.retry_s is not None:
                    self.send_header("Retry-After", f"{say.retry_s:.0f}")
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(say.body)))
                self.end_headers()
                self.wfile.write(say.body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", self._wanted), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def stop() -> None:
            server.shutdown()
            server.server_close()

        return server.server_port, stop

    def _grpc(self) -> tuple[int, Callable[[], None]]:
        def export(request: bytes, context: Any) -> bytes:
            say = self._answer(dict(context.invocation_metadata()), request)
            if say.status:
                status = Status(code=say.status, message="as the script says")
                if say.retry_s is not None or say.raw:
                    info = RetryInfo()
                    info.retry_delay.FromNanoseconds(int((say.retry_s or 0) * 1e9))
                    packed = Packed()
                    packed.Pack(info)
                    packed.value = say.raw or packed.value
                    status.details.append(packed)
                context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
                code = next(each for each in grpc.StatusCode if each.value[0] == say.status)
                context.abort(code, "as the script says")
            return say.body

        server = grpc.server(ThreadPoolExecutor(2))
        method = grpc.unary_unary_rpc_method_handler(export)
        service = "opentelemetry.proto.collector.logs.v1.LogsService"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": method}),))
        port = server.add_insecure_port(f"127.0.0.1:{self._wanted}")
        server.start()
        return port, lambda: server.stop(0).wait()
