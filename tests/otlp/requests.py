"""OTLP requests for tests: one of everything, and hypothesis strategies for anything."""

import math
from typing import Any

from google.protobuf.message import Message
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

T0 = 1_795_000_000_000_000_000  # 2026-11-18T10:26:40Z
TRACE_ID = bytes(range(1, 17))
SPAN_ID = bytes(range(1, 9))


def any_value(value: Any) -> AnyValue:
    """A Python value as AnyValue; None is the empty one."""
    if value is None:
        return AnyValue()
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=[any_value(item) for item in value]))
    return AnyValue(kvlist_value=KeyValueList(values=attributes(value)))


def attributes(values: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in values.items()]


RESOURCE = {"service.name": "checkout", "host.name": "web-1", "service.instance.id": "a1", "replicas": 3}
EVERY_KIND = {
    "text": "grüße",
    "yes": True,
    "integer": -7,
    "double": 2.5,
    "whole": 1.0,
    "huge": 1e16,
    "nan": math.nan,
    "infinite": -math.inf,
    "bytes": b"\x00\xff",
    "list": [1, "a", [None, b"x"], {"z": math.inf, "a": False}],
    "map": {"b": 1, "a": {"c": []}},
    "empty": "",
    "none": None,
}
EVERY_KIND_AS_TEXT = {
    "text": "grüße",
    "yes": "true",
    "integer": "-7",
    "double": "2.5",
    "whole": "1.0",
    "huge": "1e+16",
    "nan": "NaN",
    "infinite": "-Infinity",
    "bytes": "AP8=",
    "list": '[1,"a",[null,"eA=="],{"a":false,"z":"Infinity"}]',
    "map": '{"a":{"c":[]},"b":1}',
    "empty": "",
    "none": "",
}


def logs(*bodies: Any) -> ExportLogsServiceRequest:
    """One log record a body, all else equal."""
    request = ExportLogsServiceRequest()
    resource_logs = request.resource_logs.add(schema_url="https://opentelemetry.io/schemas/1.37.0")
    resource_logs.resource.attributes.extend(attributes(RESOURCE))
    scope_logs = resource_logs.scope_logs.add()
    scope_logs.scope.name, scope_logs.scope.version = "shop", "1.2"
    scope_logs.scope.attributes.extend(attributes({"team": "cart"}))
    for body in bodies or ("order accepted",):
        scope_logs.log_records.add(
            time_unix_nano=T0,
            observed_time_unix_nano=T0 + 5,
            severity_number=17,
            severity_text="ERROR",
            event_name="order",
            body=any_value(body),
            attributes=attributes(EVERY_KIND),
            dropped_attributes_count=2,
            trace_id=TRACE_ID,
            span_id=SPAN_ID,
            flags=1,
        )
    return request


