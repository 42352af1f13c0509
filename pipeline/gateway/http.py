"""OTLP/HTTP, source: the OTLP specification 1.9, "OTLP/HTTP"; and rows of registered tables beside it."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Awaitable, Callable

import aiohttp_cors
from aiohttp import ClientPayloadError, HttpVersion11, hdrs, web
from aiohttp.typedefs import Middleware
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2

from pipeline.errors import Rejected
from pipeline.gateway import answers, tls
from pipeline.gateway.answers import Answer
from pipeline.gateway.events import Events
from pipeline.gateway.exports import Call, Encoding, Exports, Room, larger_than, traceparent
from pipeline.record.schema import SIGNALS, Signal
from pipeline.settings import GatewaySettings
from pipeline.telemetry import metrics

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
ENCODINGS: dict[str, Encoding] = {PROTOBUF: "protobuf", JSON: "json"}
CODES = {403: code_pb2.PERMISSION_DENIED, 404: code_pb2.NOT_FOUND, 405: code_pb2.UNIMPLEMENTED}
ROW_ENCODINGS: dict[str, Encoding] = {JSON: "json", "application/x-ndjson": "ndjson"}
CLIENTS = 10_000  # whose connections' ages are known
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(
    exports: Exports, events: Events, settings: GatewaySettings, stopping: asyncio.Event
) -> web.Application:
    """POST /v1/logs, /v1/metrics, /v1/traces, and /v1/events/{table}.

    Once `stopping` is set each answer is the last of its connection.
    """
    app = web.Application(
        client_max_size=settings.max_body_bytes,
        middlewares=[_ageing(settings.max_connection_age_s, stopping), _stated],
    )
    handlers = {f"/v1/{signal}": _handler(signal, exports, settings) for signal in SIGNALS}
    handlers["/v1/events/{table}"] = _rows_handler(events, settings)
    routes = [app.router.add_post(path, handler, expect_handler=_continue) for path, handler in handlers.items()]
    if settings.cors_origins:
        # With credentials, since navigator.sendBeacon asks for them; we set none: a page must know its API key anyway.
        options = aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call]
            allow_credentials=True, allow_headers="*", allow_methods=["POST"], expose_headers=["Retry-After"]
        )
        cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(settings.cors_origins, options))
        for route in routes:
            cors.add(route)
    return app


async def _continue(request: web.Request) -> None:
    """Ask for the body of who waits to be asked; aiohttp's own logs a traceback where the client has left."""
    if request.version == HttpVersion11 and request.headers[hdrs.EXPECT].lower() == "100-continue":
        with contextlib.suppress(ConnectionError):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # for aiohttp, the answer has not begun


def _handler(signal: Signal, exports: Exports, settings: GatewaySettings) -> Handler:
    async def export(request: web.Request) -> web.Response:
        # content_type is octet-stream where the header is absent, which is refused like any other.
        encoding = ENCODINGS.get(request.content_type)
        if encoding is None:
            message = f"Content-Type {_ascii(request.content_type)} is not supported: send {PROTOBUF} or {JSON}."
            metrics.REQUESTS.labels("http", signal, "rejected").inc()
            answer = answers.failure(answers.UnknownType(message), 0)
            return _response(answer, _serialized(answer.message, JSON), JSON)
        answer = await exports.export(_call(request, signal, encoding), _Body(request, settings.max_body_bytes))
        return _response(answer, _serialized(answer.message, request.content_type), request.content_type)

    return export


def _rows_handler(events: Events, settings: GatewaySettings) -> Handler:
    async def post(request: web.Request) -> web.Response:
        encoding = ROW_ENCODINGS.get(request.content_type)
        if encoding is None:
            metrics.REQUESTS.labels("http", "events", "rejected").inc()
            told = f"Content-Type {_ascii(request.content_type)} is not supported: send {' or '.join(ROW_ENCODINGS)}."
            return web.json_response({"error": told}, status=415)
        name, body = request.match_info["table"], _Body(request, settings.max_body_bytes)
        answer, document = await events.post(_call(request, "events", encoding), name, body)
        return _response(answer, json.dumps(document).encode(), JSON)

    return post


def _call(request: web.Request, signal: Signal, encoding: Encoding) -> Call:
    return Call(
        "http",
        signal,
        encoding,
        # Several that differ are one that nobody has, as over gRPC.
        _ascii(", ".join(dict.fromkeys(request.headers.getall("Authorization", [])))),
        tls.names(request.get_extra_info("peercert")),
        traceparent(request.headers.get("traceparent", "")),
    )


def _ascii(header: str) -> str:
    """A header may hold any bytes, which a sentence or a hash cannot."""
    return header.encode("ascii", "replace").decode()


class _Body:
    """A request's body, in pieces as they arrive: who announces much and sends little holds little."""

    def __init__(self, request: web.Request, limit: int) -> None:
        self.coding = _ascii(",".join(request.headers.getall("Content-Encoding", []))).strip().lower()
        self._request = request
        self._limit = limit

    async def read(self, room: Room) -> bytes:
        if (self._request.content_length or 0) > self._limit:
            raise larger_than(self._limit)
        pieces, size = [], 0
        try:
            async for piece in self._request.content.iter_any():
                size += len(piece)
                if size > self._limit:
                    raise larger_than(self._limit)
                await room(len(piece))
                pieces.append(piece)
        except (ClientPayloadError, web.RequestPayloadError, ConnectionError):
            raise Rejected("The body is cut short, or not framed as its headers say.") from None
        return b"".join(pieces)


def _response(answer: Answer, body: bytes, content_type: str) -> web.Response:
    response = web.Response(body=body, status=answer.http_status, content_type=content_type)
    if answer.retry_after_s is not None:
        response.headers["Retry-After"] = answer.retry_after
    if answer.http_status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _serialized(message: Message, content_type: str) -> bytes:
    if content_type == PROTOBUF:
        return message.SerializeToString()
    return json_format.MessageToJson(message, indent=None).encode()


@web.middleware
async def _stated(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Say what is wrong with a path or method as OTLP says it, in a google.rpc.Status."""
    try:
        return await handler(request)
    except web.HTTPClientError as error:
        content_type = PROTOBUF if request.content_type == PROTOBUF else JSON
        message = f"{error.reason}: POST to /v1/logs, /v1/metrics, /v1/traces or /v1/events/TABLE."
        code = CODES.get(error.status, code_pb2.INVALID_ARGUMENT)
        body = _serialized(status_pb2.Status(code=code, message=message), content_type)
        return web.Response(body=body, status=error.status, headers=_allowed(error), content_type=content_type)


def _allowed(error: web.HTTPClientError) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


def _ageing(max_age_s: float, stopping: asyncio.Event) -> Middleware:
    """Close old connections after an answer, so that a load balancer can move their clients."""
    ends: dict[object, float] = {}  # by the client's address, oldest first

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        client, now_s = request.get_extra_info("peername"), time.monotonic()
        end = ends.get(client)
        if end is None:
            if len(ends) >= CLIENTS:
                del ends[next(iter(ends))]  # most likely gone without an answer that we could have closed
            end = ends[client] = now_s + max_age_s * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load
        response = await handler(request)
        if stopping.is_set() or time.monotonic() > end:
            ends.pop(client, None)
            response.force_close()
        return response

    return middleware
