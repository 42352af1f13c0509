"""OTLP logs → log_record."""

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from pipeline.otlp.encoding import Encoded, Framing, Origin, parse, scopes
from pipeline.otlp.values import attribute_map, text
from pipeline.record import schema
from pipeline.record.avro import STRING, blob, long, signed


def encode_logs(body: bytes, origin: Origin, *, partitions: int) -> Encoded:
    """Flatten an ExportLogsServiceRequest.

    A trace_id or span_id of a wrong length counts as absent, as the protocol says for logs.
    """
    framing = Framing(schema.of("logs").head, origin, partitions)
    string, add = STRING, framing.add
    for shared, scope_logs in scopes(
        parse(ExportLogsServiceRequest, body), origin.tenant, ("resource_logs", "scope_logs")
    ):
        prefix, partition = shared.prefix, framing.partition(shared.place)
        for record in scope_logs.log_records:
            time, observed_time, body_value = record.time_unix_nano, record.observed_time_unix_nano, record.body
            trace_id, span_id = record.trace_id, record.span_id
            content = b"".join(
                (
                    prefix,
                    long(signed(time)),
                    long(signed(observed_time)),
                    long(record.severity_number),
                    string[record.severity_text],
                    string[record.event_name],
                    string[body_value.string_value or text(body_value)],
                    attribute_map(record.attributes),
                    long(record.dropped_attributes_count),
                    blob(trace_id if len(trace_id) == 16 else b""),
                    blob(span_id if len(span_id) == 8 else b""),
                    long(record.flags),
                )
            )
            add(content, time or observed_time, partition)
    return framing.finish()
