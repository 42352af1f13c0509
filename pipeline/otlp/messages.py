"""OTLP's messages as the encoder reads them: the published ones, with three changes that the wire does not see.

Attributes stay raw (`repeated bytes` for `repeated KeyValue`), so that one that was met before is looked up and not
parsed; times are signed (`sfixed64` for `fixed64`), as the records keep them; and points have the `labels` of OTLP
before 0.9, so that they are seen and refused. All else, what is malformed included, is decided by protobuf itself, but
for the raw attributes: whoever uses one parses it.
"""

from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

Field = descriptor_pb2.FieldDescriptorProto
_pool = descriptor_pool.DescriptorPool()


def _alter(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        if field.name in ("attributes", "filtered_attributes"):
            field.type = Field.TYPE_BYTES
            field.ClearField("type_name")
        elif field.name.endswith("_unix_nano"):
            field.type = Field.TYPE_SFIXED64
    if message.name in ("NumberDataPoint", "HistogramDataPoint", "SummaryDataPoint"):
        message.ClearField("reserved_range")
        message.field.add(name="labels", number=1, label=Field.LABEL_REPEATED, type=Field.TYPE_BYTES)
    for nested in message.nested_type:
        _alter(nested)


for _published in (common_pb2, resource_pb2, logs_pb2, metrics_pb2, trace_pb2):
    _file = descriptor_pb2.FileDescriptorProto()
    _published.DESCRIPTOR.CopyToProto(_file)
    for _message in _file.message_type:
        _alter(_message)
    _pool.Add(_file)


def _of(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"opentelemetry.proto.{name}"))


class Part(NamedTuple):
    """A message that is walked and not parsed whole, since it may hold any number of others.

    `children` are the field numbers of those others, and `named` what they are called in a sentence; `shell` are the
    numbers of its other fields; `message` parses these.
    """

    message: Any
    children: frozenset[int]
    shell: frozenset[int]
    named: str


def _part(message: Any, children: tuple[int, ...], named: str) -> Part:
    numbers = {field.number for field in message.DESCRIPTOR.fields}
    return Part(message, frozenset(children), frozenset(numbers.difference(children)), named)


RECORDS = "records"
LOG_RECORD = _of("logs.v1.LogRecord")
SPAN = _of("trace.v1.Span")
# A request and a …Data message are the same on the wire. Each list goes from the request to what holds records.
LOGS = (
    _part(_of("logs.v1.LogsData"), (1,), "resources"),
    _part(_of("logs.v1.ResourceLogs"), (2,), "scopes"),
    _part(_of("logs.v1.ScopeLogs"), (2,), RECORDS),
)
TRACES = (
    _part(_of("trace.v1.TracesData"), (1,), "resources"),
    _part(_of("trace.v1.ResourceSpans"), (2,), "scopes"),
    _part(_of("trace.v1.ScopeSpans"), (2,), RECORDS),
)
METRICS = (
    _part(_of("metrics.v1.MetricsData"), (1,), "resources"),
    _part(_of("metrics.v1.ResourceMetrics"), (2,), "scopes"),
    _part(_of("metrics.v1.ScopeMetrics"), (2,), "metrics"),
)
OUTDATED_DATA = frozenset((4, 6, 8))  # IntGauge, IntSum and IntHistogram of OTLP before 0.9
# Beside those, the keys of DATA.
METRIC = _part(_of("metrics.v1.Metric"), (5, 7, 9, 10, 11, *OUTDATED_DATA), "data of metrics")


class DataKind(NamedTuple):
    """One kind of a metric's data: its name in our records, what is walked, and the message of one point."""

    name: str
    part: Part
    point: Any


# By field number in Metric. In a metric only the last kind sent counts, as in any oneof.
DATA = {
    5: DataKind("gauge", _part(_of("metrics.v1.Gauge"), (1,), RECORDS), _of("metrics.v1.NumberDataPoint")),
    7: DataKind("sum", _part(_of("metrics.v1.Sum"), (1,), RECORDS), _of("metrics.v1.NumberDataPoint")),
    9: DataKind("histogram", _part(_of("metrics.v1.Histogram"), (1,), RECORDS), _of("metrics.v1.HistogramDataPoint")),
    10: DataKind(
        "exponential_histogram",
        _part(_of("metrics.v1.ExponentialHistogram"), (1,), RECORDS),
        _of("metrics.v1.ExponentialHistogramDataPoint"),
    ),
    11: DataKind("summary", _part(_of("metrics.v1.Summary"), (1,), RECORDS), _of("metrics.v1.SummaryDataPoint")),
}
