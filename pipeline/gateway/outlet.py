"""Where messages become safe: Kafka while it acknowledges, the spool while it does not.

What is in the spool goes to Kafka as soon as it answers again, oldest first, at a limited rate beside live traffic.
Until the first of it has arrived, new messages are spooled too, without waiting for Kafka first.
"""

import asyncio
import contextlib
import math
import time

import structlog

from pipeline.errors import PipelineError, Unavailable
from pipeline.kafka.producer import Publisher, Settled
from pipeline.otlp import Rules
from pipeline.record.schema import Signal
from pipeline.settings import SpoolSettings
from pipeline.spool.message import Message, Stored
from pipeline.spool.spool import Spool
from pipeline.telemetry import metrics

log = structlog.get_logger()
DRAIN_MESSAGES = 200  # published together, and then deleted together
DRAIN_BYTES = 4 * 1024 * 1024
TRIED_MESSAGES = 10  # while it is not known whether Kafka acknowledges again
REFUSED_FOR_S = 10.0  # after a refusal we are not ready
LOOK_S = 0.5  # for what to drain, and for the level in the metrics
SHED_LOGS_FROM = 0.80  # of the spool
SHED_SPANS_FROM = 0.85
WARNING = 13  # the severity number of WARN


class Outlet:
    """One process's way out. `deliver` does what `Publisher.send` does, and falls back on the spool."""

    def __init__(self, publisher: Publisher, spool: Spool, settings: SpoolSettings) -> None:
        self._publisher = publisher
        self._spool = spool
        self._settings = settings
        self._remembered = spool.recall()
        self._spooling = False
        self._unacknowledged = ""  # why, the last time that something was
        self._quarantined = 0
        self._refusal, self._refused_at_s = "", -math.inf

    def partitions(self, topic: str) -> int:
        """How many the topic has, or had when Kafka last answered; before it ever did, all goes to the first."""
        try:
            return self._publisher.partitions(topic)
        except Unavailable:
            return self._remembered.get(topic, 1)

    def rules(self, rules: Rules) -> Rules:
        """`rules`, with what is to be shed while the spool is nearly full and Kafka away.

        Logs below WARN go first, and from 85 % on ever more of the spans that look unsampled and did not fail.
        """
        if not self._away():
            return rules
        level = self._spool.level().fraction
        if level < SHED_LOGS_FROM:
            return rules
        keep = min(1.0, max(0.0, (1 - level) / (1 - SHED_SPANS_FROM)))
        return rules._replace(shed_below_severity=WARNING, keep_spans=keep)

    def unready(self) -> str | None:
        """Why nothing can be made safe now, or None."""
        if not self._away():
            return None
        since_s = time.monotonic() - self._refused_at_s
        return f"{self._why()}, and the spool takes nothing: {self._refusal}" if since_s < REFUSED_FOR_S else None

    def degraded(self) -> str | None:
        """Why records go to the spool, or wait there, or None."""
        level = self._spool.level()
        if self._away():
            return f"{self._why()}; records go to the spool, which is {level.fraction:.0%} full"
        if level.messages:
            why = f": {self._unacknowledged}" if self._unacknowledged else ""
            return f"{level.records} records wait in the spool, the oldest for {level.oldest_s or 0:.0f} s{why}"
        return None

    def deliver(self, message: Message, labels: tuple[Signal, str], settled: Settled) -> None:
        """Make one message safe; settle it with None when it is, else with why it is not known to be. Never blocks."""

        def published(failure: Unavailable | None) -> None:
            if failure is None:
                metrics.child(metrics.PUBLISHED, *labels).inc(message.records)
                settled(None)
                return
            if not self._spooling:
                log.warning("Kafka is away: records go to the spool", reason=str(failure))
            self._spooling = True
            self._unacknowledged = str(failure)
            spool()

        def spool() -> None:
            asyncio.wrap_future(self._spool.put(message)).add_done_callback(spooled)

        def spooled(kept: "asyncio.Future[None]") -> None:
            failure = kept.exception()
            if failure is None:
                metrics.SPOOLED.labels(*labels).inc(message.records)
            else:
                if not isinstance(failure, Unavailable):
                    log.error("the spool failed", exc_info=failure)
                elif time.monotonic() - self._refused_at_s >= REFUSED_FOR_S:
                    log.warning("the spool takes nothing", reason=str(failure))
                self._refusal, self._refused_at_s = str(failure), time.monotonic()
                failure = Unavailable("Kafka is away and the gateway's spool is full, or fails: come again.")
            settled(failure)

        if self._away():
            spool()
        else:
            self._publisher.send(message.topic, message.partition, message.value, message.headers, published)

    async def drain(self, stop: asyncio.Event) -> None:
        """Bring what is spooled to Kafka until `stop`; on return nothing of ours touches the spool any more."""
        while not stop.is_set():
            self._show_level()
            rest_s = LOOK_S
            try:
                if self._publisher.unready() is None:
                    rest_s = await self._drain_some()
                    await self._remember()
            except PipelineError as error:
                log.warning("the spool cannot be drained now", reason=str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), rest_s)

    def _away(self) -> bool:
        return self._spooling or self._publisher.unready() is not None

    def _why(self) -> str:
        return self._publisher.unready() or self._unacknowledged.rstrip(".") or "Kafka does not acknowledge"

    async def _drain_some(self) -> float:
        """Publish and delete the oldest; return the seconds after which there may be more."""
        started = time.monotonic()
        limit = TRIED_MESSAGES if self._spooling else DRAIN_MESSAGES
        stored = await asyncio.to_thread(self._spool.oldest, limit, DRAIN_BYTES)
        sent = await self._bring(stored)
        if self._spooling and (sent or not stored):  # one that Kafka will never take must not speak for the others
            log.info("Kafka acknowledges again", spooled_messages=self._spool.level().messages)
            self._spooling = False
        if sent:
            await asyncio.to_thread(self._spool.delete, [each.id for each in sent])
            metrics.DRAINED.inc(sum(each.message.records for each in sent))
        if not stored or not sent:
            return LOOK_S
        size = sum(len(each.message.value) for each in sent)
        return max(0.0, size / self._settings.drain_bytes_per_s - (time.monotonic() - started))

    async def _bring(self, stored: list[Stored]) -> list[Stored]:
        """Those that Kafka acknowledged."""
        under_way = []
        for _, _, message in stored:
            partition = message.partition % self._publisher.partitions(message.topic)  # made anew it may have fewer
            under_way.append(self._publisher.publish(message.topic, partition, message.value, message.headers))
        failures = await asyncio.gather(*under_way)
        sent = [each for each, failure in zip(stored, failures, strict=True) if failure is None]
        self._unacknowledged = next((str(failure) for failure in failures if failure), "")
        if len(sent) < len(stored):
            log.warning("spooled messages wait", messages=len(stored) - len(sent), reason=self._unacknowledged)
        return sent

    async def _remember(self) -> None:
        counts = self._publisher.known_partitions()
        if counts != self._remembered:
            await asyncio.to_thread(self._spool.remember, counts)
            self._remembered = counts

    def _show_level(self) -> None:
        level = self._spool.level()
        metrics.SPOOL_LEVEL.set(level.fraction)
        metrics.SPOOL_BYTES.set(level.used_bytes)
        metrics.SPOOL_MESSAGES.set(level.messages)
        metrics.SPOOL_OLDEST_SECONDS.set(level.oldest_s or 0)
        metrics.QUARANTINED.inc(self._spool.losses.messages - self._quarantined)
        self._quarantined = self._spool.losses.messages
