"""HTTP/2 as gRPC needs it: a strict client understands every answer, and what breaks the rules ends its own connection."""

import asyncio
import random
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hpack
import pytest
from hpack.hpack import encode_integer
from hypothesis import given
from hypothesis import strategies as st

from pipeline.gateway import http2
from pipeline.gateway.frames import PREFACE, Code, Flag, Kind, Setting, frame
from pipeline.gateway.headers import Headers
from pipeline.gateway.http2 import Connection, Stream

REQUEST = [
    (":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "x"), ("te", "trailers"),
]  # fmt: skip
BLOCK = hpack.Encoder().encode(REQUEST)
FIELD = b"\0\x01a\x01b"  # a header of one letter, as a literal
BLOCK_OF_ANSWER = b"\x88"  # :status 200, which is in the static table
HELLO = PREFACE + frame(Kind.SETTINGS, 0, 0, b"")
BEGUN = HELLO + frame(Kind.HEADERS, Flag.END_HEADERS, 1, BLOCK)
Serve = Callable[[Stream, Headers], Awaitable[None]]


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closing = self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str) -> Any:
        return self if name == "socket" else None

    def setsockopt(self, *_: Any) -> None:
        """A socket would."""

    def taken(self) -> bytes:
        taken = bytes(self.written)
        self.written.clear()
        return taken


def connected(serve: Serve) -> tuple[Connection, Wire]:
    connection, wire = Connection(serve, set(), 3600), Wire()
    connection.connection_made(wire)
    return connection, wire


async def echo(stream: Stream, headers: Headers) -> None:
    """Answer with the start of what came."""
    await stream.arrived(0)
    while not stream.ended:
        stream.allow(http2.WINDOW_BYTES)
        await stream.arrived(stream.size + 1)
    await stream.answer(BLOCK_OF_ANSWER, stream.lead + stream.taken()[:5000], FIELD)


async def silent(stream: Stream, headers: Headers) -> None:
    """Never answer."""
    await stream.arrived(1 << 40)


