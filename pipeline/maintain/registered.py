"""Registered tables of which PostgreSQL has one of that name, and how long each is kept."""

from typing import NamedTuple

import psycopg

TABLES = """
    SELECT name, (metadata ->> 'retention_days')::integer FROM table_registry
    WHERE metadata -> 'stores' ? 'postgres' AND to_regclass(quote_ident(name)) IS NOT NULL ORDER BY name
"""


class Registered(NamedTuple):
    name: str
    kept_days: int


def tables(connected: psycopg.Connection) -> list[Registered]:
    """Retired ones too: what is stored expires as before."""
    return [Registered(*row) for row in connected.execute(TABLES)]
