"""Poison met by writer processes, with real stores behind them."""

import random
import re
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import fastavro
import psycopg

from pipeline import clickhouse, otlp
from pipeline.delivery import Limit, Message
from pipeline.dlq import Letters, Selection
from pipeline.kafka.reader import Reader
from pipeline.record import container, schema
from pipeline.settings import Settings
from tests.agents.conftest import BOTH
from tests.agents.group import Group
from tests.agents.kafka_tools import CONFIGS, kafka_tool
from tests.agents.process import Process, send, until
from tests.contract.test_stores import damaged, gauges, new_service, one
from tests.otlp.requests import T0

METRICS = schema.of("metrics")
GOOD, AROUND = 10_000, 2_000  # messages with poison among them; before and after
POINTS, LARGE_POINTS = 2, 10_000  # of a message
TEN_MB = 10 * 1024 * 1024
WITHIN_S = 60.0


def poison() -> Message:
    message = one("metrics", gauges(new_service(), ("m", T0, 1.0)))
    pairs = (*message.headers.items(), ("topic", b"theirs"), ("topic", None))
    return message._replace(partition=2, value=message.value[:-1], pairs=pairs)


def dead(settings: Settings) -> int:
    return sum(each.end - each.start for each in Reader(settings.kafka).retained(["metrics_raw_dlq"]))


def test_poison_is_told_again_and_stops_a_writer_by_its_rate(writer: Process) -> None:
    """A replayed message that fails again is attempt 2 with its own headers as they were; the fourth dead letter stops
    the writer with a sentence, for a human: no supervisor starts it again, and who does gives it no new burst."""
    letters, sent = Letters(writer.settings.kafka), poison()
    group = Group(writer.settings.kafka.bootstrap_servers, "pg_writer")
    [offset] = send(writer.settings, sent)
    writer.start()
    until(lambda: dead(writer.settings) == 1, "the poison was not dead-lettered")
    [first] = letters.pending()
    assert (first.attempt, first.headers, first.value) == (1, sent.pairs, sent.value)
    assert (first.topic, first.partition, first.offset) == ("metrics_raw", 2, offset)
    assert (first.writer, first.schema, first.exception) == (
        "pg_writer", "metric_point/1", "pipeline.errors.Rejected"
    )  # fmt: skip
    letters.apply(letters.plan("replay", Selection()))
    until(lambda: dead(writer.settings) == 2, "the replayed poison was not dead-lettered")
    [second] = letters.pending()
    assert (second.attempt, second.from_, second.headers) == (2, first.name, sent.pairs)
    assert second.offset > offset

    send(writer.settings, poison(), poison())
    code, said = writer.ended()
    group.leave(group.members())
    assert (code, dead(writer.settings)) == (2, 3)
    assert "pg_writer meets more poison than it may dead-letter: over 3 messages at once and 1 a minute" in said
    assert "metrics_raw [2] @ " in said
    writer.start()
    assert writer.ended()[0] == 2
    assert dead(writer.settings) == 3


def test_what_was_spent_before_a_start_is_gone() -> None:
    """More than the burst leaves nothing, not less than nothing."""
    assert not Limit(60, 3, spent=10).take(0.0)
    assert Limit(60, 3, spent=2).take(0.0)


def out_of_range(message: Message) -> Message:
    """A `scale` of 2^40: written as an Avro long, which has the same encoding as the int that readers expect."""
    wide = {**METRICS.avro, "fields": [{**each, "type": _wide(each["type"])} for each in METRICS.avro["fields"]]}
    out = BytesIO()
    for record in fastavro.reader(BytesIO(message.value)):
        assert isinstance(record, dict)
        fastavro.schemaless_writer(out, wide, {**record, "scale": 1 << 40})
    return message._replace(value=container.value(METRICS.head, [out.getvalue()], POINTS))


def _wide(kind: Any) -> Any:
    return "long" if kind == "int" else kind


def with_header(name: str, value: bytes) -> Callable[[Message], Message]:
    return lambda message: message._replace(headers={**message.headers, name: value})


def with_value(value: bytes) -> Callable[[Message], Message]:
    return lambda message: message._replace(value=value)


