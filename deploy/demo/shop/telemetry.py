"""The stock OpenTelemetry SDK as a shop's service uses it, with every record counted at its source and at the exporter.

Nothing is dropped between the two: queues are bounded, and a service takes no request while its exporters are behind
(`wait_for_room`). What an exporter gave up is counted as failed.
"""

import dataclasses
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import grpc
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler, LogRecordProcessor, ReadWriteLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricsData, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

VERSION = "1.4.0"
SIGNALS = ("logs", "traces", "metrics")
QUEUE_RECORDS = 20_000  # of one signal in one service
BATCH_RECORDS = 1_000
SCHEDULE_DELAY_MS = 500
COLLECT_EVERY_MS = 500
# Exporters retry 6 times, after 1, 2, 4, 8 and 16 s or as the server says: a gateway that starts again is waited for.
EXPORT_TIMEOUT_S = 60


@dataclasses.dataclass
class Counts:
    """Records of one signal: made by the program, answered OK, given up by the exporter. What is left is waiting."""

    emitted: int = 0
    sent: int = 0
    failed: int = 0

    @property
    def waiting(self) -> int:
        return self.emitted - self.sent - self.failed


class Tally:
    """Counts by signal, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = {signal: Counts() for signal in SIGNALS}

    def add(self, signal: str, *, emitted: int = 0, sent: int = 0, failed: int = 0) -> None:
        counts = self._counts[signal]
        with self._lock:
            counts.emitted += emitted
            counts.sent += sent
            counts.failed += failed

    def counts(self) -> dict[str, Counts]:
        with self._lock:
            return {signal: dataclasses.replace(counts) for signal, counts in self._counts.items()}


class Telemetry:
    """The three providers of one service, exporting to one address.

    `endpoint` is an http:// URL for OTLP/HTTP or host:port for OTLP/gRPC.
    """

    def __init__(self, service: str, endpoint: str) -> None:
        self.tally = Tally()
        resource = Resource.create(
            {
                "service.name": service,
                "service.namespace": "shop",
                "service.version": VERSION,
                "service.instance.id": str(uuid.uuid4()),
                "host.name": socket.gethostname(),
                "process.pid": os.getpid(),
                "deployment.environment": "demo",
            }
        )
        spans, logs, points = _exporters(endpoint, self.tally)
        self._traces = TracerProvider(resource=resource)
        self._traces.add_span_processor(_CountSpans(self.tally))
        self._traces.add_span_processor(
            BatchSpanProcessor(
                spans,
                max_queue_size=QUEUE_RECORDS,
                schedule_delay_millis=SCHEDULE_DELAY_MS,
                max_export_batch_size=BATCH_RECORDS,
            )
        )
        self._logs = LoggerProvider(resource=resource)
        self._logs.add_log_record_processor(_CountLogs(self.tally))
        self._logs.add_log_record_processor(
            BatchLogRecordProcessor(
                logs,
                max_queue_size=QUEUE_RECORDS,
                schedule_delay_millis=SCHEDULE_DELAY_MS,
                max_export_batch_size=BATCH_RECORDS,
            )
        )
        self._metrics = MeterProvider(
            resource=resource,
            metric_readers=[PeriodicExportingMetricReader(points, export_interval_millis=COLLECT_EVERY_MS)],
            views=[View(instrument_name="*.size", aggregation=ExponentialBucketHistogramAggregation())],
        )
        self.tracer: trace.Tracer = self._traces.get_tracer("shop", VERSION)
        self.meter: metrics.Meter = self._metrics.get_meter("shop", VERSION)
        self.events = self._logs.get_logger("shop.events", VERSION)
        # Only the shop's own loggers: what the SDK says about a gateway that is away goes to stderr.
        self.log = logging.getLogger(f"shop.{service}")
        self.log.setLevel(logging.DEBUG)
        self.log.propagate = False
        self.log.addHandler(LoggingHandler(logger_provider=self._logs))

    def wait_for_room(self) -> None:
        """Return once the queues are less than half full: half a queue is more than all running requests can emit."""
        while any(self.tally.counts()[signal].waiting > QUEUE_RECORDS // 2 for signal in ("logs", "traces")):
            time.sleep(0.01)

    def shutdown(self) -> None:
        """Export everything that waits, then stop; it takes as long as the exporters retry."""
        self._traces.force_flush()
        self._logs.force_flush()
        self._metrics.shutdown()  # collects and exports once more
        self._traces.shutdown()
        self._logs.shutdown()


class _CountSpans(SpanProcessor):
    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def on_end(self, span: ReadableSpan) -> None:
        if span.context.trace_flags.sampled:
            self._tally.add("traces", emitted=1)


class _CountLogs(LogRecordProcessor):
    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        self._tally.add("logs", emitted=1)

    def shutdown(self) -> None:
        """Holds nothing."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def _exporters(endpoint: str, tally: Tally) -> tuple[Any, Any, Any]:
    if endpoint.startswith("http://"):
        return (
            _counting(HttpSpanExporter, "traces", tally)(f"{endpoint}/v1/traces", timeout=EXPORT_TIMEOUT_S),
            _counting(HttpLogExporter, "logs", tally)(f"{endpoint}/v1/logs", timeout=EXPORT_TIMEOUT_S),
            _counting(HttpMetricExporter, "metrics", tally)(
                f"{endpoint}/v1/metrics", timeout=EXPORT_TIMEOUT_S, compression=Compression.Gzip
            ),
        )
    common = {"insecure": True, "timeout": EXPORT_TIMEOUT_S, "compression": grpc.Compression.NoCompression}
    return (
        _counting(GrpcSpanExporter, "traces", tally)(endpoint, **common),
        _counting(GrpcLogExporter, "logs", tally)(endpoint, **common),
        _counting(GrpcMetricExporter, "metrics", tally)(
            endpoint, preferred_temporality={Histogram: AggregationTemporality.DELTA}, **common
        ),
    )


def _counting(exporter: Any, signal: str, tally: Tally) -> Callable[..., Any]:
    """The stock exporter, its answers counted. Points are counted here at their source too: the SDK has no queue."""

    def export(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        records = len(batch) if signal != "metrics" else _points(batch)
        if signal == "metrics":
            tally.add(signal, emitted=records)
        answered_ok = False
        try:
            result = exporter.export(self, batch, *args, **kwargs)
            answered_ok = result.name == "SUCCESS"
        finally:
            tally.add(signal, sent=records if answered_ok else 0, failed=0 if answered_ok else records)
        return result

    return type(f"Counting{exporter.__name__}", (exporter,), {"export": export})


def _points(batch: MetricsData) -> int:
    return sum(
        len(metric.data.data_points)
        for resource in batch.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )
