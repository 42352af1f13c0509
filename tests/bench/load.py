"""OTLP load from a process of its own: `python -m tests.bench.load` prints one JSON line.

Closed loop: every connection has one request under way and sends the next when it is answered. Open loop (`--rate`):
requests are due at fixed times whatever the answers do, and latency counts from the time they were due, so that a
gateway which stands still is not measured by the few requests that it let through. HTTP/1.1 and HTTP/2 are spoken on
bare sockets: the load must cost less CPU than what it measures.
"""

import argparse
import asyncio
import json
import random
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import uvloop

from tests.bench import payload

LATE_S = 20.0  # how long answers are waited for after the last request
BODIES = 20  # different requests, sent again and again: the gateway's work does not depend on whether it saw one before
RECONNECT_S = 0.05
SERVICES = {"logs": "logs.v1.LogsService", "metrics": "metrics.v1.MetricsService", "traces": "trace.v1.TraceService"}
FULL_SUCCESS = (b"", b"\n\0")  # the Collector sets an empty partial_success
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
Answered = Callable[["Connection", str | None], None]


class Connection(asyncio.Protocol):
    """One connection, at most one request under way; `answered` hears None for OK, else what went wrong."""

    def __init__(self, path: str, address: str, answered: Answered) -> None:
        self._path = path.encode()
        self._address = address
        self._answered = answered
        self._under_way = False
        self._leaving = False
        self._moving = False
        self._received = bytearray()
        self.due = 0.0  # of the request under way

    async def connect(self) -> None:
        """Return when connected; keep trying, since a gateway asks old connections to leave."""
        host, _, port = self._address.rpartition(":")
        while True:
            try:
                await asyncio.get_running_loop().create_connection(lambda: self, host, int(port))
            except OSError:
                await asyncio.sleep(RECONNECT_S)
            else:
                return

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._received.clear()
        self._leaving = self._moving = False

    def connection_lost(self, _: Exception | None) -> None:
        self._leaving = True
        if self._under_way and not self._moving:
            self._done("connection lost")

    def send(self, body: bytes) -> None:
        self._under_way = True
        if self._leaving or self._transport.is_closing():
            self._moving = True  # so the end of the old connection is not the end of this request
            self._transport.abort()
            task = asyncio.ensure_future(self.connect())
            task.add_done_callback(lambda _: self._write(body))
        else:
            self._write(body)

    def close(self) -> None:
        self._under_way = False
        self._transport.abort()

    def _write(self, body: bytes) -> None:
        raise NotImplementedError

    def _done(self, failure: str | None) -> None:
        if self._under_way:
            self._under_way = False
            self._answered(self, failure)


class Http(Connection):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._head = b"POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-protobuf\r\nContent-Length: " % (
            self._path,
            self._address.encode(),
        )

    def _write(self, body: bytes) -> None:
        self._transport.writelines([self._head, b"%d\r\n\r\n" % len(body), body])

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        _, found, rest = head.partition(b"\r\ncontent-length:")
        length = int(rest.split(b"\r\n", 1)[0]) if found else 0
        if len(self._received) < end + 4 + length:
            return
        body = bytes(self._received[end + 4 :])
        self._received.clear()
        if b"\r\nconnection: close" in head:
            self._leaving = True
            self._transport.close()
        status = head[9:12]
        self._done(None if status == b"200" and body in FULL_SUCCESS else f"HTTP {status.decode()} {body[:80]!r}")


