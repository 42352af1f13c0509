"""What no store has, and why: dead letters and drops of both sides, into the table replay_outside."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import fastavro

from pipeline.agents.transform import DROPS_TOPIC
from pipeline.kafka import dead_letters
from pipeline.kafka.dead_letters import DeadLetter
from pipeline.kafka.reader import Reader
from pipeline.record.layout import ID_BYTES
from pipeline.replay.asked import Asked
from pipeline.replay.parts import Side
from pipeline.replay.plan import Plan

INSERT_ROWS = 50_000
COLUMNS = ["side", "kind", "event_id", "reason"]
MAKE = (
    "CREATE OR REPLACE TABLE replay_outside (side UInt8, kind LowCardinality(String), event_id FixedString(16),"
    " reason String) ENGINE = MergeTree ORDER BY (event_id, side)"
)


def read(asked: Asked, plan: Plan, sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Fill the table; return dead letters by side, topic, writer and reason."""
    asked.command(MAKE)
    told: dict[tuple[str, str, str, str], list[int]] = {}
    for number, side in enumerate(sides):
        reader = Reader(side.kafka)
        there = reader.topics()
        since = int(plan.start.timestamp() * 1000) if side.live else None
        rows: list[tuple[Any, ...]] = []
        names = [side.kafka.named(f"{name}{dead_letters.SUFFIX}") for name in _stored(there, side)]
        for message in reader.read(reader.between(reader.retained(names), since, None)):
            letter = DeadLetter.of(message)
            if side.live and not _in_slice(letter, plan):
                continue
            ids = [record["event_id"] for record in _identified(letter.value)]
            counted = told.setdefault((side.name, letter.topic, letter.writer, letter.reason), [0, 0])
            counted[0] += 1
            counted[1] += len(ids)
            kind = f"dead:{letter.writer.removeprefix(side.kafka.prefix)}"
            rows = _flushed(asked, rows + [(number, kind, one, letter.reason) for one in ids])
        drops = side.kafka.named(DROPS_TOPIC)
        if drops in there:
            for message in reader.read(reader.between(reader.retained([drops]), since, None)):
                dropped = _identified(message.value)
                rows = _flushed(
                    asked, rows + [(number, "drop", one["event_id"], str(one.get("reason"))) for one in dropped]
                )
        _flushed(asked, rows, least=1)
    return [
        {"side": side, "topic": topic, "writer": writer, "reason": reason, "messages": messages, "records": records}
        for (side, topic, writer, reason), (messages, records) in sorted(told.items())
    ]


def _stored(there: dict[str, int], side: Side) -> list[str]:
    """Topics of the side that have a dead-letter topic."""
    suffix = dead_letters.SUFFIX
    mine = [name.removeprefix(side.kafka.prefix) for name in there if name.startswith(side.kafka.prefix)]
    return sorted(name.removesuffix(suffix) for name in mine if name.endswith(suffix) and "sandbox_" not in name)


def _in_slice(letter: DeadLetter, plan: Plan) -> bool:
    return any(
        (each.topic, each.partition) == (letter.topic, letter.partition) and each.start <= letter.offset < each.end
        for each in plan.slices
    )


def _identified(value: bytes) -> Iterator[dict[str, Any]]:
    """The records of a message that have an id as ours are, as far as it decodes."""
    try:
        for record in fastavro.reader(io.BytesIO(value)):
            if isinstance(record, dict) and isinstance(one := record.get("event_id"), bytes) and len(one) == ID_BYTES:
                yield record
    except Exception:  # fastavro promises no type for what foreign bytes do to it
        return


def _flushed(asked: Asked, rows: list[tuple[Any, ...]], least: int = INSERT_ROWS) -> list[tuple[Any, ...]]:
    if len(rows) < least:
        return rows
    asked.insert("replay_outside", COLUMNS, rows)
    return []
