"""The door to any OTLP back end, over HTTP (urllib3) or gRPC (grpcio); its refusals are translated here.

What may be sent again and what not: opentelemetry.io, "OTLP Specification", "Failures". Two things are kept longer than
it asks for: a back end that refuses our credentials or has no such service is Unavailable, since that is not the
data's fault, and so is every 5xx.
"""

import email.utils
import gzip
import json
import pathlib
import re
import time
import urllib.parse
from typing import Any, NamedTuple, Protocol

import grpc
import urllib3
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from pipeline.errors import Misconfigured, Rejected, Unavailable
from pipeline.record.schema import Signal
from pipeline.settings import OtlpWriterSettings

LONGEST_WAIT_S = 300.0  # that a back end may ask for
RECONNECT_WITHIN_MS = 10_000
SAID = 300  # characters of what it says
ANSWER_BYTES = 4 * 1024 * 1024  # that are read of it over HTTP, as gRPC does by itself
KEY = re.compile(r"[A-Za-z0-9_.-]+")  # of a header; gRPC takes no other token of HTTP
SERVICES: dict[Signal, tuple[str, str, Any]] = {
    "logs": ("logs.v1.LogsService", "rejected_log_records", ExportLogsServiceResponse),
    "metrics": ("metrics.v1.MetricsService", "rejected_data_points", ExportMetricsServiceResponse),
    "traces": ("trace.v1.TraceService", "rejected_spans", ExportTraceServiceResponse),
}
OURS_TO_MEND = {401, 403, 404, 405, 407, 415}  # credentials, address or protocol
TRANSIENT = {
    grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED, grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN,
}  # fmt: skip