class Grpc(Connection):
    """HTTP/2 as far as one unary call at a time needs it (RFC 9113).

    OK is an answer with a message that says full success; a failed call has no message at all, so its trailers need no decoding.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # HPACK (RFC 7541): indexed :method POST and :scheme http, literals without indexing for the rest.
        self._headers = b"\x83\x86" + b"".join(
            name + bytes([len(value)]) + value
            for name, value in (
                (b"\x04", self._path),
                (b"\x01", self._address.encode()),
                (b"\x0f\x10", b"application/grpc"),
                (b"\x00\x02te", b"trailers"),
            )
        )
        self._stream = -1
        self._window, self._initial, self._stream_window, self._frame = 65535, 65535, 0, 16384
        self._unsent = memoryview(b"")
        self._message = b""
        transport.write(PREFACE + _frame(SETTINGS, 0, 0, b"") + _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**30)))

    def _write(self, body: bytes) -> None:
        self._stream += 2
        self._stream_window, self._message = self._initial, b""
        self._unsent = memoryview(b"\0" + struct.pack(">I", len(body)) + body)
        self._transport.write(_frame(HEADERS, 4, self._stream, self._headers))
        self._push()

    def _push(self) -> None:
        pieces = []
        while self._unsent and (size := min(len(self._unsent), self._window, self._stream_window, self._frame)) > 0:
            last = END_STREAM if size == len(self._unsent) else 0
            pieces += [struct.pack(">I", size)[1:] + bytes([DATA, last]) + struct.pack(">I", self._stream)]
            pieces += [bytes(self._unsent[:size])]
            self._unsent = self._unsent[size:]
            self._window -= size
            self._stream_window -= size
        if pieces:
            self._transport.writelines(pieces)

    def data_received(self, data: bytes) -> None:
        self._received += data
        place = 0
        while len(self._received) - place >= 9:
            size = int.from_bytes(self._received[place : place + 3], "big")
            if len(self._received) - place < 9 + size:
                break
            kind, flags = self._received[place + 3], self._received[place + 4]
            stream = int.from_bytes(self._received[place + 5 : place + 9], "big") & 0x7FFFFFFF
            self._frame_received(kind, flags, stream, bytes(self._received[place + 9 : place + 9 + size]))
            place += 9 + size
        del self._received[:place]

    def _frame_received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA and stream == self._stream:
            self._message += payload
        if kind in (DATA, HEADERS) and flags & END_STREAM and stream == self._stream:
            said = self._message[5:]
            self._done(
                "no message: an error" if not self._message else None if said in FULL_SUCCESS else f"gRPC {said[:80]!r}"
            )
        elif kind == RST_STREAM and stream == self._stream:
            self._done(f"RST_STREAM {int.from_bytes(payload, 'big')}")
        elif kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == 4:
                    self._stream_window += value - self._initial
                    self._initial = value
                elif name == 5:
                    self._frame = value
            self._transport.write(_frame(SETTINGS, ACK, 0, b""))
            self._push()
        elif kind == PING and not flags & ACK:
            self._transport.write(_frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self._leaving = True
        elif kind == WINDOW_UPDATE:
            size = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += size
            elif stream == self._stream:
                self._stream_window += size
            self._push()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class Load:
    """Runs over connections that are there; `rate` in requests a second, or None for a closed loop."""

    def __init__(self, bodies: Iterator[bytes], rate: float | None) -> None:
        self._bodies = bodies
        self._rate = rate

    async def run(self, connections: Sequence[Connection], seconds: float) -> None:
        self.latencies: list[float] = []
        self.failures: list[str] = []
        self._under_way = 0
        self._all_due = False
        self._idle = deque(connections)
        self._waiting: deque[float] = deque()
        self._started = time.perf_counter()
        self._end = self._started + seconds
        self._ended = asyncio.Event()
        if self._rate is None:
            for _ in connections:
                self._send(self._idle.popleft(), time.perf_counter())
        else:
            await self._keep_rate(self._rate, seconds)
        try:
            await asyncio.wait_for(self._ended.wait(), max(0.0, self._end - time.perf_counter()) + LATE_S)
        except TimeoutError:
            self.failures.append(f"{self._under_way + len(self._waiting)} requests unanswered after {LATE_S:.0f} s")
        self.seconds = time.perf_counter() - self._started

    async def _keep_rate(self, rate: float, seconds: float) -> None:
        for n in range(int(rate * seconds)):
            due = self._started + n / rate
            delay = due - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            if self._idle:
                self._send(self._idle.popleft(), due)
            else:
                self._waiting.append(due)
        self._all_due = True
        if not self._under_way:
            self._ended.set()

    def _send(self, connection: Connection, due: float) -> None:
        self._under_way += 1
        connection.due = due
        connection.send(next(self._bodies))

    def answered(self, connection: Connection, failure: str | None) -> None:
        now = time.perf_counter()
        self._under_way -= 1
        if failure is None:
            self.latencies.append(now - connection.due)
        else:
            self.failures.append(failure)
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        elif self._rate is None and now < self._end:
            self._send(connection, now)
        else:
            self._idle.append(connection)
            if not self._under_way and (self._rate is None or self._all_due):
                self._ended.set()


async def drive(options: argparse.Namespace) -> None:
    rng = random.Random(time.time_ns())
    start = time.time_ns() - 3600 * 10**9
    bodies = [payload.request(options.signal, options.records, start, rng) for _ in range(BODIES)]
    load = Load(_again_and_again(bodies), options.rate and options.rate / options.records)
    kind: type[Connection] = Grpc
    path = f"/opentelemetry.proto.collector.{SERVICES[options.signal]}/Export"
    if options.protocol == "http":
        kind, path = Http, f"/v1/{options.signal}"
    connections = [kind(path, options.address, load.answered) for _ in range(options.connections)]
    for connection in connections:
        await connection.connect()
    await load.run(connections, options.warm_s)
    print(json.dumps({"ready": True, "failures": load.failures[:3]}), flush=True)
    # The bench reads the gateway's CPU before and after.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    cpu = time.process_time()
    await load.run(connections, options.seconds)
    cpu = time.process_time() - cpu
    for connection in connections:
        connection.close()
    latencies = sorted(load.latencies)
    print(
        json.dumps(
            {
                "requests": len(latencies),
                "records": len(latencies) * options.records,
                "seconds": load.seconds,
                "p50_ms": _percentile_ms(latencies, 0.5),
                "p99_ms": _percentile_ms(latencies, 0.99),
                "p99.9_ms": _percentile_ms(latencies, 0.999),
                "load_cpu": cpu / load.seconds,
                "failed": len(load.failures),
                "failures": sorted(set(load.failures))[:3],
            }
        ),
        flush=True,
    )


def _again_and_again(bodies: list[bytes]) -> Iterator[bytes]:
    while True:
        yield from bodies


def _percentile_ms(ordered: list[float], share: float) -> float | None:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000 if ordered else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", choices=["http", "grpc"], required=True)
    parser.add_argument("--signal", choices=["logs", "metrics", "traces"], required=True)
    parser.add_argument("--address", required=True, help="host:port")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm-s", type=float, default=1.0)
    parser.add_argument("--records", type=int, default=1000, help="of a request")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--rate", type=float, help="records a second: an open loop")
    uvloop.run(drive(parser.parse_args()))


if __name__ == "__main__":
    main()
