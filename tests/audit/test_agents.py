"""What became of what an agent read, where it is told by hand."""

from collections.abc import Sequence
from typing import Any

import pytest

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
    away = [{"event_id": dropped["event_id"], "reason": "debug"}]
    world.send("agent_drops", container(DROP, away), made_of(offset, 1, "drops"))
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
