"""The catalogue of metrics: every name, label and unit that a process may expose, in one place.

Counters count records unless the name says otherwise. Labels are bounded: signals, tenants, reasons and classes come
from code or settings, never from a client's text.
"""

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time series a counter that nobody reads

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

ACCEPTED = Counter("pipeline_gateway_accepted_records", "Records answered OK: safe in Kafka.", ["signal", "tenant"])
REFUSED = Counter(
    "pipeline_gateway_refused_records", "Records refused by rule, told in partial_success.", ["signal", "tenant"]
)
UNTIMED = Counter(
    "pipeline_gateway_untimed_records", "Records without a usable time, stored at their receipt.", ["signal", "tenant"]
)
REQUESTS = Counter("pipeline_gateway_requests", "Requests by outcome.", ["protocol", "signal", "outcome"])
IN_FLIGHT = Gauge(
    "pipeline_gateway_in_flight_requests", "Requests being answered.", ["protocol"], multiprocess_mode="livesum"
)
REQUEST_SECONDS = Histogram(
    "pipeline_gateway_request_seconds", "From body read to answer.", ["signal"], buckets=SECONDS
)
PRODUCE_SECONDS = Histogram(
    "pipeline_gateway_produce_seconds", "From produce to acknowledgement by Kafka.", ["signal"], buckets=SECONDS
)
MESSAGE_RECORDS = Histogram("pipeline_gateway_message_records", "Records a Kafka message.", ["signal"], buckets=SIZES)
WORKER_RESTARTS = Counter("pipeline_worker_restarts", "Worker processes that died and were started again.", ["process"])

INSERTED = Counter("pipeline_pg_writer_inserted_rows", "Rows that were new.", ["table"])
UPDATED = Counter("pipeline_pg_writer_updated_rows", "Rows replaced by a later receipt.", ["table"])
UNCHANGED = Counter("pipeline_pg_writer_unchanged_rows", "Rows already there: redelivered, or superseded.", ["table"])
BATCH_RECORDS = Histogram(
    "pipeline_writer_batch_records", "Records a store transaction.", ["writer"],
    buckets=(1, 10, 100, 1000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000),
)  # fmt: skip
STORE_SECONDS = Histogram("pipeline_writer_store_seconds", "One store transaction.", ["writer"], buckets=SECONDS)
RETRIES = Counter("pipeline_writer_retries", "Store calls repeated because the store was away.", ["writer"])
STORE_AWAY = Gauge(
    "pipeline_writer_store_away",
    "1 while the store is away and a batch waits.",
    ["writer"],
    multiprocess_mode="livemax",
)
DEAD_LETTERED = Counter(
    "pipeline_writer_dead_lettered_messages", "Messages put into a dead-letter topic.", ["writer", "topic"]
)
FRESHNESS_SECONDS = Histogram(
    "pipeline_writer_freshness_seconds", "From Kafka's timestamp to the store's commit, oldest message of a batch.",
    ["writer"], buckets=SECONDS,
)  # fmt: skip


def exposition() -> tuple[bytes, str]:
    """Everything this process (or, under a supervisor, all its workers) counted: body and content type."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
