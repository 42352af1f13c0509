"""The ordinary OTLP/HTTP request, read by hand; every other one is aiohttp's, with the connection it came on.

Ordinary is a POST of protobuf to one of the three paths, its length said, its head without anything that asks for more
(chunks, 100-continue, an Origin, a header twice). For a request of 100 log records aiohttp takes half as much CPU as
all that is done with them; what is not ordinary keeps aiohttp's care.
"""

import asyncio
import email.utils
import functools
import http
import random
import re
import ssl
import time
from typing import cast

from aiohttp import web

from pipeline.errors import Rejected
from pipeline.gateway import sockets, tls
from pipeline.gateway.answers import Answer
from pipeline.gateway.exports import Call, Exports, Room, traceparent
from pipeline.record.schema import Signal
from pipeline.settings import GatewaySettings

ORDINARY = b"POST /v1/"
END = b"\r\n\r\n"
BARE_END = re.compile(rb"\n\r?\n")  # of a head whose lines end as no client should end them
HEAD = re.compile(
    rb"POST /v1/(logs|metrics|traces) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e]*\r\n)+)\r\n"
)
HEADER = re.compile(rb"([^:]+):([^\r]*)\r\n")
PASSED_ON = {b"transfer-encoding", b"expect", b"upgrade", b"origin", b"te", b"trailer"}
LENGTH = re.compile(rb"[0-9]{1,10}")
PROTOBUF = b"application/x-protobuf"
MAX_HEAD_BYTES = 16 * 1024
AHEAD_BYTES = 256 * 1024  # of a body that nobody made room for yet; then it is not read on
IDLE_S = 75.0  # then a connection is closed
GRACE_S = 7.5  # at the end, for answers that are due
LAST_WORD_S = 1.0  # at the end, for a request that may be on its way
Headers = dict[bytes, bytes]


class Server:
    """OTLP/HTTP and all else that `app` answers on one port, plain or with TLS."""

    def __init__(
        self, exports: Exports, settings: GatewaySettings, app: web.Application, stopping: asyncio.Event
    ) -> None:
        """Once `stopping` is set each answer is the last of its connection."""
        self._exports = exports
        self._settings = settings
        self._stopping = stopping
        self._connections: set[_Connection] = set()
        self._listener: asyncio.Server | None = None
        # Compressed bodies are opened by us, within a limit; aiohttp's own way has none.
        self._others = web.AppRunner(
            app, access_log=None, auto_decompress=False, shutdown_timeout=GRACE_S, keepalive_timeout=IDLE_S
        )

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """Listen; raise OSError where the port is taken."""
        await self._others.setup()
        others = self._others.server
        assert others is not None
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self._exports, self._settings, self._connections, self._stopping, others),
            host, port, ssl=context, reuse_port=self._settings.workers > 1,
        )  # fmt: skip

    @property
    def port(self) -> int:
        assert self._listener is not None
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Take no more requests, answer those that are here within GRACE_S, then close."""
        if self._listener is not None:
            self._listener.close()
        deadline = asyncio.get_running_loop().time() + GRACE_S
        while self._connections and asyncio.get_running_loop().time() < deadline:
            for connection in list(self._connections):
                connection.leave()
            await asyncio.sleep(0.02)
        for connection in list(self._connections):
            connection.close()
        await self._others.cleanup()  # last: until then connections may be passed on to it


class _Connection(asyncio.Protocol):
    """One client, one request after the other."""

    def __init__(
        self,
        exports: Exports,
        settings: GatewaySettings,
        connections: "set[_Connection]",
        stopping: asyncio.Event,
        others: web.Server,
    ) -> None:
        self._exports = exports
        self._settings = settings
        self._connections = connections
        self._stopping = stopping
        self._others = others
        self._head = b""  # what has arrived of the next request
        self._body: _Body | None = None
        self._task: asyncio.Task[None] | None = None
        self._said_all = False  # the client sends no more, and may still read
        self._ends_s = time.monotonic() + settings.max_connection_age_s * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._certificate = tls.names(transport.get_extra_info("peercert"))
        sockets.cut_off_unread(transport)  # also what aiohttp answers
        self._connections.add(self)
        self._quiet = asyncio.get_running_loop().call_later(IDLE_S, self._look)
        self._seen_s = time.monotonic()

    def connection_lost(self, error: Exception | None) -> None:
        self._quiet.cancel()
        self._connections.discard(self)
        if self._body is not None:
            self._body.lose()

    def pause_writing(self) -> None:
        self._transport.abort()  # it does not read its answers, for which close would wait

    def eof_received(self) -> bool:
        """Who has sent all may still wait for an answer; TLS has no such half of a connection."""
        self._said_all = self._transport.get_extra_info("sslcontext") is None
        return self._said_all and self._task is not None and self._body is None

    def data_received(self, data: bytes) -> None:
        body = self._body
        if body is None:
            self._head += data
            if self._task is None:
                self._next()
            elif len(self._head) > MAX_HEAD_BYTES:
                self._transport.pause_reading()  # until it has its answer
        else:
            self._head = body.feed(data)
            if body.missing == 0:
                self._body = None
                if self._task is None:
                    self._next()

    def leave(self) -> None:
        """Close where no answer is due and no request can be on its way any more."""
        if self._task is None and time.monotonic() - self._seen_s > LAST_WORD_S:
            self.close()

    def close(self) -> None:
        self._transport.close()

    def _next(self) -> None:
        """Begin with the request whose head has arrived, if it has."""
        end = self._head.find(END)
        if end < 0:
            ordinary = self._head.startswith(ORDINARY) or ORDINARY.startswith(self._head)
            if not ordinary or len(self._head) > MAX_HEAD_BYTES or BARE_END.search(self._head):
                self._pass_on()
            return
        end += len(END)
        found = HEAD.fullmatch(self._head, 0, end)
        headers = _ordinary(found[2]) if found and end <= MAX_HEAD_BYTES else None
        length = int(headers[b"content-length"]) if headers else 0
        if not found or headers is None or length > self._settings.max_body_bytes:
            self._pass_on()
            return
        body = _Body(self._transport, headers.get(b"content-encoding", b"").decode().lower(), length)
        self._head = body.feed(self._head[end:])
        self._body = body if body.missing else None
        signal = cast(Signal, found[1].decode())
        self._task = asyncio.get_running_loop().create_task(self._serve(signal, headers, body))

    async def _serve(self, signal: Signal, headers: Headers, body: "_Body") -> None:
        trace = traceparent(headers.get(b"traceparent", b"").decode())
        authorization = headers.get(b"authorization", b"").decode()
        call = Call("http", signal, "protobuf", authorization, self._certificate, trace)
        answer = await self._exports.export(call, body)
        body.drop()
        self._task = None
        if self._transport.is_closing():
            return
        self._seen_s = time.monotonic()
        last = (
            self._stopping.is_set()
            or self._seen_s > self._ends_s
            or headers.get(b"connection", b"").lower() == b"close"
            or (self._said_all and END not in self._head)
        )
        self._transport.write(_written(answer, last))
        if last:
            self.close()
        elif self._body is None and self._head:
            self._next()

    def _look(self) -> None:
        """Close what has been quiet for long."""
        left_s = self._seen_s + IDLE_S - time.monotonic()
        if self._task is None and left_s <= 0:
            self.close()
        else:
            self._quiet = asyncio.get_running_loop().call_later(left_s if left_s > 0 else IDLE_S, self._look)

    def _pass_on(self) -> None:
        """From here on the connection is aiohttp's."""
        self._quiet.cancel()
        self._connections.discard(self)
        other = self._others()
        self._transport.set_protocol(other)
        other.connection_made(self._transport)
        other.data_received(self._head)


