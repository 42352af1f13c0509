"""OTLP logs → log_record."""

from pipeline.otlp.encoding import Encoded, Request
from pipeline.otlp.messages import LOG_RECORD, LOGS
from pipeline.otlp.values import is_id
from pipeline.record.avro import STRING, blob, long
from pipeline.record.framing import FIRST

WARN = 13  # SeverityNumber: the first that is never shed
SEVERITIES = ("TRACE", "DEBUG", "INFO")  # of four numbers each, from 1 on


def encode_logs(request: Request) -> Encoded:
    """Flatten an ExportLogsServiceRequest.

    A trace_id or span_id that is none, by its length or of zeros, counts as absent, as the protocol says for logs. A
    record without a severity number is not shed: it may be an error.
    """
    string, attributes, add = STRING, request.attributes, request.add
    shed_below = min(request.rules.shed_below_severity, WARN)
    for shared, scope_logs in request.scopes(LOGS):
        if shared is None:
            request.refuse(scope_logs, "record_too_large")
            continue
        prefix, partition = request.prefix(shared.fields), request.partition(shared.place)
        for record in request.records(scope_logs, LOG_RECORD):
            severity_number = record.severity_number
            if 0 < severity_number < shed_below:
                request.encoded.shed[SEVERITIES[(severity_number - 1) // 4]] += 1
                continue
            time, observed_time, body = record.time_unix_nano, record.observed_time_unix_nano, record.body
            trace_id, span_id = record.trace_id, record.span_id
            tail = b"".join(
                (
                    long(time),
                    long(observed_time),
                    long(severity_number),
                    string[record.severity_text],
                    string[record.event_name],
                    blob((body.string_value or attributes.body(body)).encode()),
                    attributes.map_and_dropped(record),
                    blob(trace_id if is_id(trace_id, 16) else b""),
                    blob(span_id if is_id(span_id, 8) else b""),
                    long(record.flags),
                    FIRST,
                )
            )
            add(prefix, tail, time=time or observed_time, partition=partition)
    return request.finish()
