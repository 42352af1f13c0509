"""Kafka → ClickHouse: messages joined into one container file an insert, no record decoded."""

import hashlib
from collections.abc import Sequence

from pipeline import clickhouse
from pipeline.agents.batch import join, known
from pipeline.delivery import Message
from pipeline.record.schema import Signal
from pipeline.settings import ClickHouseSettings

TABLES: dict[Signal, str] = {"logs": "logs_in", "traces": "spans_in", "metrics": "metrics_points_in"}


class ClickHouseWriter:
    """Writer of one signal; one insert at a time, so one object a thread."""

    def __init__(self, settings: ClickHouseSettings, signal: Signal) -> None:
        self.name = "ch_writer"
        self._inserts = clickhouse.Inserts(settings, TABLES[signal])
        self._known = known(signal)

    def write(self, batch: Sequence[Message]) -> int:
        """Insert the whole batch, a schema at a time, each once: the token makes a repeated insert change nothing."""
        joined = join(batch, self._known)
        for part in joined:
            self._inserts.insert(part.value, records=part.records, token=token(part.messages))
        return sum(part.records for part in joined)


def token(batch: Sequence[Message]) -> str:
    """Names the messages of a batch, by place and by the end of their content: a topic made anew starts again at 0."""
    named = hashlib.blake2b(digest_size=16)
    for message in batch:
        named.update(f"{message.topic}/{message.partition}/{message.offset}/".encode())
        named.update(message.value[-64:])
    return named.hexdigest()
