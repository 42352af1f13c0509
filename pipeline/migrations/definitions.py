"""What a database holds, as text by name, and where two databases differ.

Sources: PostgreSQL documentation, "System Catalogs"; TimescaleDB's schema timescaledb_information; ClickHouse
documentation, "System Tables".
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from clickhouse_connect.driver.client import Client

Definitions = Mapping[str, Mapping[str, str]]  # by table, view, function or type: its parts, and how each is defined
HISTORY = "schema_migrations"
EXCERPT = 60  # characters of a definition in a sentence

# Partitions, registered tables and what extensions bring are nobody's definition: data, a team's, a version.
_POSTGRES = """
WITH here AS (SELECT current_schema()::regnamespace::oid AS schema),
ours AS (
    SELECT c.* FROM pg_class AS c JOIN here ON c.relnamespace = here.schema
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'c', 'S') AND NOT c.relispartition AND c.relname <> ALL (%(others)s)
        AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
)
SELECT relname::text, 'kind', concat_ws(
    ' ',
    CASE relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'v' THEN 'view'
        WHEN 'm' THEN 'materialized view' WHEN 'c' THEN 'type' ELSE 'sequence' END,
    pg_get_partkeydef(oid), reloptions::text
)
FROM ours
UNION ALL
SELECT c.relname, 'column ' || a.attname, concat_ws(
    ' ',
    format_type(a.atttypid, a.atttypmod),
    CASE WHEN a.attcollation <> t.typcollation THEN 'collate ' || a.attcollation::regcollation END,
    CASE WHEN a.attnotnull THEN 'not null' END,
    CASE WHEN a.attgenerated <> '' THEN 'generated' WHEN a.attidentity <> '' THEN 'identity' END,
    CASE WHEN d.adbin IS NOT NULL THEN 'default ' || pg_get_expr(d.adbin, d.adrelid) END
)
FROM ours AS c
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE c.relkind <> 'S'
UNION ALL
SELECT relname, 'query', pg_get_viewdef(oid) FROM ours WHERE relkind IN ('v', 'm')
UNION ALL
SELECT c.relname, 'constraint ' || o.conname, pg_get_constraintdef(o.oid)
FROM ours AS c JOIN pg_constraint AS o ON o.conrelid = c.oid AND o.contype <> 'n'
UNION ALL
SELECT c.relname, 'index ' || i.indexrelid::regclass, concat_ws(
    ' ', pg_get_indexdef(i.indexrelid), CASE WHEN NOT i.indisvalid THEN '(invalid)' END
)
FROM ours AS c JOIN pg_index AS i ON i.indrelid = c.oid
WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid AND conrelid = i.indrelid)
UNION ALL
SELECT c.relname, 'trigger ' || g.tgname, concat_ws(
    ' ', pg_get_triggerdef(g.oid), CASE WHEN g.tgenabled = 'D' THEN '(disabled)' END
)
FROM ours AS c JOIN pg_trigger AS g ON g.tgrelid = c.oid AND NOT g.tgisinternal
UNION ALL
SELECT p.oid::regprocedure::text, 'definition', CASE
    WHEN p.prokind = 'a' THEN concat_ws(' ', 'aggregate', g.aggtransfn, g.aggtranstype::regtype, g.aggfinalfn,
        g.aggcombinefn, g.agginitval, p.proparallel)
    ELSE pg_get_functiondef(p.oid) END
FROM pg_proc AS p JOIN here ON p.pronamespace = here.schema LEFT JOIN pg_aggregate AS g ON g.aggfnoid = p.oid
WHERE NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e')
UNION ALL
SELECT t.typname, 'labels', string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder)
FROM pg_type AS t JOIN here ON t.typnamespace = here.schema JOIN pg_enum AS e ON e.enumtypid = t.oid
GROUP BY t.typname
"""

# Chunk intervals, column stores and what is kept how long follow the settings: `pipeline maintain plan` compares them.
_TIMESCALEDB = """
SELECT hypertable_name::text, 'dimension ' || column_name, concat_ws(' ', dimension_type, num_partitions)
FROM timescaledb_information.dimensions WHERE hypertable_schema = current_schema()
UNION ALL
SELECT coalesce(hypertable_name::text, proc_name::text), 'job ' || proc_name, concat_ws(
    ' ', 'every', schedule_interval, config - '{hypertable_id,mat_hypertable_id,start_offset}'::text[],
    CASE WHEN NOT scheduled THEN '(off)' END
)
FROM timescaledb_information.jobs
WHERE current_schema() IN (hypertable_schema, proc_schema)
    AND proc_name NOT IN ('policy_compression', 'policy_retention')
