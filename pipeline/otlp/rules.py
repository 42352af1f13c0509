"""What is demanded of every request and record, and the words for what was not taken."""

from typing import NamedTuple

from pipeline.errors import TooLarge
from pipeline.record.framing import MAX_VALUE_BYTES

CUT = "…[cut]"  # ends a key or text that was cut
RANDOM_BITS = 56  # of a trace_id, or of rv in its tracestate
OUTDATED = "metrics as before OTLP 0.9, of 2021, with labels for attributes, are not read: a newer SDK is needed"
TOO_DEEP = "…[too deep]"  # stands in for a value nested deeper than max_depth


class Rules(NamedTuple):
    """Plain values from settings and from the spool's level; sizes are bytes of UTF-8.

    `max_records` bounds the records of a request as sent, and its resources, scopes, metrics and data of metrics each.
    Of more records the first are accepted; more of the others are TooLarge, since an empty one holds no record that
    could be refused. `max_encoded_bytes` bounds the sum of a request's encoded records: from the first that does not
    fit on, all are refused. `max_attributes` counts entries as sent, of one resource, scope, record, span event, span
    link or exemplar. `max_key_bytes` and `max_text_bytes` include the marker: 16 at least. `max_depth` counts
    AnyValues inside one another, an attribute's own value being the first. `resource_attributes` override the client's
    of the same key and are under no limit.
    """

    max_records: int = 100_000
    max_encoded_bytes: int = 128 * 1024 * 1024
    max_attributes: int = 1024
    max_key_bytes: int = 1024
    max_text_bytes: int = 65_536
    max_depth: int = 32
    shed_below_severity: int = 0  # OTLP SeverityNumber; 0 sheds nothing, no number sheds WARN and above
    keep_spans: float = 1.0  # of those that look unsampled
    resource_attributes: tuple[tuple[str, str], ...] = ()

    @property
    def span_threshold(self) -> int:
        """`keep_spans` as the sampling threshold T of OpenTelemetry: a trace is kept where its randomness R >= T."""
        return round((1 - self.keep_spans) * (1 << RANDOM_BITS))

    def too_many(self, what: str) -> TooLarge:
        """For a request that holds more than `max_records` of `what`."""
        return TooLarge(
            f"The request holds more than {self.max_records} {what} (gateway.max_records): send smaller requests."
        )


# Code (a metric's label) → the sentence a client reads, with how many before it.
REFUSALS = {
    "record_too_large": f"a record, or its resource, scope or metric, is larger than {MAX_VALUE_BYTES:,} bytes",
    "too_many_records": "the request holds more records than gateway.max_records",
    "too_many_bytes": "the request's records are together larger than gateway.max_encoded_bytes",
    "invalid_trace_id": "a span has no valid trace_id: 16 bytes, not all zero, are needed",
    "invalid_span_id": "a span has no valid span_id: 8 bytes, not all zero, are needed",
    "unknown_temporality": "a metric has an unknown aggregation_temporality: 0, 1 and 2 are known",
    "count_too_large": "a data point has a count of 2^63 or more, which no store can hold",
}
