"""Requests that no exporter would send, by the million, over both protocols.

The process never dies; nothing is answered with a 5xx other than 503 or with a gRPC code that the specification does
not know for it; every HTTP error is a google.rpc.Status in the request's encoding; memory stays flat; and a valid
request afterwards is in Kafka. What failed lies in .local/drills/fuzz_gateway/failures, and `--only N` sends it again.
"""

import asyncio
import json
import re
import time
import uuid
from typing import Any, NamedTuple, cast

import grpc
import psutil
import uvloop
from confluent_kafka import Consumer, TopicPartition
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from pipeline.gateway.answers import RESPONSES
from pipeline.settings import Settings
from tests.bench import measured
from tests.bench.load import SERVICES
from tests.drills import mutate
from tests.drills.context import Context, Failed
from tests.drills.mutate import JSON, PROTOBUF, Case
from tests.otlp import requests

REQUESTS, SHORT_REQUESTS = 1_000_000, 5_000
WORKERS = 48
ANSWER_WITHIN_S = 20.0
BROKEN_WITHIN_S = 0.3  # then a connection whose HTTP was broken is given up: it waits for what never comes
SAMPLE_EVERY = 250
WARM_UP = 2_000  # requests until caches and the allocator are full, or a tenth of all
GROWTH_MB, GROWTH_MB_PER_100K = 30.0, 4.0
PEAK_MB = 300
ENOUGH_FAILURES = 50
GRPC_ALLOWED = {
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
}  # fmt: skip


def drill(context: Context) -> str:
    """All requests, or where the context names `only` one, that one."""
    with context.gateway_and_kafka() as (stack, settings):
        gateway = measured.process(stack, "gateway")
        fuzz = Fuzz(context, settings, gateway)
        if context.only is not None:
            return uvloop.run(fuzz.replay(context.only))
        total = SHORT_REQUESTS if context.short else REQUESTS
        started = time.monotonic()
        uvloop.run(fuzz.run(total))
        if fuzz.failures:
            raise Failed(fuzz.told(total))
        grown = fuzz.grown_mb()
        arrive(settings)
        if measured.process(stack, "gateway").pid != gateway.pid:
            raise Failed("The gateway is not the process that it was.")
        rate = fuzz.done / (time.monotonic() - started)
        outcomes = ", ".join(f"{count:,} {what}" for what, count in sorted(fuzz.outcomes.items()))
        return f"{total:,} requests, {rate:,.0f}/s: {outcomes}; RSS {grown}; a valid request passes"


class Answer(NamedTuple):
    """Of HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes


class Door(asyncio.Protocol):
    """One HTTP/1.1 connection on a bare socket, one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._answer: asyncio.Future[Answer | None] | None = None

    async def ask(self, case: Case) -> Answer | None:
        """The answer, or None where the connection was closed without one. Raise TimeoutError where nothing comes."""
        fresh = self._transport is None
        answer = await self._ask(case)
        if answer is None and case.raw is None and not fresh:
            answer = await self._ask(case)  # a connection that was kept alive may be closed just then
        return answer

    async def _ask(self, case: Case) -> Answer | None:
        loop = asyncio.get_running_loop()
        if self._transport is None:
            await loop.create_connection(lambda: self, "127.0.0.1", self._port)
        self._received.clear()
        self._answer = loop.create_future()
        transport = cast(asyncio.Transport, self._transport)
        transport.write(case.http())
        try:
            if case.raw is None:
                return await asyncio.wait_for(self._answer, ANSWER_WITHIN_S)
            transport.write_eof()
            try:
                return await asyncio.wait_for(self._answer, BROKEN_WITHIN_S)
            except TimeoutError:
                return None
        except TimeoutError:
            self.close()
            raise
        finally:
            if case.raw is not None:
                self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0 or self._answer is None or self._answer.done():
            return
        first, *lines = self._received[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status, length = int(first.split()[1]), int(headers.get("content-length", "0"))
        if status == 100:
            del self._received[: end + 4]
            self.data_received(b"")
        elif len(self._received) >= end + 4 + length:
            body = bytes(self._received[end + 4 : end + 4 + length])
            if headers.get("connection", "").lower() == "close":
                self.close()
            self._answer.set_result(Answer(status, headers, body))

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)


