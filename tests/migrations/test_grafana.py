"""The views that Grafana reads, asked as its ClickHouse plugin asks.

The queries are those that grafana-clickhouse-datasource 4 builds for its OTel version 1.29 (src/data/sqlGenerator.ts,
src/otel.ts); $__fromTime and $__toTime are what its backend makes of them.
"""

import os
from typing import Any

from clickhouse_connect.driver.client import Client

from tests.migrations.test_clickhouse import NOW, count, insert, log, span

FROM, TO = f"fromUnixTimestamp64Milli({NOW // 10**6 - 3_600_000})", f"fromUnixTimestamp64Milli({NOW // 10**6 + 1000})"
LOGS = f"""
SELECT Timestamp as "timestamp", Body as "body", SeverityText as "level", LogAttributes as "labels", TraceId as "traceID"
FROM "{{database}}"."otel_logs"
WHERE ( timestamp >= {FROM} AND timestamp <= {TO} ) AND ( ServiceName = 'checkout' ) AND ( level IN ('ERROR', 'FATAL') )
AND (body LIKE '%cheese%') ORDER BY timestamp DESC LIMIT 1000
"""
SEARCH = f"""
SELECT "TraceId" as traceID, "ServiceName" as serviceName, "SpanName" as operationName, "Timestamp" as startTime,
multiply("Duration", 0.000001) as duration FROM "{{database}}"."otel_traces"
WHERE ( Timestamp >= {FROM} AND Timestamp <= {TO} ) AND ( ParentSpanId = '' ) AND ( Duration > 0 )
ORDER BY Timestamp DESC, Duration DESC LIMIT 1000
"""
TRACE = """
WITH '{trace_id}' as trace_id,
(SELECT min(Start) FROM "{database}"."otel_traces_trace_id_ts" WHERE TraceId = trace_id) as trace_start,
(SELECT max(End) + 1 FROM "{database}"."otel_traces_trace_id_ts" WHERE TraceId = trace_id) as trace_end
SELECT "TraceId" as traceID, "SpanId" as spanID, "ParentSpanId" as parentSpanID, "ServiceName" as serviceName,
"SpanName" as operationName, multiply(toUnixTimestamp64Nano("Timestamp"), 0.000001) as startTime,
multiply("Duration", 0.000001) as duration,
arrayMap(key -> map('key', key, 'value',"SpanAttributes"[key]), mapKeys("SpanAttributes")) as tags,
arrayMap(key -> map('key', key, 'value',"ResourceAttributes"[key]), mapKeys("ResourceAttributes")) as serviceTags,
if("StatusCode" IN ('Error', 'STATUS_CODE_ERROR'), 2, 0) as statusCode,
arrayMap((name, timestamp, attributes) -> tuple(name, toString(toUnixTimestamp64Milli(timestamp)),
arrayMap( key -> map('key', key, 'value', attributes[key]),
mapKeys(attributes)))::Tuple(name String, timestamp String, fields Array(Map(String, String))),
"Events".Name, "Events".Timestamp, "Events".Attributes) AS logs,
arrayMap((traceID, spanID, attributes) -> tuple(traceID, spanID, arrayMap(key -> map('key', key, 'value', attributes[key]),
mapKeys(attributes)))::Tuple(traceID String, spanID String, tags Array(Map(String, String))),
"Links".TraceId, "Links".SpanId, "Links".Attributes) AS references,
"SpanKind" as kind, "StatusMessage" as statusMessage, "TraceState" as traceState
FROM "{database}"."otel_traces" WHERE traceID = trace_id AND "Timestamp" >= trace_start AND "Timestamp" <= trace_end
LIMIT 1000
"""
HERE = "77" * 16


def ask(store: Client, query: str) -> tuple[list[dict[str, Any]], int]:
    """The rows, and how many were read for them."""
    result = store.query(query.format(database=store.database, trace_id=HERE))
    return list(result.named_results()), int(result.summary["read_rows"])


def tree(store: Client, trace_id: bytes) -> list[tuple[Any, ...]]:
    """Name, depth, path of last digits, offset, duration and self time of each span, in their order."""
    rows = store.query(
        "SELECT name, depth, arrayMap(id -> right(id, 2), path), start_offset_ns, duration_ns, self_ns "
        f"FROM trace_tree(trace_id = '{trace_id.hex().upper()}') ORDER BY position"
    ).result_rows
    return [tuple(row) for row in rows]


def node(  # noqa: PLR0917 - a line each in the tests
    trace: bytes, name: str, own: int, parent: int | None, start: int, end: int
) -> dict[str, Any]:
    return span(
        trace_id=trace, name=name, span_id=bytes([own] * 8), parent_span_id=bytes([parent] * 8) if parent else b"",
        start_time=NOW + start, end_time=NOW + end, received_time=NOW + 100,
    )  # fmt: skip


