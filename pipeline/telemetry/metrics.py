"""The catalogue of metrics: every name, label and unit that a process may expose, in one place.

Counters count records unless the name says otherwise. Labels are bounded: signals, tenants, reasons and classes come
from code or settings, never from a client's text.
"""

import os
from typing import Any, TypeVar, cast

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

Metric = TypeVar("Metric", Counter, Gauge, Histogram)
_children: dict[tuple[Any, tuple[str, ...]], Any] = {}

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time series a counter that nobody reads

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

ACCEPTED = Counter(
    "pipeline_gateway_accepted_records", "Records answered OK: safe in Kafka or in the spool.", ["signal", "tenant"]
)
REFUSED = Counter(
    "pipeline_gateway_refused_records", "Records refused by rule, told in partial_success.",
    ["signal", "tenant", "reason"],
)  # fmt: skip
SHED = Counter(
    "pipeline_gateway_shed_records", "Records dropped by policy: the spool was nearly full. Told in partial_success.",
    ["signal", "tenant", "severity"],
)  # fmt: skip
UNTIMED = Counter(
    "pipeline_gateway_untimed_records", "Records without a usable time, stored at their receipt.", ["signal", "tenant"]
)
CUT = Counter(
    "pipeline_gateway_cut_attributes", "Attributes over a limit: cut, flattened or left out.", ["signal", "tenant"]
)
PUBLISHED = Counter(
    "pipeline_gateway_published_records", "Records that Kafka acknowledged at once.", ["signal", "tenant"]
)
SPOOLED = Counter("pipeline_gateway_spooled_records", "Records fsynced in the spool instead.", ["signal", "tenant"])
REQUESTS = Counter("pipeline_gateway_requests", "Requests by outcome.", ["protocol", "signal", "outcome"])
IN_FLIGHT = Gauge(
    "pipeline_gateway_in_flight_requests", "Requests being answered.", ["protocol"], multiprocess_mode="livesum"
)
HELD_BYTES = Gauge(
    "pipeline_gateway_held_bytes", "Bodies in memory, waiting to be encoded.", multiprocess_mode="livesum"
)
QUEUED_BYTES = Gauge(
    "pipeline_gateway_queued_bytes", "Encoded records in memory that nothing acknowledged yet.",
    multiprocess_mode="livesum",
)  # fmt: skip
REQUEST_SECONDS = Histogram(
    "pipeline_gateway_request_seconds", "From body read to answer.", ["signal"], buckets=SECONDS
)
SAFE_SECONDS = Histogram(
    "pipeline_gateway_safe_seconds", "From a full message to its acknowledgement by Kafka or the spool.", ["signal"],
    buckets=SECONDS,
)  # fmt: skip
MESSAGE_RECORDS = Histogram("pipeline_gateway_message_records", "Records a Kafka message.", ["signal"], buckets=SIZES)
RELOADS = Counter("pipeline_gateway_reloads", "Readings of tenants and certificates after a change.", ["outcome"])

SPOOL_LEVEL = Gauge("pipeline_spool_level_ratio", "How full the spool is, 1 being full.", multiprocess_mode="livemax")
SPOOL_BYTES = Gauge("pipeline_spool_bytes", "What the spool keeps, compressed.", multiprocess_mode="livesum")
SPOOL_MESSAGES = Gauge("pipeline_spool_messages", "Messages in the spool.", multiprocess_mode="livesum")
SPOOL_OLDEST_SECONDS = Gauge(
    "pipeline_spool_oldest_seconds", "Age of the oldest message in the spool.", multiprocess_mode="livemax"
)
DRAINED = Counter("pipeline_spool_drained_records", "Records brought from the spool to Kafka.")
QUARANTINED = Counter(
    "pipeline_spool_quarantined_messages", "Spooled messages that could not be read, set aside in quarantine."
)
WORKER_RESTARTS = Counter("pipeline_worker_restarts", "Worker processes that died and were started again.", ["process"])

