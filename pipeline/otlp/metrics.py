"""OTLP metrics → metric_point, every data kind."""

from collections.abc import Iterable, Sequence
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Exemplar, Metric

from pipeline.errors import Rejected
from pipeline.otlp.encoding import Encoded, Framing, Origin, Shared, parse, scopes
from pipeline.otlp.values import attribute_map, texts
from pipeline.record import schema
from pipeline.record.avro import NOTHING, STRING, array, blob, double, long, signed
from pipeline.record.series import labels, series_id

TYPE = {name: long(n) for n, name in enumerate(("gauge", "sum", "histogram", "exponential_histogram", "summary"))}
NO_RECORDED_VALUE = 1  # DataPointFlags
CACHED_SERIES = 1 << 10  # of one metric in one scope, and scopes times metrics
NO_DOUBLE = double(0.0)
# Fields of the histogram kinds, empty, in schema order: explicit_bounds, bucket_counts; then scale … negative_counts;
# then quantiles.
NO_BUCKETS = NOTHING * 2
NO_EXPONENT = NOTHING * 2 + NO_DOUBLE + NOTHING * 4
NO_QUANTILES = NOTHING
NO_VALUE = NOTHING * 2  # value, int_value
NO_SUMMARY = NOTHING * 4  # count, sum, min, max


def encode_metrics(body: bytes, origin: Origin, *, partitions: int) -> Encoded:
    """Flatten an ExportMetricsServiceRequest, one record a data point."""
    framing = Framing(schema.of("metrics").head, origin, partitions)
    request = parse(ExportMetricsServiceRequest, body)
    for shared, scope_metrics in scopes(request, origin.tenant, ("resource_metrics", "scope_metrics")):
        partition = framing.partition(shared.place)
        for metric in scope_metrics.metrics:
            kind = metric.WhichOneof("data")
            if kind is None:
                continue
            data = getattr(metric, kind)
            try:
                prefix = shared.prefix + _metric_fields(metric, kind, data)
            except Rejected as reason:
                framing.encoded.refused[str(reason)] += len(data.data_points)
                continue
            values = VALUES[kind]
            for point in data.data_points:
                attributes = attribute_map(point.attributes)
                try:
                    numbers = values(point)
                except Rejected as reason:
                    framing.encoded.refused[str(reason)] += 1
                    continue
                time = point.time_unix_nano
                content = b"".join(
                    (
                        prefix,
                        attributes,
                        _series_id(origin.tenant, shared, metric.name, (attributes, point)),
                        long(signed(point.start_time_unix_nano)),
                        long(signed(time)),
                        long(point.flags),
                        numbers,
                    )
                )
                framing.add(content, time, partition)
    return framing.finish()


def _metric_fields(metric: Metric, kind: str, data: Any) -> bytes:
    temporality = data.aggregation_temporality if kind in ("sum", "histogram", "exponential_histogram") else 0
    if not 0 <= temporality <= 2:
        raise Rejected("a metric has an unknown aggregation_temporality: 0, 1 and 2 are known")
    monotonic = kind == "sum" and data.is_monotonic
    return b"".join(
        (
            STRING[metric.name],
            STRING[metric.description],
            STRING[metric.unit],
            TYPE[kind],
            long(temporality),
            b"\1" if monotonic else b"\0",
        )
    )


_series: dict[tuple[str, bytes], dict[bytes, bytes]] = {}


def _series_id(tenant: str, shared: Shared, name: str, point: tuple[bytes, Any]) -> bytes:
    """Avro long of the series_id, remembered by resource, scope, name and attributes."""
    attributes, data_point = point
    known = _series.get((name, shared.prefix))
    if known is None:
        if len(_series) >= CACHED_SERIES:
            _series.clear()
        known = _series[name, shared.prefix] = {}
    found = known.get(attributes)
    if found is None:
        if len(known) >= CACHED_SERIES:
            known.clear()
        scope = shared.scope.name, shared.scope.version
        found = known[attributes] = long(
            series_id(tenant, name, labels(shared.resource, scope, texts(data_point.attributes)))
        )
    return found


def _number(point: Any) -> bytes:
    kind = point.WhichOneof("value")
    if kind is None or point.flags & NO_RECORDED_VALUE:
        value = NO_VALUE
    elif kind == "as_int":
        value = b"\2" + double(point.as_int) + b"\2" + long(point.as_int)
    else:
        value = b"\2" + double(point.as_double) + NOTHING
    return b"".join((value, NO_SUMMARY, NO_BUCKETS, NO_EXPONENT, NO_QUANTILES, _exemplars(point.exemplars)))


def _histogram(point: Any) -> bytes:
    return b"".join(
        (
            NO_VALUE,
            _observations(point),
            _doubles(point.explicit_bounds),
            _counts(point.bucket_counts),
            NO_EXPONENT,
            NO_QUANTILES,
            _exemplars(point.exemplars),
        )
    )


def _exponential_histogram(point: Any) -> bytes:
    positive, negative = point.positive, point.negative
    return b"".join(
        (
            NO_VALUE,
            _observations(point),
            NO_BUCKETS,
            long(point.scale),
            _count(point.zero_count),
            double(point.zero_threshold),
            long(positive.offset),
            _counts(positive.bucket_counts),
            long(negative.offset),
            _counts(negative.bucket_counts),
            NO_QUANTILES,
            _exemplars(point.exemplars),
        )
    )


def _summary(point: Any) -> bytes:
    quantiles = array([double(item.quantile) + double(item.value) for item in point.quantile_values])
    total = b"\2" + double(point.sum)
    return b"".join((NO_VALUE, _count(point.count), total, NOTHING * 2, NO_BUCKETS, NO_EXPONENT, quantiles, NOTHING))


VALUES = {
    "gauge": _number,
    "sum": _number,
    "histogram": _histogram,
    "exponential_histogram": _exponential_histogram,
    "summary": _summary,
}


def _observations(point: Any) -> bytes:
    """count, sum, min, max; what was not sent is null."""
    optional = [
        b"\2" + double(getattr(point, name)) if point.HasField(name) else NOTHING for name in ("sum", "min", "max")
    ]
    return _count(point.count) + b"".join(optional)


def _count(n: int) -> bytes:
    if n >= 1 << 63:
        raise Rejected("a data point has a count of 2^63 or more, which no store can hold")
    return long(n)


def _counts(counts: Sequence[int]) -> bytes:
    return array([_count(n) for n in counts])


def _doubles(numbers: Sequence[float]) -> bytes:
    return array([double(number) for number in numbers])


def _exemplars(exemplars: Iterable[Exemplar]) -> bytes:
    return array([_exemplar(exemplar) for exemplar in exemplars])


def _exemplar(exemplar: Exemplar) -> bytes:
    value = exemplar.as_int if exemplar.WhichOneof("value") == "as_int" else exemplar.as_double
    return b"".join(
        (
            long(signed(exemplar.time_unix_nano)),
            double(value),
            blob(exemplar.trace_id),
            blob(exemplar.span_id),
            attribute_map(exemplar.filtered_attributes),
        )
    )
