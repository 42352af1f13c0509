"""OTLP/gRPC; sources: the OTLP specification 1.9, "OTLP/gRPC", and gRPC's "gRPC over HTTP2".

On the h2 library and not on grpcio, which knows no zstd and reads a message before anybody can say that there is no
room: here a stream's window opens beyond its first bytes as there is room for more.

The bytes themselves do not pass through h2, which copies them five times: of plain DATA it hears only that a stream has
ended, and so knows nothing of the windows that they used up, which are kept here. The start of an answer that says OK
is the same for all and written as it is.
"""

import asyncio
import base64
import random
import socket
import ssl
import struct
import urllib.parse
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from google.rpc import code_pb2, status_pb2
from google.rpc.error_details_pb2 import RetryInfo
from hyperframe.frame import GoAwayFrame, WindowUpdateFrame

from pipeline.errors import Rejected
from pipeline.gateway import tls
from pipeline.gateway.answers import Answer
from pipeline.gateway.exports import Call, Exports, Room, larger_than, traceparent
from pipeline.record.schema import Signal
from pipeline.settings import GatewaySettings

METHODS: dict[bytes, Signal] = {
    b"/opentelemetry.proto.collector.logs.v1.LogsService/Export": "logs",
    b"/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": "metrics",
    b"/opentelemetry.proto.collector.trace.v1.TraceService/Export": "traces",
}
PREFIX = struct.Struct(">BI")  # compressed or not, and the length of the message
WINDOW_BYTES = 64 * 1024  # of a stream that nobody admitted yet; smaller messages never wait for a window
WINDOW_STEP_BYTES = 512 * 1024
CONNECTION_WINDOW_BYTES = 1 << 30  # streams have their own
FRAME_BYTES = 64 * 1024
PIECE_BYTES = 1024  # smaller ones are put together: who sends many holds what he sends
STREAMS = 128  # of a connection, at a time
MAX_HEADER_BYTES = 16 * 1024
CONTENT_TYPES = ("application/grpc", "application/grpc+proto")
PREFACE_BYTES = 24
LAST_STREAM = (1 << 31) - 1  # says that none is refused yet
GOODBYE_S = 1.0  # for the client to hear it
LEAVE_WITHIN_S = 30.0  # for answers under way
MAX_RESETS = 1000  # of streams, by one connection
RETRY_INFO = b"google.rpc.retryinfo-bin"
Headers = list[tuple[bytes, bytes]]
CODINGS = b"identity,gzip,deflate,zstd"
RESPONSE: Headers = [
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", CODINGS),
]
# The same in HPACK (RFC 7541): an indexed field, and two literals that no table keeps.
RESPONSE_BLOCK = b"\x88\x0f\x10\x10application/grpc\x00\x14grpc-accept-encoding" + bytes([len(CODINGS)]) + CODINGS
FRAME = struct.Struct(">BHBBI")  # of a frame's head: 24 bits of length, type, flags, stream
DATA, HEADERS, CONTINUATION = 0, 1, 9
END_STREAM, END_HEADERS, PADDED = 1, 4, 8


class Server:
    """The three OTLP services on one port, plain or with TLS."""

    def __init__(self, exports: Exports, settings: GatewaySettings) -> None:
        self._exports = exports
        self._settings = settings
        self._connections: set[_Connection] = set()
        self._listener: asyncio.Server | None = None

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """Listen; raise OSError where the port is taken."""
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self._exports, self._settings, self._connections),
            host, port, ssl=context, reuse_port=self._settings.workers > 1,
        )  # fmt: skip

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


