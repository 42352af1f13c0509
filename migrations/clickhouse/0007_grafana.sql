-- What Grafana asks: a trace as a tree, and the columns of the OpenTelemetry Collector's ClickHouse exporter, which
-- Grafana's ClickHouse plugin knows as "OTel". All of it views of logs and traces: no duplicate is seen, and filters
-- reach keys and indexes.

-- The spans of a trace in the order of its tree, children by their start:
-- SELECT * FROM trace_tree(trace_id = '…') ORDER BY position
-- path has the span ids from the root down. A span whose parent is not there is a root; so is one whose ancestors are a
-- circle. self_ns is the time in which no child was at work.
-- The trace is read twice, however deep it is: for its shape, which the recursion walks through, and for its columns.
CREATE VIEW IF NOT EXISTS trace_tree AS
WITH RECURSIVE
    (
        SELECT groupArray((s.span_id, s.parent_span_id, s.begin, s.end))
        FROM
        (
            SELECT
                t.span_id AS span_id,
                any(t.parent_span_id) AS parent_span_id,
                min(toUnixTimestamp64Nano(t.timestamp)) AS begin,
                max(toUnixTimestamp64Nano(t.timestamp) + t.duration_ns) AS end
            FROM traces AS t
            WHERE t.trace_id = lower({trace_id:String})
            GROUP BY t.span_id
        ) AS s
    ) AS spans_of_trace,
    nodes AS
    (
        SELECT node.1 AS span_id, node.2 AS parent_span_id, node.3 AS begin, node.4 AS end
        FROM (SELECT arrayJoin(spans_of_trace) AS node)
    ),
    tree AS
    (
        SELECT n.span_id AS span_id, [(n.begin, n.span_id)] AS place FROM nodes AS n
        WHERE n.parent_span_id NOT IN (SELECT span_id FROM nodes)
        UNION ALL
        SELECT n.span_id, arrayPushBack(t.place, (n.begin, n.span_id))
        FROM nodes AS n INNER JOIN tree AS t ON n.parent_span_id = t.span_id
    ),
    covered AS
    (
        SELECT p.span_id AS span_id, intervalLengthSum(greatest(c.begin, p.begin), least(c.end, p.end)) AS ns
        FROM nodes AS c INNER JOIN nodes AS p ON c.parent_span_id = p.span_id
        WHERE c.begin < p.end AND c.end > p.begin
        GROUP BY p.span_id
    )
SELECT
    row_number() OVER (
        ORDER BY if(empty(l.place), [(toUnixTimestamp64Nano(s.timestamp), s.span_id)], l.place),
            s.timestamp, s.event_id
    ) AS position,
    toUInt32(greatest(1, length(l.place)) - 1) AS depth,
    if(empty(l.place), [s.span_id], l.place.2) AS path,
    s.trace_id AS trace_id,
    s.span_id AS span_id,
    s.parent_span_id AS parent_span_id,
    s.service AS service,
    s.name AS name,
    s.kind AS kind,
    s.status AS status,
    s.timestamp AS timestamp,
    toUnixTimestamp64Nano(s.timestamp) - min(toUnixTimestamp64Nano(s.timestamp)) OVER () AS start_offset_ns,
    s.duration_ns AS duration_ns,
    greatest(0, s.duration_ns - toInt64(c.ns)) AS self_ns,
    s.event_id AS event_id
FROM traces AS s
LEFT JOIN tree AS l ON l.span_id = s.span_id
LEFT JOIN covered AS c ON c.span_id = s.span_id
WHERE s.trace_id = lower({trace_id:String})
SETTINGS max_recursive_cte_evaluation_depth = 100000;

CREATE VIEW IF NOT EXISTS otel_logs AS
SELECT
    l.timestamp AS Timestamp,
    toDateTime(l.timestamp) AS TimestampTime,
    l.trace_id AS TraceId,
    l.span_id AS SpanId,
    toUInt8(bitAnd(l.flags, 255)) AS TraceFlags,
    l.severity_text AS SeverityText,
    toUInt8(l.severity_number) AS SeverityNumber,
    l.service AS ServiceName,
    l.body AS Body,
    l.resource_schema_url AS ResourceSchemaUrl,
    l.resource_attributes AS ResourceAttributes,
    l.scope_schema_url AS ScopeSchemaUrl,
    l.scope_name AS ScopeName,
    l.scope_version AS ScopeVersion,
    l.scope_attributes AS ScopeAttributes,
    l.attributes AS LogAttributes,
    l.event_name AS EventName,
    l.tenant AS Tenant
FROM logs AS l;

CREATE VIEW IF NOT EXISTS otel_traces AS
SELECT
    t.timestamp AS Timestamp,
    t.trace_id AS TraceId,
    t.span_id AS SpanId,
    t.parent_span_id AS ParentSpanId,
    t.trace_state AS TraceState,
    t.name AS SpanName,
    initcap(t.kind) AS SpanKind,
    t.service AS ServiceName,
    t.resource_attributes AS ResourceAttributes,
    t.scope_name AS ScopeName,
    t.scope_version AS ScopeVersion,
    t.attributes AS SpanAttributes,
    toUInt64(t.duration_ns) AS Duration,
    initcap(t.status) AS StatusCode,
    t.status_message AS StatusMessage,
    arrayMap(e -> fromUnixTimestamp64Nano(e.time, 'UTC'), t.events) AS `Events.Timestamp`,
    t.events.name AS `Events.Name`,
    t.events.attributes AS `Events.Attributes`,
    t.links.trace_id AS `Links.TraceId`,
    t.links.span_id AS `Links.SpanId`,
    t.links.trace_state AS `Links.TraceState`,
    t.links.attributes AS `Links.Attributes`,
    t.tenant AS Tenant
FROM traces AS t;

-- When a trace was: the plugin asks for it first, and then for the trace between the two. Twins have one time.
CREATE VIEW IF NOT EXISTS otel_traces_trace_id_ts AS
SELECT s.trace_id AS TraceId, min(s.timestamp) AS Start, max(s.timestamp) AS End
FROM spans AS s
GROUP BY s.trace_id;
