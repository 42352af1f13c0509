"""Container files read back with plain fastavro: no code of those who wrote them.

Source: Avro 1.12 specification, "Object Container Files" and "Schema Resolution". Only the fields that the audit needs
are built. A block becomes an Avro array by its own count and a closing 0, so that one call reads all its records.
"""

import io
import json
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import fastavro

from pipeline.errors import Rejected

Signal = Literal["logs", "metrics", "traces", "events"]
SIGNALS: tuple[Signal, ...] = ("logs", "metrics", "traces", "events")
KINDS = ("gauge", "sum", "histogram", "exponential_histogram", "summary")

HEADER = {
    "type": "record",
    "name": "header",
    "fields": [
        {"name": "magic", "type": {"type": "fixed", "name": "magic", "size": 4}},
        {"name": "meta", "type": {"type": "map", "values": "bytes"}},
        {"name": "sync", "type": {"type": "fixed", "name": "sync", "size": 16}},
    ],
}
EVENT_ID = {"name": "event_id", "type": {"type": "fixed", "name": "event_id", "size": 16}}
NEEDED: dict[Signal, list[dict[str, Any]]] = {
    "logs": [
        *({"name": name, "type": "long"} for name in ("received_time", "time", "observed_time")),
        {"name": "severity_number", "type": "int"},
        {"name": "event_name", "type": "string"},
    ],
    "traces": [{"name": name, "type": "long"} for name in ("received_time", "start_time")],
    "metrics": [
        {"name": "received_time", "type": "long"},
        {"name": "type", "type": {"type": "enum", "name": "metric_type", "symbols": list(KINDS)}},
        {"name": "series_id", "type": "long"},
        {"name": "time", "type": "long"},
    ],
    "events": [{"name": name, "type": "long"} for name in ("received_time", "time")],
}
DROP = {"type": "record", "name": "drop", "fields": [EVENT_ID, {"name": "reason", "type": "string"}]}
RECORDS: dict[Signal, str] = {"logs": "log_record", "traces": "span", "metrics": "metric_point"}


def records(value: bytes, signal: Signal) -> list[dict[str, Any]]:
    """The needed fields of every record of one container file; raises Rejected with the reason where it has a fault."""
    try:
        return _records(value, signal)
    except Rejected:
        raise
    except Exception as error:  # fastavro promises no type for what foreign bytes do to it
        raise Rejected(f"it does not decode: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None


def _records(value: bytes, signal: Signal) -> list[dict[str, Any]]:
    file = io.BytesIO(value)
    header: Any = fastavro.schemaless_reader(file, _parsed_header(), None)
    if header["magic"] != b"Obj\x01":
        raise Rejected("it is no Avro container file")
    if header["meta"].get("avro.codec", b"null") != b"null":
        raise Rejected(f"its codec is {header['meta']['avro.codec']!r}, not null")
    written, needed = _schemas(header["meta"]["avro.schema"], signal)
    found: list[dict[str, Any]] = []
    for counted, count, block in _blocks(file, value, header["sync"]):
        array = io.BytesIO(counted + block + b"\0")
        items: Any = fastavro.schemaless_reader(array, written, needed)
        if len(items) != count or array.tell() != len(counted) + len(block) + 1:
            raise Rejected(f"a block says {count} records and holds others")
        found += items
    return found


class Form(NamedTuple):
    """One record as it stands somewhere: its id, and a hash of what an id is made of."""

    event_id: bytes
    content: bytes


def forms(value: bytes, signal: Signal) -> list[Form]:
    """The form of every record of one container file; raises Rejected with the reason where it has a fault."""
    try:
        return list(_forms(value, signal))
    except Rejected:
        raise
    except Exception as error:
        raise Rejected(f"it does not decode: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None


def drops(value: bytes) -> list[tuple[bytes, str]]:
    """Each dropped event_id of one container file and the reason; raises Rejected where it has a fault."""
    try:
        found: Any = fastavro.reader(io.BytesIO(value), DROP)
        return [(each["event_id"], each["reason"]) for each in found]
    except Exception as error:
        raise Rejected(f"it does not decode: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None


def _forms(value: bytes, signal: Signal) -> Iterator[Form]:
    file = io.BytesIO(value)
    header: Any = fastavro.schemaless_reader(file, _parsed_header(), None)
    written, unhashed, told = _unhashed(header["meta"]["avro.schema"])
    for _, count, block in _blocks(file, value, header["sync"]):
        records = io.BytesIO(block)
        for _ in range(count):
            start = records.tell()
            first: Any = fastavro.schemaless_reader(records, unhashed, told)
            hashed = records.tell()
            records.seek(start)
            fastavro.schemaless_reader(records, written, unhashed)
            content = blake2b(block[hashed : records.tell()], digest_size=16).digest()
            yield Form(first["event_id"], content)


def _blocks(file: io.BytesIO, value: bytes, sync: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Each block: its count as it is written, the same as a number, and its records."""
    while file.tell() < len(value):
        place = file.tell()
        count: Any = fastavro.schemaless_reader(file, "long", None)
        counted = value[place : file.tell()]
        size: Any = fastavro.schemaless_reader(file, "long", None)
        block = file.read(max(0, size))
        if count < 1 or len(block) != size or file.read(16) != sync:
            raise Rejected("it is cut short or damaged: a block does not end in the sync marker")
        yield counted, count, block


@lru_cache(64)
def _unhashed(schema: bytes) -> tuple[Any, Any, Any]:
    """The record as written, what of it stands before the part that an event_id is a hash of, and the id alone."""
    record = json.loads(schema)
    names = [each["name"] for each in record["fields"]]
    first = {**record, "fields": record["fields"][: names.index("tenant")]}
    told = {"type": "record", "name": record["name"], "fields": [EVENT_ID]}
    return fastavro.parse_schema(record), fastavro.parse_schema(first), fastavro.parse_schema(told)


@lru_cache(1)
def _parsed_header() -> Any:
    return fastavro.parse_schema(HEADER)


@lru_cache(64)
def _schemas(schema: bytes, signal: Signal) -> tuple[Any, Any]:
    """Arrays of the record as written, and of the needed part."""
    record = json.loads(schema)
    name = RECORDS.get(signal) or record["name"]  # a registered table's own
    needed = {"type": "record", "name": name, "fields": [EVENT_ID, *NEEDED[signal]]}
    return (
        fastavro.parse_schema({"type": "array", "items": record}),
        fastavro.parse_schema({"type": "array", "items": needed}),
    )
