"""From a request's bytes to an acknowledgement by Kafka: the one road that both protocols take."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from pipeline import otlp
from pipeline.errors import Unavailable
from pipeline.kafka.producer import Publisher
from pipeline.record import container, schema
from pipeline.record.schema import Signal
from pipeline.telemetry import metrics

ENOUGH_RECORDS = 200  # a message this full leaves at once
ENOUGH_BYTES = 256 * 1024

Acknowledged = asyncio.Future[Unavailable | None]


class Request(NamedTuple):
    """What a protocol knows of a request: protobuf body, whose it is, and its W3C traceparent or nothing."""

    signal: Signal
    body: bytes
    tenant: str
    traceparent: str = ""


class Intake:
    """Encodes requests and publishes them; requests that arrive together share messages."""

    def __init__(
        self, publisher: Publisher, region: str, *, within_s: float, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._publisher = publisher
        self._region = region
        self._within_s = within_s
        self._clock = clock
        self._lanes: dict[tuple[Signal, str, int], _Lane] = {}

    async def accept(self, request: Request) -> Counter[str]:
        """Return how many records were refused, by reason, once all others are in Kafka with acks=all.

        Raise Rejected where the body is no OTLP request, and Unavailable where Kafka did not acknowledge in time: then
        nothing is promised, and the client's retry gives the same event_ids.
        """
        started = time.perf_counter()
        signal, body, tenant, traceparent = request
        partitions = self._publisher.partitions(schema.topic(signal))
        origin = otlp.Origin(tenant, self._region, self._clock())
        encoded = otlp.encode(signal, body, origin, partitions=partitions)
        acknowledgements = {
            self._lane(signal, tenant, group.partition).add(group, traceparent) for group in encoded.groups
        }
        if acknowledgements:
            await self._wait(acknowledgements)
        metrics.ACCEPTED.labels(signal, tenant).inc(encoded.accepted)
        metrics.REFUSED.labels(signal, tenant).inc(encoded.refused.total())
        metrics.UNTIMED.labels(signal, tenant).inc(encoded.untimed)
        metrics.REQUEST_SECONDS.labels(signal).observe(time.perf_counter() - started)
        return encoded.refused

    async def _wait(self, acknowledgements: set[Acknowledged]) -> None:
        # asyncio.wait leaves the futures alone when this request is cancelled: others share them.
        done, pending = await asyncio.wait(acknowledgements, timeout=self._within_s + 1)
        if pending:
            raise Unavailable("Kafka did not acknowledge in time.")
        for future in done:
            failure = future.result()
            if failure is not None:
                raise failure

    def _lane(self, signal: Signal, tenant: str, partition: int) -> "_Lane":
        key = signal, tenant, partition
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(self._publisher, self._region, key)
        return lane


class _Lane:
    """The way of one signal and tenant into one partition.

    With nothing under way a group leaves at once; while a message is under way groups gather, and leave together when
    it is acknowledged or when they are enough for a message. So an idle gateway does not wait and a busy one fills
    its messages.
    """

    def __init__(self, publisher: Publisher, region: str, key: tuple[Signal, str, int]) -> None:
        self._publisher = publisher
        self._signal, tenant, self._partition = key
        self._schema = schema.of(self._signal)
        self._headers = [
            ("tenant", tenant.encode()),
            ("region", region.encode()),
            ("signal", self._signal.encode()),
            ("schema", self._schema.name.encode()),
        ]
        self._gathered: list[otlp.Group] = []
        self._gathered_bytes = 0
        self._gathered_records = 0
        self._traceparent = ""
        self._under_way = 0
        self._next: Acknowledged = asyncio.get_running_loop().create_future()

    def add(self, group: otlp.Group, traceparent: str) -> Acknowledged:
        """Take one container file; the future is done when the message that carries it is."""
        size = len(group.value)
        if self._gathered_bytes + size > otlp.MAX_VALUE_BYTES:
            self._send()
        self._gathered.append(group)
        self._gathered_bytes += size
        self._gathered_records += group.records
        self._traceparent = self._traceparent or traceparent
        acknowledged = self._next
        if not self._under_way or self._gathered_records >= ENOUGH_RECORDS or self._gathered_bytes >= ENOUGH_BYTES:
            self._send()
        return acknowledged

    def _send(self) -> None:
        if not self._gathered:
            return
        groups, acknowledged, records = self._gathered, self._next, self._gathered_records
        headers = [
            *self._headers,
            ("records", b"%d" % records),
            ("min_time", b"%d" % min(group.min_time for group in groups)),
            ("max_time", b"%d" % max(group.max_time for group in groups)),
        ]
        if self._traceparent:
            headers.append(("traceparent", self._traceparent.encode()))
        value = groups[0].value if len(groups) == 1 else container.join(self._schema.head, [g.value for g in groups])
        self._gathered, self._gathered_bytes, self._gathered_records, self._traceparent = [], 0, 0, ""
        self._next = asyncio.get_running_loop().create_future()
        self._under_way += 1
        metrics.MESSAGE_RECORDS.labels(self._signal).observe(records)
        started = time.perf_counter()

        def done(published: Acknowledged) -> None:
            self._under_way -= 1
            metrics.PRODUCE_SECONDS.labels(self._signal).observe(time.perf_counter() - started)
            acknowledged.set_result(published.result())
            if not self._under_way:
                self._send()

        self._publisher.publish(schema.topic(self._signal), self._partition, value, headers).add_done_callback(done)