class _Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, exports: Exports, settings: GatewaySettings, connections: "set[_Connection]") -> None:
        self._exports = exports
        self._settings = settings
        self._connections = connections
        self._streams: dict[int, _Stream] = {}
        self._consumed_bytes = 0
        self._consumed_by_hand = 0
        self._preface = PREFACE_BYTES
        self._rest = b""
        self._plain: _Stream | None = None  # whose frame of DATA is under way,
        self._plain_left = 0  # so many bytes of it to come,
        self._plain_ends = False  # and whether it is the last
        self._continues = False  # a header block, which nothing may come between
        self._resets = 0
        self._leaving = False
        self._http2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._certificate = tls.names(transport.get_extra_info("peercert"))
        codes = h2.settings.SettingCodes
        self._http2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                codes.ENABLE_PUSH: 0,
                codes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
                codes.MAX_CONCURRENT_STREAMS: STREAMS,
                codes.MAX_FRAME_SIZE: FRAME_BYTES,
                codes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
            },
        )
        self._http2.max_inbound_frame_size = FRAME_BYTES
        self._http2.decoder.max_header_list_size = MAX_HEADER_BYTES
        self._http2.initiate_connection()
        self._http2.increment_flow_control_window(CONNECTION_WINDOW_BYTES)
        self._flush()
        self._connections.add(self)
        lasts_s = self._settings.max_connection_age_s * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load
        self._age = asyncio.get_running_loop().call_later(lasts_s, self.leave)

    def connection_lost(self, error: Exception | None) -> None:
        self._age.cancel()
        self._connections.discard(self)
        for stream in self._streams.values():
            stream.task.cancel()

    def pause_writing(self) -> None:
        """A client that does not read our answers is not read either."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        try:
            self._take(self._rest + data)
        except (h2.exceptions.ProtocolError, UnicodeDecodeError, ValueError):
            self._flush()  # h2 has written its GOAWAY
            self.close()
            return
        self._flush()

    def _take(self, data: bytes) -> None:
        """Plain DATA to its stream as it comes, all else to h2 in whole frames; what is not whole yet waits."""
        view, place = memoryview(data), 0
        if self._preface:
            place = min(self._preface, len(data))
            self._preface -= place
            self._tell(view[:place])
        while True:
            if self._plain is not None:
                place += self._pass_on(self._plain, view[place:])
                if self._plain is not None:
                    break
            if len(data) - place < FRAME.size:
                break
            high, low, kind, flags, stream_id = FRAME.unpack_from(data, place)
            size = high << 16 | low
            if size > FRAME_BYTES:
                self._http2.close_connection(h2.errors.ErrorCodes.FRAME_SIZE_ERROR)
                raise h2.exceptions.FrameTooLargeError(f"a frame of {size} bytes")
            stream = None if self._continues else self._streams.get(stream_id & LAST_STREAM)
            if kind == DATA and not flags & PADDED and stream is not None and stream.plain and not stream.ended:
                self._plain, self._plain_left, self._plain_ends = stream, size, bool(flags & END_STREAM)
                place += FRAME.size
                continue
            end = place + FRAME.size + size
            if end > len(data):
                break
            self._tell(view[place:end])
            self._continues = kind in (HEADERS, CONTINUATION) and not flags & END_HEADERS
            place = end
        self._rest = data[place:]

    def _pass_on(self, stream: "_Stream", data: memoryview) -> int:
        """Feed `stream` what has arrived of its frame under way; return how much that is."""
        size = min(self._plain_left, len(data))
        self._feed(stream, data[:size])
        self._plain_left -= size
        if not self._plain_left:
            self._plain = None
            if self._plain_ends:
                self._tell(FRAME.pack(0, 0, DATA, END_STREAM, stream.id))
        return size

    def _tell(self, data: bytes | memoryview) -> None:
        for event in self._http2.receive_data(data):
            self._on(event)

    def _feed(self, stream: "_Stream", data: memoryview) -> None:
        stream.window_bytes -= len(data)
        if stream.window_bytes < 0:
            self._http2.close_connection(h2.errors.ErrorCodes.FLOW_CONTROL_ERROR)
            raise h2.exceptions.FlowControlError(f"stream {stream.id} sends more than its window")
        self._consumed_by_hand += len(data)
        if self._consumed_by_hand >= CONNECTION_WINDOW_BYTES // 2:
            self._transport.write(WindowUpdateFrame(0, window_increment=self._consumed_by_hand).serialize())
            self._consumed_by_hand = 0
        stream.feed(data)

    def leave(self) -> None:
        """Ask the client to open another connection; what it sends until it has heard that is still answered."""
        self._say_goodbye(LAST_STREAM)
        asyncio.get_running_loop().call_later(GOODBYE_S, self._leave)

    def _leave(self) -> None:
        """Take no more, and close when all is answered."""
        self._leaving = True
        self._say_goodbye(self._http2.highest_inbound_stream_id)
        asyncio.get_running_loop().call_later(LEAVE_WITHIN_S, self.close)
        if not self._streams:
            self.close()

    def _say_goodbye(self, last_stream: int) -> None:
        """Written by hand: after its own GOAWAY h2 would not let us answer."""
        if not self._transport.is_closing():
            self._transport.write(GoAwayFrame(last_stream_id=last_stream).serialize())

    def close(self) -> None:
        self._transport.close()

    def _on(self, event: h2.events.Event) -> None:
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        match event:
            case h2.events.DataReceived():
                self._consume(event.flow_controlled_length)
                if stream is not None:
                    stream.feed(event.data)
            case h2.events.RequestReceived():
                if self._leaving:
                    self._http2.reset_stream(event.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
                else:
                    headers = dict(event.headers)
                    # h2 compares a content-length with the bytes that it has seen.
                    self._begin(_Stream(event.stream_id, plain=b"content-length" not in headers), headers)
            case h2.events.StreamEnded() if stream is not None:
                stream.end()
            case h2.events.StreamReset():
                if stream is not None:
                    stream.task.cancel()
                self._resets += 1
                if self._resets > MAX_RESETS:
                    self.close()
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                for each in self._streams.values():
                    each.window_moved()
            case h2.events.ConnectionTerminated():
                self.close()

    def _consume(self, size: int) -> None:
        self._consumed_bytes += size
        if self._consumed_bytes >= CONNECTION_WINDOW_BYTES // 2:
            self._http2.increment_flow_control_window(self._consumed_bytes)
            self._consumed_bytes = 0

    def _begin(self, stream: "_Stream", headers: dict[bytes, bytes]) -> None:
        self._streams[stream.id] = stream
        stream.task = asyncio.get_running_loop().create_task(self._serve(stream, headers))
        stream.task.add_done_callback(lambda _: self._served(stream))

    async def _serve(self, stream: "_Stream", headers: dict[bytes, bytes]) -> None:
        def header(name: bytes) -> str:
            return headers.get(name, b"").decode("ascii", "replace")

        signal = METHODS.get(headers.get(b":path", b""))
        content_type = header(b"content-type").partition(";")[0].strip()
        if headers.get(b":method") != b"POST" or content_type not in CONTENT_TYPES:
            self._send_headers(stream, [(b":status", b"415")])
        elif signal is None:
            self._fail(stream, status_pb2.Status(code=code_pb2.UNIMPLEMENTED, message="OTLP has no such method."))
        else:
            trace = traceparent(header(b"traceparent"))
            call = Call("grpc", signal, "protobuf", header(b"authorization"), self._certificate, trace)
            body = _Body(self, stream, coding=header(b"grpc-encoding"), limit=self._settings.max_body_bytes)
            await self._answer(stream, await self._exports.export(call, body))

    def _served(self, stream: "_Stream") -> None:
        del self._streams[stream.id]
        if self._leaving and not self._streams:
            self.close()

    def open_window(self, stream: "_Stream", size: int) -> None:
        """Let `size` more bytes of `stream` come."""
        try:
            self._http2.increment_flow_control_window(size, stream.id)
        except h2.exceptions.ProtocolError:
            return  # it has ended
        stream.window_bytes += size
        self._flush()

    async def _answer(self, stream: "_Stream", answer: Answer) -> None:
        if answer.code != code_pb2.OK:
            assert isinstance(answer.message, status_pb2.Status)
            self._fail(stream, answer.message)
            return
        message = answer.message.SerializeToString()
        data = PREFIX.pack(0, len(message)) + message
        try:
            while self._http2.local_flow_control_window(stream.id) < len(data):
                await stream.window()
        except h2.exceptions.ProtocolError:
            return  # the client has reset the stream
        self._flush()
        begun = _frame(HEADERS, END_HEADERS, stream.id, RESPONSE_BLOCK) + _frame(DATA, 0, stream.id, data)
        self._http2.outbound_flow_control_window -= len(data)
        self._send_headers(stream, [(b"grpc-status", b"0")], after=begun)

    def _fail(self, stream: "_Stream", status: status_pb2.Status) -> None:
        trailers = [
            (b"grpc-status", b"%d" % status.code),
            (b"grpc-message", urllib.parse.quote(status.message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~").encode()),
            (b"grpc-status-details-bin", _binary(status.SerializeToString())),
        ]
        # The Python exporter looks for RetryInfo in a trailer of its own, others in the status.
        trailers += [
            (RETRY_INFO, _binary(detail.value)) for detail in status.details if detail.Is(RetryInfo.DESCRIPTOR)
        ]
        self._send_headers(stream, RESPONSE + trailers)

    def _send_headers(self, stream: "_Stream", headers: Headers, *, after: bytes = b"") -> None:
        """The last of an answer, after frames that h2 does not know of."""
        try:
            self._http2.send_headers(stream.id, headers, end_stream=True)
            if not stream.ended:
                self._http2.reset_stream(stream.id, h2.errors.ErrorCodes.NO_ERROR)  # the rest need not be sent
        except h2.exceptions.ProtocolError:
            return  # the client has reset the stream
        self._flush(after)

    def _flush(self, before: bytes = b"") -> None:
        data = before + self._http2.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)


class _Stream:
    """What has arrived of one request."""

    task: "asyncio.Task[None]"

    def __init__(self, stream_id: int, *, plain: bool) -> None:
        self.id = stream_id
        self.plain = plain  # its DATA need not pass through h2
        self.window_bytes = WINDOW_BYTES
        self.prefix = b""
        self.size = 0  # of what has arrived behind the prefix
        self.ended = False
        self._pieces: list[bytes | bytearray] = []
        self._wanted = 0
        self._arrived = asyncio.Event()
        self._window_moved = asyncio.Event()

    def window_moved(self) -> None:
        self._window_moved.set()

    async def window(self) -> None:
        """Return when the client has moved a window since the last call."""
        await self._window_moved.wait()
        self._window_moved.clear()

    def feed(self, data: bytes | memoryview) -> None:
        missing = PREFIX.size - len(self.prefix)
        if missing:
            self.prefix += data[:missing]
            data = data[missing:]
        self.size += len(data)
        if len(data) >= PIECE_BYTES:
            self._pieces.append(bytes(data))
        elif self._pieces and isinstance(last := self._pieces[-1], bytearray):
            last += data
        else:
            self._pieces.append(bytearray(data))
        self._look()

    def end(self) -> None:
        self.ended = True
        self._look()

    async def until(self, size: int) -> None:
        """Return when `size` bytes have arrived behind the prefix, or all that comes."""
        self._wanted = size
        self._arrived.clear()
        self._look()
        await self._arrived.wait()

    def taken(self) -> bytes:
        """What has arrived behind the prefix, which is not kept here any more."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken

    def _look(self) -> None:
        if self.ended or (self.size >= self._wanted and len(self.prefix) == PREFIX.size):
            self._arrived.set()