def test_a_trace_is_a_tree(store: Client) -> None:
    """Depth first, children by their start, each span once; a span's own time is what none of its children covers."""
    trace = os.urandom(16)
    spans = [
        node(trace, "root", 1, None, 0, 100),
        node(trace, "late", 2, 1, 60, 90),
        node(trace, "early", 3, 1, 10, 40),
        node(trace, "beside", 4, 1, 20, 50),
        node(trace, "below", 5, 3, 30, 200),
        node(trace, "orphan", 6, 99, 5, 15),
    ]
    insert(store, "traces", *spans)
    insert(store, "traces", *spans[2:5])
    assert tree(store, trace) == [
        ("root", 0, ["01"], 0, 100, 30),
        ("early", 1, ["01", "03"], 10, 30, 20),
        ("below", 2, ["01", "03", "05"], 30, 170, 170),
        ("beside", 1, ["01", "04"], 20, 30, 30),
        ("late", 1, ["01", "02"], 60, 30, 30),
        ("orphan", 0, ["06"], 5, 10, 10),
    ]


def test_a_trace_that_is_no_tree_is_shown(store: Client) -> None:
    """Spans in a circle, of one id, their own parents, or of any depth: each is a row, and only one, and
    nobody's own child."""
    trace, deep = os.urandom(16), os.urandom(16)
    odd = [
        node(trace, "a", 1, 2, 0, 10), node(trace, "b", 2, 1, 5, 8), node(trace, "self", 3, 3, 6, 7),
        node(trace, "twice", 4, None, 7, 9), node(trace, "again", 4, None, 8, 9), node(trace, "child", 5, 4, 8, 9),
    ]  # fmt: skip
    chain = [
        span(trace_id=deep, span_id=n.to_bytes(8), parent_span_id=(n - 1).to_bytes(8) if n > 1 else b"")
        for n in range(1, 1011)
    ]
    insert(store, "traces", *odd, *chain)
    assert [(name, depth, own) for name, depth, _, _, _, own in tree(store, trace)] == [
        ("a", 0, 7), ("b", 0, 0), ("self", 0, 1), ("twice", 0, 1), ("again", 0, 0), ("child", 1, 1),
    ]  # fmt: skip
    assert [depth for _, depth, *_ in tree(store, deep)] == list(range(1010))


def test_the_plugin_reads_logs(store: Client) -> None:
    """Its query of logs gets each record once, with its columns."""
    wanted = log(trace_id=b"\x77" * 16)
    insert(store, "logs", wanted, log(severity_text="INFO"), log(service="other"), log(body="nothing"))
    insert(store, "logs", wanted)
    [row], _ = ask(store, LOGS)
    assert (row["body"], row["level"], row["labels"], row["traceID"]) == ("out of cheese", "ERROR", {"k": "v"}, HERE)
    assert set(store.query("SELECT * FROM otel_logs LIMIT 1").column_names) >= {
        "Timestamp", "TraceId", "SpanId", "TraceFlags", "SeverityText", "SeverityNumber", "ServiceName", "Body",
        "ResourceSchemaUrl", "ResourceAttributes", "ScopeSchemaUrl", "ScopeName", "ScopeVersion", "ScopeAttributes",
        "LogAttributes",
    }  # fmt: skip


def test_the_plugin_reads_traces(store: Client) -> None:
    """It finds a trace by its root, and gets each span once, with events, links and attributes."""
    spans = [
        span(trace_id=b"\x77" * 16, start_time=NOW - 2 * 10**9, end_time=NOW),
        span(trace_id=b"\x77" * 16, span_id=b"\x02" * 8, parent_span_id=b"\xcd" * 8, kind=3, status_code=0),
    ]
    insert(store, "traces", *spans)
    insert(store, "traces", *spans)
    [found], _ = ask(store, SEARCH)
    assert (found["traceID"], found["operationName"], found["duration"]) == (HERE, "GET /", 2000.0)
    rows, _ = ask(store, TRACE)
    [root, child] = sorted(rows, key=lambda row: row["startTime"])
    assert (root["spanID"], root["kind"], root["statusCode"], root["duration"]) == ("cd" * 8, "Server", 2, 2000.0)
    assert root["tags"] == [{"key": "k", "value": "v"}]
    assert [event["name"] for event in root["logs"]] == ["exception", "again"]
    assert [link["traceID"] for link in root["references"]] == ["01" * 16]
    assert (child["parentSpanID"], child["kind"], child["statusCode"]) == ("cd" * 8, "Client", 0)


def test_the_views_read_little(store: Client) -> None:
    """Filters on trace, service and time reach keys and indexes through the views."""
    ids = [os.urandom(16) for _ in range(100)]
    for signal, make, when in (("logs", log, "time"), ("traces", span, "start_time")):
        records = [
            make(ordinal=n, service=f"s{n % 7}", trace_id=ids[n % 100], **{when: NOW - n * 10**6})
            for n in range(50_000)
        ]
        insert(store, signal, *records, make(trace_id=b"\x77" * 16, severity_text="ERROR", body="cheese"))  # type: ignore[arg-type]
    for table in ("logs_events", "spans"):
        store.command(f"OPTIMIZE TABLE {table} FINAL")
        assert count(store, table) == 50_001
    for query in (LOGS, TRACE, f"SELECT * FROM trace_tree(trace_id = '{HERE}')"):
        rows, read = ask(store, query)
        assert len(rows) == 1
        assert read <= 4 * 8192, query