class Client:
    """The h2 library's client, strict in what it takes."""

    def __init__(self, connection: Connection, wire: Wire) -> None:
        self.http2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.http2.initiate_connection()
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self._connection, self._wire = connection, wire

    async def exchange(self, cut: Callable[[], int]) -> None:
        """Send what is due in pieces, let the server work, hear it; until nothing moves."""
        while True:
            sent = self.http2.data_to_send()
            while sent:
                size = cut()
                self._connection.data_received(sent[:size])
                sent = sent[size:]
            for _ in range(5):
                await asyncio.sleep(0)
            heard = self._wire.taken()
            for event in self.http2.receive_data(heard):
                self._on(event)
            if not heard and not self.http2.data_to_send(0):
                return

    def _on(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived():
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self.ended.add(event.stream_id)
            case h2.events.StreamReset():
                self.resets[event.stream_id] = int(event.error_code)


@given(
    sizes=st.lists(st.integers(0, 200_000), min_size=1, max_size=6),
    window=st.sampled_from([0, 100, 65_535]),
    seed=st.integers(0, 2**32),
)
def test_whatever_way_requests_come_each_has_its_answer(sizes: list[int], window: int, seed: int) -> None:
    """Streams beside each other, frames padded and not, cut anywhere, and windows that open late."""

    async def talk() -> None:
        rng = random.Random(seed)
        client = Client(*connected(echo))
        client.http2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        streams = [2 * n + 1 for n in range(len(sizes))]
        bodies = {stream: rng.randbytes(size + 5) for stream, size in zip(streams, sizes, strict=True)}
        left = dict(bodies)
        cut = lambda: rng.choice([1, 9, 100, 16_384, 1 << 20]) if len(sizes) < 3 else rng.choice([999, 1 << 20])  # noqa: E731
        for stream in streams:
            client.http2.send_headers(stream, REQUEST)
        await client.exchange(cut)
        while left:
            stream = rng.choice(list(left))
            room = min(client.http2.local_flow_control_window(stream), client.http2.max_outbound_frame_size) - 256
            size = min(len(left[stream]), max(0, room), rng.choice([1, 3, 700, 1 << 20]))
            piece, left[stream] = left[stream][:size], left[stream][size:]
            padding = rng.choice([None, None, 0, 255]) if size else None
            client.http2.send_data(stream, piece, end_stream=not left[stream], pad_length=padding)
            if not left[stream]:
                del left[stream]
            await client.exchange(cut)
        for stream in set(streams) - client.ended:
            client.http2.increment_flow_control_window(6000, stream)
        await client.exchange(cut)
        assert client.bodies == {stream: body[:5005] for stream, body in bodies.items()}
        assert client.ended == set(streams)

    asyncio.run(talk())


def head(size: int, kind: int, flags: int, stream: int) -> bytes:
    return struct.pack(">BHBBI", size >> 16, size & 0xFFFF, kind, flags, stream)


def begun_and_reset(stream: int) -> bytes:
    return frame(Kind.HEADERS, Flag.END_HEADERS, stream, BLOCK) + frame(Kind.RST_STREAM, 0, stream, bytes(4))


def opens(stream: int, size: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, 0, stream, struct.pack(">I", size))


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HTTP/1.1\r\n", 1),
        (PREFACE + frame(Kind.PING, 0, 0, bytes(8)), 1),
        (HELLO + head(http2.FRAME_BYTES + 1, 0, 0, 1), 6),
        (HELLO + frame(Kind.PING, 0, 0, bytes(7)), 6),
        (HELLO + frame(Kind.PING, 0, 1, bytes(8)), 1),
        (HELLO + frame(Kind.SETTINGS, 0, 0, bytes(5)), 6),
        (HELLO + frame(Kind.SETTINGS, Flag.ACK, 0, bytes(6)), 6),
        (HELLO + frame(Kind.SETTINGS, 0, 1, b""), 1),
        (HELLO + frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", Setting.INITIAL_WINDOW_SIZE, 1 << 31)), 3),
        (HELLO + frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", Setting.MAX_FRAME_SIZE, 1000)), 1),
        (HELLO + frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", Setting.ENABLE_PUSH, 2)), 1),
        (HELLO + frame(Kind.PUSH_PROMISE, Flag.END_HEADERS, 1, bytes(4) + BLOCK), 1),
        (HELLO + opens(0, 0), 1),
        (HELLO + opens(0, (1 << 31) - 1), 3),
        (HELLO + opens(1, 1), 1),
        (HELLO + frame(Kind.RST_STREAM, 0, 1, bytes(4)), 1),
        (HELLO + frame(Kind.RST_STREAM, 0, 0, bytes(4)), 1),
        (HELLO + frame(Kind.PRIORITY, 0, 0, bytes(5)), 1),
        (HELLO + frame(Kind.DATA, 0, 0, b""), 1),
        (HELLO + frame(Kind.DATA, 0, 1, b""), 1),
        (HELLO + frame(Kind.CONTINUATION, Flag.END_HEADERS, 1, BLOCK), 1),
        (HELLO + frame(Kind.HEADERS, Flag.END_HEADERS, 0, BLOCK), 1),
        (HELLO + frame(Kind.HEADERS, Flag.END_HEADERS, 2, BLOCK), 1),
        (HELLO + frame(Kind.HEADERS, Flag.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), 9),
        (HELLO + frame(Kind.HEADERS, Flag.END_HEADERS | Flag.PADDED, 1, b"\xff" + BLOCK), 1),
        (HELLO + frame(Kind.HEADERS, Flag.END_HEADERS | Flag.PRIORITY, 1, b"\0"), 6),
        (HELLO + frame(Kind.HEADERS, 0, 1, BLOCK) + frame(Kind.PING, 0, 0, bytes(8)), 1),
        (HELLO + frame(Kind.HEADERS, 0, 1, BLOCK) + frame(Kind.CONTINUATION, Flag.END_HEADERS, 3, b""), 1),
        (HELLO + frame(Kind.HEADERS, 0, 1, BLOCK) + frame(Kind.CONTINUATION, 0, 1, b"") * 2000, 11),
        (HELLO + frame(Kind.HEADERS, Flag.END_HEADERS, 1, FIELD * 4000), 11),
        (BEGUN + opens(1, (1 << 31) - 1), 3),
        (BEGUN + frame(Kind.DATA, Flag.PADDED, 1, b"\x05abcd"), 1),
        (BEGUN + frame(Kind.HEADERS, Flag.END_HEADERS, 1, FIELD), 1),
        (BEGUN + frame(Kind.DATA, Flag.END_STREAM, 1, b"") + frame(Kind.DATA, 0, 1, b"x"), 5),
        (BEGUN + frame(Kind.DATA, Flag.END_STREAM, 1, b"") + frame(Kind.HEADERS, 5, 1, FIELD), 5),
        (BEGUN + frame(Kind.DATA, 0, 1, bytes(60_000)) * 2, 3),
        (BEGUN + frame(Kind.HEADERS, 5, 1, BLOCK), 1),
        (begun_and_reset(3).join((HELLO, frame(Kind.HEADERS, 5, 1, BLOCK))), 1),
        (HELLO + b"".join(begun_and_reset(2 * n + 1) for n in range(http2.MAX_RESETS + 1)), 11),
    ],
)
def test_what_breaks_a_rule_is_named_and_cut_off(sent: bytes, code: int) -> None:
    """GOAWAY with the error code of RFC 9113, 7, then the connection is closed."""

    async def talk() -> bytes:
        connection, wire = connected(silent)
        connection.data_received(sent)
        await asyncio.sleep(0)
        assert wire.closing
        return bytes(wire.written)

    *_, goodbye = frames(asyncio.run(talk()))
    assert (goodbye[0], struct.unpack_from(">I", goodbye[1], 4)[0]) == (Kind.GOAWAY, code)


@pytest.mark.parametrize(
    "fields",
    [
        [(":method", "POST"), (":scheme", "http"), (":authority", "x")],
        [*REQUEST, (":path", "/y")],
        [*REQUEST, (":status", "200")],
        [*REQUEST, ("connection", "close")],
        [*REQUEST, ("te", "gzip")],
        [*REQUEST, ("X-Upper", "case")],
        [*REQUEST, ("with space", "x")],
        [*REQUEST, ("a", "b\r\nc: d")],
        [*REQUEST[:2], (":path", ""), *REQUEST[3:]],
    ],
)
def test_headers_that_no_request_may_have_are_cut_off(fields: list[tuple[str, str]]) -> None:
    """RFC 9113, 8.2 and 8.3: what a proxy behind or before us could understand in another way."""

    async def talk() -> bytes:
        connection, wire = connected(silent)
        block = hpack.Encoder().encode(fields)
        connection.data_received(HELLO + frame(Kind.HEADERS, Flag.END_HEADERS, 1, block))
        return bytes(wire.written)

    *_, goodbye = frames(asyncio.run(talk()))
    assert (goodbye[0], goodbye[1][7]) == (Kind.GOAWAY, Code.PROTOCOL_ERROR)


def frames(written: bytes) -> list[tuple[int, bytes]]:
    """Type and payload of each frame."""
    found, place = [], 0
    while place < len(written):
        high, low, kind, _, _ = struct.unpack_from(">BHBBI", written, place)
        end = place + 9 + (high << 16 | low)
        found.append((kind, written[place + 9 : end]))
        place = end
    return found


def test_one_stream_too_many_is_refused_and_the_others_go_on() -> None:
    """REFUSED_STREAM says that it may be sent again; when one has ended there is room for the next."""

    async def talk() -> None:
        client = Client(*connected(echo))
        await client.exchange(lambda: 1 << 20)
        client.http2.remote_settings = h2.settings.Settings(client=False)  # as if we had not said how many
        client.http2.remote_settings.acknowledge()
        for n in range(http2.STREAMS + 1):
            client.http2.send_headers(2 * n + 1, REQUEST)
        await client.exchange(lambda: 1 << 20)
        assert client.resets == {2 * http2.STREAMS + 1: Code.REFUSED_STREAM}
        for n in range(http2.STREAMS):
            client.http2.send_data(2 * n + 1, b"12345", end_stream=True)
        client.http2.send_headers(2 * http2.STREAMS + 3, REQUEST)
        await client.exchange(lambda: 1 << 20)
        assert len(client.ended) == http2.STREAMS

    asyncio.run(talk())


def test_an_early_answer_asks_for_no_more_and_what_still_comes_is_passed_over() -> None:
    """DATA and trailers on their way when we have answered, and a long answer in several frames."""

    async def refuse(stream: Stream, headers: Headers) -> None:
        await stream.answer(BLOCK_OF_ANSWER + b"\0\x01a" + encode_integer(20_000, 7) + b"b" * 20_000)

    async def talk() -> None:
        connection, wire = connected(refuse)
        client = Client(connection, wire)
        client.http2.local_settings.max_header_list_size = 1 << 20
        client.http2.decoder.max_header_list_size = 1 << 20
        client.http2.send_headers(1, REQUEST)
        client.http2.send_data(1, b"1" * 10_000)
        await client.exchange(lambda: 1 << 20)
        assert (client.ended, client.resets) == ({1}, {1: Code.NO_ERROR})
        late = frame(Kind.DATA, 0, 1, bytes(16_384)) * 10 + frame(Kind.HEADERS, 5, 1, FIELD)
        connection.data_received(late)
        client.http2.send_headers(3, REQUEST, end_stream=True)
        await client.exchange(lambda: 1 << 20)
        assert client.ended == {1, 3}
        assert not wire.closing

    asyncio.run(talk())


@given(seed=st.integers(0, 2**32))
def test_mutated_frames_end_in_a_goodbye_or_in_silence(seed: int) -> None:
    """No other failure, whatever bytes come, and no more is kept than a frame and the streams' windows."""

    async def talk() -> None:
        rng = random.Random(seed)
        connection, wire = connected(echo)
        sent = bytearray(BEGUN + frame(Kind.DATA, Flag.PADDED, 1, b"\x03" + bytes(100)))
        for stream in range(3, 9, 2):
            sent += frame(Kind.HEADERS, Flag.END_HEADERS, stream, BLOCK) + opens(stream, 9) + opens(0, 7)
            sent += frame(Kind.DATA, rng.choice([0, Flag.END_STREAM]), stream, rng.randbytes(rng.randrange(2000)))
        for _ in range(rng.randrange(1, 8)):
            place = rng.randrange(len(PREFACE), len(sent))
            match rng.randrange(3):
                case 0:
                    sent[place] = rng.randrange(256)
                case 1:
                    del sent[place : place + rng.randrange(1, 20)]
                case _:
                    sent[place:place] = rng.randbytes(rng.randrange(1, 20))
        while sent and not wire.closing:
            size = rng.choice([1, 50, 5000])
            connection.data_received(bytes(sent[:size]))
            del sent[:size]
            await asyncio.sleep(0)
        if wire.closing:
            assert frames(bytes(wire.written))[-1][0] == Kind.GOAWAY
        connection.connection_lost(None)

    asyncio.run(talk())


def test_a_window_that_opens_only_as_data_comes_is_enough() -> None:
    """Headers at once, then two bytes at a time: nobody waits for room for the whole answer."""

    async def talk() -> None:
        client = Client(*connected(echo))
        client.http2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2})
        await client.exchange(lambda: 1 << 20)
        client.http2.send_headers(1, REQUEST)
        client.http2.send_data(1, b"12345 and more", end_stream=True)
        await client.exchange(lambda: 1 << 20)
        assert (client.bodies, client.ended) == ({1: b"12345 and more"}, {1})

    asyncio.run(talk())


