"""Avro's binary encoding by hand, the part that records need; source: the Avro 1.12 specification.

By hand because it is the hot path: a third of what a generic encoder takes for a log record.
"""

import itertools
import math
import struct

CACHED_STRINGS = 1 << 16
CACHED_STRING_BYTES = 32
ONE = [bytes((n,)) for n in range(128)]
PAIR = [bytes((0x80 | n & 0x7F, 0x80 | n >> 7)) for n in range(1 << 14)]  # two 7-bit groups with more to follow
NOTHING = b"\0"  # an empty string, array or map, a null, a zero, false

_pack_double = struct.Struct("<d").pack
_NAN = _pack_double(math.nan)


def double(number: float) -> bytes:
    """Avro's 8 bytes; every NaN is the same one, since JSON knows no other."""
    return _pack_double(number) if number == number else _NAN  # noqa: PLR0124 - the fastest question


def long(n: int) -> bytes:
    """Avro's zigzag varint of a signed 64-bit integer."""
    n = n << 1 ^ n >> 63
    if n < 0x80:
        return ONE[n]
    out = b""
    while n >= 1 << 14:
        out += PAIR[n & 0x3FFF]
        n >>= 14
    if n < 0x80:
        return out + ONE[n]
    return out + bytes((0x80 | n & 0x7F, n >> 7))


def signed(n: int) -> int:
    """An unsigned 64-bit integer as the signed one of the same bits."""
    return n if n < 1 << 63 else n - (1 << 64)


class _Strings(dict[str, bytes]):
    """Avro strings by text, remembered while short: keys and most values of telemetry repeat."""

    def __missing__(self, text: str) -> bytes:
        data = text.encode()
        encoded = long(len(data)) + data
        if len(data) <= CACHED_STRING_BYTES:
            if len(self) >= CACHED_STRINGS:
                self.clear()
            self[text] = encoded
        return encoded


STRING = _Strings()


def blob(data: bytes) -> bytes:
    """Avro bytes."""
    return long(len(data)) + data if data else NOTHING


def string_map(attributes: dict[str, str]) -> bytes:
    """An Avro map<string>, keys sorted."""
    if not attributes:
        return NOTHING
    pieces = [long(len(attributes))]
    string = STRING
    for key in sorted(attributes):
        pieces.append(string[key])
        pieces.append(string[attributes[key]])
    pieces.append(NOTHING)
    return b"".join(pieces)


def array(items: list[bytes]) -> bytes:
    """An Avro array of encoded items."""
    return b"".join(itertools.chain((long(len(items)),), items, (b"\0",))) if items else b"\0"
