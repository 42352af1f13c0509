"""Error logs and OTLP events into PostgreSQL or TimescaleDB, each once."""

import json
import uuid
from functools import partial
from typing import Any

import polars as pl
import psycopg
from psycopg.types.json import Jsonb

from pipeline.record.times import RECEIPT_NS, SANE_AHEAD_NS, SANE_FROM_NS
from pipeline.settings import PostgresSettings
from pipeline.telemetry import metrics
from pipeline.timescale import rows
from pipeline.timescale.session import Session

TABLE = "events"
ERROR = 17  # OTLP SeverityNumber
COLUMNS = {
    "time": "timestamptz", "event_id": "uuid", "tenant": "text", "region": "text", "service": "text", "host": "text",
    "severity_number": "int4", "severity_text": "text", "event_name": "text", "body": "text", "attributes": "jsonb",
    "resource_attributes": "jsonb", "trace_id": "text", "span_id": "text", "received_time": "timestamptz",
}  # fmt: skip
VALUES = [column for column in COLUMNS if column not in ("time", "event_id")]
TEXTS = ("tenant", "region", "service", "host", "severity_text", "event_name", "body")
COPY = f"COPY {{}} ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)"
INCOMING = "CREATE TEMPORARY TABLE incoming_events (LIKE events) ON COMMIT DROP"
# Of two forms of an event the one received later stays, whichever comes first: see agents/transform.py.
LATER = ", ".join(f"EXCLUDED.{column}" for column in VALUES)
INSERT = f"""
    WITH written AS (
        INSERT INTO events AS held
        SELECT DISTINCT ON (time, event_id) * FROM incoming_events
        ORDER BY time, event_id, received_time DESC, region DESC
        ON CONFLICT (time, event_id) DO UPDATE SET ({", ".join(VALUES)}) = ROW ({LATER})
        WHERE (EXCLUDED.received_time, EXCLUDED.region) > (held.received_time, held.region)
        RETURNING held.time, held.event_id
    )
    SELECT count(*) - count(replaced.event_id), count(replaced.event_id)
    FROM written LEFT JOIN events AS replaced USING (time, event_id)  -- as they were before
"""  # noqa: S608  # names of ours


class EventStore:
    """The table `events`. `store` is safe to call from several threads."""

    def __init__(self, settings: PostgresSettings) -> None:
        self.session = Session(settings)

    def store(self, joined: bytes) -> None:
        """Commit what one container file of log records holds of errors and events, in one transaction.

        Raise Unavailable where the store is away, Rejected where it can never hold these records.
        """
        found = events(joined)
        if not found.height:
            return
        incoming = [_row(record) for record in found.iter_rows()]
        inserted, updated = self.session.write(partial(_copy_in, incoming), partial(_upsert, incoming))
        metrics.INSERTED.labels(TABLE).inc(inserted)
        metrics.UPDATED.labels(TABLE).inc(updated)
        metrics.UNCHANGED.labels(TABLE).inc(len(incoming) - inserted - updated)


def events(joined: bytes) -> pl.DataFrame:
    """Errors and events among the log records of a container file, with the columns of COLUMNS.

    `time` is the record's own, else its observed time; the receipt where that is missing or absurd (before 2000, more
    than a day ahead). NUL, which PostgreSQL cannot hold, is U+FFFD. Raise Rejected where the file does not decode.
    """
    wanted = (pl.col("severity_number") >= ERROR) | (pl.col("event_name") != "")
    found = rows.read(joined, ("severity_number", "event_name")).filter(wanted)
    if not found.height:
        return found
    sent = pl.when(pl.col("time") != 0).then("time").otherwise("observed_time")
    received = pl.col("received_time")
    receipt = received // RECEIPT_NS * RECEIPT_NS
    sane = sent.is_between(SANE_FROM_NS, receipt + SANE_AHEAD_NS)
    return (
        rows.read(joined, [*COLUMNS, "observed_time"])
        .filter(pl.col("row").is_in(found["row"].implode()))
        .with_columns(
            _microseconds(pl.when(sane).then(sent).otherwise(receipt)).alias("time"),
            _microseconds(received).alias("received_time"),
            pl.col(*TEXTS).str.replace_all("\0", "\ufffd", literal=True),
            pl.col("trace_id", "span_id").bin.encode("hex"),
        )
        .select(*COLUMNS)
    )


def _microseconds(time: pl.Expr) -> pl.Expr:
    return (time // 1000).cast(pl.Datetime("us", "UTC"))


def _row(record: tuple[Any, ...]) -> tuple[Any, ...]:
    time, event_id, *texts, attributes, resource_attributes, trace_id, span_id, received_time = record
    maps = (Jsonb(_storable(each), dumps=_dumps) for each in (attributes, resource_attributes))
    return time, uuid.UUID(bytes=event_id), *texts, *maps, trace_id, span_id, received_time


def _storable(texts: dict[str, str]) -> dict[str, str]:
    return {key.replace("\0", "\ufffd"): text.replace("\0", "\ufffd") for key, text in texts.items()}


_dumps = partial(json.dumps, ensure_ascii=False)


def _copy_in(incoming: list[tuple[Any, ...]], cursor: psycopg.Cursor) -> tuple[int, int]:
    _copy(TABLE, incoming, cursor)
    return len(incoming), 0


def _upsert(incoming: list[tuple[Any, ...]], cursor: psycopg.Cursor) -> tuple[int, int]:
    cursor.execute(INCOMING.encode())
    _copy("incoming_events", incoming, cursor)
    inserted, updated = cursor.execute(INSERT.encode()).fetchone() or (0, 0)
    return inserted, updated


def _copy(table: str, incoming: list[tuple[Any, ...]], cursor: psycopg.Cursor) -> None:
    with cursor.copy(COPY.format(table).encode()) as copy:
        copy.set_types(list(COLUMNS.values()))
        for row in incoming:
            copy.write_row(row)
