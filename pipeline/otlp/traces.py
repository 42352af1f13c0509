"""OTLP traces → span."""

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from pipeline.otlp.encoding import Encoded, Framing, Origin, parse, scopes
from pipeline.otlp.values import attribute_map
from pipeline.record import schema
from pipeline.record.avro import NOTHING, STRING, array, blob, long, signed

NO_TRACE = bytes(16)
NO_SPAN = bytes(8)


def encode_traces(body: bytes, origin: Origin, *, partitions: int) -> Encoded:
    """Flatten an ExportTraceServiceRequest; spans without valid trace and span ids are refused."""
    framing = Framing(schema.of("traces").head, origin, partitions)
    string, add, refused = STRING, framing.add, framing.encoded.refused
    request = parse(ExportTraceServiceRequest, body)
    for shared, scope_spans in scopes(request, origin.tenant, ("resource_spans", "scope_spans")):
        prefix = shared.prefix
        for span in scope_spans.spans:
            trace_id, span_id = span.trace_id, span.span_id
            if len(trace_id) != 16 or trace_id == NO_TRACE:
                refused["a span has no valid trace_id: 16 bytes, not all zero, are needed"] += 1
                continue
            if len(span_id) != 8 or span_id == NO_SPAN:
                refused["a span has no valid span_id: 8 bytes, not all zero, are needed"] += 1
                continue
            start_time = span.start_time_unix_nano
            status = span.status
            content = b"".join(
                (
                    prefix,
                    trace_id,
                    span_id,
                    blob(span.parent_span_id),
                    string[span.trace_state],
                    long(span.flags),
                    string[span.name],
                    long(span.kind),
                    long(signed(start_time)),
                    long(signed(span.end_time_unix_nano)),
                    attribute_map(span.attributes),
                    long(span.dropped_attributes_count),
                    long(status.code),
                    string[status.message],
                    array([_event(event) for event in span.events]) if span.events else NOTHING,
                    long(span.dropped_events_count),
                    array([_link(link) for link in span.links]) if span.links else NOTHING,
                    long(span.dropped_links_count),
                )
            )
            add(content, start_time, framing.partition(trace_id))
    return framing.finish()


def _event(event: Span.Event) -> bytes:
    return b"".join(
        (
            long(signed(event.time_unix_nano)),
            STRING[event.name],
            attribute_map(event.attributes),
            long(event.dropped_attributes_count),
        )
    )


def _link(link: Span.Link) -> bytes:
    return b"".join(
        (
            blob(link.trace_id),
            blob(link.span_id),
            STRING[link.trace_state],
            attribute_map(link.attributes),
            long(link.dropped_attributes_count),
            long(link.flags),
        )
    )
