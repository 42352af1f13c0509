"""A part of each message: the records whose fields have given values, their bytes untouched."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import fastavro

from pipeline.errors import Misconfigured
from pipeline.kafka.reader import Message
from pipeline.record.avro import long

FIELDS = ("service", "host", "tenant", "region", "severity_number", "severity_text", "event_name", "name",
          "metric_name", "status_code")  # fmt: skip
SYNC_BYTES = 16
HEADER = {
    "type": "record", "name": "header", "fields": [
        {"name": "magic", "type": {"type": "fixed", "name": "magic", "size": 4}},
        {"name": "meta", "type": {"type": "map", "values": "bytes"}},
        {"name": "sync", "type": {"type": "fixed", "name": "sync", "size": SYNC_BYTES}},
    ],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Where:
    """Field and value, as text; all must hold. A record that has no such field is not wanted."""

    equal: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, said: Sequence[str]) -> Self:
        """From `service=checkout`; raises Misconfigured with every problem."""
        pairs = [each.partition("=") for each in said]
        problems = [
            f"--where: {name + equals + value!r} is not <field>=<value>, where the field is one of {', '.join(FIELDS)}."
            for name, equals, value in pairs
            if name not in FIELDS or not equals
        ]
        if problems:
            raise Misconfigured(problems)
        return cls(tuple((name, value) for name, _, value in pairs))

    def of(self, message: Message) -> Message | None:
        """The message with only the records that are wanted, None where it has none.

        One that does not decode passes as it is: what cannot be read cannot be sorted out, and must end in the sandbox
        as it ended before.
        """
        if not self.equal:
            return message
        try:
            head, sync, records = _records(message.value, tuple(name for name, _ in self.equal))
        except Exception:  # fastavro promises no type for what foreign bytes do to it
            return message
        wanted = [raw for raw, fields in records if self._fits(fields)]
        if not wanted:
            return None
        if len(wanted) == len(records):
            return message
        pairs = tuple(
            (name, b"%d" % len(wanted)) if name == "records" else (name, value) for name, value in message.pairs
        )
        return message._replace(value=_file(head, sync, wanted), pairs=pairs, headers=_headers(pairs))

    def _fits(self, fields: dict[str, Any]) -> bool:
        return all(name in fields and str(fields[name]) == value for name, value in self.equal)


def _file(head: bytes, sync: bytes, records: list[bytes]) -> bytes:
    return b"".join([head, long(len(records)), long(sum(map(len, records))), *records, sync])


def _headers(pairs: Sequence[tuple[str, bytes | None]]) -> dict[str, bytes]:
    return {name: value or b"" for name, value in pairs}


def _records(value: bytes, fields: tuple[str, ...]) -> tuple[bytes, bytes, list[tuple[bytes, dict[str, Any]]]]:
    """What the container file starts with, its sync marker, and each record's bytes with those of `fields` that it has.

    Source: Avro 1.12 specification, "Object Container Files".
    """
    file = io.BytesIO(value)
    header: Any = fastavro.schemaless_reader(file, _header(), None)
    if header["magic"] != b"Obj\x01" or header["meta"].get("avro.codec", b"null") != b"null":
        raise ValueError("no container file without codec")
    head = value[: file.tell()]
    written, wanted = _schemas(header["meta"]["avro.schema"], fields)
    found = []
    while file.tell() < len(value):
        count: Any = fastavro.schemaless_reader(file, "long", None)
        fastavro.schemaless_reader(file, "long", None)
        for _ in range(count):
            start = file.tell()
            record: Any = fastavro.schemaless_reader(file, written, wanted)
            found.append((value[start : file.tell()], record))
        if file.read(SYNC_BYTES) != header["sync"]:
            raise ValueError("a block does not end in the sync marker")
    return head, header["sync"], found


@lru_cache(1)
def _header() -> Any:
    return fastavro.parse_schema(HEADER)


@lru_cache(64)
def _schemas(schema: bytes, fields: tuple[str, ...]) -> tuple[Any, Any]:
    """The record as written, and the part of it that is looked at: what is in between is passed over."""
    written = json.loads(schema)
    part = {**written, "fields": [field for field in written["fields"] if field["name"] in fields]}
    return fastavro.parse_schema(written), fastavro.parse_schema(part)
