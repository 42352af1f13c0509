"""From OTLP bytes to container files: one pure function a signal.

`encode(signal, body, origin, partitions=…)` is the whole border: bytes and plain values in, groups and refusals out.
It parses an `Export…ServiceRequest`, flattens it into records of the schemas in `schemas/`, gives each its event_id,
and frames them by partition.
"""

from pipeline.otlp.encoding import MAX_VALUE_BYTES, Encoded, Group, Origin
from pipeline.otlp.logs import encode_logs
from pipeline.otlp.metrics import encode_metrics
from pipeline.otlp.traces import encode_traces
from pipeline.record.schema import Signal

__all__ = ["MAX_VALUE_BYTES", "Encoded", "Group", "Origin", "encode"]

_BY_SIGNAL = {"logs": encode_logs, "metrics": encode_metrics, "traces": encode_traces}


def encode(signal: Signal, body: bytes, origin: Origin, *, partitions: int) -> Encoded:
    """Turn one protobuf request body into container files; raise Rejected where it is no such request."""
    return _BY_SIGNAL[signal](body, origin, partitions=partitions)
