"""Kafka while it acknowledges, the spool while it does not, and back."""

import asyncio
import pathlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

import pytest
import structlog.testing

from pipeline.errors import Unavailable
from pipeline.gateway.outlet import Outlet
from pipeline.otlp import Rules
from pipeline.record.schema import Signal
from pipeline.settings import SpoolSettings
from pipeline.spool.message import Message
from pipeline.spool.spool import Level, Spool
from tests.gateway.fake import FakePublisher

LABELS: tuple[Signal, str] = ("logs", "default")


def message(n: int, partition: int = 0) -> Message:
    return Message("logs_raw", partition, 1, (("tenant", b"default"),), b"%d" % n)


class World:
    def __init__(self, directory: pathlib.Path, drain_bytes_per_s: int) -> None:
        self.publisher = FakePublisher()
        self.settings = SpoolSettings(directory=directory, min_free_bytes=0, drain_bytes_per_s=drain_bytes_per_s)
        self.spool = Spool(self.settings)
        self.outlet = Outlet(self.publisher, self.spool, self.settings)  # type: ignore[arg-type]

    def deliver(self, message: Message) -> "asyncio.Future[Unavailable | None]":
        safe: asyncio.Future[Unavailable | None] = asyncio.get_running_loop().create_future()
        self.outlet.deliver(message, LABELS, safe.set_result)
        return safe

    def published(self) -> list[bytes]:
        return [one.value for one in self.publisher.published]


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Callable[..., None]:
    def run(scenario: Callable[[World], Awaitable[None]], drain_bytes_per_s: int = 1 << 30) -> None:
        async def main() -> None:
            world = World(tmp_path, drain_bytes_per_s)
            stop = asyncio.Event()
            draining = asyncio.create_task(world.outlet.drain(stop))
            try:
                await asyncio.wait_for(scenario(world), 20)
            finally:
                stop.set()
                world.publisher.hold = False
                world.publisher.release()
                await draining
                world.spool.close()

        asyncio.run(main())

    return run


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_while_kafka_is_away_messages_are_spooled_and_later_published_in_order(run: Callable[..., None]) -> None:
    """All are safe at once, none waits for Kafka, and each is published when it is back."""

    async def scenario(world: World) -> None:
        world.publisher.away = "Kafka is away"
        assert await asyncio.gather(*[world.deliver(message(n)) for n in range(50)]) == [None] * 50
        assert world.published() == []
        assert world.spool.level().messages == 50
        world.publisher.away = None
        await until(lambda: world.spool.level().messages == 0)
        assert world.published() == [b"%d" % n for n in range(50)]
        assert await world.deliver(message(50)) is None
        assert world.published()[-1] == b"50"

    run(scenario)


def test_a_message_that_is_not_acknowledged_is_spooled_and_those_behind_it_do_not_wait(
    run: Callable[..., None],
) -> None:
    """Once Kafka was silent for its budget, the next messages go to the spool at once, until one has arrived."""

    async def scenario(world: World) -> None:
        world.publisher.hold = True
        first = world.deliver(message(1))
        await asyncio.sleep(0.01)
        world.publisher.release(Unavailable("timed out"))
        assert await first is None
        assert await world.deliver(message(2)) is None
        assert "timed out" in (world.outlet.degraded() or "")
        await until(lambda: len(world.published()) > 1)  # the drain tries what is there
        assert world.published()[1] == b"1"
        world.publisher.hold = False
        world.publisher.release()
        await until(lambda: world.spool.level().messages == 0)
        assert set(world.published()) == {b"1", b"2"}
        await until(lambda: world.outlet.degraded() is None)

    run(scenario)


def test_the_drain_keeps_its_rate(run: Callable[..., None]) -> None:
    """100 KB at 100 KB a second take about a second, in slices, so that live traffic has its share."""

    async def scenario(world: World) -> None:
        world.publisher.away = "Kafka is away"
        for n in range(10):
            big = message(n)._replace(value=bytes(1_000_000))
            assert await world.deliver(big) is None
        world.publisher.away = None
        started = asyncio.get_running_loop().time()
        await until(lambda: world.spool.level().messages == 0)
        assert 0.5 < asyncio.get_running_loop().time() - started < 5

    run(scenario, drain_bytes_per_s=10_000_000)


