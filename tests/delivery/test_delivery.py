"""deliver returns when everything is stored or dead-lettered, and never otherwise."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.delivery import Delivery, Limit, Message, TooManyDeadLetters
from pipeline.errors import Rejected, Unavailable
from pipeline.telemetry import metrics
from tests.contract.fake import Memory, MemoryWriter
from tests.contract.test_stores import one
from tests.otlp import requests

GOOD = one("logs", requests.logs("x"))
POISON = GOOD._replace(value=GOOD.value[:-1])


def stored(memory: Memory) -> list[int]:
    return [message.offset for message in memory.messages]


class Dead:
    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.buried: list[int] = []

    async def put(self, message: Message, reason: Rejected) -> None:
        if self.failure:
            raise self.failure
        self.buried.append(message.offset)


async def no_sleep(_: float) -> None:
    await asyncio.sleep(0)


def deliver(memory: Memory, dead: Dead, batch: Sequence[Message], limit: Limit | None = None) -> None:
    delivery = Delivery(MemoryWriter(memory), dead, limit=limit, clock=lambda: 0.0, sleep=no_sleep)
    asyncio.run(delivery.deliver([message._replace(offset=n) for n, message in enumerate(batch)]))


@given(st.integers(1, 40), st.sets(st.integers(0, 39)), st.integers(0, 5))
def test_every_message_is_stored_or_dead_lettered_once_and_in_order(count: int, poison: set[int], away: int) -> None:
    """Whatever is poison and however long the store is away, nothing is lost, doubled or reordered."""
    memory, dead = Memory("logs", away), Dead()
    deliver(memory, dead, [POISON if n in poison else GOOD for n in range(count)])
    assert stored(memory) == [n for n in range(count) if n not in poison]
    assert dead.buried == [n for n in range(count) if n in poison]


def test_a_store_that_is_away_is_waited_for() -> None:
    """An outage of any length ends in the same batch, stored once."""
    memory = Memory("logs", away=200)
    deliver(memory, Dead(), [GOOD] * 3)
    assert stored(memory) == [0, 1, 2]


def test_dead_letters_that_are_away_stop_the_process() -> None:
    """Poison that cannot be put aside is an error for the caller, who acknowledges nothing."""
    with pytest.raises(Unavailable):
        deliver(Memory("logs"), Dead(Unavailable("no Kafka")), [GOOD, POISON, GOOD])


def test_more_poison_than_the_limit_stops_the_process() -> None:
    """A bad deploy does not drain a topic into its dead letters: the sentence names the last message, and the setting."""
    dead = Dead()
    said = r"logs_raw \[0\] @ 2: The value is cut short.*raise agents\.keep\.dead_letters_per_min,"
    with pytest.raises(TooManyDeadLetters, match=said):
        deliver(Memory("logs"), dead, [POISON] * 10, Limit(60, 2, setting="agents.keep"))
    assert dead.buried == [0, 1]


def test_a_trickle_of_poison_never_stops_a_writer() -> None:
    """A month of one bad message a minute passes a limit of one a minute, with a burst of two."""
    limit = Limit(1, 2)
    assert all(limit.take(60.0 * minute) for minute in range(31 * 24 * 60))


@given(
    st.floats(0.5, 600), st.integers(1, 50), st.integers(0, 60),
    st.lists(st.floats(0, 120), min_size=1, max_size=100),
)  # fmt: skip
def test_no_time_sees_more_than_the_burst_and_its_refill(
    per_min: float, burst: int, spent: int, waits: list[float]
) -> None:
    """From any one to any other dead letter there are at most `burst` and what the time between refills."""
    limit, now, taken = Limit(per_min, burst, spent=spent), 0.0, []
    for wait in waits:
        now += wait
        if limit.take(now):
            taken.append(now)
    for first, start in enumerate(taken):
        for last, end in enumerate(taken[first:], first):
            assert last - first + 1 <= burst + (end - start) * per_min / 60 + 1e-6
    assert len(taken) <= max(0, burst - spent) + now * per_min / 60 + 1e-6


def test_a_clock_that_stands_still_gives_the_burst_and_no_more() -> None:
    """Nothing comes back without time, and what was spent before a restart is gone."""
    limit = Limit(60, 5, spent=2)
    assert [limit.take(7.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert limit.take(8.0)
    assert not limit.take(8.5)


def test_a_bug_is_not_swallowed() -> None:
    """An error of no known kind passes through, so that the process stops."""

    class Broken:
        name = "broken"

        def write(self, batch: Sequence[Message]) -> int:
            raise KeyError("bug")

    with pytest.raises(KeyError):
        asyncio.run(Delivery(Broken(), Dead()).deliver([GOOD]))


def test_what_waits_is_counted_and_says_for_what() -> None:
    """Another batch that is stored meanwhile changes nothing, and what ends as poison waits no more."""

    class Store:
        name = "a store"

        def __init__(self, *failures: Exception) -> None:
            self._failures = list(failures)

        def write(self, batch: Sequence[Message]) -> int:
            if self._failures:
                raise self._failures.pop(0)
            return len(batch)

    gauge = metrics.STORE_AWAY.labels("a store")._value
    seen = []

    async def beside(_: float) -> None:
        await Delivery(Store(), Dead()).deliver([GOOD])
        seen.append((gauge.get(), [*waiting.waits.values()]))

    dead = Dead()
    waiting = Delivery(Store(Unavailable("away"), Unavailable("still"), Rejected("poison")), dead, sleep=beside)
    asyncio.run(waiting.deliver([GOOD]))
    assert seen == [(1, ["away"]), (1, ["still"])]
    assert (gauge.get(), waiting.waits, len(dead.buried)) == (0, {}, 1)


def test_waiting_for_a_store_is_no_time_of_its_transactions() -> None:
    """A store that is away for a while shows as away, and does not make its transactions look slow."""
    seconds = metrics.STORE_SECONDS.labels("memory")._sum
    before = seconds.get()

    async def sleep(_: float) -> None:
        await asyncio.sleep(0.1)

    memory = Memory("logs", away=5)
    asyncio.run(Delivery(MemoryWriter(memory), Dead(), sleep=sleep).deliver([GOOD]))
    assert stored(memory) == [GOOD.offset]
    assert seconds.get() - before < 0.4
