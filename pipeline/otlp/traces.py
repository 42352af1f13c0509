"""OTLP traces → span."""

import re
from typing import Any

from pipeline.otlp.encoding import Encoded, Request
from pipeline.otlp.messages import SPAN, TRACES
from pipeline.otlp.rules import RANDOM_BITS
from pipeline.otlp.values import Attributes, is_id
from pipeline.record.avro import NOTHING, STRING, array, blob, long
from pipeline.record.framing import FIRST

SAMPLED = 1  # W3C trace flags
ERROR = 2  # StatusCode
OPENTELEMETRY_STATE = re.compile(r"(?:^|,)\s*ot=([^,]*)")  # W3C tracestate: members by commas, ot's own by semicolons
RANDOM_VALUE = re.compile(r"rv:([0-9a-f]{14})")


def encode_traces(request: Request) -> Encoded:
    """Flatten an ExportTraceServiceRequest; spans without valid trace and span ids are refused."""
    string, attributes, add, refused = STRING, request.attributes, request.add, request.encoded.refused
    threshold = request.rules.span_threshold
    for shared, scope_spans in request.scopes(TRACES):
        if shared is None:
            request.refuse(scope_spans, "record_too_large")
            continue
        prefix = request.prefix(shared.fields)
        for span in request.records(scope_spans, SPAN):
            trace_id, span_id, trace_state = span.trace_id, span.span_id, span.trace_state
            if not is_id(trace_id, 16):
                refused["invalid_trace_id"] += 1
                continue
            if not is_id(span_id, 8):
                refused["invalid_span_id"] += 1
                continue
            flags, status = span.flags, span.status
            if threshold and not flags & SAMPLED and status.code != ERROR and _shed(trace_id, trace_state, threshold):
                request.encoded.shed["SPAN"] += 1
                continue
            start_time, events, links = span.start_time_unix_nano, span.events, span.links
            tail = b"".join(
                (
                    trace_id,
                    span_id,
                    blob(span.parent_span_id),
                    string[trace_state],
                    long(flags),
                    string[span.name],
                    long(span.kind),
                    long(start_time),
                    long(span.end_time_unix_nano),
                    attributes.map_and_dropped(span),
                    long(status.code),
                    string[status.message],
                    array([_event(event, attributes) for event in events]) if events else NOTHING,
                    long(span.dropped_events_count),
                    array([_link(link, attributes) for link in links]) if links else NOTHING,
                    long(span.dropped_links_count),
                    FIRST,
                )
            )
            add(prefix, tail, time=start_time, partition=request.partition(trace_id))
    return request.finish()


def _shed(trace_id: bytes, trace_state: str, threshold: int) -> bool:
    """Whether a trace falls below the threshold, unless a sampler has chosen it before.

    Source: OpenTelemetry, "TraceState: Probability Sampling": a trace is kept where R >= T, R being `rv` of tracestate
    or the trace_id's last 56 bits, so that every gateway decides alike. A `th` there says that a sampler kept it.
    """
    found = OPENTELEMETRY_STATE.search(trace_state)
    members = found[1].split(";") if found else []
    if any(member.startswith("th:") for member in members):
        return False
    explicit = [match[1] for member in members if (match := RANDOM_VALUE.fullmatch(member))]
    randomness = int(explicit[0], 16) if explicit else int.from_bytes(trace_id[-RANDOM_BITS // 8 :], "big")
    return randomness < threshold


def _event(event: Any, attributes: Attributes) -> bytes:
    return b"".join((long(event.time_unix_nano), STRING[event.name], attributes.map_and_dropped(event)))


def _link(link: Any, attributes: Attributes) -> bytes:
    return b"".join(
        (
            blob(link.trace_id),
            blob(link.span_id),
            STRING[link.trace_state],
            attributes.map_and_dropped(link),
            long(link.flags),
        )
    )
