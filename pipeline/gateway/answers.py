"""What the OTLP specification says a server answers, for both protocols."""

import math
import random
from collections import Counter
from typing import NamedTuple

from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from pipeline.errors import PipelineError, Rejected, TooLarge, Unavailable
from pipeline.gateway.compression import UnknownCoding
from pipeline.gateway.tenants import Forbidden, Throttled, Unauthenticated
from pipeline.otlp import REFUSALS
from pipeline.record.schema import Signal
from pipeline.tables.client import UnknownTable

RESPONSES: dict[Signal, tuple[type[Message], str]] = {
    "logs": (ExportLogsServiceResponse, "rejected_log_records"),
    "metrics": (ExportMetricsServiceResponse, "rejected_data_points"),
    "traces": (ExportTraceServiceResponse, "rejected_spans"),
}


class UnknownType(Rejected):
    """A Content-Type that is not OTLP's."""


class Gone(Rejected):
    """What was there and takes no more."""


class Answer(NamedTuple):
    """What to say: `message` is the signal's response where `code` is OK, else a google.rpc.Status.

    `outcome` is its name in the metrics; with `retry_after_s` the client is asked to send the same again.
    """

    outcome: str
    http_status: int
    code: int
    message: Message
    retry_after_s: float | None = None

    @property
    def retry_after(self) -> str:
        """Whole seconds, for the HTTP header."""
        return str(math.ceil(self.retry_after_s or 0))


FAILURES: dict[type[PipelineError], tuple[str, int, int]] = {
    Unauthenticated: ("unauthenticated", 401, code_pb2.UNAUTHENTICATED),
    Forbidden: ("forbidden", 403, code_pb2.PERMISSION_DENIED),
    UnknownType: ("rejected", 415, code_pb2.INVALID_ARGUMENT),
    UnknownCoding: ("rejected", 415, code_pb2.UNIMPLEMENTED),
    UnknownTable: ("rejected", 404, code_pb2.NOT_FOUND),
    Gone: ("rejected", 410, code_pb2.FAILED_PRECONDITION),
    TooLarge: ("too_large", 413, code_pb2.RESOURCE_EXHAUSTED),  # without RetryInfo: the same again would not help
    Rejected: ("rejected", 400, code_pb2.INVALID_ARGUMENT),
    Throttled: ("throttled", 429, code_pb2.RESOURCE_EXHAUSTED),
    Unavailable: ("unavailable", 503, code_pb2.UNAVAILABLE),
}


def success(signal: Signal, refused: Counter[str], shed: Counter[str]) -> Answer:
    """Empty where everything was accepted, else partial_success with the count and each reason."""
    response_type, count_field = RESPONSES[signal]
    response = response_type()
    if not refused and not shed:
        return Answer("ok", 200, code_pb2.OK, response)
    reasons = [f"{count} refused: {REFUSALS[reason]}" for reason, count in sorted(refused.items())]
    reasons += [
        f"{count} {kind} records shed: Kafka is away and the gateway's spool is nearly full"
        for kind, count in sorted(shed.items())
    ]
    partial = response.partial_success  # type: ignore[attr-defined]
    setattr(partial, count_field, refused.total() + shed.total())
    partial.error_message = "; ".join(reasons) + "."
    return Answer("partial", 200, code_pb2.OK, response)


def failure(error: PipelineError, retry_after_s: float) -> Answer:
    """What `error` says to the client. A delay is jittered by half, so that clients do not return as one."""
    outcome, http_status, code = next(FAILURES[kind] for kind in type(error).__mro__ if kind in FAILURES)
    status = status_pb2.Status(code=code, message=str(error))
    if not isinstance(error, Unavailable):
        if http_status == 400:
            violation = error_details_pb2.BadRequest.FieldViolation(description=str(error))
            status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        return Answer(outcome, http_status, code, status)
    jitter = random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, guards nothing
    delay_s = error.wait_s + jitter if isinstance(error, Throttled) else retry_after_s * jitter
    seconds, fraction = divmod(delay_s, 1)
    delay = duration_pb2.Duration(seconds=int(seconds), nanos=int(fraction * 1e9))
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return Answer(outcome, http_status, code, status, delay_s)


def bug() -> Answer:
    """What failed is ours, and in the log."""
    status = status_pb2.Status(code=code_pb2.INTERNAL, message="The gateway failed; its log says where.")
    return Answer("failed", 500, code_pb2.INTERNAL, status)
