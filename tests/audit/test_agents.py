"""What became of what an agent read, where it is told by hand."""

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from pipeline.settings import RoutesSettings
from tests.audit.world import Record, World, container, file, record

DROP = {
    "type": "record", "name": "drop",
    "fields": [
        {"name": "event_id", "type": {"type": "fixed", "name": "event_id", "size": 16}},
        {"name": "reason", "type": "string"},
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def routed(world: World) -> None:
    """The store reads what the agent makes."""
    world.settings = world.settings.model_copy(update={"routes": RoutesSettings(logs=("logs_norm",))})


def made_of(offset: int, records: int, signal: str = "logs") -> dict[str, str]:
    """Headers of what an agent made of a message of logs_raw."""
    return {"agent": "mask", "source": f"logs_raw/0@{offset}", "signal": signal, "records": str(records)}


def emit(world: World, offset: int, records: Sequence[Record]) -> None:
    """As the agent and the store do."""
    world.send("logs_norm", file("logs", records), made_of(offset, len(records)))
    world.store("logs", records)


def drop(world: World, offset: int, *records: Record) -> None:
    """As the agent does."""
    away = [{"event_id": each["event_id"], "reason": "debug"} for each in records]
    world.send("agent_drops", container(DROP, away), made_of(offset, len(away), "drops"))


def told(world: World) -> Any:
    """Of the agent, and the exit code's word."""
    report = world.audit("logs")
    [mask] = report.agents
    return mask, report.verdict


def test_what_an_agent_lost_in_silence_is_found(world: World) -> None:
    """One record as it was, one changed, one dropped with its reason, one dead-lettered: closed. The fifth, of which
    nobody tells, is missing, with its id and place."""
    same, other, dropped, dead, lost = (record("logs", name) for name in range(5))
    offset = world.publish("logs", [same, other, dropped, dead, lost])
    emit(world, offset, [same, {**other, "body": "masked"}])
    drop(world, offset, dropped)
    letter = {"dlq_writer": "mask", "dlq_topic": "logs_raw", "dlq_partition": "0", "dlq_offset": str(offset)}
    world.send("logs_raw_dlq", file("logs", [dead]), {**letter, "records": "1", "signal": "logs"})
    mask, verdict = told(world)
    assert (mask.emitted, mask.changed, mask.dropped, mask.dead_lettered, mask.missing) == (1, 1, 1, 1, 1)
    assert (mask.reasons, verdict) == ({"debug": 1}, "difference")
    [example] = mask.examples
    place = {"topic": "logs_raw", "partition": 0, "offset": offset}
    assert example == {"event_id": lost["event_id"].hex(), **place}
    emit(world, offset, [lost])
    mask, verdict = told(world)
    assert (mask.missing, verdict) == (0, "clean")


STRANGE = {
    "type": "record", "name": "drop",
    "fields": [{"name": name, "type": "string"} for name in ("event_id", "reason", "tenant")],
}  # fmt: skip


@pytest.mark.parametrize(
    "value", [b"garbage", container(STRANGE, [dict.fromkeys(("event_id", "reason", "tenant"), "x")])]
)
@pytest.mark.parametrize(("topic", "signal"), [("logs_norm", "logs"), ("agent_drops", "drops")])
def test_a_message_that_nobody_can_read_ends_no_audit(world: World, topic: str, signal: str, value: bytes) -> None:
    """Whatever says that it is an agent's, bytes or another's Avro: what is beside it is judged as ever."""
    offset = world.publish("logs", [record("logs", 1)])
    emit(world, offset, [record("logs", 1)])
    world.send(topic, value, made_of(offset, 1, signal))
    mask, _ = told(world)
    assert (mask.emitted, mask.missing, mask.extra) == (1, 0, 0)


@pytest.mark.parametrize("number", ["²", "9" * 5000])
def test_a_number_that_is_none_ends_no_audit(world: World, number: str) -> None:
    """In the headers of what an agent made, or of a dead letter: it names no place."""
    offset = world.publish("logs", [record("logs", 1)])
    emit(world, offset, [record("logs", 1)])
    world.send("logs_norm", file("logs", []), made_of(offset, 0) | {"source": f"logs_raw/{number}@1"})
    world.send("logs_norm", file("logs", []), made_of(offset, 0) | {"source": f"logs_raw/0@{number}"})
    letter = {"dlq_topic": "logs_raw", "dlq_partition": number, "dlq_offset": number}
    world.send("logs_raw_dlq", file("logs", [record("logs", 1)]), letter)
    mask, verdict = told(world)
    assert (mask.emitted, mask.missing, verdict) == (1, 0, "clean")


def test_what_an_agent_made_of_nothing_is_found(world: World) -> None:
    """A record in what it wrote whose parent is nowhere in what it read is extra."""
    offset = world.publish("logs", [record("logs", 1)])
    emit(world, offset, [record("logs", 1), record("logs", 2)])
    mask, verdict = told(world)
    assert (mask.read, mask.emitted, mask.missing, mask.extra, verdict) == (1, 1, 0, 1, "difference")


@pytest.mark.parametrize(
    ("routes", "signal"),
    [
        (("logs_norm",), "metrics"),
        (("logs_norm",), "traces"),
        (("logs_raw",), "logs"),
    ],
)
def test_an_agent_beside_is_said_not_to_be_looked_at(world: World, routes: tuple[str, ...], signal: str) -> None:
    """One that drops records of a signal that is not audited, or before the stores read what it makes: nothing is
    missing of its work, nor is it called clean."""
    kept, dropped = record("logs", 1), record("logs", 2)
    world.settings = world.settings.model_copy(update={"routes": RoutesSettings(logs=routes)})
    offset = world.publish("logs", [kept, dropped])
    world.send("logs_norm", file("logs", [kept]), made_of(offset, 1))
    drop(world, offset, dropped)
    world.store("logs", [kept, dropped])
    report = world.audit(signal)
    assert (report.verdict, report.agents) == ("clean", [])
    assert report.as_dict()["agents_not_looked_at"] == [{"agent": "mask", "topic": "logs_raw"}]
    console = Console(file=io.StringIO())
    report.show(console)
    assert "mask: not looked at" in console.file.getvalue()  # type: ignore[attr-defined]


def test_an_agent_that_passed_nothing_on_is_judged(world: World) -> None:
    """Where nothing at all came to the stores, who dropped it is looked at: what it lost beside is missing."""
    dropped, lost = record("logs", 1), record("logs", 2)
    drop(world, world.publish("logs", [dropped, lost]), dropped)
    mask, verdict = told(world)
    assert (mask.read, mask.dropped, mask.missing, verdict) == (2, 1, 1, "difference")


def test_a_null_header_is_an_empty_one(world: World) -> None:
    """What Kafka allows in a header ends no audit."""
    one = record("logs", 1)
    nulls = dict.fromkeys(("signal", "schema", "agent", "source"))
    offset = world.send("logs_raw", file("logs", [one]), {"records": "1", **nulls})
    emit(world, offset, [one])
    mask, verdict = told(world)
    assert (mask.emitted, verdict) == (1, "clean")
