"""One export, the same for both protocols: who sends, is there room, open, encode, make safe, answer."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Literal, NamedTuple, Protocol

import structlog

from pipeline import otlp
from pipeline.errors import PipelineError, TooLarge, Unavailable
from pipeline.gateway import answers
from pipeline.gateway.admission import Admission, Held
from pipeline.gateway.answers import Answer
from pipeline.gateway.compression import opened
from pipeline.gateway.intake import Intake
from pipeline.gateway.tenants import Tenant, Tenants
from pipeline.otlp.json import to_protobuf
from pipeline.record.schema import Signal
from pipeline.record.times import receipt_ns
from pipeline.settings import GatewaySettings
from pipeline.telemetry import metrics

log = structlog.get_logger()
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
IN_PLACE_BYTES = {"protobuf": 1024 * 1024, "json": 64 * 1024}  # larger bodies leave the event loop to others
LARGE_WITHIN_S = 5.0  # until a large body's turn


class Call(NamedTuple):
    """What a protocol knows of a request before its body; `certificate` holds names from a verified one."""

    protocol: Literal["grpc", "http"]
    signal: Signal
    encoding: Literal["protobuf", "json"]
    authorization: str
    certificate: tuple[str, ...]
    traceparent: str


def traceparent(header: str) -> str:
    """A W3C traceparent as it is, anything else as nothing: it becomes a Kafka header that consumers read."""
    return header if TRACEPARENT.fullmatch(header) else ""


Room = Callable[[int], Awaitable[None]]


class Body(Protocol):
    """A body that need not have arrived yet; `coding` is its content coding, known when it is read."""

    coding: str

    async def read(self, room: Room) -> bytes:
        """All of it, asking for `room` in bytes before more of it comes than a connection holds anyway.

        Raise TooLarge, or Rejected where it is not framed as it should be.
        """


def larger_than(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes: send smaller batches.")


class Exports:
    """Answers exports. `region` and the tenant are what the gateway knows; no client can say them."""

    def __init__(self, settings: GatewaySettings, region: str, tenants: Tenants, intake: Intake) -> None:
        self._settings = settings
        self._region = region
        self._tenants = tenants
        self._intake = intake
        self._admission = Admission(
            max_requests=settings.max_requests,
            max_bytes=settings.max_in_flight_bytes,
            queued_bytes=lambda: intake.queued_bytes,
        )
        self._large = asyncio.Lock()
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")
        self._rules = otlp.Rules(
            max_records=settings.max_records,
            max_encoded_bytes=settings.max_encoded_bytes,
            max_attributes=settings.max_attributes,
            max_key_bytes=settings.max_key_bytes,
            max_text_bytes=settings.max_text_bytes,
            max_depth=settings.max_depth,
            resource_attributes=tuple(settings.resource_attributes.items()),
        )

    async def export(self, call: Call, body: Body) -> Answer:
        """Answer one request: OK once every accepted record is safe. Never raises but when cancelled."""
        with metrics.IN_FLIGHT.labels(call.protocol).track_inprogress():
            try:
                answer = await self._export(call, body)
            except PipelineError as error:
                answer = answers.failure(error, self._settings.retry_after_s)
            except Exception:
                log.exception("an export failed")
                answer = answers.bug()
        metrics.REQUESTS.labels(call.protocol, call.signal, answer.outcome).inc()
        return answer

    async def _export(self, call: Call, body: Body) -> Answer:
        tenant = self._tenants.identify(call.authorization, call.certificate)
        tenant.check(call.signal)
        with self._admission.held() as held:
            async with _within(self._settings.receive_within_s, "The body did not arrive in time."):
                received = await body.read(held.reserve)
            held.enter()
            started = time.perf_counter()
            encoded = await self._encoded(call, tenant, received, (body.coding, held))
            del received
            held.resize(0)  # from here on the intake counts its bytes
            tenant.take(records=encoded.accepted)
            await self._intake.make_safe(call.signal, tenant.name, encoded.groups, call.traceparent)
        _count(call.signal, tenant.name, encoded)
        metrics.REQUEST_SECONDS.labels(call.signal).observe(time.perf_counter() - started)
        return answers.success(call.signal, encoded.refused, encoded.shed)

    async def _encoded(self, call: Call, tenant: Tenant, received: bytes, how: tuple[str, Held]) -> otlp.Encoded:
        """Open and encode a body: a small one at once, large ones aside and one at a time.

        Each begins when what others became fits into memory, so no more than one is beyond that.
        """
        coding, held = how
        origin = otlp.Origin(tenant.name, self._region, receipt_ns(time.time_ns()))
        partitions, rules = self._intake.partitions(call.signal), self._intake.rules(self._rules)
        most, values = self._settings.max_decoded_bytes, self._settings.max_json_values

        def encode(body: bytes) -> otlp.Encoded:
            tenant.take(size=len(body))
            protobuf = to_protobuf(call.signal, body, max_values=values) if call.encoding == "json" else body
            return otlp.encode(call.signal, protobuf, origin, partitions=partitions, rules=rules)

        await held.reserve(0)
        small = _opened_in_place(received, coding, min(most, IN_PLACE_BYTES[call.encoding]))
        if small is not None:
            return encode(small)
        async with _within(LARGE_WITHIN_S, "Other large bodies are being read: come again, or send smaller ones."):
            await self._large.acquire()
        try:
            await held.reserve(0)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._aside, lambda: encode(opened(received, coding, most)))
        finally:
            self._large.release()


def _opened_in_place(received: bytes, coding: str, limit: int) -> bytes | None:
    """The body, or None where it is, or becomes, too large to keep the event loop waiting."""
    if len(received) > limit:
        return None
    try:
        return opened(received, coding, limit)
    except TooLarge:
        return None


@asynccontextmanager
async def _within(seconds: float, otherwise: str) -> AsyncIterator[None]:
    """`asyncio.timeout` that ends in Unavailable."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Unavailable(otherwise) from None


def _count(signal: Signal, tenant: str, encoded: otlp.Encoded) -> None:
    metrics.ACCEPTED.labels(signal, tenant).inc(encoded.accepted)
    for reason, count in encoded.refused.items():
        metrics.REFUSED.labels(signal, tenant, reason).inc(count)
    for severity, count in encoded.shed.items():
        metrics.SHED.labels(signal, tenant, severity).inc(count)
    if encoded.untimed:
        metrics.UNTIMED.labels(signal, tenant).inc(encoded.untimed)
    if encoded.cut:
        metrics.CUT.labels(signal, tenant).inc(encoded.cut)
