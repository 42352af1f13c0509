"""Four questions that people ask of the stores, as the SQL they would write."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline import clickhouse
from pipeline.settings import Settings
from pipeline.timescale import connection

TREE_SPANS = 40  # shown of one trace

TRACE = """\
WITH (
    SELECT trace_id FROM traces GROUP BY trace_id HAVING countIf(status = 'error') > 0
    ORDER BY uniqExact(service) DESC, count(), trace_id LIMIT 1
) AS failed
SELECT span_id, parent_span_id, service, name, status, round(duration_ns / 1e6, 2) AS ms, status_message
FROM traces WHERE trace_id = failed ORDER BY start_time, span_id"""

ERRORS = """\
SELECT timestamp, severity_text, body, trace_id
FROM logs WHERE service = 'checkout' AND severity_number >= 17
ORDER BY timestamp DESC, event_id LIMIT 5"""

P99 = """\
SELECT minute, sum(count)::bigint AS orders,
    round(histogram_quantile(0.99, histogram_sum(buckets))::numeric, 2) AS p99_ms
FROM (
    SELECT date_trunc('minute', time) AS minute, count, (explicit_bounds, bucket_counts)::explicit_histogram AS buckets
    FROM metrics_histograms
    JOIN metric_series USING (series_id)
    WHERE metric_name = 'checkout.order.duration' AND temporality = 'delta'
) AS points
GROUP BY minute
ORDER BY minute"""

TOP = """\
SELECT metric_name, any(type) AS type, uniqExact(series_id) AS series, count() AS points
FROM metrics GROUP BY metric_name ORDER BY points DESC, metric_name LIMIT 8"""


class Example(NamedTuple):
    """A question, the SQL that answers it, and the answer; each row has as many values as `columns`."""

    title: str
    store: str
    sql: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def ask(settings: Settings) -> list[Example]:
    """All four, answered now."""
    client = clickhouse.connect(settings.clickhouse)
    try:
        return [
            _tree(client),
            _clickhouse(client, "Errors that checkout logged last", ERRORS),
            _postgres(settings, "p99 of an order's duration by minute", P99),
            _clickhouse(client, "Metrics with most points", TOP),
        ]
    finally:
        client.close_connections()  # of the pool that all clients share: a server that stops waits 5 s for open ones


def _clickhouse(client: Client, title: str, sql: str) -> Example:
    answer = client.query(sql)
    return Example(title, "ClickHouse", sql, answer.column_names, answer.result_rows)


def _postgres(settings: Settings, title: str, sql: str) -> Example:
    with connection.connect(settings.postgres) as postgres:
        answer = postgres.execute(sql.encode())
        return Example(
            title, "PostgreSQL", sql, [column.name for column in answer.description or []], answer.fetchall()
        )


def _tree(client: Client) -> Example:
    """The answer to TRACE, parents before children, names indented by depth."""
    spans = {row[0]: row for row in client.query(TRACE).result_rows}
    children = defaultdict(list)
    for span_id, parent, *_ in spans.values():
        children[parent if parent in spans else ""].append(span_id)
    rows: list[tuple[Any, ...]] = []
    below = [(span_id, 0) for span_id in reversed(children[""])]
    while below:
        span_id, depth = below.pop()
        _, _, service, name, status, ms, message = spans[span_id]
        rows.append((f"{'  ' * depth}{name}", service, ms, message or status if status == "error" else ""))
        below += [(child, depth + 1) for child in reversed(children[span_id])]
    title = "A trace that failed"
    if len(rows) > TREE_SPANS:
        title += f" (its first {TREE_SPANS} of {len(rows)} spans)"
    return Example(title, "ClickHouse", TRACE, ["span", "service", "ms", "error"], rows[:TREE_SPANS])
