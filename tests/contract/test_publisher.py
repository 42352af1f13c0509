"""What publishing promises: held against the fake that gateway tests use, and against Kafka."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from pipeline import topics
from pipeline.errors import Unavailable
from pipeline.kafka.producer import Publisher
from pipeline.settings import KafkaSettings, Settings
from tests.gateway.fake import FakePublisher, Published

TOPIC = "logs_raw"
CLOSED = "127.0.0.1:1"
HEADERS = [("tenant", b"acme"), ("empty", b""), ("bytes", b"\x00\xff")]


class Fake:
    """The fake, as it is with a Kafka and without one."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[FakePublisher]:
        yield FakePublisher(partitions=4)

    @asynccontextmanager
    async def away(self) -> AsyncIterator[FakePublisher]:
        publisher = FakePublisher()
        publisher.away = f"Kafka at {CLOSED} does not answer"
        yield publisher

    def arrived(self, publisher: Any, partition: int, mark: bytes) -> list[Published]:
        return [one for one in publisher.published if one.partition == partition and one.headers["mark"] == mark]


class Real:
    """Kafka with the shipped topics."""

    def __init__(self, servers: str) -> None:
        self.settings = KafkaSettings(bootstrap_servers=servers)
        topics.apply_all(Settings(kafka=self.settings))

    @asynccontextmanager
    async def opened(self, *names: str, within_s: float = 10.0) -> AsyncIterator[Publisher]:
        publisher = Publisher(self.settings, names or [TOPIC], within_s=within_s)
        try:
            if not names:
                await until(lambda: publisher.unready() is None)
            yield publisher
        finally:
            await asyncio.to_thread(publisher.close, 5)

    @asynccontextmanager
    async def away(self) -> AsyncIterator[Publisher]:
        publisher = Publisher(KafkaSettings(bootstrap_servers=CLOSED), [TOPIC], within_s=1.0)
        try:
            await until(lambda: "does not answer" in (publisher.unready() or ""))
            yield publisher
        finally:
            await asyncio.to_thread(publisher.close, 0)

    def arrived(self, _: Any, partition: int, mark: bytes) -> list[Published]:
        """Everything of the partition that carries our mark, in its order."""
        consumer = Consumer({"bootstrap.servers": self.settings.bootstrap_servers, "group.id": uuid.uuid4().hex})
        try:
            _, end = consumer.get_watermark_offsets(TopicPartition(TOPIC, partition), timeout=10)
            consumer.assign([TopicPartition(TOPIC, partition, 0)])
            found, place = [], 0
            while place < end:
                message = consumer.poll(10)
                assert message is not None
                assert message.error() is None
                place = message.offset() + 1
                headers = dict(message.headers() or [])
                if headers.get("mark") == mark:
                    found.append(Published(TOPIC, partition, message.value(), headers))
            return found
        finally:
            consumer.close()


World = Fake | Real


@pytest.fixture(params=["fake", "real"])
def world(request: pytest.FixtureRequest) -> World:
    return Fake() if request.param == "fake" else request.getfixturevalue("real")


@pytest.fixture(scope="module")
def real(kafka: str) -> Real:
    return Real(kafka)


@pytest.fixture
def mark() -> bytes:
    return uuid.uuid4().hex.encode()