def traces() -> ExportTraceServiceRequest:
    """A span with everything set, and one with nothing but its ids."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.extend(attributes(RESOURCE))
    spans = resource_spans.scope_spans.add().spans
    span = spans.add(
        trace_id=TRACE_ID,
        span_id=SPAN_ID,
        parent_span_id=SPAN_ID[::-1],
        trace_state="a=b",
        flags=257,
        name="POST /order",
        kind=2,
        start_time_unix_nano=T0,
        end_time_unix_nano=T0 + 1_000_000,
        attributes=attributes(EVERY_KIND),
        dropped_attributes_count=1,
        dropped_events_count=2,
        dropped_links_count=3,
    )
    span.status.code, span.status.message = 2, "out of stock"
    span.events.add(time_unix_nano=T0 + 3, name="exception", attributes=attributes({"exception.type": "KeyError"}))
    span.events.add(name="empty", dropped_attributes_count=4)
    span.links.add(
        trace_id=TRACE_ID[::-1], span_id=SPAN_ID, trace_state="c=d", attributes=attributes({"why": "retry"}), flags=1
    )
    spans.add(trace_id=TRACE_ID, span_id=b"12345678")
    return request


def metrics() -> ExportMetricsServiceRequest:
    """A data point of every kind, with exemplars, and with nothing set."""
    request = ExportMetricsServiceRequest()
    resource_metrics = request.resource_metrics.add()
    resource_metrics.resource.attributes.extend(attributes(RESOURCE))
    scope_metrics = resource_metrics.scope_metrics.add()
    scope_metrics.scope.name = "shop"
    common = {"attributes": attributes({"region": "eu"}), "time_unix_nano": T0, "start_time_unix_nano": T0 - 10}
    gauge = scope_metrics.metrics.add(name="queue.length", description="Orders waiting", unit="{order}").gauge
    point = gauge.data_points.add(as_double=1.5, **common)
    point.exemplars.add(
        time_unix_nano=T0 - 1, as_int=3, trace_id=TRACE_ID, span_id=SPAN_ID, filtered_attributes=attributes({"a": 1})
    )
    gauge.data_points.add(time_unix_nano=T0, flags=1)
    total = scope_metrics.metrics.add(name="orders", unit="1").sum
    total.aggregation_temporality, total.is_monotonic = 2, True
    total.data_points.add(as_int=(1 << 53) + 1, **common)
    histogram = scope_metrics.metrics.add(name="duration", unit="ms").histogram
    histogram.aggregation_temporality = 1
    histogram.data_points.add(
        count=3, sum=6.5, min=0.5, max=4.0, explicit_bounds=[1, 2], bucket_counts=[1, 1, 1], **common
    )
    histogram.data_points.add(time_unix_nano=T0 + 1)
    exponential = scope_metrics.metrics.add(name="size", unit="By").exponential_histogram
    exponential.aggregation_temporality = 2
    point = exponential.data_points.add(count=4, sum=1.0, scale=-1, zero_count=1, zero_threshold=0.1, **common)
    point.positive.offset, point.negative.offset = 2, -3
    point.positive.bucket_counts.extend([1, 2])
    point.negative.bucket_counts.extend([0, 0, 1])
    summary = scope_metrics.metrics.add(name="latency").summary
    point = summary.data_points.add(count=2, sum=3.0, **common)
    point.quantile_values.add(quantile=0.5, value=1.0)
    point.quantile_values.add(quantile=1.0, value=2.0)
    return request


ONE_OF_EVERYTHING: dict[str, Message] = {"logs": logs(*EVERY_KIND.values()), "metrics": metrics(), "traces": traces()}

_u32 = st.integers(0, (1 << 32) - 1)
_u64 = st.integers(0, (1 << 64) - 1) | st.integers(T0 - 10**12, T0 + 10**12)
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_doubles = st.floats(width=64)
any_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | _doubles | _text | st.binary(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=6,
)
attribute_maps = st.dictionaries(_text, any_values, max_size=4)


@st.composite
def log_requests(draw: st.DrawFn) -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    for _ in range(draw(st.integers(0, 2))):
        resource_logs = request.resource_logs.add(schema_url=draw(_text))
        resource_logs.resource.attributes.extend(attributes(draw(attribute_maps)))
        for _ in range(draw(st.integers(0, 2))):
            scope_logs = resource_logs.scope_logs.add()
            scope_logs.scope.name = draw(_text)
            scope_logs.scope.attributes.extend(attributes(draw(attribute_maps)))
            for _ in range(draw(st.integers(0, 3))):
                scope_logs.log_records.add(
                    time_unix_nano=draw(_u64),
                    observed_time_unix_nano=draw(_u64),
                    severity_number=draw(st.integers(0, 24)),
                    severity_text=draw(_text),
                    event_name=draw(_text),
                    body=any_value(draw(any_values)),
                    attributes=attributes(draw(attribute_maps)),
                    dropped_attributes_count=draw(_u32),
                    trace_id=draw(st.binary(max_size=20)),
                    span_id=draw(st.just(b"") | st.binary(min_size=8, max_size=8)),
                    flags=draw(_u32),
                )
    return request


@st.composite
def trace_requests(draw: st.DrawFn) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.extend(attributes(draw(attribute_maps)))
    for _ in range(draw(st.integers(0, 3))):
        span = resource_spans.scope_spans.add().spans.add(
            trace_id=draw(st.binary(min_size=16, max_size=16) | st.binary(max_size=17)),
            span_id=draw(st.binary(min_size=8, max_size=8)),
            parent_span_id=draw(st.just(b"") | st.binary(min_size=8, max_size=8)),
            trace_state=draw(_text),
            flags=draw(_u32),
            name=draw(_text),
            kind=draw(st.integers(0, 7)),  # type: ignore[arg-type]
            start_time_unix_nano=draw(_u64),
            end_time_unix_nano=draw(_u64),
            attributes=attributes(draw(attribute_maps)),
        )
        span.status.message = draw(_text)
        for _ in range(draw(st.integers(0, 2))):
            span.events.add(time_unix_nano=draw(_u64), name=draw(_text), attributes=attributes(draw(attribute_maps)))
        for _ in range(draw(st.integers(0, 2))):
            span.links.add(trace_id=draw(st.binary(max_size=16)), span_id=draw(st.binary(max_size=8)), flags=draw(_u32))
    return request


@st.composite
def metric_requests(draw: st.DrawFn) -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    resource_metrics = request.resource_metrics.add()
    resource_metrics.resource.attributes.extend(attributes(draw(attribute_maps)))
    counts = st.lists(_u64, max_size=4)
    for _ in range(draw(st.integers(0, 3))):
        metric = resource_metrics.scope_metrics.add().metrics.add(name=draw(_text), unit=draw(_text))
        kind = draw(st.sampled_from(["gauge", "sum", "histogram", "exponential_histogram", "summary", None]))
        if kind is None:
            continue
        data = getattr(metric, kind)
        data.SetInParent()
        if kind in ("sum", "histogram", "exponential_histogram"):
            data.aggregation_temporality = draw(st.integers(0, 3))
        for _ in range(draw(st.integers(0, 2))):
            point = data.data_points.add(time_unix_nano=draw(_u64), start_time_unix_nano=draw(_u64))
            point.attributes.extend(attributes(draw(attribute_maps)))
            point.flags = draw(st.integers(0, 3))
            if kind in ("gauge", "sum"):
                match draw(st.sampled_from(["as_int", "as_double", "none"])):
                    case "as_int":
                        point.as_int = draw(st.integers(-(1 << 63), (1 << 63) - 1))
                    case "as_double":
                        point.as_double = draw(_doubles)
                continue
            point.count = draw(_u64)
            if kind == "summary":
                point.quantile_values.add(quantile=draw(_doubles), value=draw(_doubles))
                continue
            for name in draw(st.sets(st.sampled_from(["sum", "min", "max"]))):
                setattr(point, name, draw(_doubles))
            if kind == "histogram":
                point.explicit_bounds.extend(draw(st.lists(_doubles, max_size=3)))
                point.bucket_counts.extend(draw(counts))
            else:
                point.scale = draw(st.integers(-(1 << 31), (1 << 31) - 1))
                point.positive.bucket_counts.extend(draw(counts))
                point.negative.offset = draw(st.integers(-(1 << 31), (1 << 31) - 1))
    return request


REQUESTS = {"logs": log_requests(), "metrics": metric_requests(), "traces": trace_requests()}
