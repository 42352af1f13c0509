"""Tells which service calls which, and who is hit when one fails.

Reads `traces_raw`, writes the topic `service_calls`, which the setting `routes.logs` must name beside others:

    [routes]
    logs = ["logs_raw", "service_calls"]

    [agents.service_graph]
    ratio = 0.1                 # of traces, both ends of a call alike (default 1)

A call has two ends, which two programs send: a client's (or producer's) span and a server's (or consumer's), its child.
For each end it writes an event, `service_graph.client` or `service_graph.server`, with the ids of the client's span;
PostgreSQL keeps events, and joins the ends when it is asked. So no end is waited for, nothing is held in memory, and
what comes late, twice or after a crash is one call. A client's span whose server sends none, such as a database, has
its peer's name (`peer.service`, `db.system.name`, `db.system`, `messaging.system`, `rpc.system`).

    SELECT * FROM service_edges(interval '1 day')                     -- client, server, calls, failures
    SELECT * FROM blast_radius('payments', interval '1 day')          -- who calls it, over how many others

Events are kept as long as `retention.events_days` says.

Where the database has the extension age, and the user of `postgres.dsn` may use its schema `ag_catalog` and read its
tables, `pipeline maintain run` keeps the edges of the last day as its graph `service_graph` as well: nodes
`Service {name}`, edges `CALLS {tenant, calls, failures}`. Cypher walks every path: where many services call each other,
bound them, as in `[:CALLS*1..4]`.

    LOAD 'age';
    SET search_path = ag_catalog, public;
    SELECT * FROM cypher('service_graph', $$
        MATCH path = (hit:Service)-[:CALLS*]->(:Service {name: 'payments'})
        WHERE hit.name <> 'payments'
        RETURN hit.name, min(length(path))
    $$) AS (service agtype, distance agtype);
"""

from typing import Annotated

from pydantic import BaseModel, Field

from pipeline.agents import Context, LogRecord, Span, agent
from pipeline.agents.builtin.sample import BITS, parsed, threshold_of

CLIENTS, SERVERS = (3, 4), (2, 5)  # SpanKind: client and producer, server and consumer
ERROR = 2
PEERS = ("peer.service", "db.system.name", "db.system", "messaging.system", "rpc.system")


class Settings(BaseModel):
    ratio: Annotated[float, Field(gt=2**-BITS, le=1)] = 1.0


@agent(reads="traces_raw", writes="service_calls", version=1, settings=Settings)
def service_graph(span: Span, context: Context[Settings, None]) -> LogRecord | None:
    is_client = span.kind in CLIENTS
    if not is_client and not (span.kind in SERVERS and span.parent_span_id):
        return None
    ratio = context.settings.ratio
    if ratio < 1:
        random = parsed(span.trace_state).random
        if (int.from_bytes(span.trace_id[-BITS // 8 :], "big") if random is None else random) < threshold_of(ratio):
            return None
    told = {"calls": f"{1 / ratio:.10g}", "failed": "true" if span.status_code == ERROR else "false"}
    if is_client:
        peer = next((span.attributes[key] for key in PEERS if span.attributes.get(key)), "")
        told |= {"peer": peer} if peer else {}
    return LogRecord(
        service=span.service,
        time=span.start_time,
        event_name="service_graph.client" if is_client else "service_graph.server",
        attributes=told,
        trace_id=span.trace_id,
        span_id=span.span_id if is_client else span.parent_span_id,
    )
