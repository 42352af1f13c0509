-- trace_tree: a span that is its own parent is no child of its own, and does its work itself.
CREATE OR REPLACE VIEW trace_tree AS
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
        WHERE c.begin < p.end AND c.end > p.begin AND c.span_id != p.span_id
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
