"""From OTLP bytes to container files: one pure function a signal.

`encode(signal, body, origin, partitions=…, rules=…)` is the whole border: bytes and plain values in, groups and counts
of what was not taken out. It walks an `Export…ServiceRequest`, flattens one record after the other into the schemas in
`schemas/`, gives each its event_id, and frames them by partition. It is written twice: here, and in Rust.
"""

import re
from collections import Counter

from google.protobuf.message import DecodeError

from pipeline import native
from pipeline.errors import Rejected
from pipeline.otlp.encoding import Encoded, Request
from pipeline.otlp.logs import encode_logs
from pipeline.otlp.metrics import encode_metrics
from pipeline.otlp.rules import REFUSALS, Rules
from pipeline.otlp.traces import encode_traces
from pipeline.record import schema
from pipeline.record.framing import MAX_VALUE_BYTES, Group, Origin
from pipeline.record.schema import Signal

__all__ = ["MAX_VALUE_BYTES", "REFUSALS", "Encoded", "Group", "Origin", "Rules", "encode"]

_BY_SIGNAL = {
    "logs": ("ExportLogsServiceRequest", encode_logs),
    "metrics": ("ExportMetricsServiceRequest", encode_metrics),
    "traces": ("ExportTraceServiceRequest", encode_traces),
}
DEFAULT_RULES = Rules()
PARSING = re.compile(r"Error parsing message with type '[\w.]*\.(\w+)'")


def encode(signal: Signal, body: bytes, origin: Origin, *, partitions: int, rules: Rules = DEFAULT_RULES) -> Encoded:
    """Turn one protobuf request body into container files.

    Raise Rejected where it is no such request, one malformed record included, and TooLarge where it holds more
    resources, scopes or metrics than `rules.max_records`. What is refused, shed, or dropped by a limit is not looked
    into: it may be malformed. Memory is bounded by the body, by `rules`, and by one record parsed at a time.
    """
    name, encode_signal = _BY_SIGNAL[signal]
    extension = native.chosen()
    if extension:
        try:
            found = extension.encode(signal, body, schema.of(signal).head, origin, partitions, rules)
        except extension.Malformed as error:
            raise _malformed(name, str(error)) from None
        except extension.TooMany as error:
            raise rules.too_many(str(error)) from None
        rows, refused, shed, cut, untimed = found
        groups = [Group(*row) for row in rows]
        return Encoded(groups, Counter(**dict(refused)), Counter(**dict(shed)), cut, untimed)
    try:
        return encode_signal(Request(body, origin, signal=signal, partitions=partitions, rules=rules))
    except DecodeError as error:
        # Protobuf's own words for why depend on the order in which it looks; which message it was does not.
        parsing = PARSING.match(str(error))
        why = f"a {parsing[1]} in it is malformed, or holds text that is not UTF-8" if parsing else str(error)
        raise _malformed(name, why) from None


def _malformed(name: str, why: str) -> Rejected:
    return Rejected(f"The body is not a protobuf {name}: {why}.")