class Later(Unavailable):
    """The back end is away or busy, and perhaps says for how long."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = min(max(0.0, wait_s), LONGEST_WAIT_S)


class Taken(NamedTuple):
    """The back end took a request, but for so many records, and why."""

    rejected: int
    reason: str


class Backend(Protocol):
    """Takes export requests; for one thread at a time."""

    def send(self, signal: Signal, request: bytes) -> Taken:
        """Return when the back end says that it has the request; raise Later, or Rejected where it never will."""
        ...


def backend(settings: OtlpWriterSettings) -> Backend:
    """By the settings; nothing is asked yet. Raises Misconfigured with every problem."""
    problems = []
    try:
        url = urllib3.util.parse_url(settings.endpoint)
    except urllib3.exceptions.LocationParseError:
        url = urllib3.util.Url()
    if url.scheme not in ("http", "https") or not url.host or url.port == 0:
        problems.append("otlp_writer.endpoint must be the back end's address, as https://otlp.example.com:4318.")
    headers: dict[str, str] = {}
    try:
        if settings.ca_file:
            _read(settings.ca_file, "ca_file")
        headers |= parsed(settings.headers.get_secret_value(), "otlp_writer.headers")
        if settings.headers_file:
            headers |= parsed(
                _read(settings.headers_file, "headers_file"), f"otlp_writer.headers_file {settings.headers_file}"
            )
    except Misconfigured as error:
        problems += error.problems
    if problems:
        raise Misconfigured(problems)
    return _Http(settings, headers) if settings.protocol == "http" else _Grpc(settings, headers)


def parsed(text: str, where: str) -> dict[str, str]:
    """`key=value`, by commas or lines, values percent-encoded as in OTEL_EXPORTER_OTLP_HEADERS.

    Raises Misconfigured where HTTP or gRPC cannot carry them, without the values: their own errors would quote these.
    """
    found = {}
    for number, part in enumerate(filter(str.strip, text.replace("\n", ",").split(",")), 1):
        name, equals, value = part.partition("=")
        if not equals or not KEY.fullmatch(name.strip()):
            raise Misconfigured(f"{where}: entry {number} is not key=value, the key of letters, digits and -_.")
        decoded = urllib.parse.unquote(value.strip())
        if not (decoded.isascii() and decoded.isprintable()):
            raise Misconfigured(f"{where}: entry {number} decodes to more than printable ASCII: correct its value.")
        found[name.strip().lower()] = decoded
    return found


def _read(file: pathlib.Path, setting: str) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise Misconfigured(f"otlp_writer.{setting} {file} is not readable: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise Misconfigured(f"otlp_writer.{setting} {file} is no text: write it in UTF-8.") from None


class _Http:
    def __init__(self, settings: OtlpWriterSettings, headers: dict[str, str]) -> None:
        self._url = settings.endpoint.rstrip("/")
        self._gzip = settings.compression == "gzip"
        coding = {"content-encoding": "gzip"} if self._gzip else {}
        self._pool = urllib3.PoolManager(
            headers={**headers, "content-type": "application/x-protobuf", **coding},
            timeout=settings.timeout_s, retries=False, ca_certs=settings.ca_file and str(settings.ca_file),
        )  # fmt: skip

    def send(self, signal: Signal, request: bytes) -> Taken:
        body = gzip.compress(request, 1) if self._gzip else request
        try:
            answer = self._pool.request(
                "POST", f"{self._url}/v1/{signal}", body=body, redirect=False, preload_content=False
            )
            data = answer.read(ANSWER_BYTES)
            answer.close()  # where more would come; a whole one has given its connection back
        except (urllib3.exceptions.HTTPError, ValueError) as error:  # ValueError: a chunk of a negative size
            raise Later(f"The back end at {self._url} does not answer: {error}") from error
        if 200 <= answer.status < 300:
            return _taken(signal, data, answer.headers.get("content-type", ""))
        said = f"The back end at {self._url} answered {answer.status}: {_status(data)}"
        if answer.status == 429 or answer.status >= 500:
            raise Later(said, _seconds(answer.headers.get("retry-after", "")))
        if answer.status in OURS_TO_MEND or 300 <= answer.status < 400:
            raise Later(f"{said} Correct otlp_writer.endpoint, protocol or headers.")
        raise Rejected(said)


class _Grpc:
    def __init__(self, settings: OtlpWriterSettings, headers: dict[str, str]) -> None:
        url = urllib3.util.parse_url(settings.endpoint)
        port = url.port or (443 if url.scheme == "https" else 80)
        self._target, self._timeout_s = f"{url.host}:{port}", settings.timeout_s
        self._headers = tuple(
            (key, value.encode() if key.endswith("-bin") else value) for key, value in headers.items()
        )
        gzip_or_none = grpc.Compression.Gzip if settings.compression == "gzip" else grpc.Compression.NoCompression
        # grpc waits up to two minutes before it looks again whether a server that was away is back
        options = [("grpc.max_send_message_length", -1), ("grpc.max_reconnect_backoff_ms", RECONNECT_WITHIN_MS)]
        if url.scheme == "https":
            roots = _read(settings.ca_file, "ca_file").encode() if settings.ca_file else None
            channel = grpc.secure_channel(
                self._target, grpc.ssl_channel_credentials(roots), options=options, compression=gzip_or_none
            )
        else:
            channel = grpc.insecure_channel(self._target, options=options, compression=gzip_or_none)
        self._calls = {
            signal: channel.unary_unary(f"/opentelemetry.proto.collector.{service}/Export", None, None)
            for signal, (service, _, _) in SERVICES.items()
        }

    def send(self, signal: Signal, request: bytes) -> Taken:
        try:
            answer = self._calls[signal](request, timeout=self._timeout_s, metadata=self._headers)
        except grpc.RpcError as error:
            raise self._translated(error) from error
        return _taken(signal, answer, "")

    def _translated(self, error: Any) -> Later | Rejected:
        code = error.code()
        said = f"The back end at {self._target} answered {code.name}: {(error.details() or '')[:SAID]}"
        wait_s = _asked_for(error.trailing_metadata() or ())
        if code in TRANSIENT or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and wait_s is not None):
            return Later(said, wait_s or 0.0)
        return Rejected(said)


def _taken(signal: Signal, answer: bytes, content_type: str) -> Taken:
    _, rejected, response = SERVICES[signal]
    if content_type.startswith("application/json"):  # some answer so whatever was sent
        return Taken(0, "")
    try:
        partial = response.FromString(answer).partial_success
    except DecodeError:
        return Taken(0, "")
    return Taken(max(0, getattr(partial, rejected)), partial.error_message[:SAID])


def _asked_for(metadata: Any) -> float | None:
    """RetryInfo of a gRPC status, s; None where there is none."""
    for key, value in metadata:
        if key == "grpc-status-details-bin":
            try:
                for detail in Status.FromString(value).details:
                    info = RetryInfo()
                    if detail.Unpack(info):
                        return float(info.retry_delay.ToNanoseconds() / 1e9)
            except DecodeError:
                return None
    return None


def _seconds(retry_after: str) -> float:
    """Of Retry-After, in its two forms (RFC 9110, 10.2.3)."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        return email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0


def _status(body: bytes) -> str:
    """What a failed answer says: google.rpc.Status in protobuf or JSON, or text."""
    try:
        said = str(json.loads(body)["message"])[:SAID]
        return said.encode(errors="replace").decode()  # JSON can say half a surrogate pair
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    try:
        return str(Status.FromString(body).message)[:SAID]
    except DecodeError:
        return body[:SAID].decode(errors="replace")