class Fuzz:
    """Workers take numbers in order; the lowest that is not answered is where a later run goes on."""

    def __init__(self, context: Context, settings: Settings, gateway: psutil.Process) -> None:
        self._context = context
        self._http_port, self._grpc_port = settings.gateway.http_port, settings.gateway.grpc_port
        self._gateway = gateway
        self._first = self._next = int(context.at.get("next", 0))
        self._under_way: dict[int, Case] = {}
        self._rss: list[tuple[int, float]] = []
        self._stopped = False
        self.done = 0
        self.outcomes: dict[str, int] = {}
        self.failures: list[tuple[int, str]] = [tuple(one) for one in context.at.get("failures", [])]

    async def run(self, total: int) -> None:
        started = time.monotonic()
        workers = [asyncio.ensure_future(self._work(total)) for _ in range(WORKERS)]
        try:
            while not all(worker.done() for worker in workers):
                await asyncio.wait(workers, timeout=1.0)
                self._note()
                rate = self.done / (time.monotonic() - started)
                self._context.tell_now_and_then(
                    lambda rate=rate: (
                        f"{self._next:,} of {total:,}, {rate:,.0f}/s, RSS {self._rss[-1][1] if self._rss else 0:.0f} MB"
                    )
                )
            for worker in workers:
                worker.result()
        finally:
            self._stopped = True  # Python 3.11's wait_for may swallow a cancellation
            for worker in workers:
                worker.cancel()
            self._note()

    async def replay(self, number: int) -> str:
        """Send one request again, show it and its answer."""
        case = mutate.case(self._context.seed, number)
        [door], [channel] = self._connections(1)
        fault, shown = await self._judged(case, door, channel)
        self._context.tell(f"{case.protocol} {case.signal} {case.kinds} {case.headers} coding {case.coding}")
        self._context.tell(f"bytes: {(case.http() if case.protocol == 'http' else case.body)[:2000]!r}")
        self._context.tell(f"answer: {shown}")
        if fault:
            raise Failed(fault)
        return "as it should be"

    def grown_mb(self) -> str:
        """Raise Failed where memory is not flat; else say how it went."""
        warm = max(WARM_UP, self._rss[-1][0] // 10)
        settled = [rss for number, rss in self._rss if number >= warm] or [rss for _, rss in self._rss]
        quarter = max(1, len(settled) // 4)
        first, last = (sorted(part)[len(part) // 2] for part in (settled[:quarter], settled[-quarter:]))
        allowed = GROWTH_MB + GROWTH_MB_PER_100K * self.done / 100_000
        peak = max(rss for _, rss in self._rss)
        said = f"{first:.0f} to {last:.0f} MB after warm-up, peak {peak:.0f}"
        if last - first > allowed or peak > PEAK_MB:
            raise Failed(f"Memory is not flat: {said}; allowed are {allowed:.0f} MB of growth and a peak of {PEAK_MB}")
        return said

    def told(self, total: int) -> str:
        """The failures in one sentence."""
        numbers = ", ".join(str(number) for number, _ in self.failures[:10])
        kinds = "; ".join(sorted({re.sub(r"\d+", "N", what)[:160] for _, what in self.failures})[:8])
        replay = f"python -m tests.drills fuzz_gateway --seed {self._context.seed} --only {self.failures[0][0]}"
        return f"{len(self.failures)} of {self._next:,} of {total:,} requests failed: {kinds} (numbers {numbers}; `{replay}`; what passes alone suffered from an earlier one)"

    def _note(self) -> None:
        at = self._context.at
        at["next"] = min(self._under_way, default=self._next)
        at["failures"] = self.failures
        self._context.keep()

    def _connections(self, count: int) -> tuple[list[Door], list[grpc.aio.Channel]]:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_retries", 0),
        ]
        doors = [Door(self._http_port) for _ in range(count)]
        return doors, [grpc.aio.insecure_channel(f"127.0.0.1:{self._grpc_port}", options) for _ in range(count)]

    async def _work(self, total: int) -> None:
        [door], [channel] = self._connections(1)
        try:
            while self._next < total and len(self.failures) < ENOUGH_FAILURES and not self._stopped:
                number = self._next
                self._next += 1
                if number % SAMPLE_EVERY == 0:
                    self._rss.append((number - self._first, measured.rss_mb(self._gateway)))
                case = self._under_way[number] = mutate.case(self._context.seed, number)
                fault, shown = await self._judged(case, door, channel)
                if fault:
                    self._keep_failure(case, fault, shown)
                    if not self._gateway_lives():
                        raise Failed(f"The gateway died with {sorted(self._under_way)} under way: {self.told(total)}")
                del self._under_way[number]
                self.done += 1
        finally:
            door.close()
            await channel.close()

    def _gateway_lives(self) -> bool:
        return self._gateway.is_running() and self._gateway.status() != psutil.STATUS_ZOMBIE

    def _keep_failure(self, case: Case, fault: str, shown: str) -> None:
        folder = self._context.home / "failures"
        folder.mkdir(exist_ok=True)
        name = f"{self._context.seed}-{case.number}"
        about: dict[str, Any] = {"fault": fault, "answer": shown, "protocol": case.protocol, "signal": case.signal}
        about |= {"kinds": case.kinds, "headers": case.headers, "coding": case.coding, "seed": self._context.seed}
        (folder / f"{name}.json").write_text(json.dumps(about, indent=2))
        (folder / f"{name}.bin").write_bytes(case.http() if case.protocol == "http" else case.body)
        self.failures.append((case.number, fault))
        self._context.tell(f"request {case.number} failed: {fault} {case.protocol} {case.signal} {case.kinds}")

    async def _judged(self, case: Case, door: Door, channel: grpc.aio.Channel) -> tuple[str | None, str]:
        """What is wrong with the answer, or None; and the answer for people."""
        try:
            if case.protocol == "http":
                answer = await door.ask(case)
                self._count(f"HTTP {answer.status if answer else 'closed'}")
                return http_fault(case, answer), repr(answer)[:2000]
            if case.protocol == "grpc":
                return await self._grpc(case, channel)
            self._count("at the gRPC port")
            return None, await self._wire(case)
        except TimeoutError:
            return f"no answer within {ANSWER_WITHIN_S:.0f} s", ""
        except OSError as error:
            return f"the gateway took no connection: {error}", ""

    async def _grpc(self, case: Case, channel: grpc.aio.Channel) -> tuple[str | None, str]:
        coding = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}.get(case.coding)
        call = channel.unary_unary(f"/opentelemetry.proto.collector.{SERVICES[case.signal]}/Export")
        try:
            answer = await call(case.body, timeout=ANSWER_WITHIN_S, compression=coding)
        except grpc.aio.AioRpcError as error:
            self._count(f"gRPC {error.code().name}")
            fault = None if error.code() in GRPC_ALLOWED else f"gRPC {error.code().name}: {error.details()}"
            if error.code() == grpc.StatusCode.UNIMPLEMENTED and case.coding == "identity":
                fault = f"gRPC UNIMPLEMENTED for a known encoding: {error.details()}"
            return fault, repr(error)[:2000]
        self._count("gRPC OK")
        try:
            RESPONSES[case.signal][0].FromString(answer)
        except DecodeError:
            return "gRPC OK with a message that is no response", repr(answer)
        return None, repr(answer)

    async def _wire(self, case: Case) -> str:
        """Bytes at the gRPC port: whatever comes back, it must not keep us or break the process."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._grpc_port)
        try:
            writer.write(case.body)
            if writer.can_write_eof():
                writer.write_eof()
            return repr(await asyncio.wait_for(reader.read(500), BROKEN_WITHIN_S))
        except (TimeoutError, ConnectionError) as error:
            return repr(error)
        finally:
            writer.transport.abort()

    def _count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


def http_fault(case: Case, answer: Answer | None) -> str | None:
    """What the specification does not allow in this answer, or None."""
    if answer is None:
        return None if case.raw is not None else "the connection was closed without an answer"
    status, headers, body = answer
    if status >= 500 and status != 503:
        return f"HTTP {status}: {body[:200]!r}"
    if case.raw is not None or any(
        kind in ("many headers", "long header", "traceparent", "auth") for kind in case.kinds
    ):
        if status >= 400:
            return None  # broken before OTLP: the server's own answer
        if status not in (200, 204):
            return f"HTTP {status}"
    answered, asked = (
        headers.get("content-type", "").partition(";")[0],
        case.content_type().partition(";")[0].strip().lower(),
    )
    if status == 200 and case.raw is not None:
        return None
    if asked in (PROTOBUF, JSON) and answered != asked:
        return f"HTTP {status} to {asked} as {answered or 'nothing'}: {body[:200]!r}"
    try:
        if answered == JSON:
            document = json.loads(body)
            right = isinstance(document, dict) and (status == 200 or bool(document.get("message")))
        else:
            message = RESPONSES[case.signal][0] if status == 200 else status_pb2.Status
            parsed = message.FromString(body)
            right = status == 200 or bool(cast(status_pb2.Status, parsed).message)
    except (ValueError, DecodeError):
        right = False
    if not right:
        return f"HTTP {status} with a body that is no {'response' if status == 200 else 'Status'}: {body[:200]!r}"
    if status in (429, 503) and not re.fullmatch(r"\d+", headers.get("retry-after", "")):
        return f"HTTP {status} without Retry-After"
    return None


def arrive(settings: Settings) -> None:
    """Send a valid request and return once its record is seen in Kafka; raise Failed where it is not."""
    marker = f"valid after the fuzz {uuid.uuid4().hex}"
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": "drill", "enable.auto.commit": False}
    )
    try:
        partitions = consumer.list_topics("logs_raw", 10).topics["logs_raw"].partitions
        ends = [
            TopicPartition("logs_raw", n, consumer.get_watermark_offsets(TopicPartition("logs_raw", n))[1])
            for n in partitions
        ]
        consumer.assign(ends)
        body = requests.logs(marker).SerializeToString()
        case = Case(-1, "http", "logs", body, headers=[("Content-Type", PROTOBUF)])
        answer = uvloop.run(Door(settings.gateway.http_port).ask(case))
        if answer is None or answer.status != 200 or answer.body:
            raise Failed(f"A valid request after the fuzz is answered {answer}.")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            message = consumer.poll(1.0)
            if message is not None and message.error() is None and marker.encode() in message.value():
                return
        raise Failed("A valid request after the fuzz was answered OK and its record is not in Kafka.")
    finally:
        consumer.close()
