"""Intake answers when Kafka has acknowledged, and not before; requests share messages under load."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pipeline.errors import Rejected, Unavailable
from pipeline.gateway.intake import Intake, Request
from tests.gateway.fake import FakePublisher
from tests.otlp.requests import ONE_OF_EVERYTHING, T0, logs


def run(scenario: Callable[[Intake, FakePublisher], Coroutine[Any, Any, None]], within_s: float = 5) -> FakePublisher:
    publisher = FakePublisher()

    async def main() -> None:
        await scenario(Intake(publisher, "local", within_s=within_s, clock=lambda: T0 + 10**9), publisher)  # type: ignore[arg-type]

    asyncio.run(main())
    return publisher


def request(*bodies: str) -> Request:
    return Request("logs", logs(*bodies).SerializeToString(), "default")


def test_the_answer_waits_for_every_acknowledgement() -> None:
    """A request is not answered while one of its messages is unacknowledged."""

    async def scenario(intake: Intake, publisher: FakePublisher) -> None:
        publisher.hold = True
        answer = asyncio.create_task(intake.accept(request("a")))
        await asyncio.sleep(0.05)
        assert not answer.done()
        publisher.release()
        assert not await answer

    run(scenario)


def test_a_failed_acknowledgement_is_unavailable() -> None:
    """A client never hears OK for what Kafka did not acknowledge."""

    async def scenario(intake: Intake, publisher: FakePublisher) -> None:
        publisher.hold = True
        answer = asyncio.create_task(intake.accept(request("a")))
        await asyncio.sleep(0.01)
        publisher.release(Unavailable("timed out"))
        with pytest.raises(Unavailable, match="timed out"):
            await answer

    run(scenario)


def test_silence_is_unavailable() -> None:
    """A client that waits for Kafka longer than the budget hears "not now"."""

    async def scenario(intake: Intake, publisher: FakePublisher) -> None:
        publisher.hold = True
        with pytest.raises(Unavailable, match="in time"):
            await intake.accept(request("a"))

    run(scenario, within_s=-0.9)  # the wait is a second longer than Kafka's own


def test_unknown_partitions_are_unavailable_and_garbage_is_rejected() -> None:
    """What the world did and what the data did are told apart."""

    async def scenario(intake: Intake, publisher: FakePublisher) -> None:
        with pytest.raises(Rejected):
            await intake.accept(Request("logs", b"garbage", "default"))
        publisher.away = "Kafka is away"
        with pytest.raises(Unavailable, match="Kafka is away"):
            await intake.accept(request("a"))

    assert run(scenario).published == []


def test_an_idle_gateway_sends_at_once_and_a_busy_one_fills_messages() -> None:
    """100 requests of 10 records that arrive together make few messages, and every record is in one of them once."""

    async def scenario(intake: Intake, publisher: FakePublisher) -> None:
        publisher.hold = True
        answers = [asyncio.create_task(intake.accept(request(*[f"{n}/{m}" for m in range(10)]))) for n in range(100)]
        while not all(answer.done() for answer in answers):
            await asyncio.sleep(0.005)
            publisher.release()

    published = run(scenario).published
    assert [len(message.records) for message in published] == [10, 200, 200, 200, 200, 190]
    bodies = [record["body"] for message in published for record in message.records]
    assert sorted(bodies) == sorted(f"{n}/{m}" for n in range(100) for m in range(10))
    assert all(message.headers["records"] == b"%d" % len(message.records) for message in published)


def test_a_client_that_goes_away_takes_nobody_with_it() -> None:
    """Cancelling one of two requests that share a message leaves the other's answer alone."""

    async def scenario(intake: Intake, publisher: FakePublisher) -> None:
        publisher.hold = True
        first, leaving, staying = (asyncio.create_task(intake.accept(request(body))) for body in "abc")
        await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.sleep(0.01)
        publisher.release()
        await asyncio.sleep(0.01)
        publisher.release()
        await asyncio.gather(first, staying)

    assert sorted(record["body"] for message in run(scenario).published for record in message.records) == [
        "a",
        "b",
        "c",
    ]


def test_messages_carry_the_headers_of_the_design() -> None:
    """Consumers learn tenant, region, signal, count, schema, times and trace from the headers alone."""

    async def scenario(intake: Intake, publisher: FakePublisher) -> None:
        traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        body = ONE_OF_EVERYTHING["metrics"].SerializeToString()
        await intake.accept(Request("metrics", body, "default", traceparent))

    [message] = run(scenario).published
    assert message.topic == "metrics_raw"
    assert message.headers == {
        "tenant": b"default", "region": b"local", "signal": b"metrics", "schema": b"metric_point/1", "records": b"7",
        "min_time": b"%d" % T0, "max_time": b"%d" % (T0 + 1),
        "traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }  # fmt: skip
