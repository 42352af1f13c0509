"""OTLP's values and attributes as text, within the rules.

Every value becomes text: strings as they are, booleans `true`/`false`, integers in decimal, doubles as the shortest
text that reads back equal (`1.0`, `1e+16`, `NaN`, `Infinity`), bytes in base64, arrays and maps as compact JSON with
sorted keys. Of a repeated key the last value counts. Keys are sorted by code point, which is the order of their UTF-8.
"""

import base64
import functools
import json
import math
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from pipeline.otlp.rules import CUT, TOO_DEEP, Rules
from pipeline.record.avro import NOTHING, long, pair, pair_map
from pipeline.record.framing import MAX_VALUE_BYTES

ATTRIBUTE_CACHE_BYTES = 4 * 1024 * 1024
CACHED_ATTRIBUTE_BYTES = 512  # larger ones seldom repeat
SERIES_CACHE_BYTES = 32 * 1024 * 1024
ENTRY_BYTES = 250  # of a cache, beside what the entry holds: objects, tuple, slot
UTF8_BYTES = 4  # of one character, at most

K = TypeVar("K")
V = TypeVar("V")
Raw = bytes  # a KeyValue as sent
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode


def is_id(value: bytes, size: int) -> bool:
    """Whether it can be a trace_id (of 16 bytes) or span_id (of 8); one of zeros is none."""
    return len(value) == size and any(value)


class Cache(dict[K, V], Generic[K, V]):
    """A dict that is emptied when it would hold more than `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self._most_bytes = most_bytes
        self._bytes = 0

    def keep(self, key: K, value: V, size_bytes: int) -> None:
        self._bytes += size_bytes + ENTRY_BYTES
        if self._bytes > self._most_bytes:
            self.clear()
            self._bytes = size_bytes + ENTRY_BYTES
        self[key] = value


class Known:
    """What was met before under the same limits: attributes → (key, Avro of key and text); series → its bytes."""

    def __init__(self) -> None:
        self.attributes: Cache[Raw, tuple[str, bytes]] = Cache(ATTRIBUTE_CACHE_BYTES)
        self.series: Cache[tuple[bytes, tuple[Raw, ...]], bytes] = Cache(SERIES_CACHE_BYTES)


@functools.lru_cache(maxsize=2)  # limits change with settings, not with requests
def _known(limits: tuple[int, ...]) -> Known:
    return Known()


class Attributes:
    """Reads the attributes of one request; `cut` counts those of which a limit took something, and such bodies."""

    def __init__(self, rules: Rules) -> None:
        limits = rules.max_attributes, rules.max_key_bytes, rules.max_text_bytes, rules.max_depth
        self._most, self._key_bytes, self._text_bytes, self._depth = limits
        self._never_cut = min(self._key_bytes, self._text_bytes)
        self._known = _known(limits)
        self.series = self._known.series
        self.cut = 0

    def pairs(self, raws: Sequence[Raw]) -> dict[str, bytes]:
        """Avro of key and text, by key; raise DecodeError where one is malformed.

        What is over `max_attributes` is dropped and not looked into.
        """
        if len(raws) > self._most:
            self.cut += len(raws) - self._most
            raws = raws[: self._most]
        met, read = self._known.attributes.get, self._read
        return dict([met(raw) or read(raw) for raw in raws])

    def map(self, raws: Sequence[Raw]) -> bytes:
        """Attributes as an Avro map."""
        return pair_map(self.pairs(raws)) if raws else NOTHING

    def map_and_dropped(self, owner: Any) -> bytes:
        """Two fields that stand together in all schemas: `attributes`, and `dropped_attributes_count` with ours."""
        raws = owner.attributes[:]
        dropped = owner.dropped_attributes_count
        if len(raws) > self._most:
            dropped += len(raws) - self._most
        return self.map(raws) + long(dropped)

    def body(self, value: AnyValue) -> str:
        """A log body as text; only its depth is limited here, since a record's size is."""
        text, whole = _text(value, MAX_VALUE_BYTES, self._depth)
        self.cut += not whole
        return text

    def _read(self, raw: Raw) -> tuple[str, bytes]:
        attribute = KeyValue.FromString(raw)
        key, text, whole = attribute.key, attribute.value.string_value, True
        if not text or len(raw) > self._never_cut:
            key, text, whole = self._limited(attribute)
        found = key, pair(key, text)
        if not whole:
            self.cut += 1  # each time, so not remembered
        elif len(raw) + len(found[1]) <= CACHED_ATTRIBUTE_BYTES:
            self._known.attributes.keep(raw, found, len(raw) + len(key) + len(found[1]))
        return found

    def _limited(self, attribute: KeyValue) -> tuple[str, str, bool]:
        """Key and text as the limits allow, and whether that is all of them."""
        key, key_whole = _within(attribute.key, self._key_bytes)
        text, value_whole = _text(attribute.value, self._text_bytes, self._depth)
        text, text_whole = _within(text, self._text_bytes)
        return key, text, key_whole and value_whole and text_whole


def _within(text: str, most_bytes: int) -> tuple[str, bool]:
    """`text`, or what fits of it with the marker behind, and whether it is whole."""
    if len(text) * UTF8_BYTES <= most_bytes:
        return text, True
    data = text.encode()
    if len(data) <= most_bytes:
        return text, True
    room = max(0, most_bytes - len(CUT.encode()))
    return data[:room].decode(errors="ignore") + CUT, False


def _text(value: AnyValue, most_bytes: int, max_depth: int) -> tuple[str, bool]:
    """One value as text, and whether nothing in it was nested too deep.

    A text longer than `most_bytes` is right up to there and may be anything after, since it will be cut.
    """
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value, True
    if kind is None:
        return "", True
    tree = _Tree(most_bytes, max_depth)
    plain = tree.plain(value, 1)
    return plain if isinstance(plain, str) else _json(plain), tree.whole


def _double(number: float) -> float | str:
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


class _Tree:
    """An AnyValue as what JSON takes, of the size of its text: `left` falls by no more than the text grows."""

    def __init__(self, most_bytes: int, max_depth: int) -> None:
        self.left = most_bytes
        self.whole = True
        self._max_depth = max_depth

    def plain(self, value: AnyValue, depth: int) -> Any:
        """Bytes and the doubles that JSON lacks become text, nothing becomes null."""
        if depth > self._max_depth:
            self.whole = False
            return self._string(TOO_DEEP)
        self.left -= 1
        match value.WhichOneof("value"):
            case "array_value":
                plain: Any = self._array(value.array_value.values, depth + 1)
            case "kvlist_value":
                plain = self._map(value.kvlist_value.values, depth + 1)
            case "string_value":
                plain = self._string(value.string_value)
            case "bytes_value":
                plain = self._string(base64.b64encode(value.bytes_value[: max(self.left, 0) + 8]).decode())
            case "double_value":
                plain = _double(value.double_value)
            case None:
                plain = None
            case kind:
                plain = getattr(value, kind)
        return plain

    def _array(self, values: Any, depth: int) -> list[Any]:
        found = []
        for value in values:
            if self.left < 0:
                break
            found.append(self.plain(value, depth))
        return found

    def _map(self, values: Any, depth: int) -> dict[str, Any]:
        last = {item.key: item.value for item in values}
        found = {}
        for key in sorted(last):
            if self.left < 0:
                break
            self.left -= len(key)
            found[key] = self.plain(last[key], depth)
        return found

    def _string(self, text: str) -> str:
        kept = text[: max(self.left, 0) + 2]
        self.left -= len(text)
        return kept