def test_all_answers_together_stay_within_the_connections_window() -> None:
    """A client that takes 64 KB from the connection gets no more, however wide its streams are, and then the rest."""

    async def talk() -> None:
        client = Client(*connected(echo))
        client.http2.acknowledge_received_data = lambda *_: None
        await client.exchange(lambda: 1 << 20)
        bodies = {2 * n + 1: bytes([n]) * 5005 for n in range(14)}
        for stream, body in bodies.items():
            client.http2.send_headers(stream, REQUEST)
            client.http2.send_data(stream, body, end_stream=True)
        await client.exchange(lambda: 1 << 20)
        assert sum(map(len, client.bodies.values())) == 65_535
        client.http2.increment_flow_control_window(10_000)
        await client.exchange(lambda: 1 << 20)
        assert (client.bodies, client.ended) == (bodies, set(bodies))

    asyncio.run(talk())


def test_who_has_sent_all_still_hears_its_answers() -> None:
    """A client that shuts its side waits for the streams under way; without any the connection is closed."""

    async def talk() -> None:
        may_answer = asyncio.Event()

        async def late(stream: Stream, headers: Headers) -> None:
            await may_answer.wait()
            await stream.answer(BLOCK_OF_ANSWER)

        connection, wire = connected(late)
        assert not connection.eof_received()
        connection.data_received(BEGUN)
        await asyncio.sleep(0)
        assert not connection.eof_received(), "its request is cut short"
        connection.data_received(frame(Kind.DATA, Flag.END_STREAM, 1, b""))
        assert connection.eof_received()
        wire.taken()
        may_answer.set()
        while not wire.closing:
            await asyncio.sleep(0)
        assert frames(wire.taken())[-1] == (Kind.HEADERS, BLOCK_OF_ANSWER)

    asyncio.run(asyncio.wait_for(talk(), 10))


def test_who_is_asked_to_leave_and_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing would wait for what it does not read."""
    monkeypatch.setattr(http2, "GOODBYE_S", 0.01)
    monkeypatch.setattr(http2, "LEAVE_WITHIN_S", 0.01)

    async def talk() -> None:
        connection, wire = connected(silent)
        connection.data_received(BEGUN)
        connection.leave()
        while not wire.aborted:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(talk(), 10))
