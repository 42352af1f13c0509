"""Which names a registered table and its columns may have."""

import re

PATTERN = re.compile(r"[a-z](_?[a-z0-9])*_?")  # no two underscores beside each other: those are the stores' helpers'
MOST_CHARACTERS = 48  # PostgreSQL keeps 63 bytes, and a helper's suffix must fit

# Source: PostgreSQL 18 documentation, appendix C, "SQL Key Words": reserved, with and without functions or types.
RESERVED = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation
    column concurrently constraint create cross current_catalog current_date current_role current_schema current_time
    current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze
    from full grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit
    localtime localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references
    returning right select session_user similar some symmetric system_user table tablesample then to trailing true union
    unique user using variadic verbose when where window with
    """.split()  # noqa: SIM905
)
# Source: ClickHouse, src/Parsers/ExpressionElementParsers.cpp, the words that no alias may be; and its literals.
RESERVED_CLICKHOUSE = frozenset(
    """
    all anti any array as asof between cross final format from full global group having ilike inf inner intersect
    interval into is join left like limit nan not null offset on only order prewhere qualify right sample semi settings
    union using where window with
    """.split()  # noqa: SIM905
)
# What the migrations of both stores make; a test holds this list to them.
BUILT_IN = frozenset(
    """
    events explicit_histogram exponential_histogram log_patterns logs logs_events logs_events_from_in logs_in
    metric_series metrics metrics_1d metrics_1d_rollup metrics_1h metrics_1h_rollup metrics_1m metrics_1m_computed
    metrics_1m_refresh metrics_1m_refreshes metrics_1m_refreshes_from_computed metrics_1m_rollup metrics_changed_hours
    metrics_exponential_histograms metrics_histograms metrics_points metrics_points_from_in metrics_points_in
    metrics_points_kept metrics_summaries otel_logs otel_traces otel_traces_trace_id_ts span_events span_events_from_in
    span_links span_links_from_in spans spans_from_in spans_in table_registry trace_events trace_links trace_tree traces
    """.split()  # noqa: SIM905
)
OURS = ("pg_", "sandbox_", "schema_migrations")  # table names start with none of these
ENVELOPE = frozenset(("event_id", "region", "received_time", "tenant", "time", "ordinal", "timestamp"))
SYSTEM = frozenset(("cmax", "cmin", "ctid", "tableoid", "xmax", "xmin"))  # columns that every PostgreSQL table has


def table_problem(name: str) -> str:
    """What a table's name should be and `name` is not; nothing where it is well."""
    if name in BUILT_IN or name.startswith(OURS):
        return "a name that the pipeline does not use itself"
    return _problem(name)


def column_problem(name: str) -> str:
    """The same for a column."""
    if name in ENVELOPE:
        return f"a name that is no column of every table ({', '.join(sorted(ENVELOPE))})"
    if name in SYSTEM:
        return "a name that is no system column of PostgreSQL"
    return _problem(name)


def _problem(name: str) -> str:
    if len(name) > MOST_CHARACTERS or not PATTERN.fullmatch(name):
        return f"lower-case letters, digits and single _, a letter first, at most {MOST_CHARACTERS}"
    if name in RESERVED or name in RESERVED_CLICKHOUSE:
        return "a name that is no reserved word of SQL"
    return ""