class _Body:
    """The one message of a request. The stream's window opens by steps: who sends little holds little."""

    def __init__(self, connection: _Connection, stream: _Stream, *, coding: str, limit: int) -> None:
        self.coding = coding
        self._connection = connection
        self._stream = stream
        self._limit = limit

    async def read(self, room: Room) -> bytes:
        stream = self._stream
        length = await self._length()
        allowed = min(length, WINDOW_BYTES - PREFIX.size)
        await room(allowed)
        while allowed < length and not stream.ended:
            await stream.until(allowed - WINDOW_BYTES // 2)
            step = min(WINDOW_STEP_BYTES, length - allowed)
            await room(step)
            self._connection.open_window(stream, step)
            allowed += step
        await stream.until(length + 1)  # where it is right, its end
        if stream.size != length:
            raise Rejected(f"The stream holds {stream.size} bytes where its one gRPC message has {length}.")
        return stream.taken()

    async def _length(self) -> int:
        """Of the message, from its prefix, which also says whether it is compressed."""
        stream = self._stream
        await stream.until(0)
        if len(stream.prefix) < PREFIX.size:
            raise Rejected("The stream ended before a gRPC message began.")
        compressed, length = PREFIX.unpack(stream.prefix)
        if compressed > 1 or (compressed and self.coding in ("", "identity")):
            raise Rejected("A gRPC message is flagged as compressed, and grpc-encoding does not say how.")
        if length > self._limit:
            raise larger_than(self._limit)
        if not compressed:
            self.coding = ""
        return int(length)


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream_id) + payload


def _binary(value: bytes) -> bytes:
    return base64.b64encode(value).rstrip(b"=")
