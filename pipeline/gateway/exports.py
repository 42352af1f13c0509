"""One export, the same for both protocols: who sends, is there room, open, encode, make safe, answer."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, Protocol, TypeVar

import structlog

from pipeline import otlp
from pipeline.errors import PipelineError, TooLarge, Unavailable
from pipeline.gateway import answers
from pipeline.gateway.admission import Admission, Held
from pipeline.gateway.answers import Answer
from pipeline.gateway.compression import opened
from pipeline.gateway.intake import Intake, Stream
from pipeline.gateway.tenants import Tenant, Tenants
from pipeline.otlp.json import to_protobuf
from pipeline.record import schema
from pipeline.record.framing import Group, Origin
from pipeline.record.schema import Schema, Signal
from pipeline.record.times import receipt_ns
from pipeline.settings import GatewaySettings
from pipeline.telemetry import metrics

log = structlog.get_logger()
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
IN_PLACE_BYTES = {
    "protobuf": 1024 * 1024,
    "json": 64 * 1024,
    "ndjson": 64 * 1024,
}  # larger bodies leave the event loop to others
LARGE_WITHIN_S = 5.0  # until a large body's turn


Encoding = Literal["protobuf", "json", "ndjson"]


class Call(NamedTuple):
    """What a protocol knows of a request before its body; `certificate` holds names from a verified one."""

    protocol: Literal["grpc", "http"]
    signal: Signal
    encoding: Encoding
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


class Outcome(Protocol):
    """What came of a body."""

    groups: list[Group]
    untimed: int

    @property
    def accepted(self) -> int: ...


Found = TypeVar("Found", bound=Outcome)


class Job(Protocol[Found]):
    """What is done with one request's body; larger bodies than `in_place_bytes` leave the event loop to others."""

    signal: Signal
    schema: Schema
    in_place_bytes: int

    def encode(self, body: bytes, origin: Origin, partitions: int) -> Found:
        """Turn a body into container files. Raise Rejected where it is none of this kind. May run in a thread."""

    async def stands(self, found: Found) -> bool:
        """Whether it stays at that; else the same body is encoded once more."""

    def count(self, found: Found, tenant: str) -> None:
        """Into the metrics, what is of this kind alone."""


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
        """Answer one OTLP request: OK once every accepted record is safe. Never raises but when cancelled."""

        async def job() -> _Otlp:
            return _Otlp(call, self._intake.rules(self._rules), self._settings.max_json_values)

        return await self.answered(call, self._export(call, body, job))

    async def _export(self, call: Call, body: Body, job: "Callable[[], Awaitable[_Otlp]]") -> Answer:
        encoded = await self.accepted(call, body, job)
        return answers.success(call.signal, encoded.refused, encoded.shed)

    async def answered(self, call: Call, way: Awaitable[Answer]) -> Answer:
        """What `way` comes to, its failures as answers, counted."""
        in_flight = metrics.child(metrics.IN_FLIGHT, call.protocol)
        in_flight.inc()
        try:
            answer = await way
        except PipelineError as error:
            answer = answers.failure(error, self._settings.retry_after_s)
        except Exception:
            log.exception("a request failed")
            answer = answers.bug()
        finally:
            in_flight.dec()
        metrics.child(metrics.REQUESTS, call.protocol, call.signal, answer.outcome).inc()
        return answer

    async def accepted(self, call: Call, body: Body, job: Callable[[], Awaitable["Job[Found]"]]) -> Found:
        """What a request came to, once all that was accepted of it is safe; `job` is made for a known tenant only.

        Raise one of ours where nothing is promised.
        """
        tenant = self._tenants.identify(call.authorization, call.certificate)
        tenant.check(call.signal)
        work = await job()
        with self._admission.held() as held:
            try:
                async with asyncio.timeout(self._settings.receive_within_s):
                    received = await body.read(held.reserve)
            except TimeoutError:
                raise Unavailable("The body did not arrive in time.") from None
            held.enter()
            started = time.perf_counter()
            found = await self._encoded(tenant, work, received, (body.coding, held))
            if not await work.stands(found):
                found = await self._encoded(tenant, work, received, (body.coding, held))
            del received
            held.resize(0)  # from here on the intake counts its bytes
            tenant.take(records=found.accepted)
            await self._intake.make_safe(Stream(call.signal, work.schema, tenant.name), found.groups, call.traceparent)
        metrics.child(metrics.ACCEPTED, call.signal, tenant.name).inc(found.accepted)
        if found.untimed:
            metrics.UNTIMED.labels(call.signal, tenant.name).inc(found.untimed)
        work.count(found, tenant.name)
        metrics.child(metrics.REQUEST_SECONDS, call.signal).observe(time.perf_counter() - started)
        return found

    async def _encoded(self, tenant: Tenant, work: "Job[Found]", received: bytes, how: tuple[str, Held]) -> Found:
        """Open and encode a body: a small one at once, large ones aside and one at a time.

        Each begins when what others became fits into memory, so no more than one is beyond that.
        """
        coding, held = how
        origin = Origin(tenant.name, self._region, time.time_ns())
        partitions, most = self._intake.partitions(work.signal), self._settings.max_decoded_bytes

        def encode(body: bytes) -> Found:
            tenant.take(size=len(body))
            return work.encode(body, origin, partitions)

        await held.reserve(0)
        small = _opened_in_place(received, coding, min(most, work.in_place_bytes))
        if small is not None:
            return encode(small)
        try:
            async with asyncio.timeout(LARGE_WITHIN_S):
                await self._large.acquire()
        except TimeoutError:
            raise Unavailable("Other large bodies are being read: come again, or send smaller ones.") from None
        try:
            await held.reserve(0)
            loop = asyncio.get_running_loop()
            encoding = loop.run_in_executor(self._aside, lambda: encode(opened(received, coding, most)))
            try:
                return await asyncio.shield(encoding)
            except asyncio.CancelledError:  # the thread holds the body until it is done with it
                await asyncio.gather(encoding, return_exceptions=True)
                raise
            finally:
                del encoding  # a failure holds this frame: together they would keep the body until a collection
        finally:
            self._large.release()


class _Otlp:
    """OTLP's job: one signal in one encoding."""

    def __init__(self, call: Call, rules: otlp.Rules, max_values: int) -> None:
        self.signal = call.signal
        self.schema = schema.of(call.signal)
        self.in_place_bytes = IN_PLACE_BYTES[call.encoding]
        self._is_json = call.encoding == "json"
        self._rules = rules
        self._max_values = max_values

    def encode(self, body: bytes, origin: Origin, partitions: int) -> otlp.Encoded:
        if self._is_json:
            body = to_protobuf(self.signal, body, max_values=self._max_values)
        origin = Origin(origin.tenant, origin.region, receipt_ns(origin.received_time))
        return otlp.encode(self.signal, body, origin, partitions=partitions, rules=self._rules)

    async def stands(self, _: otlp.Encoded) -> bool:
        return True

    def count(self, found: otlp.Encoded, tenant: str) -> None:
        for reason, count in found.refused.items():
            metrics.REFUSED.labels(self.signal, tenant, reason).inc(count)
        for severity, count in found.shed.items():
            metrics.SHED.labels(self.signal, tenant, severity).inc(count)
        if found.cut:
            metrics.CUT.labels(self.signal, tenant).inc(found.cut)


def _opened_in_place(received: bytes, coding: str, limit: int) -> bytes | None:
    """The body, or None where it is, or becomes, too large to keep the event loop waiting."""
    if len(received) > limit:
        return None
    try:
        return opened(received, coding, limit)
    except TooLarge:
        return None
