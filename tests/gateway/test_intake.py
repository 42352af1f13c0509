"""Requests are answered when what is theirs is safe, and not before; requests share messages under load."""

import asyncio
import dataclasses
import pathlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pipeline import otlp
from pipeline.errors import Unavailable
from pipeline.gateway import intake as intake_module
from pipeline.gateway.intake import Intake, Stream
from pipeline.gateway.outlet import Outlet
from pipeline.kafka.producer import Settled
from pipeline.record import schema
from pipeline.record.framing import MAX_VALUE_BYTES, Group
from pipeline.record.schema import Signal
from pipeline.settings import SpoolSettings
from pipeline.spool.message import Message
from pipeline.spool.spool import Spool
from tests.gateway.fake import FakePublisher
from tests.otlp.requests import ONE_OF_EVERYTHING, T0, logs

Scenario = Callable[[Intake, FakePublisher], Coroutine[Any, Any, None]]


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Callable[[Scenario], FakePublisher]:
    def run(scenario: Scenario) -> FakePublisher:
        publisher = FakePublisher()

        async def main() -> None:
            settings = SpoolSettings(directory=tmp_path, min_free_bytes=0)
            spool = Spool(settings)
            outlet = Outlet(publisher, spool, settings)  # type: ignore[arg-type]
            await scenario(Intake(outlet, "local", within_s=5), publisher)
            spool.close()

        asyncio.run(main())
        return publisher

    return run


async def accept(intake: Intake, *texts: str) -> None:
    await send(intake, "logs", logs(*texts).SerializeToString())


async def send(intake: Intake, signal: Signal, body: bytes, traceparent: str = "") -> None:
    origin = otlp.Origin("default", "local", T0 + 10**9)
    encoded = otlp.encode(signal, body, origin, partitions=intake.partitions(signal))
    await intake.make_safe(Stream(signal, schema.of(signal), "default"), encoded.groups, traceparent)


def test_the_answer_waits_for_every_acknowledgement(run: Callable[[Scenario], FakePublisher]) -> None:
    """A request is not answered while one of its messages is unacknowledged."""

    async def scenario(intake: Intake, publisher: FakePublisher) -> None:
        publisher.hold = True
        answer = asyncio.create_task(accept(intake, "a"))
        await asyncio.sleep(0.05)
        assert not answer.done()
        publisher.release()
        assert not await answer

    run(scenario)


def test_what_kafka_does_not_acknowledge_is_safe_in_the_spool(run: Callable[[Scenario], FakePublisher]) -> None:
    """A client hears OK once the spool has it."""

    async def scenario(intake: Intake, publisher: FakePublisher) -> None:
        publisher.hold = True
        answer = asyncio.create_task(accept(intake, "a"))
        await asyncio.sleep(0.01)
        publisher.release(Unavailable("timed out"))
        await answer
        assert intake.queued_bytes == 0

    run(scenario)


