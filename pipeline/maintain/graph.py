"""The edges between services as a graph of Apache AGE, in a database that has this extension."""

import psycopg

from pipeline.maintain.change import Change

HAS_AGE = """
    SELECT FROM pg_class
    WHERE relname = 'ag_graph' AND relnamespace = to_regnamespace('ag_catalog')
        AND has_schema_privilege(relnamespace, 'USAGE') AND has_table_privilege(oid, 'SELECT')
"""
HAS_GRAPH = "SELECT FROM ag_catalog.ag_graph WHERE name = 'service_graph'"
# AGE finds its own types and operators by the search path alone.
SEARCH_PATH = "SELECT set_config('search_path', current_setting('search_path') || ', ag_catalog', true)"
MAKE = (
    "SELECT create_graph('service_graph')",
    "SELECT create_vlabel('service_graph', 'Service')",
    "SELECT create_elabel('service_graph', 'CALLS')",
)
CLIENT = "agtype_build_map('name', e.client)"
SERVER = "agtype_build_map('name', e.server)"
CALLS = "agtype_build_map('tenant', e.tenant, 'calls', e.calls, 'failures', e.failures)"
DIFFERS = f"""
    WITH wanted AS MATERIALIZED (SELECT {CLIENT}, {SERVER}, {CALLS} FROM service_edges() AS e),
    there AS MATERIALIZED (
        SELECT client.properties, server.properties, calls.properties
        FROM service_graph."CALLS" AS calls
        JOIN service_graph."Service" AS client ON client.id = calls.start_id
        JOIN service_graph."Service" AS server ON server.id = calls.end_id
    )
    SELECT EXISTS ((TABLE wanted EXCEPT TABLE there) UNION ALL (TABLE there EXCEPT TABLE wanted))
"""  # noqa: S608
FILL = (
    'DELETE FROM service_graph."CALLS"',
    'DELETE FROM service_graph."Service"',
    f"""
    WITH edges AS MATERIALIZED (SELECT * FROM service_edges()),
    services AS (
        INSERT INTO service_graph."Service" (properties)
        SELECT {CLIENT} FROM edges AS e UNION SELECT {SERVER} FROM edges AS e
        RETURNING id, properties
    )
    INSERT INTO service_graph."CALLS" (start_id, end_id, properties)
    SELECT client.id, server.id, {CALLS}
    FROM edges AS e
    JOIN services AS client ON client.properties = {CLIENT}
    JOIN services AS server ON server.properties = {SERVER}
    """,  # noqa: S608
)


def plan(connected: psycopg.Connection) -> list[Change]:
    """A change where the graph is missing or is not what service_edges() tells; none without AGE, or rights
    to it."""
    if connected.execute(HAS_AGE).fetchone() is None:
        return []
    if connected.execute(HAS_GRAPH).fetchone() is None:
        return [Change("make the graph service_graph: the extension age is there.", (SEARCH_PATH, *MAKE, *FILL))]
    with connected.transaction():
        connected.execute(SEARCH_PATH)
        if connected.execute(DIFFERS.encode()).fetchone() == (False,):
            return []
    return [Change("refresh the graph service_graph: calls between services have changed.", (SEARCH_PATH, *FILL))]
