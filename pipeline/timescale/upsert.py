"""Binary COPY into a table, straight in or by way of an upsert in which the latest receipt wins."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import psycopg
from psycopg import sql

from pipeline.timescale import rows

# The later receipt wins, the id and then the region where two are equal: so any order of arrival, any repetition, and
# one event by way of two regions, ends in the same row.
# RETURNING does not tell of rows that are left alone nor, of a partitioned table, which were there: those replaced and
# those whose place another event keeps are counted where it shows.
UPSERT = """
    WITH written AS (
        INSERT INTO {table} AS held ({columns})
        SELECT DISTINCT ON ({key}) {columns} FROM {incoming}
        ORDER BY {key}, received_time DESC, event_id DESC, region DESC
        ON CONFLICT ({key}) DO UPDATE SET ({values}) = ROW ({excluded})
        WHERE CASE
            WHEN (EXCLUDED.received_time, EXCLUDED.event_id, EXCLUDED.region)
                > (held.received_time, held.event_id, held.region)
                THEN set_config({replaced}, ({replaced_count} + 1)::text, true) IS NOT NULL
            WHEN EXCLUDED.event_id <> held.event_id THEN set_config({kept}, ({kept_count} + 1)::text, true) IS NULL
            ELSE false
        END
        RETURNING 1
    ),
    counted AS MATERIALIZED (SELECT count(*) AS rows FROM written)
    SELECT rows - {replaced_count}, {replaced_count}, {kept_count} FROM counted
"""
COUNT = "coalesce(nullif(current_setting({}, true), ''), '0')::integer"
# What an older version of a record does not have is the column's default, also where it replaces another row.
COLUMNS_OF = """
    SELECT attname FROM pg_attribute
    WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


class Rows(Protocol):
    """Rows of one table as binary COPY: `columns` of each, `key` what the upsert finds them by."""

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> tuple[str, ...]: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def rows(self) -> Sequence[bytes]: ...


class Counts(NamedTuple):
    """Rows that were new, that replaced another, and whose place another event keeps."""

    inserted: int
    updated: int
    kept: int


def copy(cursor: psycopg.Cursor, target: str, incoming: Rows) -> None:
    """COPY straight into `target`; a row that is there already is a unique violation."""
    columns = sql.SQL(", ").join(map(sql.Identifier, incoming.columns))
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(sql.Identifier(target), columns)
    with cursor.copy(statement) as copying:
        copying.write(rows.SIGNATURE)
        for block in incoming.rows:
            copying.write(block)
        copying.write(rows.END)


def upsert(cursor: psycopg.Cursor, incoming: Rows) -> Counts:
    """COPY into a temporary table, and from there what is new or of a later receipt."""
    temporary = f"incoming_{incoming.name}"
    table, held = sql.Identifier(incoming.name), sql.Identifier(temporary)
    cursor.execute(sql.SQL("CREATE TEMPORARY TABLE {} (LIKE {} INCLUDING DEFAULTS) ON COMMIT DROP").format(held, table))
    copy(cursor, temporary, incoming)
    there = [name for (name,) in cursor.execute(COLUMNS_OF, (held.as_string(),)).fetchall()]
    values = [sql.Identifier(name) for name in there if name not in incoming.key]
    comma = sql.SQL(", ")
    replaced, kept = (sql.Literal(f"pipeline.{what}_{incoming.name}") for what in ("replaced", "kept"))
    count = sql.SQL(COUNT)
    cursor.execute(
        sql.SQL(UPSERT).format(
            table=table,
            incoming=held,
            columns=comma.join(map(sql.Identifier, incoming.columns)),
            key=comma.join(map(sql.Identifier, incoming.key)),
            values=comma.join(values),
            excluded=comma.join(sql.SQL("EXCLUDED.{}").format(column) for column in values),
            replaced=replaced,
            kept=kept,
            replaced_count=count.format(replaced),
            kept_count=count.format(kept),
        )
    )
    return Counts(*(cursor.fetchone() or (0, 0, 0)))
