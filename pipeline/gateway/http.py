"""OTLP/HTTP; source: the OTLP specification 1.9, "OTLP/HTTP"."""

import math
import zlib
from collections.abc import Awaitable, Callable, Mapping

import structlog
from aiohttp import web
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import code_pb2

from pipeline.errors import Rejected, TooLarge, Unavailable
from pipeline.gateway import answers
from pipeline.gateway.intake import Intake, Request
from pipeline.otlp.json import to_protobuf
from pipeline.record.schema import SIGNALS, Signal
from pipeline.settings import GatewaySettings
from pipeline.telemetry import metrics

log = structlog.get_logger()
PROTOBUF = "application/x-protobuf"
JSON = "application/json"


def application(intake: Intake, settings: GatewaySettings, tenant: str) -> web.Application:
    """POST /v1/logs, /v1/metrics, /v1/traces."""
    app = web.Application(client_max_size=settings.max_body_bytes)
    for signal in SIGNALS:
        app.router.add_post(f"/v1/{signal}", _handler(signal, intake, (settings, tenant)))
    return app


def _handler(
    signal: Signal, intake: Intake, who: tuple[GatewaySettings, str]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    settings, tenant = who
    in_flight = metrics.IN_FLIGHT.labels("http")
    # request.content_type defaults to octet-stream where the header is absent, which is refused like any other.

    async def export(request: web.Request) -> web.Response:
        encoding = request.content_type
        with in_flight.track_inprogress():
            try:
                if encoding not in (PROTOBUF, JSON):
                    raise web.HTTPUnsupportedMediaType
                body = _decompressed(await _read(request, settings), request.headers, settings.max_decoded_bytes)
                if encoding == JSON:
                    body = to_protobuf(signal, body)
                traceparent = request.headers.get("traceparent", "")[:64]
                refused = await intake.accept(Request(signal, body, tenant, traceparent))
                outcome, response = (
                    "partial" if refused else "ok",
                    _answer(answers.success(signal, refused), encoding, 200),
                )
            except web.HTTPUnsupportedMediaType:
                message = f"Content-Type {encoding} is not supported: send {PROTOBUF} or {JSON}."
                outcome, response = "rejected", _answer(answers.failure(code_pb2.INVALID_ARGUMENT, message), JSON, 415)
            except _UnknownEncoding as error:
                outcome, response = (
                    "rejected",
                    _answer(answers.failure(code_pb2.INVALID_ARGUMENT, str(error)), encoding, 415),
                )
            except TooLarge as error:
                status = answers.failure(code_pb2.RESOURCE_EXHAUSTED, str(error))
                outcome, response = "too_large", _answer(status, encoding, 413)
            except Rejected as error:
                outcome, response = (
                    "rejected",
                    _answer(answers.failure(code_pb2.INVALID_ARGUMENT, str(error)), encoding, 400),
                )
            except Unavailable as error:
                status, delay_s = answers.not_now(str(error), settings.retry_after_s)
                outcome, response = "unavailable", _answer(status, encoding, 503)
                response.headers["Retry-After"] = str(math.ceil(delay_s))
        metrics.REQUESTS.labels("http", signal, outcome).inc()
        return response

    return export


class _UnknownEncoding(Rejected):
    pass


async def _read(request: web.Request, settings: GatewaySettings) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise TooLarge(f"The body is larger than {settings.max_body_bytes} bytes: send smaller batches.") from None


def _decompressed(body: bytes, headers: Mapping[str, str], limit: int) -> bytes:
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise _UnknownEncoding(f"Content-Encoding {encoding[:40]} is not supported: send gzip or none.")
    return _gunzip(body, limit)


def _gunzip(body: bytes, limit: int) -> bytes:
    """Decompress all gzip members of `body`; never hold more than `limit` bytes."""
    out = bytearray()
    try:
        while body:
            member = zlib.decompressobj(wbits=31)
            out += member.decompress(body, limit - len(out) + 1)
            if len(out) > limit:
                raise TooLarge(f"The body is larger than {limit} bytes when decompressed: send smaller batches.")
            if not member.eof:
                raise Rejected("The gzip body is cut short.")
            body = member.unused_data
    except zlib.error as error:
        raise Rejected(f"The body is not gzip: {error}.") from None
    return bytes(out)


def _answer(message: Message, encoding: str, status: int) -> web.Response:
    if encoding == JSON:
        return web.Response(text=json_format.MessageToJson(message, indent=None), status=status, content_type=JSON)
    return web.Response(body=message.SerializeToString(), status=status, content_type=PROTOBUF)
