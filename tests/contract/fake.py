"""A store in memory, for tests of what stands before a store; it keeps the contract of the real ones."""

import io
from collections.abc import Sequence
from typing import Any

import fastavro

from pipeline.agents.batch import join, known
from pipeline.delivery import Message
from pipeline.errors import Rejected, Unavailable
from pipeline.record.schema import Signal


class Memory:
    """What was committed: records by event_id, and the messages in the order they came. Away for `away` more calls."""

    def __init__(self, signal: Signal, away: int = 0) -> None:
        self.signal: Signal = signal
        self.away = away
        self.records: dict[bytes, dict[str, Any]] = {}
        self.messages: list[Message] = []


class MemoryWriter:
    """Any number of them write into one Memory."""

    name = "memory"

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._known = known(memory.signal)

    def write(self, batch: Sequence[Message]) -> int:
        if self._memory.away:
            self._memory.away -= 1
            raise Unavailable("The memory is away.")
        records = [record for part in join(batch, self._known) for record in _decoded(part.value())]
        for record in sorted(records, key=lambda record: record["received_time"]):
            held = self._memory.records.get(record["event_id"], record)
            if record["received_time"] >= held["received_time"]:
                self._memory.records[record["event_id"]] = record
        self._memory.messages += batch
        return len(records)


def _decoded(value: bytes) -> list[Any]:
    try:
        return list(fastavro.reader(io.BytesIO(value)))
    except Exception as error:  # whatever damage makes of fastavro
        raise Rejected(f"The records do not decode: {error!r}") from None
