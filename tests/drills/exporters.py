"""A steady load that behaves as stock exporters do, and remembers what it heard.

Each record carries a number of its own: logs and spans in an attribute, points as their value. A batch is sent again
until it is answered, after the time that the answer asks for, else with exponential backoff; what comes while all
senders wait is queued, and dropped where the queue is full, as the Collector's is.
"""

import asyncio
import collections
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiohttp
import grpc
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import RetryInfo
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pipeline.gateway.answers import RESPONSES
from pipeline.record.schema import SIGNALS, Signal
from pipeline.settings import Settings
from tests.bench.load import SERVICES

ATTRIBUTE = METRIC = "drill.sequence"
BATCH_RECORDS, BATCH_EVERY_S = 50, 0.5  # of a lane: a signal over a protocol
SENDERS, QUEUE_BATCHES = 10, 1000  # the Collector's defaults
TIMEOUT_S = 10.0  # stock exporters'
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 5.0
RETRYABLE = {
    grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED, grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS,
}  # fmt: skip


class Heard(NamedTuple):
    """One answer: OK, not OK but allowed at any time, or `fault`: allowed only while nobody is there to answer."""

    what: str
    ok: bool = False
    again_after_s: float | None = None
    fault: bool = False
    partial: bool = False


@dataclass(frozen=True)
class Fault:
    at: float  # time.monotonic()
    what: str