def test_when_neither_takes_it_the_sender_hears_so(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A full spool is "not now"; where it is, who runs the gateway hears in the log and when asking if it is ready."""

    async def scenario(world: World) -> None:
        refused: Future[None] = Future()
        refused.set_exception(Unavailable("The spool in /srv/spool is full."))
        monkeypatch.setattr(world.spool, "put", lambda _: refused)
        monkeypatch.setattr(world.spool, "level", lambda: Level(1.0, 10, 1, 1, 5.0))
        assert world.outlet.unready() is None
        world.publisher.away = "Kafka is away"
        with structlog.testing.capture_logs() as logged:
            told = [str(await world.deliver(message(n))) for n in range(3)]
        assert all("spool is full" in each and "/srv" not in each for each in told)
        assert "spool in /srv/spool is full" in (world.outlet.unready() or "")
        assert [each["reason"] for each in logged] == ["The spool in /srv/spool is full."]

    run(scenario)


def test_partitions_are_remembered_over_a_restart(tmp_path: pathlib.Path) -> None:
    """A gateway that starts while Kafka is away still spreads records as before; one that never saw it uses the first."""

    async def main() -> None:
        world = World(tmp_path, 1 << 30)
        world.publisher.away = "Kafka is away"
        assert world.outlet.partitions("logs_raw") == 1
        world.publisher.away = None
        stop = asyncio.Event()
        draining = asyncio.create_task(world.outlet.drain(stop))
        await until(lambda: world.spool.recall() != {})
        stop.set()
        await draining
        world.spool.close()
        again = World(tmp_path, 1 << 30)
        again.publisher.away = "Kafka is away"
        assert again.outlet.partitions("logs_raw") == 4
        again.spool.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_topic_made_anew_with_fewer_partitions_still_takes_what_was_spooled(run: Callable[..., None]) -> None:
    """The partition is taken modulo what there is."""

    async def scenario(world: World) -> None:
        world.publisher.away = "Kafka is away"
        await world.deliver(message(1, partition=9))
        world.publisher.away = None
        await until(lambda: world.published() == [b"1"])
        assert world.publisher.published[0].partition == 1

    run(scenario)


@pytest.mark.parametrize(
    ("fraction", "severity", "keep"),
    [(0.79, 0, 1.0), (0.80, 13, 1.0), (0.85, 13, 1.0), (0.925, 13, 0.5), (1.0, 13, 0.0)],
)
def test_what_is_shed_follows_the_level(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, fraction: float, severity: int, keep: float
) -> None:
    """Logs below WARN from 80 %, ever more spans from 85 %; nothing while Kafka takes it all."""

    async def scenario(world: World) -> None:
        monkeypatch.setattr(world.spool, "level", lambda: Level(fraction, 1, 1, 1, 1.0))
        assert world.outlet.rules(Rules()) == Rules()
        world.publisher.away = "Kafka is away"
        rules = world.outlet.rules(Rules())
        assert (rules.shed_below_severity, rules.keep_spans) == (severity, pytest.approx(keep))

    run(scenario)


def test_a_message_that_kafka_never_takes_keeps_no_other_waiting(run: Callable[..., None]) -> None:
    """It stays in the spool, said in the log; those behind it are published, and new ones go to Kafka again."""

    async def scenario(world: World) -> None:
        world.publisher.poison = b"0"
        world.publisher.away = "Kafka is away"
        for n in range(30):
            assert await world.deliver(message(n)) is None
        world.publisher.away = None
        await until(lambda: world.spool.level().messages == 1)
        assert set(world.published()) == {b"%d" % n for n in range(30)}
        await until(lambda: "wait in the spool" in (world.outlet.degraded() or ""))
        assert await world.deliver(message(30)) is None
        assert (world.published()[-1], world.spool.level().messages) == (b"30", 1)

    run(scenario)


def test_while_nothing_is_acknowledged_new_messages_do_not_wait_for_kafka(run: Callable[..., None]) -> None:
    """What was tried and did not come through is no sign that Kafka is back: the next message is spooled at once."""

    async def scenario(world: World) -> None:
        world.publisher.poison = b"0"
        for _ in range(2):  # with something in the spool, so that no look finds it empty
            assert await world.deliver(message(0)) is None
            tries = len(world.published())
            await until(lambda tries=tries: len(world.published()) >= tries + 3)
        safe = world.deliver(message(1))
        assert b"1" not in world.published()
        assert await safe is None

    run(scenario)
