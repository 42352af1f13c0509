"""Kafka → one store: rows of all registered tables, which share a topic; each table is its own affair."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline import digits
from pipeline.agents.batch import Known
from pipeline.delivery import Message
from pipeline.errors import Rejected
from pipeline.record import schema
from pipeline.tables.client import Tables
from pipeline.tables.model import StoreName, Table
from pipeline.telemetry import metrics

TOPIC = "events_raw"


class Version(NamedTuple):
    """A registered table, the version of it that some messages were written with, and what their files start with."""

    table: Table
    number: int
    accepted: Known


Keep = Callable[[Version, Sequence[Message]], int]  # commits messages of one version; how many records they hold


class Versions:
    """What the header `schema` of messages says, of the registered tables."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._schemas: dict[str, schema.Schema] = {}

    def of(self, said: str) -> Version:
        """Raise Rejected where that is no registered table's, Unavailable where the registry is needed and away."""
        name, _, version = said.partition("/")
        number = digits.number(version, 5, 0)
        if not number:
            raise Rejected(f"The header `schema` says {said[:60]!r}, which is no table and version.")
        table = self._tables.get(name, number)
        if said not in self._schemas:
            self._schemas[said] = schema.made(said, table.wire_of(number))
        return Version(table, number, {said: self._schemas[said]})


def by_schema(batch: Sequence[Message]) -> dict[str, list[Message]]:
    """Messages by what their header `schema` says."""
    found: dict[str, list[Message]] = {}
    for message in batch:
        found.setdefault(message.headers.get("schema", b"").decode(errors="replace"), []).append(message)
    return found


class RegisteredWriter:
    """Writer of the tables that name `store`; what is of others it passes over."""

    def __init__(self, name: str, store: StoreName, tables: Tables, keep: Keep) -> None:
        self.name = name
        self._store = store
        self._versions = Versions(tables)
        self._keep = keep

    def write(self, batch: Sequence[Message]) -> int:
        """Commit the batch, table by table and version by version; return how many records of it this store keeps.

        Raise Unavailable also where the registry is needed and away, Rejected also where it knows no such table.
        """
        written = 0
        for said, messages in by_schema(batch).items():
            version = self._versions.of(said)
            if self._store in version.table.stores:
                written += self._keep(version, messages)
            else:
                metrics.PASSED_OVER.labels(self.name, version.table.name).inc(len(messages))
        return written