NO_HEAD = "does not start with the head of its schema"
# What is done to a message, and the reason that each writer gives; None where that store can hold it.
BAD: dict[str, tuple[Callable[[Message], Message], str | None, str | None]] = {
    "not Avro": (with_value(b"poison"), NO_HEAD, NO_HEAD),
    "cut": (lambda message: message._replace(value=message.value[:-1]), "cut short", "cut short"),
    "wrong count": (with_header("records", b"7"), "promises b'7', the value holds 2", "promises b'7', the value holds 2"),
    "wrong schema": (with_header("schema", b"span/1"), "'span/1'; this writer knows", "'span/1'; this writer knows"),
    "another schema's head": (with_value(schema.of("logs").head), NO_HEAD, NO_HEAD),
    "damaged records": (damaged, "ClickHouse: ", "records do not decode"),
    "a number out of range": (out_of_range, "ClickHouse: .*out of range", "records do not decode"),
    "a text that PostgreSQL refuses": (lambda message: message, None, "PostgreSQL: .*0x00.* .22021."),
    "10 MB": (with_value(random.Random(1).randbytes(TEN_MB)), NO_HEAD, NO_HEAD),
}  # fmt: skip


def some(count: int) -> list[Message]:
    """Good ones, over all partitions."""
    service = new_service()
    made = []
    for n in range(count):
        start = T0 + n * 10**9
        request = gauges(service, *((f"m{point}", start, float(n)) for point in range(POINTS)))
        made.append(one("metrics", request)._replace(partition=n % 4))
    return made


def large() -> Message:
    """A good one of 10 MB."""
    request = gauges(new_service(), *(("m", T0 + n * 10**6, 1.0) for n in range(LARGE_POINTS)))
    attribute = request.resource_metrics[0].resource.attributes.add(key="long")
    attribute.value.string_value = "x" * 1024
    what = otlp.encode("metrics", request.SerializeToString(), otlp.Origin("acme", "eu", T0), partitions=1)
    value = container.join(METRICS.head, [group.value for group in what.groups])
    assert len(value) > TEN_MB
    headers = {"schema": METRICS.name.encode(), "records": b"%d" % LARGE_POINTS}
    return Message("metrics_raw", 3, 0, headers, value)


def test_poison_of_every_kind_is_dead_lettered_alone(both: list[Process]) -> None:
    """One bad message of each kind among 10,000 good ones: these are in the dead letters with their reason, all others
    in both stores, a good one of 10 MB too; the writers are afterwards as fast as before."""
    world = both[0].settings
    limit = f"max.message.bytes={2 * TEN_MB}"
    kafka_tool(
        CONFIGS, world, "--alter", "--entity-type", "topics", "--entity-name", "metrics_raw", "--add-config", limit
    )
    client = clickhouse.connect(world.clickhouse)
    points = dict.fromkeys(BOTH, 0)

    def stored() -> dict[str, int]:
        with psycopg.connect(world.postgres.dsn.get_secret_value()) as connection:
            held = (connection.execute("SELECT count(*) FROM metrics").fetchone() or (0,))[0]
        return {"ch_writer": client.query("SELECT count() FROM metrics").result_rows[0][0], "pg_writer": held}

    def rate(messages: list[Message], more: int) -> float:
        """Send these, which both stores can hold but for poison; return points a second, until the last is stored."""
        for name in BOTH:
            points[name] += more
        started = time.monotonic()
        send(world, *messages)
        until(lambda: stored() == points, f"not all of {points} points were stored", WITHIN_S)
        return more / (time.monotonic() - started)

    good = some(GOOD)
    chance = random.Random(1)
    for kind, (spoil, *_) in BAD.items():
        region = "e\0u" if "PostgreSQL" in kind else "eu"
        request = gauges(new_service(), *((f"m{n}", T0, 1.0) for n in range(POINTS)))
        bad = spoil(one("metrics", request, region=region))
        marked = bad._replace(partition=chance.randrange(4), headers={**bad.headers, "kind": kind.encode()})
        good.insert(chance.randrange(len(good)), marked)
    good.insert(GOOD // 2, large())
    around = some(AROUND), some(AROUND)
    rate(some(1), POINTS)  # until both run
    before = rate(around[0], AROUND * POINTS)
    points["ch_writer"] += POINTS  # it can hold what PostgreSQL refuses
    during = rate(good, GOOD * POINTS + LARGE_POINTS)
    after = rate(around[1], AROUND * POINTS)
    print(f"{before:,.0f} points/s before, {during:,.0f} with poison, {after:,.0f} after")

    wanted = {
        (kind.encode(), writer): reason
        for kind, (_, *reasons) in BAD.items()
        for writer, reason in zip(BOTH, reasons, strict=True)
        if reason
    }
    until(lambda: dead(world) == len(wanted), f"there are not {len(wanted)} dead letters")
    found = {(dict(each.headers)["kind"], each.writer): each.reason for each in Letters(world.kafka).pending()}
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not re.search(wanted[key], found[key])] == [], found
    assert after > before / 4
    for each in both:
        assert each.stop()[0] == 0
