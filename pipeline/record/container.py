"""Avro Object Container Files as Kafka values; source: the Avro 1.12 specification, "Object Container Files".

A value is `head` (constant for a schema), then one block a group of records: count, length in bytes, records, SYNC.
So joining values is concatenation of what follows their heads, and no record is decoded.
"""

from collections.abc import Iterable

SYNC = b"pipeline-ocf-v01"
ONE = [bytes((n,)) for n in range(128)]
PAIR = [bytes((0x80 | n & 0x7F, 0x80 | n >> 7)) for n in range(1 << 14)]  # two 7-bit groups with more to follow
WORD = (1 << 64) - 1


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


def value(head: bytes, records: list[bytes]) -> bytes:
    """One container file of encoded `records`, in one block."""
    body = b"".join(records)
    return b"".join((head, long(len(records)), long(len(body)), body, SYNC))


def join(head: bytes, values: Iterable[bytes]) -> bytes:
    """One container file of all records in `values`, which all start with `head`."""
    skip = len(head)
    return head + b"".join([value[skip:] for value in values])