class Exporters:
    """Runs in a thread of its own from `start` to `finish`."""

    def __init__(self, settings: Settings) -> None:
        gateway = settings.gateway
        self._http = f"http://127.0.0.1:{gateway.http_port}/v1"
        self._grpc = f"127.0.0.1:{gateway.grpc_port}"
        self._stop = threading.Event()
        self._sequence = 0
        self.answered: dict[Signal, set[int]] = {signal: set() for signal in SIGNALS}
        self.offered = 0
        self.dropped = 0
        self.unanswered = 0
        self.heard: collections.Counter[str] = collections.Counter()
        self.faults: list[Fault] = []
        self.partial: list[Fault] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, within_s: float) -> None:
        """Make no more records; return when every batch is answered, or after the time."""
        self._give_up_at = time.monotonic() + within_s
        self._stop.set()
        self._thread.join(within_s + TIMEOUT_S + LONGEST_BACKOFF_S)

    async def _run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            # grpc's own backoff between connections may be two minutes; an exporter's channel is told to be quicker.
            options = [
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.enable_retries", 0),
            ]
            async with grpc.aio.insecure_channel(self._grpc, options) as channel:
                ways = {
                    "http": lambda s, b: self._by_http(session, s, b),
                    "grpc": lambda s, b: self._by_grpc(channel, s, b),
                }
                await asyncio.gather(
                    *(self._lane(name, way, signal) for name, way in ways.items() for signal in SIGNALS)
                )

    async def _lane(self, name: str, way: Callable[[Signal, bytes], Any], signal: Signal) -> None:
        queue: asyncio.Queue[tuple[Sequence[int], bytes]] = asyncio.Queue(QUEUE_BATCHES)
        senders = [asyncio.ensure_future(self._send(queue, signal, way)) for _ in range(SENDERS)]
        batch = 0
        while not self._stop.is_set():
            batch += 1
            numbers = range(self._sequence, self._sequence + BATCH_RECORDS)
            self._sequence += BATCH_RECORDS
            self.offered += BATCH_RECORDS
            try:
                queue.put_nowait((numbers, MAKE[signal](f"drill-{name}-{batch % 8}", numbers)))
            except asyncio.QueueFull:
                self.dropped += BATCH_RECORDS
            await asyncio.sleep(BATCH_EVERY_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(queue.join(), max(0.0, self._give_up_at - time.monotonic()))
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
        self.unanswered += queue.qsize() * BATCH_RECORDS

    async def _send(
        self, queue: "asyncio.Queue[tuple[Sequence[int], bytes]]", signal: Signal, way: Callable[[Signal, bytes], Any]
    ) -> None:
        while True:
            numbers, body = await queue.get()
            backoff = BACKOFF_S
            try:
                while not (heard := await way(signal, body)).ok:
                    self._note(heard)
                    await asyncio.sleep(backoff if heard.again_after_s is None else heard.again_after_s)
                    backoff = min(backoff * 2, LONGEST_BACKOFF_S)
            except asyncio.CancelledError:
                self.unanswered += len(numbers)
                raise
            self._note(heard)
            if not heard.partial:
                self.answered[signal].update(numbers)
            queue.task_done()

    def _note(self, heard: Heard) -> None:
        self.heard[heard.what[:80]] += 1
        for wanted, noted in ((heard.fault, self.faults), (heard.partial, self.partial)):
            if wanted:
                noted.append(Fault(time.monotonic(), heard.what))

    async def _by_http(self, session: aiohttp.ClientSession, signal: Signal, body: bytes) -> Heard:
        try:
            async with session.post(
                f"{self._http}/{signal}", data=body, headers={"Content-Type": "application/x-protobuf"}
            ) as answer:
                said = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return Heard(f"HTTP {type(error).__name__}", fault=True)
        if answer.status == 200:
            return _ok("HTTP", signal, said)
        what = f"HTTP {answer.status}"
        after = answer.headers.get("Retry-After", "")
        if answer.status not in (429, 502, 503, 504):
            return Heard(f"{what}: {said[:60]!r}", fault=True)
        return (
            Heard(what, again_after_s=float(after))
            if after.isdigit()
            else Heard(f"{what} without Retry-After", fault=True)
        )

    async def _by_grpc(self, channel: grpc.aio.Channel, signal: Signal, body: bytes) -> Heard:
        try:
            said = await channel.unary_unary(f"/opentelemetry.proto.collector.{SERVICES[signal]}/Export")(
                body, timeout=TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            what, after = f"gRPC {error.code().name}", _retry_info(error)
            if after is not None and (error.code() in RETRYABLE or error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED):
                return Heard(what, again_after_s=after)
            return Heard(f"{what} without RetryInfo: {error.details()}", fault=True)
        return _ok("gRPC", signal, said)


def _ok(protocol: str, signal: Signal, said: bytes) -> Heard:
    partial = bool(said) and RESPONSES[signal][0].FromString(said).HasField("partial_success")
    return Heard(f"{protocol} OK{', partial success' * partial}", ok=True, partial=partial)


def _retry_info(error: grpc.aio.AioRpcError) -> float | None:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return info.retry_delay.ToTimedelta().total_seconds()
    return None


def _named(part: Any, service: str) -> None:
    part.resource.attributes.add(key="service.name").value.string_value = service


def _logs(service: str, numbers: Sequence[int]) -> bytes:
    request = ExportLogsServiceRequest()
    part = request.resource_logs.add()
    _named(part, service)
    records = part.scope_logs.add().log_records
    for number in numbers:
        record = records.add(time_unix_nano=time.time_ns(), severity_number=17)  # errors are shed last
        record.body.string_value = "a record of the drill"
        record.attributes.add(key=ATTRIBUTE).value.int_value = number
    return request.SerializeToString()


def _spans(service: str, numbers: Sequence[int]) -> bytes:
    request = ExportTraceServiceRequest()
    part = request.resource_spans.add()
    _named(part, service)
    spans = part.scope_spans.add().spans
    for number in numbers:
        now = time.time_ns()
        span = spans.add(
            trace_id=number.to_bytes(16, "big"), span_id=(number + 1).to_bytes(8, "big"), name="drill", start_time_unix_nano=now,
            end_time_unix_nano=now + 1000, flags=1,
        )  # fmt: skip
        span.attributes.add(key=ATTRIBUTE).value.int_value = number
    return request.SerializeToString()


def _points(service: str, numbers: Sequence[int]) -> bytes:
    request = ExportMetricsServiceRequest()
    part = request.resource_metrics.add()
    _named(part, service)
    points = part.scope_metrics.add().metrics.add(name=METRIC, unit="1").gauge.data_points
    start = time.time_ns() // 1000 * 1000
    for place, number in enumerate(numbers):
        # PostgreSQL keeps microseconds: no two points of a series may share one.
        points.add(time_unix_nano=start + place * 1000, as_double=float(number))
    return request.SerializeToString()


MAKE: dict[Signal, Callable[[str, Sequence[int]], bytes]] = {"logs": _logs, "traces": _spans, "metrics": _points}
