"""Tables that a replay has in its sandbox's database, beside those of the migrations.

`replay_input` is what went in, a row for each thing that a table of a store is to hold, made by ClickHouse from the
container files as they were in Kafka; what came out is judged by it. Container files go in through Null tables, as
everywhere. A part is a table of one store: the signals are ClickHouse's, `postgres/events` is PostgreSQL's table
`events`, and a registered table is `clickhouse/<name>` and `postgres/<name>`.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Literal, NamedTuple

from pipeline import clickhouse
from pipeline.settings import ClickHouseSettings
from pipeline.tables.model import Table

Signal = Literal["logs", "traces", "metrics"]
SIGNALS: tuple[Signal, ...] = ("logs", "traces", "metrics")
# Both stores read these.
SEVERITY = """CASE WHEN {0} <= 0 THEN 'unset' WHEN {0} < 5 THEN 'trace' WHEN {0} < 9 THEN 'debug'
    WHEN {0} < 13 THEN 'info' WHEN {0} < 17 THEN 'warn' WHEN {0} < 21 THEN 'error' ELSE 'fatal' END"""
STATUS = "CASE {0} WHEN 1 THEN 'ok' WHEN 2 THEN 'error' ELSE 'unset' END"
POINT_TABLES = {
    "gauge": "metrics_points", "sum": "metrics_points", "histogram": "metrics_histograms",
    "exponential_histogram": "metrics_exponential_histograms", "summary": "metrics_summaries",
}  # fmt: skip
INPUT = """
    CREATE TABLE IF NOT EXISTS replay_input (
        part LowCardinality(String), key FixedString(16), event_id FixedString(16), timestamp Int64,
        minute DateTime('UTC'), service LowCardinality(String), severity LowCardinality(String)
    ) ENGINE = ReplacingMergeTree ORDER BY (part, key) SETTINGS non_replicated_deduplication_window = 1000
"""
VIEW = """
    CREATE MATERIALIZED VIEW IF NOT EXISTS {table}_{view} TO replay_input AS
    SELECT {part} AS part, {key} AS key, {event_id} AS event_id, stands AS timestamp,
        toStartOfMinute(fromUnixTimestamp64Nano(received_time, 'UTC')) AS minute,
        {service} AS service, {severity} AS severity
    FROM (
        SELECT *, {sent} AS sent, intDiv(received_time, 1000000) * 1000000 AS receipt,
            if(sent BETWEEN 946684800000000000 AND receipt + 86400000000000, sent, receipt) AS stands
        FROM {table}
    ) AS i WHERE {kept}
"""


class _Kept(NamedTuple):
    """What a part is to hold of what goes in, as expressions over the writers' table; `key` tells its rows apart."""

    part: str
    sent: str
    severity: str
    service: str = "service"
    key: str = "i.event_id"
    event_id: str = "toFixedString('', 16)"  # the key
    kept: str = "1"


def point_key(table: str, series_id: str, time_us: str) -> str:
    """PostgreSQL keeps one point of a series and time: the text that names it, in either store's SQL."""
    return f"concat({table}, ' ', CAST({series_id} AS text), ' ', CAST({time_us} AS text))"


LOG_TIME, LOG_SEVERITY = "if(time != 0, time, observed_time)", SEVERITY.format("severity_number")
POINT_TABLE = f"transform(type, {list(POINT_TABLES)}, {list(POINT_TABLES.values())}, '')"
SOURCES: dict[Signal, tuple[str, tuple[_Kept, ...]]] = {
    "logs": (
        "logs_in",
        (
            _Kept("'logs'", LOG_TIME, LOG_SEVERITY),
            _Kept("'postgres/events'", LOG_TIME, LOG_SEVERITY, kept="severity_number >= 17 OR event_name != ''"),
        ),
    ),
    "traces": ("spans_in", (_Kept("'traces'", "start_time", STATUS.format("status_code")),)),
    "metrics": (
        "metrics_points_in",
        (
            _Kept("'metrics'", "time", "type"),
            _Kept(
                f"concat('postgres/', {POINT_TABLE})", "time", "type",
                key=f"MD5({point_key(POINT_TABLE, 'series_id', 'intDiv(stands, 1000)')})", event_id="i.event_id",
            ),
        ),
    ),
}  # fmt: skip


def make(settings: ClickHouseSettings) -> None:
    """Make them where they are not there; the tables of the migrations must be."""
    statements = [INPUT]
    for signal, (table, kept) in SOURCES.items():
        statements.append(f"CREATE TABLE IF NOT EXISTS {input_table(signal)} AS {table}")
        statements += _views(input_table(signal), kept)
    _carried_out(settings, statements)


def make_registered(settings: ClickHouseSettings, table: Table) -> None:
    """The same for a registered table: what all have, and the service where it says one."""
    service = has_service(table)
    into = registered_input_table(table.name)
    columns = "event_id FixedString(16), received_time Int64, time Int64" + ", service String" * service
    kept = [
        _Kept(f"'{store}/{table.name}'", "time", "''", service="service" if service else "''") for store in table.stores
    ]
    _carried_out(settings, [f"CREATE TABLE IF NOT EXISTS {into} ({columns}) ENGINE = Null", *_views(into, kept)])


def has_service(table: Table) -> bool:
    return any((column.name, column.kind, column.nullable) == ("service", "string", False) for column in table.columns)


def input_table(signal: Signal) -> str:
    return f"replay_{signal}_in"


def registered_input_table(name: str) -> str:
    """A name that no registered table has: those have no two underscores beside each other."""
    return f"replay__{name}__in"


def _views(table: str, kept: "tuple[_Kept, ...] | list[_Kept]") -> Iterator[str]:
    for number, each in enumerate(kept):
        yield VIEW.format(table=table, view=f"view_{number}", **each._asdict())


def _carried_out(settings: ClickHouseSettings, statements: list[str]) -> None:
    with closing(clickhouse.connect(settings)) as client, clickhouse.translated():
        for statement in statements:
            client.command(statement)
