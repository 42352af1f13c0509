"""Kafka → PostgreSQL: metric points, and the errors and events among logs; one transaction a batch and schema."""

import io
from collections.abc import Sequence
from typing import Literal

import fastavro
import structlog

from pipeline.agents.batch import join, known
from pipeline.delivery import Message
from pipeline.errors import Rejected
from pipeline.settings import PostgresSettings
from pipeline.timescale.events import EventStore
from pipeline.timescale.rows import Stuck
from pipeline.timescale.writer import MetricStore

log = structlog.get_logger()
Place = tuple[str, int, int]  # topic, partition, offset
Stored = Literal["metrics", "logs"]
STORES: dict[Stored, type[MetricStore] | type[EventStore]] = {"metrics": MetricStore, "logs": EventStore}


class PostgresWriter:
    """Writer of one signal: of logs it keeps errors and events."""

    def __init__(self, settings: PostgresSettings, signal: Stored) -> None:
        self.name = "pg_writer"
        self._store = STORES[signal](settings)
        self._known = known(signal)
        self._suspects: set[Place] = set()

    def write(self, batch: Sequence[Message]) -> int:
        """Commit the whole batch; return how many records it holds."""
        joined = join(batch, self._known)
        self._check_suspects(batch)
        try:
            for part in joined:
                self._store.store(part.value)
        except Stuck:
            log.error("a decoder is stuck on damaged records; it keeps a core busy until this process is restarted")
            self._suspects.update(map(_place, batch))
            self._check_suspects(batch)
            raise
        return sum(part.records for part in joined)

    def _check_suspects(self, batch: Sequence[Message]) -> None:
        """Decode with the slow decoder that always ends what was in a batch with damage, once."""
        for message in batch:
            if _place(message) in self._suspects:
                try:
                    for _ in fastavro.reader(io.BytesIO(message.value)):
                        pass
                except Exception as error:  # whatever damage makes of fastavro
                    raise Rejected(f"The records do not decode: {error!r}") from None
        self._suspects.difference_update(map(_place, batch))


def _place(message: Message) -> Place:
    return message.topic, message.partition, message.offset
