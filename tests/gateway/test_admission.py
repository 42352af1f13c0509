"""What is in memory at once is bounded, by number and by bytes."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pipeline.errors import Unavailable
from pipeline.gateway import admission
from pipeline.gateway.admission import Admission, Held


def run(scenario: Callable[[Admission], Awaitable[None]], queued_bytes: Callable[[], int] = lambda: 0) -> None:
    async def main() -> None:
        await scenario(Admission(max_requests=3, max_bytes=100, queued_bytes=queued_bytes))

    asyncio.run(main())


def test_one_request_too_many_is_told_to_come_again() -> None:
    """And when another has left there is room."""

    async def scenario(room: Admission) -> None:
        def one() -> Held:
            held = room.held()
            held.enter()
            return held

        with one(), one():
            with one(), room.held() as waiting, pytest.raises(Unavailable, match=r"gateway\.max_requests"):
                waiting.enter()
            with one():
                pass

    run(scenario)


def test_bytes_wait_for_room_in_order() -> None:
    """Who came first is let in first, also before a smaller one that would fit."""

    async def scenario(room: Admission) -> None:
        order: list[str] = []

        async def one(name: str, size: int, leave: asyncio.Event) -> None:
            with room.held() as held:
                await held.reserve(size)
                order.append(name)
                await leave.wait()

        first, others = asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(one("first", 80, first))]
        tasks += [asyncio.create_task(one("large", 90, others)), asyncio.create_task(one("small", 10, others))]
        await asyncio.sleep(0.01)
        assert order == ["first"]
        first.set()
        await asyncio.sleep(0.01)
        assert order == ["first", "large", "small"]
        others.set()
        await asyncio.gather(*tasks)
        assert room.fits(100)

    run(scenario)


def test_a_request_larger_than_the_limit_passes_alone() -> None:
    """Or nobody could ever send it."""

    async def scenario(room: Admission) -> None:
        with room.held() as held:
            await held.reserve(1000)
            assert not room.fits(1)

    run(scenario)


def test_it_passes_alone_in_pieces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds itself keeps it out as little as those who wait for it to end."""
    monkeypatch.setattr(admission, "WAIT_S", 0.5)

    async def scenario(room: Admission) -> None:
        async def small() -> None:
            with room.held() as held:
                await held.reserve(10)

        with room.held() as held:
            await held.reserve(95)
            waiting = asyncio.create_task(small())
            await asyncio.sleep(0.01)
            for size in (60, 1000, 0):
                async with asyncio.timeout(0.1):
                    await held.reserve(size)
        await waiting
        assert room.fits(100)

    run(scenario)


def test_messages_that_nobody_acknowledged_take_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """And who waits for longer than the limit is told so, and leaves nothing behind."""
    monkeypatch.setattr(admission, "WAIT_S", 0.05)
    queued = [100]

    async def scenario(room: Admission) -> None:
        with room.held() as held, pytest.raises(Unavailable, match=r"gateway\.max_in_flight_bytes"):
            await held.reserve(1)
        queued[0] = 0
        with room.held() as held:
            await held.reserve(100)

    run(scenario, lambda: queued[0])


def test_who_gives_up_waiting_leaves_room() -> None:
    """A cancelled request holds nothing, wherever it was."""

    async def scenario(room: Admission) -> None:
        async def one(size: int) -> None:
            with room.held() as held:
                await held.reserve(size)
                await asyncio.sleep(10)

        tasks = [asyncio.create_task(one(size)) for size in (100, 100, 50)]
        await asyncio.sleep(0.01)
        for task in tasks[:2]:
            task.cancel()
        await asyncio.gather(*tasks[:2], return_exceptions=True)
        assert room.fits(50)
        assert not room.fits(51)
        tasks[2].cancel()
        await asyncio.gather(tasks[2], return_exceptions=True)
        assert room.fits(100)

    run(scenario)


def test_who_is_let_in_and_leaves_at_once_leaves_room() -> None:
    """Also one whose turn comes in the moment in which it is cancelled."""

    async def scenario(room: Admission) -> None:
        async def one() -> None:
            with room.held() as held:
                await held.reserve(100)

        with room.held() as held:
            await held.reserve(100)
            waiting = asyncio.create_task(one())
            await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
        assert room.fits(100)

    run(scenario)


def test_what_grew_is_counted_without_waiting() -> None:
    """A body that decompressed to more keeps others out until it is encoded."""

    async def scenario(room: Admission) -> None:
        with room.held() as held:
            await held.reserve(10)
            held.resize(500)
            assert not room.fits(1)
            held.resize(0)
            assert room.fits(100)

    run(scenario)
