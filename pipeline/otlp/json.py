"""OTLP/JSON → the same request in protobuf.

Source: the OTLP specification, "JSON Protobuf Encoding": keys in lowerCamelCase, trace and span ids in hex, enums as
integers, 64-bit integers as decimal text or numbers, unknown keys ignored, null as absent. Where OTLP had another name
before 1.0 it is still read, since SDKs of 2021 and 2022 write no other; what it had no more from 0.9 on is refused.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pipeline import native
from pipeline.errors import Rejected, TooLarge
from pipeline.otlp.rules import OUTDATED
from pipeline.record.schema import Signal

REQUEST: dict[Signal, type[Message]] = {
    "logs": ExportLogsServiceRequest,
    "metrics": ExportMetricsServiceRequest,
    "traces": ExportTraceServiceRequest,
}
MAX_VALUES = 1_000_000
MAX_DEPTH = 100  # protobuf's own limit of nested messages
FORMER = {
    "instrumentationLibraryLogs": "scope_logs",
    "instrumentationLibraryMetrics": "scope_metrics",
    "instrumentationLibrarySpans": "scope_spans",
    "instrumentationLibrary": "scope",
    "logs": "log_records",
}
_LABELLED = frozenset({"labels"})
REMOVED = {
    "Metric": frozenset({f"{number}{kind}" for number in ("int", "double") for kind in ("Gauge", "Sum", "Histogram")})
    | {"doubleSummary"},
    "NumberDataPoint": _LABELLED,
    "HistogramDataPoint": _LABELLED,
    "SummaryDataPoint": _LABELLED,
}
HEX_FIELDS = {"trace_id", "span_id", "parent_span_id"}
INTEGER = re.compile(r"-?[0-9]{1,20}")
NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]{1,9})?")
WIDTHS = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_SINT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_FIXED32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_SINT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_FIXED64: (0, (1 << 64) - 1),
}
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_protobuf(signal: Signal, body: bytes, *, max_values: int = MAX_VALUES) -> bytes:
    """The request in `body` as protobuf bytes; raise Rejected naming the place and what was expected there.

    Raise TooLarge where it may hold more than `max_values` values, each of which costs up to 100 bytes of memory.
    """
    extension = native.chosen()
    plain: bytes | None = extension.json_to_protobuf(signal, body, max_values) if extension else None
    if plain is not None:
        return plain
    # Commas and brackets in texts count too; a value costs at least one of these.
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > max_values:
        raise TooLarge(f"The body holds more than {max_values} values (gateway.max_json_values): send smaller batches.")
    try:
        document = json.loads(body.decode(), parse_constant=_no_constant)  # of bytes it would guess at encodings
        request = REQUEST[signal]()
        _fill(request, document, "", 0)
    except UnicodeDecodeError as error:
        raise Rejected(f"The body is not UTF-8: {error.reason} at byte {error.start}.") from None
    except json.JSONDecodeError as error:
        raise Rejected(f"The body is not JSON: {error}.") from None
    except RecursionError:
        raise Rejected(f"The body is nested deeper than {MAX_DEPTH} levels.") from None
    except ValueError as error:  # an integer of thousands of digits
        raise Rejected(f"The body is not JSON: {error}.") from None
    return request.SerializeToString()


def _fill(message: Message, document: object, path: str, depth: int) -> None:
    if not isinstance(document, dict):
        raise _expected(path, "an object", document)
    if depth > MAX_DEPTH:
        raise Rejected(f"{path}: nested deeper than {MAX_DEPTH} levels.")
    fields = _fields(message.DESCRIPTOR)
    for key, item in document.items():
        field = fields.get(key)
        if item is None:
            continue
        where = f"{path}.{key}" if path else key
        if field is None:
            if key in REMOVED.get(message.DESCRIPTOR.name, ()):
                raise Rejected(f"{where}: {OUTDATED}.")
            continue
        if field.is_repeated:
            _fill_list(getattr(message, field.name), field, item, (where, depth))
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            _fill(inner, item, where, depth + 1)
        else:
            setattr(message, field.name, _scalar(field, item, where))


def _fill_list(target: Any, field: FieldDescriptor, items: object, place: tuple[str, int]) -> None:
    path, depth = place
    if not isinstance(items, list):
        raise _expected(path, "an array", items)
    for n, item in enumerate(items):
        if field.message_type is not None:
            _fill(target.add(), item, f"{path}[{n}]", depth + 1)
        else:
            target.append(_scalar(field, item, f"{path}[{n}]"))


_fields_by_name: dict[str, dict[str, FieldDescriptor]] = {}


def _fields(descriptor: Any) -> dict[str, FieldDescriptor]:
    found = _fields_by_name.get(descriptor.full_name)
    if found is None:
        found = _fields_by_name[descriptor.full_name] = {field.json_name: field for field in descriptor.fields}
        by_name = descriptor.fields_by_name
        found |= {former: by_name[name] for former, name in FORMER.items() if name in by_name}
    return found


def _scalar(field: FieldDescriptor, item: object, path: str) -> Any:
    if field.type in WIDTHS:
        return _integer(item, path, WIDTHS[field.type])
    if field.type == FieldDescriptor.TYPE_BYTES and field.name in HEX_FIELDS:
        return _text_as_bytes(item, path, (binascii.unhexlify, "hex digits"))
    return _SCALARS[field.type](item, path)


def _integer(item: object, path: str, width: tuple[int, int]) -> int:
    low, high = width
    number = item
    if (isinstance(item, str) and INTEGER.fullmatch(item)) or (isinstance(item, float) and item.is_integer()):
        number = int(item)
    if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
        raise _expected(path, f"an integer from {low} to {high}", item)
    return number


def _no_constant(name: str) -> float:
    raise Rejected(f"The body is not JSON: {name} is no number there, only as a text.")


def _double(item: object, path: str) -> float:
    if isinstance(item, str):
        if item in NOT_FINITE:
            return NOT_FINITE[item]
        if not NUMBER.fullmatch(item):
            raise _expected(path, "a number", item)
        return float(item)
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise _expected(path, "a number", item)
    try:
        return float(item)
    except OverflowError:
        raise _expected(path, "a number within a double's range", item) from None


def _string(item: object, path: str) -> str:
    if not isinstance(item, str):
        raise _expected(path, "text", item)
    try:
        item.encode()
    except UnicodeEncodeError:
        raise Rejected(f"{path}: half a surrogate pair is no Unicode text.") from None
    return item


def _bool(item: object, path: str) -> bool:
    if not isinstance(item, bool):
        raise _expected(path, "true or false", item)
    return item


def _base64(text: str) -> bytes:
    standard = text.replace("-", "+").replace("_", "/")
    return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)


def _text_as_bytes(item: object, path: str, form: tuple[Callable[[str], bytes], str]) -> bytes:
    decode, name = form
    try:
        return decode(_string(item, path))
    except (ValueError, binascii.Error):
        raise _expected(path, name, item) from None


_SCALARS: dict[int, Callable[[object, str], Any]] = {
    FieldDescriptor.TYPE_DOUBLE: _double,
    FieldDescriptor.TYPE_STRING: _string,
    FieldDescriptor.TYPE_BOOL: _bool,
    FieldDescriptor.TYPE_BYTES: lambda item, path: _text_as_bytes(item, path, (_base64, "base64")),
}


def _expected(path: str, what: str, got: object) -> Rejected:
    shown = repr(got)
    return Rejected(f"{path or 'The body'}: expected {what}, got {shown if len(shown) <= 60 else shown[:57] + '...'}.")