def test_silence_is_unavailable(run: Callable[[Scenario], FakePublisher], monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits for longer than both budgets hears "not now"."""
    monkeypatch.setattr(intake_module, "SPOOL_WITHIN_S", -4.9)

    async def scenario(intake: Intake, publisher: FakePublisher) -> None:
        publisher.hold = True
        with pytest.raises(Unavailable, match="in time"):
            await accept(intake, "a")
        assert intake.queued_bytes > 0
        publisher.release()
        await asyncio.sleep(0.01)
        assert intake.queued_bytes == 0

    run(scenario)


def test_an_idle_gateway_sends_at_once_and_a_busy_one_fills_messages(run: Callable[[Scenario], FakePublisher]) -> None:
    """100 requests of 10 records that arrive together make few messages, and every record is in one of them once."""

    async def scenario(intake: Intake, publisher: FakePublisher) -> None:
        publisher.hold = True
        answers = [asyncio.create_task(accept(intake, *[f"{n}/{m}" for m in range(10)])) for n in range(100)]
        while not all(answer.done() for answer in answers):
            await asyncio.sleep(0.005)
            publisher.release()

    published = run(scenario).published
    assert [len(message.records) for message in published] == [10, 200, 200, 200, 200, 190]
    bodies = [record["body"] for message in published for record in message.records]
    assert sorted(bodies) == sorted(f"{n}/{m}" for n in range(100) for m in range(10))
    assert all(message.headers["records"] == b"%d" % len(message.records) for message in published)


def test_a_client_that_goes_away_takes_nobody_with_it(run: Callable[[Scenario], FakePublisher]) -> None:
    """Cancelling one of two requests that share a message leaves the other's answer alone."""

    async def scenario(intake: Intake, publisher: FakePublisher) -> None:
        publisher.hold = True
        first, leaving, staying = (asyncio.create_task(accept(intake, body)) for body in "abc")
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


def test_messages_carry_the_headers_of_the_design(run: Callable[[Scenario], FakePublisher]) -> None:
    """Consumers learn tenant, region, signal, count, schema, times and trace from the headers alone."""

    async def scenario(intake: Intake, publisher: FakePublisher) -> None:
        traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        body = ONE_OF_EVERYTHING["metrics"].SerializeToString()
        await send(intake, "metrics", body, traceparent)

    [message] = run(scenario).published
    assert message.topic == "metrics_raw"
    assert message.headers == {
        "tenant": b"default", "region": b"local", "signal": b"metrics", "schema": b"metric_point/1", "records": b"7",
        "min_time": b"%d" % T0, "max_time": b"%d" % (T0 + 1),
        "traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }  # fmt: skip


class HeldOutlet:
    """Keeps what is delivered until it is settled."""

    def __init__(self) -> None:
        self.delivered: list[tuple[Message, Settled]] = []

    def deliver(self, message: Message, _: Any, settled: Settled) -> None:
        self.delivered.append((message, settled))


def with_held_outlet(scenario: Callable[[Intake, HeldOutlet], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        outlet = HeldOutlet()
        await scenario(Intake(outlet, "local", within_s=5), outlet)  # type: ignore[arg-type]

    asyncio.run(main())


def groups(*changes: dict[str, Any]) -> list[Group]:
    """Of one record each, in partition 0 unless said otherwise."""
    origin = otlp.Origin("default", "local", T0)
    [group] = otlp.encode("logs", logs("a").SerializeToString(), origin, partitions=1).groups
    return [group._replace(**change) for change in changes]


STREAM = Stream("logs", schema.of("logs"), "default")


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_one_message_that_is_not_safe_is_a_request_that_is_not(lost: int) -> None:
    """Whichever of them it is, and whatever becomes of those after it."""

    async def scenario(intake: Intake, outlet: HeldOutlet) -> None:
        answer = asyncio.create_task(intake.make_safe(STREAM, groups(*({"partition": n} for n in range(3))), ""))
        await asyncio.sleep(0)
        for number, (_, settled) in enumerate(outlet.delivered):
            settled(Unavailable("full") if number == lost else None)
        with pytest.raises(Unavailable, match="full"):
            await answer

    with_held_outlet(scenario)


def test_a_shared_message_says_the_times_of_all() -> None:
    """Who looks for a time by the headers alone passes over no record."""

    async def scenario(intake: Intake, outlet: HeldOutlet) -> None:
        times = [{}, *({"min_time": n, "max_time": n + 10} for n in (7, 3, 5))]
        answer = asyncio.create_task(intake.make_safe(STREAM, groups(*times), ""))
        await asyncio.sleep(0)
        outlet.delivered[0][1](None)
        [_, (shared, settled)] = outlet.delivered
        headers = dict(shared.headers)
        assert (headers["records"], headers["min_time"], headers["max_time"]) == (b"3", b"3", b"17")
        settled(None)
        await answer

    with_held_outlet(scenario)


def test_no_shared_message_is_larger_than_kafka_takes() -> None:
    """A small group that waits does not make the next one too large."""

    async def scenario(intake: Intake, outlet: HeldOutlet) -> None:
        sizes = (1, 200_000, MAX_VALUE_BYTES - 100_000)
        answer = asyncio.create_task(intake.make_safe(STREAM, groups(*({"value": bytes(size)} for size in sizes)), ""))
        await asyncio.sleep(0)
        assert [len(message.value) for message, _ in outlet.delivered] == [*sizes]
        for _, settled in outlet.delivered:
            settled(None)
        await answer

    with_held_outlet(scenario)


def test_records_of_two_versions_of_a_schema_share_no_message() -> None:
    """A file has one head: records that were encoded by another could not be read behind it."""

    async def scenario(intake: Intake, outlet: HeldOutlet) -> None:
        other = STREAM._replace(schema=dataclasses.replace(STREAM.schema, head=STREAM.schema.head + b"x"))
        ways = (STREAM, STREAM, other, other, STREAM)
        answers = [asyncio.create_task(intake.make_safe(way, groups({}), "")) for way in ways]
        await asyncio.sleep(0)
        assert len(outlet.delivered) == 2
        for _, settled in [*outlet.delivered]:
            settled(None)
        counts = [dict(each.headers)["records"] for each, _ in outlet.delivered]
        assert counts == [b"1", b"1", b"2", b"1"]
        for _, settled in outlet.delivered[2:]:
            settled(None)
        await asyncio.gather(*answers)

    with_held_outlet(scenario)
