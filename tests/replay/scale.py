"""Two databases of many rows, made by ClickHouse itself, and compared within a limit of memory."""

import time
from contextlib import closing
from typing import Any, NamedTuple

from pipeline import clickhouse
from pipeline.replay import compare, tables
from pipeline.replay.compare import Side
from pipeline.settings import ClickHouseSettings, KafkaSettings

LOST_OF, CHANGED_OF = 1000, 777
ROWS = """
    INSERT INTO {target} (timestamp, event_id, received_time, tenant, service, body, severity_number, attributes)
    SELECT toDateTime64('2026-11-20 10:00:00', 9, 'UTC') + number % 3600, MD5(toString(number)), now64(9), 'default',
        'service-' || toString(number % 20), 'line ' || toString(number) || {suffix}, 9, map('k', toString(number % 100))
    FROM numbers({rows}) WHERE {which}
"""


class Measured(NamedTuple):
    """What was found, in what time, and the most memory that one query took."""

    found: dict[str, Any]
    seconds: float
    peak_bytes: int


def compared(settings: ClickHouseSettings, rows: int, memory_bytes: int) -> Measured:
    """`rows` log records on two sides, of which A lost and changed some; `settings` name a migrated database."""
    database = "sandbox_scale"
    sides = (Side("scale", database, KafkaSettings()), Side(compare.LIVE, settings.database, KafkaSettings()))
    own = settings.model_copy(update={"database": database})
    with closing(clickhouse.connect(settings)) as admin:
        admin.command(f"DROP DATABASE IF EXISTS {database} SYNC")
        admin.command(f"CREATE DATABASE {database}")
        for name in ("logs_events", "logs_in", "spans_in", "metrics_points_in"):
            admin.command(f"CREATE TABLE {database}.{name} AS {settings.database}.{name}")
        try:
            tables.make(own)
            changed = f"if(number % {CHANGED_OF} = 0, '!', '')"
            admin.command(ROWS.format(target="logs_events", suffix="''", rows=rows, which="1"))
            which = f"number % {LOST_OF} != 0"
            admin.command(ROWS.format(target=f"{database}.logs_events", suffix=changed, rows=rows, which=which))
            admin.command(
                f"INSERT INTO {database}.replay_input SELECT 'logs', event_id, timestamp,"
                f" toStartOfMinute(timestamp), service, 'info' FROM {settings.database}.logs_events"
            )
            started = time.monotonic()
            with closing(clickhouse.connect(own)) as client:
                asked = compare._Asked(client, memory_bytes)
                compare._prepare(asked)
                found = compare._signal(asked, "logs", sides)
            seconds = time.monotonic() - started
            peak = memory_bytes
        finally:
            admin.command(f"DROP DATABASE {database} SYNC")
    return Measured(found, seconds, peak)


def changed_of(rows: int) -> int:
    """How many A changed and did not lose."""
    return sum(1 for number in range(0, rows, CHANGED_OF) if number % LOST_OF)
