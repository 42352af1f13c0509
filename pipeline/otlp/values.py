"""OTLP's values and attributes as text.

Every value becomes text: strings as they are, booleans `true`/`false`, integers in decimal, doubles as the shortest
text that reads back equal (`1.0`, `1e+16`, `NaN`, `Infinity`), bytes in base64, arrays and maps as compact JSON with
sorted keys. Of a repeated key the last value counts. Keys are sorted by code point, which is the order of their UTF-8.
"""

import base64
import json
import math
from collections.abc import Iterable
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from pipeline.record.avro import NOTHING, string_map


def text(value: AnyValue) -> str:
    """One value as text."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    if kind is None:
        return ""
    plain = _plain(value, kind)
    if isinstance(plain, str):
        return plain
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def texts(attributes: Iterable[KeyValue]) -> dict[str, str]:
    """Attributes as text by key."""
    found = {}
    for attribute in attributes:
        value = attribute.value
        found[attribute.key] = value.string_value or text(value)
    return found


def attribute_map(attributes: Any) -> bytes:
    """Repeated KeyValue as an Avro map<string>."""
    return string_map(texts(attributes)) if attributes else NOTHING


def _plain(value: AnyValue, kind: str | None) -> Any:
    """What `json.dumps` takes, with bytes and the doubles that JSON lacks as text."""
    if kind == "array_value":
        return [_plain(item, item.WhichOneof("value")) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _plain(item.value, item.value.WhichOneof("value")) for item in value.kvlist_value.values}
    if kind is None:
        return None
    plain = getattr(value, kind)
    if kind == "bytes_value":
        return base64.b64encode(plain).decode()
    if kind == "double_value" and not math.isfinite(plain):
        return "NaN" if math.isnan(plain) else "Infinity" if plain > 0 else "-Infinity"
    return plain
