"""Avro Object Container Files as Kafka values; source: the Avro 1.12 specification, "Object Container Files".

A value is `head` (constant for a schema), then one block a group of records: count, length in bytes, records, SYNC.
So joining values is concatenation of what follows their heads, and no record is decoded.
"""

from collections.abc import Iterable

from pipeline.errors import Rejected
from pipeline.record.avro import long

SYNC = b"pipeline-ocf-v01"


def value(head: bytes, pieces: list[bytes], records: int | None = None) -> bytes:
    """One container file, in one block: `pieces` are encoded records, or parts of as many as `records` says."""
    size = sum(map(len, pieces))
    count = len(pieces) if records is None else records
    return b"".join([head, long(count), long(size), *pieces, SYNC])


def in_blocks(head: bytes, pieces: list[bytes], blocks: list[int]) -> bytes:
    """One container file of encoded records, a block for each run of equal numbers in `blocks`."""
    cuts = [place for place in range(1, len(blocks)) if blocks[place] != blocks[place - 1]]
    starts, ends = [0, *cuts], [*cuts, len(pieces)]
    return join(b"", [head, *(value(b"", pieces[start:end]) for start, end in zip(starts, ends, strict=True))])


def join(head: bytes, values: Iterable[bytes]) -> bytes:
    """One container file of all records in `values`, which all start with `head`."""
    skip = len(head)
    return b"".join([head, *(memoryview(value)[skip:] for value in values)])


def count(head: bytes, value: bytes) -> int:
    """How many records the blocks of `value` say they hold; raises Rejected as `blocks` does."""
    return sum(blocks(head, value))


def blocks(head: bytes, value: bytes) -> list[int]:
    """How many records each block of `value` says it holds, read from the framing alone.

    Raise Rejected where `value` is not `head` followed by whole blocks: joining it would spoil its neighbours.
    """
    if not value.startswith(head):
        raise Rejected("The value does not start with the head of its schema.")
    place, found = len(head), []
    while place < len(value):
        records, place = _unsigned_half(value, place)
        size, place = _unsigned_half(value, place)
        place += size + len(SYNC)
        if value[place - len(SYNC) : place] != SYNC:
            raise Rejected("The value is cut short or damaged: a block does not end in the sync marker.")
        found.append(records)
    return found


def _unsigned_half(data: bytes, place: int) -> tuple[int, int]:
    """An Avro long that cannot be negative, and the place after it."""
    n = shift = 0
    for place_after, byte in enumerate(data[place : place + 10], place + 1):
        n |= (byte & 0x7F) << shift
        if byte < 0x80:
            if n & 1:
                break
            return n >> 1, place_after
        shift += 7
    raise Rejected("The value is cut short or damaged: a block does not start with its count and length.")
