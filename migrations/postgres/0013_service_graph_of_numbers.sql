-- Anybody may send an event that is called as an end of a call. One whose `calls` is no number is none, and fails no
-- query.
CREATE OR REPLACE FUNCTION service_calls(last interval)
RETURNS TABLE (tenant text, client text, server text, calls double precision, failed boolean)
LANGUAGE sql STABLE AS $$
WITH ends AS MATERIALIZED (
    SELECT
        e.tenant, e.service, e.trace_id, e.span_id, e.event_name, e.attributes,
        CASE
            -- As the agent writes it; under 1e117, so that sums of it are numbers too.
            WHEN e.attributes ->> 'calls' ~ '^[0-9]{1,17}([.][0-9]{1,17})?(e[+]?[0-9]{1,2})?$'
            THEN (e.attributes ->> 'calls')::double precision
        END AS calls
    FROM events AS e
    WHERE e.time > now() - last AND e.event_name IN ('service_graph.client', 'service_graph.server')
),
clients AS (SELECT * FROM ends WHERE event_name = 'service_graph.client' AND calls IS NOT NULL),
servers AS (SELECT * FROM ends WHERE event_name = 'service_graph.server')
SELECT
    c.tenant,
    c.service,
    coalesce(s.service, c.attributes ->> 'peer'),
    c.calls,
    'true' IN (c.attributes ->> 'failed', coalesce(s.attributes ->> 'failed', 'false'))
FROM clients AS c
LEFT JOIN servers AS s ON s.trace_id = c.trace_id AND s.span_id = c.span_id AND s.tenant = c.tenant
WHERE s.service IS NOT NULL OR c.attributes ? 'peer'
$$;
