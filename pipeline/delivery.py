"""From a batch of messages to a store: never lose, never skip, say why. Knows no Kafka and no SQL."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import structlog
import tenacity

from pipeline.errors import PipelineError, Rejected, Unavailable
from pipeline.telemetry import metrics

log = structlog.get_logger()
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 15.0
Pairs = tuple[tuple[str, bytes | None], ...]


class Message(NamedTuple):
    """One Kafka message as a writer sees it: where it stood, and its container file.

    `pairs` are its headers as they stand in Kafka, in order, with doubles and nulls; `headers` the same to look things
    up in, where the last of a name counts and null is empty.
    """

    topic: str
    partition: int
    offset: int
    headers: dict[str, bytes]
    value: bytes
    pairs: Pairs = ()
    timestamp_ms: int = 0

    @property
    def place(self) -> str:
        """`logs_raw [2] @ 7`."""
        return f"{self.topic} [{self.partition}] @ {self.offset}"

    def why(self, reason: Rejected) -> str:
        """The reason without the place of this message, which is told beside it."""
        return str(reason).removeprefix(f"{self.place}: ")


class BrokenTable(Rejected):
    """One table of those that share a topic is not as it should be: stopping the process would stop its neighbours, so
    what comes for it is dead-lettered over any limit."""


class Partly(Rejected):
    """All of a message is written but some of its records, which never can be: `left` holds no others."""

    def __init__(self, reason: str, left: Message) -> None:
        super().__init__(reason)
        self.left = left


class Writer(Protocol):
    """One store. `write` runs in a thread and returns when all records of the batch are committed.

    It raises Unavailable when the store is away (nothing or all may have been written) and Rejected when some message
    can never be stored; both leave nothing half-visible, and the same batch may come again at any time. Of a batch of
    one message it may raise Partly.
    """

    name: str

    def write(self, batch: Sequence[Message]) -> int:
        """Return the number of records in the batch."""
        ...


class DeadLetters(Protocol):
    """Where poison goes."""

    async def put(self, message: Message, reason: Rejected) -> None:
        """Return when the message and the reason are safe; raise Unavailable where that is not known."""
        ...


class TooManyDeadLetters(PipelineError):
    """Going on would drain a topic into its dead-letter topic."""


class Limit:
    """How fast messages may be dead-lettered: `burst` at once, refilled at `per_min` a minute; a token bucket.

    A trickle of poison passes for ever, a bad deploy stops after `burst`. Pure: times are seconds of any clock that
    only goes forward. `spent` of the burst are gone at the start: what was dead-lettered just before a restart.
    `setting` is where it is set.
    """

    def __init__(self, per_min: float = 60.0, burst: int = 300, *, spent: int = 0, setting: str = "") -> None:
        self.per_min, self.burst, self.setting = per_min, burst, setting
        self._left = float(max(0, burst - spent))
        self._at_s: float | None = None

    def take(self, now_s: float) -> bool:
        """Whether one more may be dead-lettered at `now_s`; if so it is counted."""
        passed_s = 0.0 if self._at_s is None else max(0.0, now_s - self._at_s)
        self._left = min(float(self.burst), self._left + passed_s * self.per_min / 60)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


Sleep = Callable[[float], Awaitable[None]]
Clock = Callable[[], float]


class Delivery:
    """`deliver` for one writer. Several may share one limit.

    Messages of different schemas are delivered apart: what is wrong with one has no part in the other's fate.
    """

    def __init__(
        self,
        writer: Writer,
        dead_letters: DeadLetters,
        *,
        limit: Limit | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._writer = writer
        self._dead_letters = dead_letters
        self._limit = limit or Limit()
        self._clock = clock
        self._sleep = sleep
        self.waits: dict[object, str] = {}  # what each part of a batch that waits for its store waits for

    async def deliver(self, batch: Sequence[Message]) -> None:
        """Return when every record of `batch` is committed by the store, or its message safe in the dead letters.

        A store that is away is tried again in place, for ever. Poison is found by halving. Raises Unavailable when the
        dead-letter topic is away and TooManyDeadLetters over the limit: then nothing of the batch may be acknowledged,
        and the process should stop. What was dead-lettered of it before is dead-lettered again by the next process.
        """
        by_schema: dict[bytes, list[Message]] = {}
        for message in batch:
            by_schema.setdefault(message.headers.get("schema", b""), []).append(message)
        parts: list[Sequence[Message]] = list(reversed(by_schema.values()))
        while parts:
            part = parts.pop()
            try:
                records = await self._write(part)
            except Rejected as reason:
                if len(part) == 1:
                    await self._bury(reason.left if isinstance(reason, Partly) else part[0], reason)
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
            else:
                metrics.BATCH_RECORDS.labels(self._writer.name).observe(records)

    async def _write(self, part: Sequence[Message]) -> int:
        away = metrics.STORE_AWAY.labels(self._writer.name)
        this = object()

        def count_and_tell(state: tenacity.RetryCallState) -> None:
            if this not in self.waits:
                away.inc()
            metrics.RETRIES.labels(self._writer.name).inc()
            reason = self.waits[this] = str(state.outcome.exception()) if state.outcome else ""
            log.warning(
                "store is away, trying again", writer=self._writer.name, attempt=state.attempt_number, reason=reason
            )

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            before_sleep=count_and_tell,
            sleep=self._sleep,
        )

        async def once() -> int:
            with metrics.STORE_SECONDS.labels(self._writer.name).time():
                return await asyncio.to_thread(self._writer.write, part)

        try:
            records: int = await retrying(once)
        finally:
            if self.waits.pop(this, None) is not None:
                away.dec()
        return records

    async def _bury(self, message: Message, reason: Rejected) -> None:
        if not isinstance(reason, BrokenTable) and not self._limit.take(self._clock()):
            raise TooManyDeadLetters(
                f"{self._writer.name} meets more poison than it may dead-letter: over {self._limit.burst} messages at "
                f"once and {self._limit.per_min:g} a minute; last from {message.place}: "
                f"{message.why(reason)} Look at `pipeline dlq list`. If the messages are to blame and not a "
                f"new deployment, raise {self._limit.setting}.dead_letters_per_min, and start it again."
            )
        await self._dead_letters.put(message, reason)
        metrics.DEAD_LETTERED.labels(self._writer.name, message.topic).inc()
        log.error(
            "message dead-lettered", writer=self._writer.name, topic=message.topic, partition=message.partition,
            offset=message.offset, reason=message.why(reason),
        )  # fmt: skip