INSERTED = Counter("pipeline_pg_writer_inserted_rows", "Rows that were new.", ["table"])
UPDATED = Counter("pipeline_pg_writer_updated_rows", "Rows replaced by a later receipt.", ["table"])
UNCHANGED = Counter("pipeline_pg_writer_unchanged_rows", "Rows already there: redelivered.", ["table"])
SUPERSEDED = Counter(
    "pipeline_pg_writer_superseded_rows", "Points not kept: another of their series and time is of a later receipt.",
    ["table"],
)  # fmt: skip
BATCH_RECORDS = Histogram(
    "pipeline_writer_batch_records", "Records a store transaction.", ["writer"],
    buckets=(1, 10, 100, 1000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000),
)  # fmt: skip
STORE_SECONDS = Histogram("pipeline_writer_store_seconds", "One store transaction.", ["writer"], buckets=SECONDS)
RETRIES = Counter("pipeline_writer_retries", "Store calls repeated because the store was away.", ["writer"])
STORE_AWAY = Gauge(
    "pipeline_writer_store_away",
    "Batches that wait for a store that is away.",
    ["writer"],
    multiprocess_mode="livemax",
)
DEAD_LETTERED = Counter(
    "pipeline_writer_dead_lettered_messages", "Messages put into a dead-letter topic.", ["writer", "topic"]
)
PASSED_OVER = Counter(
    "pipeline_writer_passed_over_messages", "Messages of registered tables that this writer's store does not keep.",
    ["writer", "table"],
)  # fmt: skip
FRESHNESS_SECONDS = Histogram(
    "pipeline_writer_freshness_seconds", "From Kafka's timestamp to the store's commit, oldest message of a batch.",
    ["writer"], buckets=SECONDS,
)  # fmt: skip

OTLP_SENT = Counter("pipeline_otlp_writer_sent_records", "Records that the back end took.", ["signal"])
OTLP_REJECTED = Counter(
    "pipeline_otlp_writer_rejected_records",
    "Records that it refused in partial_success, which are given up.",
    ["signal"],
)  # fmt: skip

AGENT_READ = Counter("pipeline_agent_read_records", "Records that an agent was given.", ["agent"])
AGENT_EMITTED = Counter("pipeline_agent_emitted_records", "Records that it published.", ["agent", "topic"])
AGENT_DROPPED = Counter("pipeline_agent_dropped_records", "Records that it dropped.", ["agent", "reason"])
AGENT_FAILED = Counter("pipeline_agent_failed_records", "Records that it could do nothing with.", ["agent"])
AGENT_KILLED = Counter(
    "pipeline_agent_killed_processes", "Times that its function took too long or too much, or ended its process.",
    ["agent"],
)  # fmt: skip
AGENT_RECYCLED = Counter(
    "pipeline_agent_recycled_processes", "Times that its process was started anew because it had grown over its limit.",
    ["agent"],
)  # fmt: skip

HEARTBEAT_AGE_SECONDS = Gauge(
    "pipeline_regions_heartbeat_age_seconds", "Age of the newest heartbeat that a link brought.", ["source", "target"]
)
LINK_BROKEN = Gauge("pipeline_regions_link_broken", "1 while a link brings nothing.", ["source", "target"])
MIRROR_LAG_MESSAGES = Gauge(
    "pipeline_regions_lag_messages", "Messages of the source that a link has not brought yet.",
    ["source", "target", "topic"],
)  # fmt: skip
MIRROR_LAG_SECONDS = Gauge(
    "pipeline_regions_lag_seconds", "Age of the oldest message that a link has not brought yet.",
    ["source", "target", "topic"],
)  # fmt: skip
MIRRORED_PER_SECOND = Gauge(
    "pipeline_regions_mirrored_messages_per_second", "What a link brought of the last minute.",
    ["source", "target", "topic"],
)  # fmt: skip
CHECKPOINT_AGE_SECONDS = Gauge(
    "pipeline_regions_checkpoint_age_seconds", "Since an offset of the source's writers was last translated.",
    ["source", "target"],
)  # fmt: skip
RPO_SECONDS = Gauge("pipeline_regions_rpo_goal_seconds", "What the topology allows a region to lose.", ["source"])


def child(metric: Metric, *labels: str) -> Metric:
    """`metric` for these values of its labels; where every request asks, this finds it sooner than `labels` does."""
    found = _children.get((metric, labels))
    if found is None:
        found = _children[metric, labels] = metric.labels(*labels)
    return cast(Metric, found)


def exposition() -> tuple[bytes, str]:
    """Everything this process (or, under a supervisor, all its workers) counted: body and content type."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
