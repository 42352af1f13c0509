"""Requests of the sizes in design section 10: log records of 347 bytes with 6 + 6 attributes, spans of 282, points of 69."""

import random
import uuid
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pipeline.record.schema import Signal

SERVICES = 20
SERIES = 2000
RESOURCE = {  # beside service.name and host.name
    "service.version": "1.4.{}",
    "service.instance.id": "pod-{:04d}",
    "deployment.environment": "prod",
    "cloud.region": "eu-west-1",
}


def request(signal: Signal, count: int, start_ns: int, rng: random.Random) -> bytes:
    """One request of `count` records of one of 20 services, 1 ms apart from `start_ns` on; no two are equal."""
    return _MAKE[signal](count, start_ns, rng)


def _resource(part: Any, rng: random.Random) -> None:
    n = rng.randrange(SERVICES)
    _add(part.resource.attributes, "service.name", f"service-{n:02d}")
    _add(part.resource.attributes, "host.name", f"host-{n:02d}")
    for key, value in RESOURCE.items():
        _add(part.resource.attributes, key, value.format(n))


def _add(attributes: Any, key: str, value: str | int) -> None:
    attribute = attributes.add(key=key)
    if isinstance(value, int):
        attribute.value.int_value = value
    else:
        attribute.value.string_value = value


def _attributes(attributes: Any, rng: random.Random) -> None:
    _add(attributes, "http.request.method", rng.choice(["GET", "POST"]))
    _add(attributes, "http.route", f"/api/v1/resource/{rng.randrange(40)}")
    _add(attributes, "http.response.status_code", rng.choice([200, 200, 200, 404, 500]))
    _add(attributes, "customer.tier", rng.choice(["gold", "silver", "bronze"]))
    _add(attributes, "order.id", str(uuid.UUID(int=rng.getrandbits(128))))
    _add(attributes, "thread.id", rng.randrange(64))


def _logs(count: int, start_ns: int, rng: random.Random) -> bytes:
    message = ExportLogsServiceRequest()
    part = message.resource_logs.add()
    _resource(part, rng)
    scope = part.scope_logs.add()
    scope.scope.name = "bench"
    for n in range(count):
        record = scope.log_records.add(
            time_unix_nano=start_ns + n * 1_000_000,
            observed_time_unix_nano=start_ns + n * 1_000_000 + 900,
            severity_number=9,
            severity_text="INFO",
            trace_id=rng.randbytes(16),
            span_id=rng.randbytes(8),
        )
        record.body.string_value = f"order {rng.getrandbits(40):010x} accepted for customer {rng.getrandbits(32):08x} and handed to the warehouse in Heidelberg"
        _attributes(record.attributes, rng)
    return message.SerializeToString()


def _spans(count: int, start_ns: int, rng: random.Random) -> bytes:
    message = ExportTraceServiceRequest()
    part = message.resource_spans.add()
    _resource(part, rng)
    scope = part.scope_spans.add()
    scope.scope.name = "bench"
    for n in range(count):
        span = scope.spans.add(
            trace_id=rng.randbytes(16),
            span_id=rng.randbytes(8),
            parent_span_id=rng.randbytes(8),
            name=f"GET /api/v1/resource/{rng.randrange(40)}",
            kind=2,
            start_time_unix_nano=start_ns + n * 1_000_000,
            end_time_unix_nano=start_ns + n * 1_000_000 + rng.randrange(10**8),
        )
        _attributes(span.attributes, rng)
    return message.SerializeToString()


def _points(count: int, start_ns: int, rng: random.Random) -> bytes:
    """Gauge points of up to 100 series a service, a second apart within a series."""
    message = ExportMetricsServiceRequest()
    part = message.resource_metrics.add()
    _resource(part, rng)
    scope = part.scope_metrics.add()
    scope.scope.name = "bench"
    gauge = scope.metrics.add(name="queue.length", unit="{order}").gauge
    series = SERIES // SERVICES
    for n in range(count):
        point = gauge.data_points.add(
            time_unix_nano=start_ns + n // series * 10**9 + rng.randrange(10**6) * 1000, as_double=rng.random()
        )
        _add(point.attributes, "queue", f"queue{n % series:02d}")
        _add(point.attributes, "shard", n % 10)
        _add(point.attributes, "tier", "gold")
    return message.SerializeToString()


_MAKE = {"logs": _logs, "traces": _spans, "metrics": _points}
