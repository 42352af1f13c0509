"""From container files to "safe": those of one lane share messages, and every request waits for all of its own."""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.errors import Unavailable
from pipeline.gateway.outlet import Outlet
from pipeline.kafka.producer import Settled
from pipeline.otlp import Rules
from pipeline.record import container, schema
from pipeline.record.framing import MAX_VALUE_BYTES, Group
from pipeline.record.schema import Schema, Signal
from pipeline.spool.message import Message
from pipeline.telemetry import metrics

ENOUGH_RECORDS = 200  # a message that full leaves at once
ENOUGH_BYTES = 256 * 1024
SPOOL_WITHIN_S = 3.0


class Stream(NamedTuple):
    """What records have in common that may share a message."""

    signal: Signal
    schema: Schema
    tenant: str


class Intake:
    """Makes groups of records safe; requests that arrive together share messages."""

    def __init__(self, outlet: Outlet, region: str, *, within_s: float) -> None:
        self._outlet = outlet
        self._region = region
        self._within_s = within_s + SPOOL_WITHIN_S
        self._lanes: dict[tuple[str, str, bytes, int], _Lane] = {}
        self.queued_bytes = 0

    def partitions(self, signal: Signal) -> int:
        return self._outlet.partitions(schema.topic(signal))

    def rules(self, rules: Rules) -> Rules:
        """`rules`, with what is to be shed now."""
        return self._outlet.rules(rules)

    async def make_safe(self, stream: Stream, groups: Sequence[Group], traceparent: str) -> None:
        """Return once all `groups` are in Kafka with acks=all, or fsynced in the spool.

        Raise Unavailable where that did not happen in time: then nothing is promised, and the client's retry gives
        the same event_ids.
        """
        if not groups:
            return
        waiting = _Waiting(len(groups))
        for group in groups:
            self._lane(stream, group.partition).add(group, traceparent, waiting.settled)
        late = asyncio.get_running_loop().call_later(self._within_s, waiting.late)
        try:
            failure = await waiting.future
        finally:
            late.cancel()
        if failure is not None:
            raise failure

    def count(self, size: int) -> None:
        """`size` more bytes (or fewer) wait for an acknowledgement."""
        self.queued_bytes += size
        metrics.QUEUED_BYTES.set(self.queued_bytes)

    def _lane(self, stream: Stream, partition: int) -> "_Lane":
        # The head too: what is joined must have the same, whatever it is called.
        key = stream.tenant, stream.schema.name, stream.schema.head, partition
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(self, self._outlet, self._region, (stream, partition))
        return lane


class _Waiting:
    """One request, until all of its groups are settled, or it is too late for them."""

    def __init__(self, groups: int) -> None:
        self.future: asyncio.Future[Unavailable | None] = asyncio.get_running_loop().create_future()
        self._left = groups
        self._failure: Unavailable | None = None

    def settled(self, failure: Unavailable | None) -> None:
        self._left -= 1
        self._failure = self._failure or failure
        if not self._left:
            self._end(self._failure)

    def late(self) -> None:
        self._end(Unavailable("Neither Kafka nor the spool acknowledged in time."))

    def _end(self, failure: Unavailable | None) -> None:
        if not self.future.done():
            self.future.set_result(failure)


class _Lane:
    """The way of one stream into one partition.

    With nothing under way a group leaves at once; while a message is under way groups gather, and leave together when
    it is acknowledged or when they are enough for a message. So an idle gateway does not wait and a busy one fills
    its messages.
    """

    def __init__(self, intake: Intake, outlet: Outlet, region: str, way: tuple[Stream, int]) -> None:
        self._intake = intake
        self._outlet = outlet
        (self._signal, self._schema, tenant), self._partition = way
        self._labels = self._signal, tenant
        self._message_records = metrics.MESSAGE_RECORDS.labels(self._signal)
        self._safe_seconds = metrics.SAFE_SECONDS.labels(self._signal)
        self._headers = [
            ("tenant", tenant.encode()),
            ("region", region.encode()),
            ("signal", self._signal.encode()),
            ("schema", self._schema.name.encode()),
        ]
        self._gathered: list[Group] = []
        self._gathered_bytes = 0
        self._gathered_records = 0
        self._traceparent = ""
        self._under_way = 0
        self._waiting: list[Settled] = []

    def add(self, group: Group, traceparent: str, settled: Settled) -> None:
        """Take one container file; it is settled when the message that carries it is."""
        size = len(group.value)
        if self._gathered_bytes + size > MAX_VALUE_BYTES:
            self._send()
        self._intake.count(size)
        self._gathered.append(group)
        self._gathered_bytes += size
        self._gathered_records += group.records
        self._traceparent = self._traceparent or traceparent
        self._waiting.append(settled)
        if not self._under_way or self._gathered_records >= ENOUGH_RECORDS or self._gathered_bytes >= ENOUGH_BYTES:
            self._send()

    def _send(self) -> None:
        if not self._gathered:
            return
        groups, waiting, records = self._gathered, self._waiting, self._gathered_records
        size, traceparent = self._gathered_bytes, self._traceparent
        self._gathered, self._gathered_bytes, self._gathered_records, self._traceparent = [], 0, 0, ""
        self._waiting = []
        self._under_way += 1
        first = groups[0]
        value, min_time, max_time = first.value, first.min_time, first.max_time
        if len(groups) > 1:
            value = container.join(self._schema.head, [group.value for group in groups])
            min_time = min(group.min_time for group in groups)
            max_time = max(group.max_time for group in groups)
        headers = [
            *self._headers,
            ("records", b"%d" % records),
            ("min_time", b"%d" % min_time),
            ("max_time", b"%d" % max_time),
        ]
        if traceparent:
            headers.append(("traceparent", traceparent.encode()))
        message = Message(schema.topic(self._signal), self._partition, records, tuple(headers), value)
        self._message_records.observe(records)
        started = time.perf_counter()

        def done(failure: Unavailable | None) -> None:
            self._under_way -= 1
            self._intake.count(-size)
            self._safe_seconds.observe(time.perf_counter() - started)
            for settled in waiting:
                settled(failure)
            if not self._under_way:
                self._send()

        self._outlet.deliver(message, self._labels, done)