UNION ALL
SELECT view_name, 'query', concat_ws(' ', view_definition, CASE WHEN materialized_only THEN '(materialized only)' END)
FROM timescaledb_information.continuous_aggregates WHERE view_schema = current_schema()
"""

# So do TTL and storage policies.
_UPKEEP = re.compile(r" TTL .*?(?= SETTINGS |$)|(?<= SETTINGS )storage_policy = '[^']*', |, storage_policy = '[^']*'")
_CLICKHOUSE = """
WITH registered AS
(
    SELECT name FROM system.tables WHERE database = currentDatabase() AND startsWith(comment, 'Registered, version ')
),
ours AS
(
    SELECT name, engine, engine_full, create_table_query, engine LIKE '%View' AS is_view
    FROM system.tables
    WHERE database = currentDatabase() AND name != {history:String} AND NOT startsWith(name, '.inner')
        AND name NOT IN registered AND concat(name, '__rows') NOT IN registered
)
SELECT name, 'kind', if(is_view, engine, engine_full) FROM ours
UNION ALL
SELECT name, 'query', create_table_query FROM ours WHERE is_view
UNION ALL
SELECT table, concat('column ', name), concat(type, ' ', default_kind, ' ', default_expression, ' ', compression_codec)
FROM system.columns WHERE database = currentDatabase() AND table IN (SELECT name FROM ours WHERE NOT is_view)
UNION ALL
SELECT table, concat('index ', name), concat(expr, ' ', type_full, ' ', toString(granularity))
FROM system.data_skipping_indices WHERE database = currentDatabase()
UNION ALL
SELECT table, concat('projection ', name), query FROM system.projections WHERE database = currentDatabase()
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """`name` is a table, view, function or type; `problem` is a sentence without it."""

    store: str
    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.store} {self.name}: {self.problem}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def postgres(connection: psycopg.Connection) -> Definitions:
    """What the current schema holds, with TimescaleDB's settings where it is."""
    others = [HISTORY]
    if connection.execute("SELECT to_regclass('table_registry')").fetchone() != (None,):
        others += [name for (name,) in connection.execute("SELECT name FROM table_registry")]
    rows = connection.execute(_POSTGRES, {"others": others}).fetchall()
    if connection.execute("SELECT FROM pg_extension WHERE extname = 'timescaledb'").fetchone() is not None:
        rows += connection.execute(_TIMESCALEDB).fetchall()  # of continuous aggregates the query as it was written
    return _by_name(rows)


def clickhouse(client: Client) -> Definitions:
    """What the current database holds; its own name is left out of what views ask."""
    rows = client.query(_CLICKHOUSE, parameters={"history": HISTORY}).result_rows
    qualified = re.compile(rf"(?<![\w.`]){re.escape(client.database or '')}\.")
    return _by_name(
        [
            (name, part, _UPKEEP.sub("", text) if part == "kind" else qualified.sub("", text))
            for name, part, text in rows
        ]
    )


def differences(store: str, found: Definitions, made: Definitions) -> Iterator[Difference]:
    """Where `found` is not what the files `made`, or has tables and views of which they know nothing."""
    for name, parts in sorted(made.items()):
        if name not in found:
            yield Difference(store, name, "is missing.")
            continue
        for part in sorted(parts.keys() | found[name].keys()):
            wanted, there = parts.get(part), found[name].get(part)
            if wanted is None:
                yield Difference(store, name, f"{part} is in no file: {_excerpt(there or '')}.")
            elif there is None:
                yield Difference(store, name, f"{part} is missing: {_excerpt(wanted)}.")
            elif there != wanted:
                start = next((n for n, (a, b) in enumerate(zip(there, wanted, strict=False)) if a != b), 0)
                start = max(0, start - EXCERPT // 2)
                yield Difference(
                    store, name, f"{part} is {_excerpt(there, start)}, and {_excerpt(wanted, start)} in the files."
                )
    for name in sorted(found.keys() - made.keys()):
        if "kind" in found[name]:
            yield Difference(store, name, "is in no file: drop it, keep it elsewhere, or put it into a new file.")


def _by_name(rows: list[tuple[str, str, str]]) -> Definitions:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name, part, text in rows:
        found[name][part] = " ".join(text.split())
    return found


def _excerpt(text: str, start: int = 0) -> str:
    cut = text[start : start + EXCERPT]
    return f"`{'…' if start else ''}{cut}{'…' if start + EXCERPT < len(text) else ''}`"
