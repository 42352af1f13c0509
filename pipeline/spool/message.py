"""A message and the row that keeps it: compressed, with a checksum over every field."""

import hashlib
import json
from typing import NamedTuple

from backports import zstd

LEVEL = 1
CHECKSUM_BYTES = 8
ROW_BYTES = 128  # what a row costs beside its texts and blobs, index included


class Message(NamedTuple):
    """One Kafka message to be."""

    topic: str
    partition: int
    records: int
    headers: tuple[tuple[str, bytes], ...]
    value: bytes


class Id(NamedTuple):
    """Names a stored message; valid in the process that read it. Callers only hand it back."""

    file: int
    row: int


class Stored(NamedTuple):
    id: Id
    spooled_at_s: float
    message: Message


class Damaged(Exception):
    """What was read is not what was written."""


class Row(NamedTuple):
    """The columns of the table `messages`, in order."""

    id: int
    spooled_at_s: float
    topic: str
    partition: int
    records: int
    size: int  # what it counts for against the spool's bound, bytes
    headers: str  # JSON [[name, value as latin-1], …]
    checksum: bytes
    value: bytes  # zstd


def pack(row_id: int, spooled_at_s: float, message: Message) -> Row:
    topic, partition, records, headers, value = message
    text = json.dumps([[name, content.decode("latin-1")] for name, content in headers], ensure_ascii=False)
    packed = zstd.compress(value, LEVEL)
    size = len(packed) + len(text) + len(topic) + ROW_BYTES
    row = Row(row_id, spooled_at_s, topic, partition, records, size, text, b"", packed)
    return row._replace(checksum=_checksum(row))


def unpack(row: Row) -> Message:
    """The message as it was put; raise Damaged where a bit of the row differs."""
    if row.checksum != _checksum(row):
        raise Damaged("its checksum does not match")
    headers = tuple((name, content.encode("latin-1")) for name, content in json.loads(row.headers))
    return Message(row.topic, row.partition, row.records, headers, zstd.decompress(row.value))


def is_whole(row: Row) -> bool:
    return row.checksum == _checksum(row)


def _checksum(row: Row) -> bytes:
    """BLAKE2b over all other columns. Types may differ too: what SQLite reads from a damaged page can be anything."""
    digest = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    digest.update(repr(row._replace(checksum=b"", value=b"")).encode("utf-8", "surrogatepass"))
    digest.update(row.value if isinstance(row.value, bytes) else repr(row.value).encode())
    return digest.digest()
