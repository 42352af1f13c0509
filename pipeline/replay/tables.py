"""Tables that a replay has in its sandbox's database, beside those of the migrations.

`replay_input` is what went in, a row an event, made by ClickHouse from the container files as they were in Kafka; what
came out is judged by it. Container files go in through Null tables, as everywhere.
"""

from contextlib import closing
from typing import Literal

from pipeline import clickhouse
from pipeline.settings import ClickHouseSettings

Signal = Literal["logs", "traces", "metrics"]
SIGNALS: tuple[Signal, ...] = ("logs", "traces", "metrics")
SEVERITY = """multiIf(
    {0} <= 0, 'unset', {0} < 5, 'trace', {0} < 9, 'debug', {0} < 13, 'info', {0} < 17, 'warn', {0} < 21, 'error',
    'fatal'
)"""
STATUS = "transform({0}, [1, 2], ['ok', 'error'], 'unset')"
SANE = "BETWEEN 946684800000000000 AND received_time + 86400000000000"
INPUTS: dict[Signal, tuple[str, str, str]] = {  # the writers' table, the time that counts, what stands as severity
    "logs": ("logs_in", "if(time != 0, time, observed_time)", SEVERITY.format("severity_number")),
    "traces": ("spans_in", "start_time", STATUS.format("status_code")),
    "metrics": ("metrics_points_in", "time", "type"),
}


def make(settings: ClickHouseSettings) -> None:
    """Make them where they are not there; the tables of the migrations must be."""
    statements = [
        """CREATE TABLE IF NOT EXISTS replay_input (
            signal LowCardinality(String), event_id FixedString(16), timestamp DateTime64(9, 'UTC'),
            minute DateTime('UTC'), service LowCardinality(String), severity LowCardinality(String)
        ) ENGINE = ReplacingMergeTree ORDER BY (signal, event_id)
        SETTINGS non_replicated_deduplication_window = 1000"""
    ]
    for signal, (table, sent, severity) in INPUTS.items():
        statements += [
            f"CREATE TABLE IF NOT EXISTS {input_table(signal)} AS {table}",
            f"""CREATE MATERIALIZED VIEW IF NOT EXISTS {input_table(signal)}_view TO replay_input AS
            SELECT '{signal}' AS signal, event_id,
                fromUnixTimestamp64Nano(if(sent {SANE}, sent, received_time), 'UTC') AS timestamp,
                toStartOfMinute(fromUnixTimestamp64Nano(received_time, 'UTC')) AS minute,
                service, {severity} AS severity
            FROM (SELECT *, {sent} AS sent FROM {input_table(signal)})""",  # noqa: S608 - our own words
        ]
    with closing(clickhouse.connect(settings)) as client, clickhouse.translated():
        for statement in statements:
            client.command(statement)


def input_table(signal: Signal) -> str:
    return f"replay_{signal}_in"
