"""OTLP/gRPC; sources: the OTLP specification 1.9, "OTLP/gRPC", and gRPC's "gRPC over HTTP2".

Not on grpcio, which knows no zstd and reads a message before anybody can say that there is no room: here a stream's
window opens beyond its first bytes as there is room for more.
"""

import asyncio
import base64
import random
import ssl
import struct
import urllib.parse

from google.rpc import code_pb2, status_pb2
from google.rpc.error_details_pb2 import RetryInfo
from hpack.hpack import encode_integer

from pipeline.errors import Rejected
from pipeline.gateway.answers import Answer
from pipeline.gateway.exports import Call, Exports, Room, larger_than, traceparent
from pipeline.gateway.headers import Headers
from pipeline.gateway.http2 import LEAD_BYTES, WINDOW_BYTES, Connection, Stream
from pipeline.record.schema import Signal
from pipeline.settings import GatewaySettings

METHODS: dict[bytes, Signal] = {
    b"/opentelemetry.proto.collector.logs.v1.LogsService/Export": "logs",
    b"/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": "metrics",
    b"/opentelemetry.proto.collector.trace.v1.TraceService/Export": "traces",
}
PREFIX = struct.Struct(">BI")  # compressed or not, and the length of the message: a stream's lead
WINDOW_STEP_BYTES = 512 * 1024
CONTENT_TYPES = ("application/grpc", "application/grpc+proto")
RETRY_INFO = b"google.rpc.retryinfo-bin"


def _field(name: bytes, value: bytes) -> bytes:
    """A header in HPACK (RFC 7541, 6.2.2): as it is, and no table keeps it."""
    return b"\0" + bytes(encode_integer(len(name), 7)) + name + bytes(encode_integer(len(value), 7)) + value


RESPONSE = (
    _field(b":status", b"200")
    + _field(b"content-type", b"application/grpc")
    + _field(b"grpc-accept-encoding", b"identity,gzip,deflate,zstd,snappy,lz4")
)
UNSUPPORTED = _field(b":status", b"415")
OK = _field(b"grpc-status", b"0")


class Server:
    """The three OTLP services on one port, plain or with TLS."""

    def __init__(self, exports: Exports, settings: GatewaySettings) -> None:
        self._exports = exports
        self._settings = settings
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """Listen; raise OSError where the port is taken."""
        self._listener = await asyncio.get_running_loop().create_server(
            self._connection, host, port, ssl=context, reuse_port=self._settings.workers > 1
        )

    def _connection(self) -> Connection:
        lasts_s = self._settings.max_connection_age_s * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load
        return Connection(self._serve, self._connections, lasts_s)

    @property
    def port(self) -> int:
        assert self._listener is not None
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, answer those that are here within `grace_s`, then close."""
        if self._listener is None:
            return
        self._listener.close()
        for connection in self._connections:
            connection.leave()
        deadline = asyncio.get_running_loop().time() + grace_s
        while self._connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        for connection in list(self._connections):
            connection.close()

    async def _serve(self, stream: Stream, headers: Headers) -> None:
        def header(name: bytes) -> str:
            return headers.get(name, b"").decode("ascii", "replace")

        signal = METHODS.get(headers[b":path"])
        content_type = header(b"content-type").partition(";")[0].strip()
        if headers[b":method"] != b"POST" or content_type not in CONTENT_TYPES:
            await stream.answer(UNSUPPORTED)
        elif signal is None:
            await _fail(stream, status_pb2.Status(code=code_pb2.UNIMPLEMENTED, message="OTLP has no such method."))
        else:
            trace = traceparent(header(b"traceparent"))
            call = Call("grpc", signal, "protobuf", header(b"authorization"), stream.certificate, trace)
            body = _Body(stream, coding=header(b"grpc-encoding"), limit=self._settings.max_body_bytes)
            await _answer(stream, await self._exports.export(call, body))


class _Body:
    """The one message of a request. The stream's window opens by steps: who sends little holds little."""

    def __init__(self, stream: Stream, *, coding: str, limit: int) -> None:
        self.coding = coding
        self._stream = stream
        self._limit = limit

    async def read(self, room: Room) -> bytes:
        stream = self._stream
        length = await self._length()
        allowed = min(length, WINDOW_BYTES - LEAD_BYTES)
        await room(allowed)
        while allowed < length and not stream.ended:
            await stream.arrived(allowed - WINDOW_BYTES // 2)
            step = min(WINDOW_STEP_BYTES, length - allowed)
            await room(step)
            stream.allow(step)
            allowed += step
        await stream.arrived(length + 1)  # where it is right, its end
        if stream.size != length:
            raise Rejected(f"The stream holds {stream.size} bytes where its one gRPC message has {length}.")
        return stream.taken()

    async def _length(self) -> int:
        """Of the message, from its prefix, which also says whether it is compressed."""
        stream = self._stream
        await stream.arrived(0)
        if len(stream.lead) < LEAD_BYTES:
            raise Rejected("The stream ended before a gRPC message began.")
        compressed, length = PREFIX.unpack(stream.lead)
        if compressed > 1 or (compressed and self.coding in ("", "identity")):
            raise Rejected("A gRPC message is flagged as compressed, and grpc-encoding does not say how.")
        if length > self._limit:
            raise larger_than(self._limit)
        if not compressed:
            self.coding = ""
        return int(length)


async def _answer(stream: Stream, answer: Answer) -> None:
    if answer.code == code_pb2.OK:
        message = answer.message.SerializeToString()
        await stream.answer(RESPONSE, PREFIX.pack(0, len(message)) + message, OK)
    else:
        assert isinstance(answer.message, status_pb2.Status)
        await _fail(stream, answer.message)


async def _fail(stream: Stream, status: status_pb2.Status) -> None:
    message = urllib.parse.quote(status.message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~").encode()
    trailers = [
        _field(b"grpc-status", b"%d" % status.code),
        _field(b"grpc-message", message),
        _field(b"grpc-status-details-bin", _binary(status.SerializeToString())),
    ]
    # The Python exporter looks for RetryInfo in a trailer of its own, others in the status.
    retry = [detail.value for detail in status.details if detail.Is(RetryInfo.DESCRIPTOR)]
    trailers += [_field(RETRY_INFO, _binary(value)) for value in retry]
    await stream.answer(RESPONSE + b"".join(trailers))


def _binary(value: bytes) -> bytes:
    return base64.b64encode(value).rstrip(b"=")
