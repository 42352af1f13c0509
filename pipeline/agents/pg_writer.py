"""Kafka → PostgreSQL: metric points, and the errors and events among logs; one transaction a batch and schema."""

import io
from collections.abc import Callable, Sequence
from typing import Literal

import fastavro
import structlog

from pipeline.agents.batch import Joined, Known, join, known
from pipeline.agents.registered import RegisteredWriter, Version
from pipeline.delivery import Message
from pipeline.errors import Rejected, Unavailable
from pipeline.settings import PostgresSettings
from pipeline.tables.client import Tables
from pipeline.timescale.events import EventStore
from pipeline.timescale.registered import RegisteredStore
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
        self._suspects = _Suspects()

    def write(self, batch: Sequence[Message]) -> int:
        """Commit the whole batch; return how many records it holds."""
        return self._suspects.stored(batch, self._known, lambda part: self._store.store(part.value()))


def registered(settings: PostgresSettings, tables: Tables) -> RegisteredWriter:
    """Writer of the registered tables that PostgreSQL keeps, as PostgresWriter is of a signal."""
    store = RegisteredStore(settings)
    suspects = _Suspects()

    def keep(version: Version, batch: Sequence[Message]) -> int:
        table, number, accepted = version
        return suspects.stored(batch, accepted, lambda part: store.store(table, number, part.value()))

    return RegisteredWriter("pg_writer", "postgres", tables, keep)


class _Suspects:
    """Messages of batches on whose damage the fast decoder was stuck, as it may seem where the machine stood still."""

    def __init__(self) -> None:
        self._places: set[Place] = set()
        self._cleared: set[Place] = set()  # that the slow decoder has read

    def stored(self, batch: Sequence[Message], accepted: Known, store: Callable[[Joined], None]) -> int:
        """Store the whole batch; return how many records it holds."""
        joined = join(batch, accepted)
        self._check(batch)
        try:
            for part in joined:
                store(part)
        except Stuck as stuck:
            log.error("a decoder may be stuck on damaged records, and keep a core busy until this process is restarted")
            places = set(map(_place, batch))
            self._places |= places
            self._check(batch)
            if places <= self._cleared:  # twice: it is not the machine
                raise
            self._cleared |= places
            raise Unavailable("Decoding sound records took too long, as on a machine that stands still.") from stuck
        return sum(part.records for part in joined)

    def _check(self, batch: Sequence[Message]) -> None:
        """Decode with the slow decoder that always ends what was in a batch with damage, once."""
        for message in batch:
            if _place(message) in self._places:
                try:
                    for _ in fastavro.reader(io.BytesIO(message.value)):
                        pass
                except Exception as error:  # whatever damage makes of fastavro
                    raise Rejected(f"The records do not decode: {error!r}") from None
        self._places.difference_update(map(_place, batch))


def _place(message: Message) -> Place:
    return message.topic, message.partition, message.offset
