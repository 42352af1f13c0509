"""From a batch of messages to a store: never lose, never skip, say why. Knows no Kafka and no SQL."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import structlog
import tenacity

from pipeline.errors import PipelineError, Rejected, Unavailable
from pipeline.telemetry import metrics

log = structlog.get_logger()
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 15.0
MAX_DEAD_LETTERS = 1000  # of one process, until somebody looked


class Message(NamedTuple):
    """One Kafka message as a writer sees it: where it stood, and its container file."""

    topic: str
    partition: int
    offset: int
    headers: dict[str, bytes]
    value: bytes


class Writer(Protocol):
    """One store. `write` runs in a thread and returns when all records of the batch are committed.

    It raises Unavailable when the store is away (nothing or all may have been written) and Rejected when some message
    can never be stored; both leave nothing half-visible, and the same batch may come again at any time.
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


Sleep = Callable[[float], Awaitable[None]]


class Delivery:
    """`deliver` for one writer; counts what it dead-letters."""

    def __init__(
        self, writer: Writer, dead_letters: DeadLetters, *, limit: int = MAX_DEAD_LETTERS, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._writer = writer
        self._dead_letters = dead_letters
        self._left = limit
        self._sleep = sleep

    async def deliver(self, batch: Sequence[Message]) -> None:
        """Return when every record of `batch` is committed by the store, or its message safe in the dead letters.

        A store that is away is tried again in place, for ever. Poison is found by halving. Raises Unavailable when the
        dead-letter topic is away and TooManyDeadLetters over the limit: then nothing of the batch may be acknowledged,
        and the process should stop.
        """
        parts = [batch]
        while parts:
            part = parts.pop()
            try:
                records = await self._write(part)
            except Rejected as reason:
                if len(part) == 1:
                    await self._bury(part[0], reason)
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
            else:
                metrics.BATCH_RECORDS.labels(self._writer.name).observe(records)

    async def _write(self, part: Sequence[Message]) -> int:
        away = metrics.STORE_AWAY.labels(self._writer.name)

        def count_and_tell(state: tenacity.RetryCallState) -> None:
            away.set(1)
            metrics.RETRIES.labels(self._writer.name).inc()
            reason = str(state.outcome.exception()) if state.outcome else ""
            log.warning(
                "store is away, trying again", writer=self._writer.name, attempt=state.attempt_number, reason=reason
            )

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            before_sleep=count_and_tell,
            sleep=self._sleep,
        )
        with metrics.STORE_SECONDS.labels(self._writer.name).time():
            records: int = await retrying(asyncio.to_thread, self._writer.write, part)
        away.set(0)
        return records

    async def _bury(self, message: Message, reason: Rejected) -> None:
        if not self._left:
            raise TooManyDeadLetters(
                f"{self._writer.name} met more poison than it may dead-letter; last from {message.topic} "
                f"[{message.partition}] @ {message.offset}: {reason}. Look at {message.topic}_dlq, then start it again."
            )
        await self._dead_letters.put(message, reason)
        self._left -= 1
        metrics.DEAD_LETTERED.labels(self._writer.name, message.topic).inc()
        log.error(
            "message dead-lettered", writer=self._writer.name, topic=message.topic, partition=message.partition,
            offset=message.offset, reason=str(reason),
        )  # fmt: skip
