"""OTLP/gRPC; source: the OTLP specification 1.9, "OTLP/gRPC".

Bodies pass as bytes, so both protocols share one parser and one reading of what is malformed.
"""

from collections.abc import Awaitable, Callable
from typing import NoReturn

import grpc
from google.rpc import code_pb2, status_pb2
from google.rpc.error_details_pb2 import RetryInfo

from pipeline.errors import Rejected, Unavailable
from pipeline.gateway import answers
from pipeline.gateway.intake import Intake, Request
from pipeline.record.schema import Signal
from pipeline.settings import GatewaySettings
from pipeline.telemetry import metrics

SERVICES: dict[Signal, str] = {
    "logs": "opentelemetry.proto.collector.logs.v1.LogsService",
    "metrics": "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "traces": "opentelemetry.proto.collector.trace.v1.TraceService",
}
RETRY_INFO = "google.rpc.retryinfo-bin"
Context = grpc.aio.ServicerContext[bytes, bytes]


def server(intake: Intake, settings: GatewaySettings, tenant: str) -> grpc.aio.Server:
    """A server with the three OTLP services, not started and without a port."""
    grpc_server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_decoded_bytes),
            ("grpc.so_reuseport", int(settings.workers > 1)),
        ]
    )
    for signal, service in SERVICES.items():
        handler = grpc.unary_unary_rpc_method_handler(_handler(signal, intake, (settings, tenant)))
        grpc_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    return grpc_server


def _handler(
    signal: Signal, intake: Intake, who: tuple[GatewaySettings, str]
) -> Callable[[bytes, Context], Awaitable[bytes]]:
    settings, tenant = who
    in_flight = metrics.IN_FLIGHT.labels("grpc")

    async def export(body: bytes, context: Context) -> bytes:
        with in_flight.track_inprogress():
            try:
                refused = await intake.accept(Request(signal, body, tenant, _traceparent(context)))
            except Rejected as error:
                metrics.REQUESTS.labels("grpc", signal, "rejected").inc()
                await _abort(context, answers.failure(code_pb2.INVALID_ARGUMENT, str(error)))
            except Unavailable as error:
                metrics.REQUESTS.labels("grpc", signal, "unavailable").inc()
                await _abort(context, answers.not_now(str(error), settings.retry_after_s)[0])
        metrics.REQUESTS.labels("grpc", signal, "partial" if refused else "ok").inc()
        return answers.success(signal, refused).SerializeToString()

    return export


def _traceparent(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent" and isinstance(value, str):
            return value[:64]
    return ""


_CODES = {code.value[0]: code for code in grpc.StatusCode}


async def _abort(context: Context, status: status_pb2.Status) -> NoReturn:
    trailers = [("grpc-status-details-bin", status.SerializeToString())]
    # The Python exporter looks for RetryInfo in a trailer of its own, others in the status.
    trailers += [(RETRY_INFO, detail.value) for detail in status.details if detail.Is(RetryInfo.DESCRIPTOR)]
    await context.abort(_CODES[status.code], status.message, tuple(trailers))
