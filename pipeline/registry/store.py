"""The registered tables in PostgreSQL. Every change is one statement that only succeeds on what it was made for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import Misconfigured
from pipeline.settings import PostgresSettings
from pipeline.tables.model import Conflict, Declaration, Evolution, Table, evolved, parsed, registered, retired
from pipeline.timescale import connection

REGISTER = """
    INSERT INTO table_registry (name, version, state, metadata)
    SELECT %(name)s, %(version)s, %(state)s, %(metadata)s::jsonb
    WHERE (SELECT count(*) FROM table_registry) < %(most)s
    ON CONFLICT (name) DO NOTHING
"""
CHANGE = """
    UPDATE table_registry SET version = %(version)s, state = %(state)s, metadata = %(metadata)s::jsonb
    WHERE name = %(name)s AND version = %(expected)s AND state = 'active'
"""


class Store:
    """All methods block, and raise Unavailable where PostgreSQL is away."""

    def __init__(self, settings: PostgresSettings, *, max_tables: int) -> None:
        self._settings = settings
        self._max_tables = max_tables

    def documents(self) -> list[str]:
        """Every table, retired ones too, by name, each as the JSON of its document."""
        with self._connected() as connected:
            rows = connected.execute("SELECT metadata::text FROM table_registry ORDER BY name").fetchall()
        return [document for (document,) in rows]

    def names(self) -> list[str]:
        with self._connected() as connected:
            return [name for (name,) in connected.execute("SELECT name FROM table_registry").fetchall()]

    def table(self, name: str) -> Table | None:
        with self._connected() as connected:
            row = connected.execute("SELECT metadata FROM table_registry WHERE name = %s", [name]).fetchone()
        return parsed(row[0]) if row else None

    def register(self, declaration: Declaration, *, who: str, at: str) -> Table:
        """Make the first version. Of two at once one wins; raise Conflict for the other."""
        table = registered(declaration, who=who, at=at)
        if not self._changed(REGISTER, table, most=self._max_tables):
            there = self.table(table.name)
            if there is None:
                raise Conflict(f"There are {self._max_tables} tables, which is registry.max_tables.")
            first = there.history[0]
            raise Conflict(
                f"There is a table {table.name} already, registered by {first.who} at {first.at}: evolve it, or choose "
                "another name."
            )
        return table

    def evolve(self, table: Table, wanted: Evolution, *, who: str, at: str) -> Table:
        """Make the next version of `table`, as it was read; raise Conflict where it has moved since."""
        new = evolved(table, wanted, who=who, at=at)
        if new is not table:
            self._demand(self._changed(CHANGE, new, expected=table.version), table)
        return new

    def retire(self, table: Table, expected_version: int, *, who: str, at: str) -> Table:
        """Let it take no more rows; what is stored stays. Raise Conflict as `evolve` does."""
        new = retired(table, expected_version, who=who, at=at)
        self._demand(self._changed(CHANGE, new, expected=table.version), table)
        return new

    def _demand(self, changed: bool, table: Table) -> None:
        if not changed:
            raise Conflict(f"Somebody else changed the table {table.name} at the same time: look at it again.")

    def _changed(self, statement: str, table: Table, **conditions: int) -> bool:
        values = {"name": table.name, "version": table.version, "state": table.state}
        values["metadata"] = json.dumps(table.as_json())
        with self._connected() as connected:
            return bool(connected.execute(statement.encode(), {**values, **conditions}).rowcount)

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        with connection.connect(self._settings) as connected, connection.translated():
            try:
                yield connected
            except connection.UndefinedTable:
                raise Misconfigured("PostgreSQL has no table_registry: run `pipeline migrate up` first.") from None
