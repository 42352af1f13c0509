"""From OTLP bytes to container files: one pure function a signal.

`encode(signal, body, origin, partitions=…, rules=…)` is the whole border: bytes and plain values in, groups and counts
of what was not taken out. It walks an `Export…ServiceRequest`, flattens one record after the other into the schemas in
`schemas/`, gives each its event_id, and frames them by partition.
"""

from google.protobuf.message import DecodeError

from pipeline.errors import Rejected
from pipeline.otlp.encoding import Encoded, Request
from pipeline.otlp.logs import encode_logs
from pipeline.otlp.metrics import encode_metrics
from pipeline.otlp.rules import REFUSALS, Rules
from pipeline.otlp.traces import encode_traces
from pipeline.record.framing import MAX_VALUE_BYTES, Group, Origin
from pipeline.record.schema import Signal

__all__ = ["MAX_VALUE_BYTES", "REFUSALS", "Encoded", "Group", "Origin", "Rules", "encode"]

_BY_SIGNAL = {
    "logs": ("ExportLogsServiceRequest", encode_logs),
    "metrics": ("ExportMetricsServiceRequest", encode_metrics),
    "traces": ("ExportTraceServiceRequest", encode_traces),
}
DEFAULT_RULES = Rules()


def encode(signal: Signal, body: bytes, origin: Origin, *, partitions: int, rules: Rules = DEFAULT_RULES) -> Encoded:
    """Turn one protobuf request body into container files.

    Raise Rejected where it is no such request, one malformed record included, and TooLarge where it holds more
    resources, scopes or metrics than `rules.max_records`. What is refused, shed, or dropped by a limit is not looked
    into: it may be malformed. Memory is bounded by the body, by `rules`, and by one record parsed at a time.
    """
    name, encode_signal = _BY_SIGNAL[signal]
    try:
        return encode_signal(Request(body, origin, signal=signal, partitions=partitions, rules=rules))
    except DecodeError as error:
        raise Rejected(f"The body is not a protobuf {name}: {error}.") from None
