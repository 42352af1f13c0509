"""Kafka → PostgreSQL: metric points, one transaction a batch."""

from collections.abc import Sequence

from pipeline.agents.batch import join
from pipeline.delivery import Message
from pipeline.record import schema
from pipeline.settings import PostgresSettings
from pipeline.timescale.writer import MetricStore


class PostgresWriter:
    """Writer of metric points."""

    def __init__(self, settings: PostgresSettings) -> None:
        self.name = "pg_writer"
        self._store = MetricStore(settings)
        self._schema = schema.of("metrics")

    def write(self, batch: Sequence[Message]) -> int:
        """Commit the whole batch; return how many points it holds."""
        joined, records = join(batch, self._schema)
        self._store.store(joined)
        return records
