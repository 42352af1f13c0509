"""A server's side of HTTP/2 (RFC 9113), as much of it as gRPC asks for.

By hand, since the h2 library takes longer over a request than all that is done with the 100 log records in it. Plain
DATA goes to its stream as it comes, everything else in whole frames. What breaks the rules ends the connection with a
GOAWAY that says which, as 5.4.1 allows.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from hpack import HPACKError

from pipeline.gateway import frames, headers, sockets, tls
from pipeline.gateway.frames import (
    FIRST_FRAME_BYTES,
    FIRST_WINDOW_BYTES,
    FRAME,
    LAST_STREAM,
    MAX_WINDOW_BYTES,
    OF_THE_CONNECTION,
    PREFACE,
    SETTING,
    SIZES,
    WORD,
    Code,
    Flag,
    Kind,
    Setting,
    Violation,
    frame,
)
from pipeline.gateway.headers import Field, Headers

WINDOW_BYTES = 64 * 1024  # of a stream that nobody admitted yet; smaller messages never wait for a window
CONNECTION_WINDOW_BYTES = 1 << 30  # streams have their own
FRAME_BYTES = 64 * 1024
PIECE_BYTES = 1024  # smaller ones are put together: who sends many holds what he sends
LEAD_BYTES = 5  # gRPC's prefix of a message, kept apart from what follows it
STREAMS = 128  # of a connection, at a time
MAX_HEADER_BYTES = 16 * 1024
MAX_RESETS = 1000  # of streams, by one connection
GOODBYE_S = 1.0  # for the client to hear it
LEAVE_WITHIN_S = 30.0  # for answers under way


class Connection(asyncio.Protocol):
    """One client; `serve` answers each of its requests, in a task that is cancelled when the client wants no answer.

    The connection is one of `connections` while it lasts; after `lasts_s` the client is asked to open another.
    """

    def __init__(
        self,
        serve: "Callable[[Stream, Headers], Awaitable[None]]",
        connections: "set[Connection]",
        lasts_s: float,
    ) -> None:
        self._serve = serve
        self._connections = connections
        self._lasts_s = lasts_s
        self._loop = asyncio.get_running_loop()
        self._reader = headers.Reader(MAX_HEADER_BYTES)
        self._streams: dict[int, Stream] = {}
        self._last = 0  # stream that the client has opened
        self._rest = b""  # what has arrived and is no whole frame yet
        self._greeted = self._settled = False
        self._data_under_way = False  # a frame of DATA:
        self._data_left = 0  # so many bytes of it to come,
        self._data_ends = False  # whether it is the last,
        self._data_to: Stream | None = None  # and whose it is, if anybody still wants it
        self._block = bytearray()  # of headers, which nothing may come between,
        self._block_of = 0  # so long as this stream's is under way,
        self._block_frames = 0
        self._block_ends = False  # and whether it is all that comes
        self._consumed = 0  # bytes of DATA for which the client's window was not opened again
        self._resets = 0
        self._leaving = False
        self.window = FIRST_WINDOW_BYTES  # for our answers
        self._stream_window = FIRST_WINDOW_BYTES

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sockets.cut_off_unread(transport)
        self.certificate = tls.names(transport.get_extra_info("peercert"))
        settings = {
            Setting.MAX_CONCURRENT_STREAMS: STREAMS,
            Setting.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
            Setting.MAX_FRAME_SIZE: FRAME_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
        }
        self.write(
            frame(Kind.SETTINGS, 0, 0, b"".join(SETTING.pack(*each) for each in settings.items()))
            + frame(Kind.WINDOW_UPDATE, 0, 0, WORD.pack(CONNECTION_WINDOW_BYTES - FIRST_WINDOW_BYTES))
        )
        self._connections.add(self)
        self._age = self._loop.call_later(self._lasts_s, self.leave)

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

    def eof_received(self) -> bool:
        """Who has sent all may still wait for answers; TLS has no such half of a connection."""
        waits = self._transport.get_extra_info("sslcontext") is None and any(s.ended for s in self._streams.values())
        if waits:
            self._leave()
        return waits

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if self._rest:
            data = self._rest + data
        try:
            self._rest = data[self._take(data) :]
        except Violation as error:
            self._end(error.code, str(error))
        except HPACKError:
            self._end(Code.COMPRESSION_ERROR, "these headers cannot be read, or are too long")

    def leave(self) -> None:
        """Ask the client to open another connection; what it sends until it has heard that is still answered."""
        self._say_goodbye(LAST_STREAM)
        self._loop.call_later(GOODBYE_S, self._leave)

    def close(self) -> None:
        self._transport.close()

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def _leave(self) -> None:
        """Take no more, and close when all is answered."""
        self._say_goodbye(self._last)
        self._loop.call_later(LEAVE_WITHIN_S, self._transport.abort)  # close would wait for who never reads
        self._take_no_more()

    def _take_no_more(self) -> None:
        self._leaving = True
        if not self._streams:
            self.close()

    def _say_goodbye(self, last_stream: int, code: int = Code.NO_ERROR, why: str = "") -> None:
        self.write(frame(Kind.GOAWAY, 0, 0, WORD.pack(last_stream) + WORD.pack(code) + why.encode()))

    def _end(self, code: int, why: str) -> None:
        self._say_goodbye(self._last, code, why)
        self.close()

    def _take(self, data: bytes) -> int:
        """Read frames; return how much of `data` is done with."""
        view, place = memoryview(data), 0
        if not self._greeted:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise Violation(Code.PROTOCOL_ERROR, "this is not HTTP/2")
            if len(data) < len(PREFACE):
                return 0
            self._greeted, place = True, len(PREFACE)
        while True:
            if self._data_under_way:
                place += self._pass_on(view[place:])
                if self._data_under_way:
                    return place
            start = place + FRAME.size
            if len(data) < start:
                return place
            high, low, kind, flags, stream_id = FRAME.unpack_from(data, place)
            stream_id &= LAST_STREAM
            size = high << 16 | low
            self._may_come(kind, stream_id, size)
            if kind == Kind.DATA and not flags & Flag.PADDED:
                self._begin_data(stream_id, size, flags)
                place = start
                continue
            if len(data) < start + size:
                return place
            place = start + size
            self._on(kind, flags, stream_id, data[start:place])

    def _may_come(self, kind: int, stream_id: int, size: int) -> None:
        """Raise Violation where such a frame may not come now."""
        if size > FRAME_BYTES:
            raise Violation(Code.FRAME_SIZE_ERROR, f"a frame of {size} bytes, where {FRAME_BYTES} are the most")
        if SIZES.get(kind, size) != size:
            raise Violation(Code.FRAME_SIZE_ERROR, f"a frame of type {kind} has {SIZES[kind]} bytes")
        if not self._settled and kind != Kind.SETTINGS:
            raise Violation(Code.PROTOCOL_ERROR, "SETTINGS come first")
        if stream_id and kind in OF_THE_CONNECTION:
            raise Violation(Code.PROTOCOL_ERROR, f"a frame of type {kind} is of no stream")
        if (kind == Kind.CONTINUATION or self._block_of) and (kind != Kind.CONTINUATION or stream_id != self._block_of):
            raise Violation(Code.PROTOCOL_ERROR, "a header block is one piece")

    def _on(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """A whole frame."""
        if kind == Kind.HEADERS:
            self._block_of = self._a_stream(stream_id)
            self._block_ends, self._block_frames = bool(flags & Flag.END_STREAM), 0
            self._block = bytearray(frames.without_priority(frames.unpadded(payload, flags), flags))
            self._add_headers(b"", flags)
        elif kind == Kind.CONTINUATION:
            self._add_headers(payload, flags)
        elif kind == Kind.DATA:
            content = frames.unpadded(payload, flags)
            self._begin_data(stream_id, len(content), flags)
            if self._data_to is not None:
                self._data_to.use(len(payload) - len(content))
            self._consume(len(payload) - len(content))
            self._pass_on(memoryview(content))
        elif kind == Kind.WINDOW_UPDATE:
            self._move_window(stream_id, WORD.unpack(payload)[0] & MAX_WINDOW_BYTES)
        elif kind == Kind.RST_STREAM:
            self._was_opened(stream_id)
            self._forget(stream_id)
        elif kind == Kind.SETTINGS:
            self._settle(flags, payload)
        elif kind == Kind.PING:
            if not flags & Flag.ACK:
                self.write(frame(Kind.PING, Flag.ACK, 0, payload))
        elif kind == Kind.GOAWAY:
            self._take_no_more()
        elif kind == Kind.PRIORITY:
            self._a_stream(stream_id)
        elif kind == Kind.PUSH_PROMISE:
            raise Violation(Code.PROTOCOL_ERROR, "clients do not push")

    def _begin_data(self, stream_id: int, size: int, flags: int) -> None:
        self._was_opened(stream_id)
        stream = self._streams.get(stream_id)
        if stream is not None and stream.ended:
            raise Violation(Code.STREAM_CLOSED, f"DATA behind the end of stream {stream_id}")
        self._data_under_way, self._data_to = True, stream
        self._data_left, self._data_ends = size, bool(flags & Flag.END_STREAM)

    def _pass_on(self, data: memoryview) -> int:
        """Feed a stream what has arrived of its frame under way; return how much that is."""
        size = min(self._data_left, len(data))
        stream = self._data_to
        if stream is not None:
            stream.use(size)
            stream.feed(data[:size])
        self._consume(size)
        self._data_left -= size
        if not self._data_left:
            self._data_under_way, self._data_to = False, None
            if stream is not None and self._data_ends:
                stream.end()
        return size

    def _consume(self, size: int) -> None:
        self._consumed += size
        if self._consumed >= CONNECTION_WINDOW_BYTES // 2:
            self.write(frame(Kind.WINDOW_UPDATE, 0, 0, WORD.pack(self._consumed)))
            self._consumed = 0

    def _add_headers(self, piece: bytes, flags: int) -> None:
        self._block += piece
        self._block_frames += 1
        if len(self._block) + self._block_frames * FRAME.size > MAX_HEADER_BYTES:
            raise Violation(Code.ENHANCE_YOUR_CALM, f"headers of more than {MAX_HEADER_BYTES} bytes")
        if flags & Flag.END_HEADERS:
            stream_id, self._block_of = self._block_of, 0
            self._headers(stream_id, self._reader.read(bytes(self._block)))

    def _headers(self, stream_id: int, fields: list[Field]) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            if stream.ended:
                raise Violation(Code.STREAM_CLOSED, f"headers behind the end of stream {stream_id}")
            if not self._block_ends:
                raise Violation(Code.PROTOCOL_ERROR, f"trailers do not end stream {stream_id}")
            if headers.is_request(fields):
                raise Violation(Code.PROTOCOL_ERROR, f"trailers of stream {stream_id} that are a request's headers")
            stream.end()
        elif stream_id > self._last:
            self._last = stream_id
            request = headers.request(fields)
            if self._leaving or len(self._streams) >= STREAMS:
                self.write(frame(Kind.RST_STREAM, 0, stream_id, WORD.pack(Code.REFUSED_STREAM)))
            else:
                self._begin(Stream(self, stream_id, self._stream_window, request), request)
        elif headers.is_request(fields):  # what else may still come is trailers behind an early answer
            raise Violation(Code.PROTOCOL_ERROR, f"stream {stream_id} cannot begin any more")

    def _begin(self, stream: "Stream", request: Headers) -> None:
        self._streams[stream.id] = stream
        stream.task = self._loop.create_task(self._answered(stream, request))
        if self._block_ends:
            stream.end()

    async def _answered(self, stream: "Stream", request: Headers) -> None:
        try:
            await self._serve(stream, request)
        finally:
            self._streams.pop(stream.id, None)
            stream.drop()
            if self._leaving and not self._streams:
                self.close()

    def _forget(self, stream_id: int) -> None:
        """The client wants no answer."""
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return
        stream.drop()
        stream.task.cancel()
        self._resets += 1
        if self._resets > MAX_RESETS:
            raise Violation(Code.ENHANCE_YOUR_CALM, f"more than {MAX_RESETS} streams were reset")
        if self._leaving and not self._streams:
            self.close()

    def _settle(self, flags: int, payload: bytes) -> None:
        if len(payload) % SETTING.size or (flags & Flag.ACK and payload):
            raise Violation(Code.FRAME_SIZE_ERROR, "these are no SETTINGS")
        if flags & Flag.ACK:
            return
        self._settled = True
        for setting, value in SETTING.iter_unpack(payload):
            if setting == Setting.INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW_BYTES:
                    raise Violation(Code.FLOW_CONTROL_ERROR, f"a window of {value} bytes")
                for stream in self._streams.values():
                    stream.move(value - self._stream_window)
                self._stream_window = value
            elif (setting == Setting.ENABLE_PUSH and value > 1) or (
                setting == Setting.MAX_FRAME_SIZE and not FIRST_FRAME_BYTES <= value < 1 << 24
            ):
                raise Violation(Code.PROTOCOL_ERROR, f"setting {setting} cannot be {value}")
        self.write(frame(Kind.SETTINGS, Flag.ACK, 0, b""))

    def _move_window(self, stream_id: int, size: int) -> None:
        if not size:
            raise Violation(Code.PROTOCOL_ERROR, "a window that opens by nothing")
        if not stream_id:
            self.window = frames.opened(self.window, size)
            for stream in self._streams.values():
                stream.move(0)
            return
        self._was_opened(stream_id)
        if stream_id in self._streams:
            self._streams[stream_id].move(size)

    def _was_opened(self, stream_id: int) -> None:
        if self._a_stream(stream_id) > self._last:
            raise Violation(Code.PROTOCOL_ERROR, f"stream {stream_id} has not begun")

    def _a_stream(self, stream_id: int) -> int:
        if not stream_id % 2:
            raise Violation(Code.PROTOCOL_ERROR, f"a client has no stream {stream_id}")
        return stream_id


class Stream:
    """One request: what has arrived of it, and its answer."""

    task: "asyncio.Task[None]"

    def __init__(self, connection: Connection, stream_id: int, window: int, request: Headers) -> None:
        self.id = stream_id
        self.lead = b""  # the first LEAD_BYTES
        self.size = 0  # of what has arrived behind them
        self.ended = False  # nothing more comes
        self.certificate = connection.certificate
        self._connection = connection
        self._said = request.get(b"content-length")
        self._window = window  # for our answer
        self._allowed = WINDOW_BYTES  # to come
        self._dropped = False
        self._pieces: list[bytes | bytearray] = []
        self._reached: Callable[[], bool] = bool
        self._waiter: asyncio.Future[None] | None = None

    async def arrived(self, size: int) -> None:
        """Return when `size` bytes have arrived behind the lead, or all that comes."""
        await self._until(lambda: self.ended or (self.size >= size and len(self.lead) == LEAD_BYTES))

    def taken(self) -> bytes:
        """What has arrived behind the lead, which is not kept here any more."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken

    def allow(self, size: int) -> None:
        """Let `size` more bytes come."""
        if not self.ended:
            self._allowed += size
            self._connection.write(frame(Kind.WINDOW_UPDATE, 0, self.id, WORD.pack(size)))

    async def answer(self, block: bytes, data: bytes = b"", trailers: bytes = b"") -> None:
        """Send a whole answer, its `data` as the client's windows open; the headers in HPACK without a table."""
        connection = self._connection
        if data:
            sent = frames.header_block(self.id, block, 0)
            while data:
                size = min(len(data), self._window, connection.window)
                if size > 0:
                    self._window -= size
                    connection.window -= size
                    sent.append(frame(Kind.DATA, 0, self.id, data[:size]))
                    data = data[size:]
                else:
                    connection.write(b"".join(sent))
                    sent.clear()
                    await self._until(lambda: min(self._window, connection.window) > 0)
            sent += frames.header_block(self.id, trailers, Flag.END_STREAM)
        else:
            sent = frames.header_block(self.id, block, Flag.END_STREAM)
        if not self.ended:
            sent.append(frame(Kind.RST_STREAM, 0, self.id, WORD.pack(Code.NO_ERROR)))  # the rest need not be sent
        connection.write(b"".join(sent))

    def use(self, size: int) -> None:
        """`size` bytes of its window are used up."""
        self._allowed -= size
        if self._allowed < 0:
            raise Violation(Code.FLOW_CONTROL_ERROR, f"stream {self.id} sends more than its window")

    def feed(self, data: memoryview) -> None:
        """What has arrived."""
        if self._dropped:
            return
        missing = LEAD_BYTES - len(self.lead)
        if missing:
            self.lead += data[:missing]
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
        """Nothing more comes."""
        if self._said is not None and not self._dropped and self._said != b"%d" % (len(self.lead) + self.size):
            raise Violation(Code.PROTOCOL_ERROR, f"stream {self.id} is not as long as its content-length says")
        self.ended = True
        self._look()

    def move(self, size: int) -> None:
        """The client's window for our answer, or for all of them, opens by `size`."""
        self._window = frames.opened(self._window, size)
        self._look()

    def drop(self) -> None:
        """Nobody reads it any more."""
        self._dropped = True
        self._pieces.clear()
        self._reached = bool  # what it was holds us: only the garbage collector would find us

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._reached = reached
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _look(self) -> None:
        if self._waiter is not None and not self._waiter.done() and self._reached():
            self._waiter.set_result(None)
