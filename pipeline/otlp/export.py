"""Records → the OTLP request that sends them on.

Another gateway of ours makes the same records of it, with the same event_ids. Attribute values are the texts that
records keep, whatever type they had.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    Exemplar,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ScopeMetrics,
    Sum,
    Summary,
    SummaryDataPoint,
)

from pipeline.record.records import LogRecord, MetricPoint, Record, Span
from pipeline.record.schema import Signal

RESOURCE = ("resource_attributes", "resource_schema_url")
SCOPE = ("scope_name", "scope_version", "scope_attributes", "scope_schema_url")
METRIC = ("metric_name", "description", "unit", "type", "temporality", "monotonic")
UNSIGNED = (1 << 64) - 1  # records keep unsigned numbers of the wire as signed ones
TEMPORALITIES: dict[str, Any] = {"unspecified": 0, "delta": 1, "cumulative": 2}


def export_request(signal: Signal, records: Iterable[Record]) -> Any:
    """The Export…ServiceRequest; of one event_id only the first is in it, or its twin would become another event."""
    request, resources, scopes, put = {
        "logs": (ExportLogsServiceRequest(), "resource_logs", "scope_logs", _log),
        "metrics": (ExportMetricsServiceRequest(), "resource_metrics", "scope_metrics", None),
        "traces": (ExportTraceServiceRequest(), "resource_spans", "scope_spans", _span),
    }[signal]
    unique = {record.event_id: record for record in reversed(list(records))}
    for resource in _grouped(list(reversed(unique.values())), RESOURCE):
        over = getattr(request, resources).add(schema_url=resource[0].resource_schema_url)
        over.resource.attributes.extend(_attributes(resource[0].resource_attributes))
        for scope in _grouped(resource, SCOPE):
            first = scope[0]
            under = getattr(over, scopes).add(schema_url=first.scope_schema_url)
            under.scope.name, under.scope.version = first.scope_name, first.scope_version
            under.scope.attributes.extend(_attributes(first.scope_attributes))
            if put is None:
                for metric in _grouped(scope, METRIC):
                    _metric(under, metric)
            else:
                for record in scope:
                    put(under, record)
    return request


def _grouped(records: Sequence[Any], names: Sequence[str]) -> list[list[Any]]:
    """Those that are equal in these fields together, in the order of the first."""
    groups: dict[bytes, list[Any]] = {}
    for record in records:
        groups.setdefault(b"".join(map(record.piece, names)), []).append(record)
    return list(groups.values())


def _attributes(texts: Mapping[str, str]) -> list[KeyValue]:
    return [_attribute(key, text) for key, text in texts.items()]


def _attribute(key: str, text: str) -> KeyValue:
    made = KeyValue(key=key)
    made.value.string_value = text
    return made


def _log(scope: Any, record: LogRecord) -> None:
    made = scope.log_records.add(
        time_unix_nano=record.time & UNSIGNED,
        observed_time_unix_nano=record.observed_time & UNSIGNED,
        severity_number=record.severity_number,
        severity_text=record.severity_text,
        event_name=record.event_name,
        dropped_attributes_count=record.dropped_attributes_count,
        flags=record.flags,
        trace_id=record.trace_id,
        span_id=record.span_id,
        attributes=_attributes(record.attributes),
    )
    if record.body:
        made.body.string_value = record.body


def _span(scope: Any, span: Span) -> None:
    made = scope.spans.add(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        trace_state=span.trace_state,
        flags=span.flags,
        name=span.name,
        kind=span.kind,
        start_time_unix_nano=span.start_time & UNSIGNED,
        end_time_unix_nano=span.end_time & UNSIGNED,
        attributes=_attributes(span.attributes),
        dropped_attributes_count=span.dropped_attributes_count,
        dropped_events_count=span.dropped_events_count,
        dropped_links_count=span.dropped_links_count,
    )
    if span.status_code or span.status_message:
        made.status.code, made.status.message = span.status_code, span.status_message
    for event in span.events:
        made.events.add(
            time_unix_nano=event.time & UNSIGNED, name=event.name, attributes=_attributes(event.attributes),
            dropped_attributes_count=event.dropped_attributes_count,
        )  # fmt: skip
    for link in span.links:
        made.links.add(
            trace_id=link.trace_id, span_id=link.span_id, trace_state=link.trace_state, flags=link.flags,
            attributes=_attributes(link.attributes), dropped_attributes_count=link.dropped_attributes_count,
        )  # fmt: skip


def _metric(scope: ScopeMetrics, points: Sequence[MetricPoint]) -> None:
    first = points[0]
    metric = scope.metrics.add(name=first.metric_name, description=first.description, unit=first.unit)
    _DATA[first.type](metric, first, points)


def _gauge(metric: Metric, _: MetricPoint, points: Sequence[MetricPoint]) -> None:
    metric.gauge.CopyFrom(Gauge(data_points=map(_number, points)))


def _sum(metric: Metric, first: MetricPoint, points: Sequence[MetricPoint]) -> None:
    metric.sum.CopyFrom(
        Sum(
            data_points=map(_number, points), is_monotonic=first.monotonic,
            aggregation_temporality=TEMPORALITIES[first.temporality],
        )
    )  # fmt: skip


def _histogram(metric: Metric, first: MetricPoint, points: Sequence[MetricPoint]) -> None:
    made = Histogram(aggregation_temporality=TEMPORALITIES[first.temporality])
    for point in points:
        made.data_points.append(
            HistogramDataPoint(
                **_common(point), **_extent(point), explicit_bounds=point.explicit_bounds,
                bucket_counts=_counts(point.bucket_counts), exemplars=_exemplars(point),
            )
        )  # fmt: skip
    metric.histogram.CopyFrom(made)


def _exponential(metric: Metric, first: MetricPoint, points: Sequence[MetricPoint]) -> None:
    made = ExponentialHistogram(aggregation_temporality=TEMPORALITIES[first.temporality])
    buckets = ExponentialHistogramDataPoint.Buckets
    for point in points:
        made.data_points.append(
            ExponentialHistogramDataPoint(
                **_common(point), **_extent(point), scale=point.scale, zero_count=point.zero_count & UNSIGNED,
                zero_threshold=point.zero_threshold, exemplars=_exemplars(point),
                positive=buckets(offset=point.positive_offset, bucket_counts=_counts(point.positive_counts)),
                negative=buckets(offset=point.negative_offset, bucket_counts=_counts(point.negative_counts)),
            )
        )  # fmt: skip
    metric.exponential_histogram.CopyFrom(made)


def _summary(metric: Metric, _: MetricPoint, points: Sequence[MetricPoint]) -> None:
    made = Summary()
    for point in points:
        quantiles = [
            SummaryDataPoint.ValueAtQuantile(quantile=each.quantile, value=each.value) for each in point.quantiles
        ]
        made.data_points.append(
            SummaryDataPoint(
                **_common(point), count=point.count & UNSIGNED, sum=point.sum or 0.0, quantile_values=quantiles
            )
        )  # fmt: skip
    metric.summary.CopyFrom(made)


_DATA: dict[str, Callable[[Metric, MetricPoint, Sequence[MetricPoint]], None]] = {
    "gauge": _gauge, "sum": _sum, "histogram": _histogram, "exponential_histogram": _exponential, "summary": _summary,
}  # fmt: skip


def _common(point: MetricPoint) -> dict[str, Any]:
    return {
        "attributes": _attributes(point.attributes),
        "start_time_unix_nano": point.start_time & UNSIGNED,
        "time_unix_nano": point.time & UNSIGNED,
        "flags": point.flags,
    }


def _extent(point: MetricPoint) -> dict[str, Any]:
    known = {"sum": point.sum, "min": point.min, "max": point.max}
    return {"count": point.count & UNSIGNED, **{name: value for name, value in known.items() if value is not None}}


def _counts(counts: Sequence[int]) -> list[int]:
    return [count & UNSIGNED for count in counts]


def _number(point: MetricPoint) -> NumberDataPoint:
    made = NumberDataPoint(**_common(point), exemplars=_exemplars(point))
    if point.int_value is not None:
        made.as_int = point.int_value
    elif point.value is not None:
        made.as_double = point.value
    return made


def _exemplars(point: MetricPoint) -> list[Exemplar]:
    return [
        Exemplar(
            time_unix_nano=each.time & UNSIGNED, as_double=each.value, trace_id=each.trace_id, span_id=each.span_id,
            filtered_attributes=_attributes(each.attributes),
        )
        for each in point.exemplars
    ]  # fmt: skip
