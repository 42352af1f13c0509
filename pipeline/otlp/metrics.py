"""OTLP metrics → metric_point, every data kind."""

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from pipeline.otlp.encoding import Encoded, Request, Shared
from pipeline.otlp.messages import DATA, METRIC, METRICS, OUTDATED_DATA, DataKind
from pipeline.otlp.rules import OUTDATED
from pipeline.otlp.values import Attributes
from pipeline.otlp.wire import Level
from pipeline.record.avro import NOTHING, STRING, array, blob, double, long, pair_map
from pipeline.record.framing import FIRST
from pipeline.record.series import series_id

TYPE = {kind.name: long(n) for n, kind in enumerate(DATA.values())}  # the schema's order is that of the numbers
NO_RECORDED_VALUE = 1  # DataPointFlags
NO_DOUBLE = double(0.0)
# Fields of the histogram kinds, empty, in schema order: explicit_bounds, bucket_counts; then scale … negative_counts;
# then quantiles.
NO_BUCKETS = NOTHING * 2
NO_EXPONENT = NOTHING * 2 + NO_DOUBLE + NOTHING * 4
NO_QUANTILES = NOTHING
NO_VALUE = NOTHING * 2  # value, int_value
NO_SUMMARY = NOTHING * 4  # count, sum, min, max


class CountTooLarge(Exception):
    """A data point has a count that no store can hold."""


def encode_metrics(request: Request) -> Encoded:
    """Flatten an ExportMetricsServiceRequest, one record a data point."""
    for shared, scope_metrics in request.scopes(METRICS):
        for _, *span in scope_metrics.children:
            metric = request.level(METRIC, span)
            kind, data = _data(request, metric)
            if shared is None or metric.shell is None or any(part.shell is None for part in data):
                for part in data:
                    request.refuse(part, "record_too_large")
                continue
            message = METRIC.message.FromString(metric.shell)
            if kind is not None:
                _encode_metric(request, shared, kind=kind, metric=message, data=data)
    return request.finish()


def _data(request: Request, metric: Level) -> tuple[DataKind | None, list[Level]]:
    """A metric's kind and data, in as many parts as were sent; what a later kind displaced is not looked into.

    None where it has no data.
    """
    number = 0
    spans: list[list[int]] = []
    for of_kind, *span in metric.children:
        if of_kind != number:
            number, spans = of_kind, []
        spans.append(span)
    if number in OUTDATED_DATA:
        raise DecodeError(OUTDATED)
    kind = DATA.get(number)
    return kind, [request.level(kind.part, span) for span in spans] if kind else []


def _encode_metric(request: Request, shared: Shared, *, kind: DataKind, metric: Any, data: list[Level]) -> None:
    settings = kind.part.message.FromString(b"".join([part.shell or b"" for part in data]))
    temporality = getattr(settings, "aggregation_temporality", 0)
    if not 0 <= temporality <= 2:
        for part in data:
            request.refuse(part, "unknown_temporality")
        return
    fields = b"".join(
        (
            shared.fields,
            STRING[metric.name],
            STRING[metric.description],
            STRING[metric.unit],
            TYPE[kind.name],
            long(temporality),
            b"\1" if getattr(settings, "is_monotonic", False) else b"\0",
        )
    )
    prefix, partition = request.prefix(fields), request.partition(shared.place)
    values, attributes = VALUES[kind.name], request.attributes
    series = attributes.series.get
    for part in data:
        for point in request.records(part, kind.point):
            if getattr(point, "labels", None):
                raise DecodeError(OUTDATED)
            try:
                numbers = values(point, attributes)
            except CountTooLarge:
                request.encoded.refused["count_too_large"] += 1
                continue
            key, time = (fields, tuple(point.attributes)), point.time_unix_nano
            tail = b"".join(
                (
                    series(key) or _series(request, shared.labels, metric.name, key),
                    long(point.start_time_unix_nano),
                    long(time),
                    long(point.flags),
                    numbers,
                    FIRST,
                )
            )
            request.add(prefix, tail, time=time, partition=partition)


def _series(
    request: Request, shared_labels: dict[str, bytes], name: str, key: tuple[bytes, tuple[bytes, ...]]
) -> bytes:
    """A point's attributes and series_id, remembered by all that they follow from."""
    fields, raws = key
    attributes = request.attributes
    cut_before = attributes.cut
    pairs = attributes.pairs(raws)
    found = pair_map(pairs) + long(series_id(request.origin.tenant, name, shared_labels | pairs))
    if attributes.cut == cut_before:
        attributes.series.keep(key, found, len(fields) + sum(map(len, raws)) + len(found))
    return found


def _number(point: Any, attributes: Attributes) -> bytes:
    kind = point.WhichOneof("value")
    if kind is None or point.flags & NO_RECORDED_VALUE:
        value = NO_VALUE
    elif kind == "as_int":
        value = b"\2" + double(point.as_int) + b"\2" + long(point.as_int)
    else:
        value = b"\2" + double(point.as_double) + NOTHING
    return b"".join((value, NO_SUMMARY, NO_BUCKETS, NO_EXPONENT, NO_QUANTILES, _exemplars(point.exemplars, attributes)))


def _histogram(point: Any, attributes: Attributes) -> bytes:
    return b"".join(
        (
            NO_VALUE,
            _observations(point),
            _doubles(point.explicit_bounds),
            _counts(point.bucket_counts),
            NO_EXPONENT,
            NO_QUANTILES,
            _exemplars(point.exemplars, attributes),
        )
    )


def _exponential_histogram(point: Any, attributes: Attributes) -> bytes:
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
            _exemplars(point.exemplars, attributes),
        )
    )


def _summary(point: Any, _: Attributes) -> bytes:
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
        raise CountTooLarge
    return long(n)


def _counts(counts: Sequence[int]) -> bytes:
    return array([_count(n) for n in counts])


def _doubles(numbers: Sequence[float]) -> bytes:
    return array([double(number) for number in numbers])


def _exemplars(exemplars: Iterable[Any], attributes: Attributes) -> bytes:
    return array([_exemplar(exemplar, attributes) for exemplar in exemplars])


def _exemplar(exemplar: Any, attributes: Attributes) -> bytes:
    value = exemplar.as_int if exemplar.WhichOneof("value") == "as_int" else exemplar.as_double
    return b"".join(
        (
            long(exemplar.time_unix_nano),
            double(value),
            blob(exemplar.trace_id),
            blob(exemplar.span_id),
            attributes.map(exemplar.filtered_attributes[:]),
        )
    )
