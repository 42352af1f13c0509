"""What the OTLP specification says a server answers, for both protocols."""

import random
from collections import Counter

from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from pipeline.otlp import REFUSALS
from pipeline.record.schema import Signal

RESPONSES: dict[Signal, tuple[type[Message], str]] = {
    "logs": (ExportLogsServiceResponse, "rejected_log_records"),
    "metrics": (ExportMetricsServiceResponse, "rejected_data_points"),
    "traces": (ExportTraceServiceResponse, "rejected_spans"),
}


def success(signal: Signal, refused: Counter[str]) -> Message:
    """Empty where everything was accepted, else partial_success with the count and each reason."""
    response_type, count_field = RESPONSES[signal]
    response = response_type()
    if refused:
        partial = response.partial_success  # type: ignore[attr-defined]
        setattr(partial, count_field, refused.total())
        partial.error_message = (
            "; ".join(f"{count} refused: {REFUSALS[code]}" for code, count in sorted(refused.items())) + "."
        )
    return response


def failure(code: int, message: str) -> status_pb2.Status:
    return status_pb2.Status(code=code, message=message)


def not_now(message: str, retry_after_s: float) -> tuple[status_pb2.Status, float]:
    """UNAVAILABLE with RetryInfo, and the seconds it says: jittered by half, so that clients do not return as one."""
    delay_s = retry_after_s * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, guards nothing
    status = failure(code_pb2.UNAVAILABLE, message)
    seconds, fraction = divmod(delay_s, 1)
    delay = duration_pb2.Duration(seconds=int(seconds), nanos=int(fraction * 1e9))
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status, delay_s