async def until(condition: Callable[[], bool], within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_an_acknowledged_message_is_where_it_was_sent(world: World, mark: bytes) -> None:
    """The result is None, and the bytes and headers are in that partition and in no other."""

    async def test() -> None:
        async with world.opened() as publisher:
            assert publisher.partitions(TOPIC) == 4
            assert publisher.unready() is None
            values = {0: b"", 3: b"\x00\xffvalue"}
            for partition, value in values.items():
                assert await publisher.publish(TOPIC, partition, value, [*HEADERS, ("mark", mark)]) is None
            for partition in range(4):
                arrived = await asyncio.to_thread(world.arrived, publisher, partition, mark)
                expected = [values[partition]] if partition in values else []
                assert [one.value for one in arrived] == expected
                assert all(one.headers == dict(HEADERS) | {"mark": mark} for one in arrived)

    run(test)


def test_order_is_kept_within_a_partition(world: World, mark: bytes) -> None:
    """Messages published without waiting arrive once each, in that order, beside those of another partition."""

    async def test() -> None:
        async with world.opened() as publisher:
            sent = [publisher.publish(TOPIC, n % 2, b"%d" % n, [("mark", mark)]) for n in range(600)]
            assert set(await asyncio.gather(*sent)) == {None}
            for partition in (0, 1):
                arrived = await asyncio.to_thread(world.arrived, publisher, partition, mark)
                assert [int(one.value) for one in arrived] == list(range(partition, 600, 2))

    run(test)


def test_while_kafka_is_away_everyone_hears_it(world: World) -> None:
    """unready and partitions say where Kafka was looked for, and a message is Unavailable within its budget."""

    async def test() -> None:
        async with world.away() as publisher:
            assert CLOSED in (publisher.unready() or "")
            with pytest.raises(Unavailable, match=CLOSED):
                publisher.partitions(TOPIC)
            async with asyncio.timeout(4):  # the budget is 1 s
                assert isinstance(await publisher.publish(TOPIC, 0, b"x", HEADERS), Unavailable)

    run(test)


def test_a_missing_topic_is_named_with_the_way_out(real: Real) -> None:
    """partitions and unready say which topic is missing and what makes it; the others are known."""

    async def test() -> None:
        async with real.opened("no_such_topic", TOPIC, within_s=2) as publisher:
            await until(lambda: "topics missing" in (publisher.unready() or ""))
            with pytest.raises(Unavailable, match=r"no_such_topic; run `pipeline topics apply`"):
                publisher.partitions("no_such_topic")
            assert publisher.partitions(TOPIC) == 4
            async with asyncio.timeout(10):
                assert isinstance(await publisher.publish("no_such_topic", 0, b"x", []), Unavailable)

    run(test)


def test_a_partition_that_is_not_there_is_unavailable(real: Real) -> None:
    """A count that has changed since it was asked for loses nothing silently."""

    async def test() -> None:
        async with real.opened(within_s=2) as publisher:
            assert isinstance(await publisher.publish(TOPIC, 99, b"x", []), Unavailable)

    run(test)


@pytest.mark.parametrize("size", [1_100_000, 17 * 1024 * 1024], ids=["over the topic's limit", "over the client's"])
def test_a_message_that_is_too_large_is_never_silently_lost(real: Real, mark: bytes, size: int) -> None:
    """Its sender hears of it, and the messages around it arrive, in order."""
    incompressible = os.urandom(size)

    async def test() -> None:
        async with real.opened() as publisher:
            values = [b"before", incompressible, b"after"]
            results = [await publisher.publish(TOPIC, 1, value, [("mark", mark)]) for value in values]
            assert [type(result) for result in results] == [type(None), Unavailable, type(None)]
            assert "large" in str(results[1])
            assert publisher.fatal is None
            arrived = await asyncio.to_thread(real.arrived, publisher, 1, mark)
            assert [one.value for one in arrived] == [b"before", b"after"]

    run(test)


def test_close_waits_for_what_is_queued(real: Real, mark: bytes) -> None:
    """It returns 0 when all of it is acknowledged, and then all of it can be read."""

    async def test() -> None:
        async with real.opened() as publisher:
            sent = [publisher.publish(TOPIC, 2, b"%d" % n, [("mark", mark)]) for n in range(300)]
            assert await asyncio.to_thread(publisher.close, 10) == 0
            assert set(await asyncio.gather(*sent)) == {None}
            assert len(await asyncio.to_thread(real.arrived, publisher, 2, mark)) == 300

    run(test)


def test_close_says_what_it_could_not_send() -> None:
    """With Kafka away it returns within its budget, and the number that is left."""

    async def test() -> None:
        publisher = Publisher(KafkaSettings(bootstrap_servers=CLOSED), [TOPIC], within_s=30)
        for _ in range(3):
            publisher.publish(TOPIC, 0, b"x", [])
        assert await asyncio.to_thread(publisher.close, 0.2) == 3

    run(test)


def test_a_full_queue_is_unavailable_at_once() -> None:
    """What does not fit into memory while Kafka is away is refused without waiting."""

    async def test() -> None:
        publisher = Publisher(KafkaSettings(bootstrap_servers=CLOSED), [TOPIC], within_s=30)
        megabytes = bytes(8 * 1024 * 1024)
        sent = [publisher.publish(TOPIC, 0, megabytes, []) for _ in range(10)]
        done = [future.result() for future in sent if future.done()]
        assert len(done) >= 1
        assert all(isinstance(result, Unavailable) and "full" in str(result) for result in done)
        await asyncio.to_thread(publisher.close, 0)

    run(test)
