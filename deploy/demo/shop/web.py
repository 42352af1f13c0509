"""HTTP between the shop's services: W3C trace context goes out with every call and is taken in with every request."""

import http.client
import json
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import Any, NamedTuple

from opentelemetry import propagate
from opentelemetry.trace import SpanKind, Status, StatusCode
from telemetry import Telemetry

ANSWER_WITHIN_S = 600  # a service answers late, not wrongly, while its exporters wait for the gateway
DURATION_BOUNDS_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0]


class Answer(NamedTuple):
    status: int
    body: dict[str, Any]


class RefusedError(Exception):
    """A request that the shop's rules refuse; `status` is what the caller is told."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Route = Callable[[dict[str, Any]], Answer]


class Server(ThreadingHTTPServer):
    """Serves `routes` ("POST /orders": function) on a socket that is already bound and listening.

    GET /counts tells, untraced, how many records of each signal this service has emitted.
    """

    daemon_threads = True

    def __init__(self, listening: socket, telemetry: Telemetry, routes: dict[str, Route]) -> None:
        super().__init__(listening.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.telemetry = telemetry
        self.routes = routes
        self._running = 0
        self._idle = threading.Condition()
        meter = telemetry.meter
        self._durations = meter.create_histogram(
            "http.server.request.duration",
            unit="s",
            description="Time to answer.",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDS_S,
        )
        self._active = meter.create_up_down_counter("http.server.active_requests", unit="{request}")
        self._body_sizes = meter.create_histogram("http.server.request.body.size", unit="By")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that is gone needs no traceback: whoever ended it knows."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def stop(self, *, within_s: float) -> None:
        """Take no more connections, and return when no request is running, or after `within_s`."""
        self.shutdown()
        self.server_close()
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0, within_s)

    def answer(self, route: str, headers: Any, body: bytes) -> Answer:
        """Run the function of `route` in a server span that continues the caller's trace."""
        with self._idle:
            self._running += 1
        try:
            self.telemetry.wait_for_room()
            return self._traced(route, headers, body)
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def _traced(self, route: str, headers: Any, body: bytes) -> Answer:
        method, _, path = route.partition(" ")
        labels = {"http.request.method": method, "http.route": path}
        started = time.perf_counter()
        self._active.add(1, labels)
        with self.telemetry.tracer.start_as_current_span(
            route, context=propagate.extract(headers), kind=SpanKind.SERVER, attributes=labels
        ) as span:
            span.set_attribute("http.request.body.size", len(body))
            try:
                answer = self.routes[route](json.loads(body) if body else {})
            except RefusedError as error:
                span.record_exception(error)
                span.set_status(Status(StatusCode.ERROR, str(error)))
                answer = Answer(error.status, {"error": str(error)})
            except Exception as error:  # one request fails, the service goes on
                span.record_exception(error)
                span.set_status(Status(StatusCode.ERROR, str(error)))
                self.telemetry.log.exception("%s failed", route)
                answer = Answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "internal error"})
            span.set_attribute("http.response.status_code", int(answer.status))
            # Inside the span: the histogram's exemplars name this trace.
            self._body_sizes.record(len(body), labels)
            self._durations.record(
                time.perf_counter() - started, {**labels, "http.response.status_code": int(answer.status)}
            )
        self._active.add(-1, labels)
        return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet
    server: Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        route = f"{self.command} {self.path}"
        if route == "GET /counts":
            counts = self.server.telemetry.tally.counts()
            answer = Answer(HTTPStatus.OK, {signal: count.emitted for signal, count in counts.items()})
        elif route in self.server.routes:
            answer = self.server.answer(route, self.headers, body)
        else:
            answer = Answer(HTTPStatus.NOT_FOUND, {"error": f"no such page: {route}"})
        payload = json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Requests are told by telemetry."""


class Client:
    """Calls one service; a connection a thread, kept open."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._mine = threading.local()

    def call(self, route: str, body: dict[str, Any] | None = None) -> Answer:
        """Send `body` as JSON with the current trace context; raise OSError or HTTPException where nobody answers."""
        connection: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        if connection is None:
            connection = self._mine.connection = http.client.HTTPConnection(self._address, timeout=ANSWER_WITHIN_S)
        method, _, path = route.partition(" ")
        headers: dict[str, str] = {}
        propagate.inject(headers)
        try:
            connection.request(method, path, json.dumps(body).encode() if body is not None else None, headers)
            response = connection.getresponse()
            return Answer(response.status, json.loads(response.read()))
        except (OSError, http.client.HTTPException):
            connection.close()
            self._mine.connection = None
            raise


def traced_call(telemetry: Telemetry, client: Client, route: str, body: dict[str, Any]) -> Answer:
    """`client.call` in a client span; an answer of 400 and more marks the span as failed."""
    with telemetry.tracer.start_as_current_span(route, kind=SpanKind.CLIENT) as span:
        answer = client.call(route, body)
        span.set_attribute("http.response.status_code", answer.status)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            span.set_status(Status(StatusCode.ERROR, answer.body["error"]))
        return answer