class _Body:
    """A body of a length that is known, in pieces as they arrive: who announces much and sends little holds little."""

    def __init__(self, transport: asyncio.Transport, coding: str, length: int) -> None:
        self.coding = coding
        self.missing = length
        self._transport = transport
        self._pieces: list[bytes] = []
        self._ahead = 0  # bytes that nobody made room for yet
        self._arrived: asyncio.Future[None] | None = None
        self._lost = self._dropped = False

    def feed(self, data: bytes) -> bytes:
        """Take what has arrived; return what is behind the body's end."""
        piece = data if len(data) <= self.missing else data[: self.missing]
        self.missing -= len(piece)
        if not self._dropped:
            self._pieces.append(piece)
            self._ahead += len(piece)
            if self._ahead > AHEAD_BYTES and self.missing:
                self._transport.pause_reading()
            self._wake()
        return data[len(piece) :]

    def lose(self) -> None:
        """The client is gone."""
        self._lost = True
        self._wake()

    def drop(self) -> None:
        """Nobody reads it any more."""
        self._dropped = True
        self._pieces.clear()
        self._read_on()

    async def read(self, room: Room) -> bytes:
        while self._ahead or self.missing:
            if self._ahead:
                ahead, self._ahead = self._ahead, 0
                await room(ahead)
                self._read_on()
            elif self._lost:
                raise Rejected("The body is cut short, or not framed as its headers say.")
            else:
                self._arrived = asyncio.get_running_loop().create_future()
                await self._arrived
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def _read_on(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)


def _ordinary(lines: bytes) -> Headers | None:
    """The headers by their names in lower case, or None where they ask for more than a body of a known length."""
    pairs = HEADER.findall(lines)
    headers = {name.lower(): value.strip(b"\t ") for name, value in pairs}
    if (
        len(headers) < len(pairs)
        or not PASSED_ON.isdisjoint(headers)
        or b"host" not in headers
        or headers.get(b"content-type") != PROTOBUF
        or not LENGTH.fullmatch(headers.get(b"content-length", b""))
        or headers.get(b"connection", b"close").lower() not in (b"close", b"keep-alive")
    ):
        return None
    return headers


@functools.lru_cache(1)
def _date(seconds: int) -> str:
    return email.utils.formatdate(seconds, usegmt=True)


def _written(answer: Answer, last: bool) -> bytes:
    body = answer.message.SerializeToString()
    lines = [
        f"HTTP/1.1 {answer.http_status} {http.HTTPStatus(answer.http_status).phrase}",
        f"Content-Type: {PROTOBUF.decode()}",
        f"Content-Length: {len(body)}",
        f"Date: {_date(int(time.time()))}",
    ]
    if answer.retry_after_s is not None:
        lines.append(f"Retry-After: {answer.retry_after}")
    if answer.http_status == http.HTTPStatus.UNAUTHORIZED:
        lines.append("WWW-Authenticate: Bearer")
    if last:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body
