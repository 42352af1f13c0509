-- Which service calls which, of the events that the agent service_graph writes: an end of a call each, both with the ids
-- of the client's span. The ends are joined when they are asked for: events have no second index.
--
-- A row a call; the server of one whose server sent no span is what the client calls it.
CREATE FUNCTION service_calls(last interval)
RETURNS TABLE (tenant text, client text, server text, calls double precision, failed boolean)
LANGUAGE sql STABLE AS $$
WITH ends AS MATERIALIZED (
    SELECT e.tenant, e.service, e.trace_id, e.span_id, e.event_name, e.attributes
    FROM events AS e
    WHERE e.time > now() - last AND e.event_name IN ('service_graph.client', 'service_graph.server')
),
clients AS (SELECT * FROM ends WHERE event_name = 'service_graph.client'),
servers AS (SELECT * FROM ends WHERE event_name = 'service_graph.server')
SELECT
    c.tenant,
    c.service,
    coalesce(s.service, c.attributes ->> 'peer'),
    (c.attributes ->> 'calls')::double precision,
    'true' IN (c.attributes ->> 'failed', coalesce(s.attributes ->> 'failed', 'false'))
FROM clients AS c
LEFT JOIN servers AS s ON s.trace_id = c.trace_id AND s.span_id = c.span_id AND s.tenant = c.tenant
WHERE s.service IS NOT NULL OR c.attributes ? 'peer'
$$;

-- Calls of the last time, and how many of them failed.
CREATE FUNCTION service_edges(last interval DEFAULT '1 day')
RETURNS TABLE (tenant text, client text, server text, calls double precision, failures double precision)
LANGUAGE sql STABLE AS $$
SELECT c.tenant, c.client, c.server, sum(c.calls), coalesce(sum(c.calls) FILTER (WHERE c.failed), 0)
FROM service_calls(last) AS c
WHERE c.client <> c.server
GROUP BY 1, 2, 3
$$;

-- Who is hit when a service fails: those that call it, at 1, those that call these, at 2, and so on.
CREATE FUNCTION blast_radius(failing text, last interval DEFAULT '1 day') RETURNS TABLE (service text, distance integer)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    clients text[];
    servers text[];
    hit text[] := ARRAY[failing];
    front text[] := ARRAY[failing];
BEGIN
    SELECT array_agg(e.client), array_agg(e.server) INTO clients, servers FROM service_edges(last) AS e;
    distance := 0;
    LOOP
        SELECT array_agg(DISTINCT e.client) INTO front
        FROM unnest(clients, servers) AS e (client, server)
        WHERE e.server = ANY (front) AND e.client <> ALL (hit);
        EXIT WHEN front IS NULL;
        distance := distance + 1;
        hit := hit || front;
        FOREACH service IN ARRAY front LOOP
            RETURN NEXT;
        END LOOP;
    END LOOP;
END
$$;
