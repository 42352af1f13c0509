"""Records out of container files, by fastavro alone."""

import hashlib
import io
from typing import Any

import fastavro

from pipeline import otlp
from pipeline.record import schema
from tests.otlp.requests import T0

ORIGIN = otlp.Origin("default", "local", T0 + 10**9)


def records(encoded: otlp.Encoded) -> list[dict[str, Any]]:
    return [record for group in encoded.groups for record in fastavro.reader(io.BytesIO(group.value))]


def ids(signal: schema.Signal, body: bytes, origin: otlp.Origin = ORIGIN) -> list[str]:
    """event_ids of a request, sorted: partitions must not matter."""
    return sorted(record["event_id"].hex() for record in records(otlp.encode(signal, body, origin, partitions=3)))


def id_by_the_book(signal: schema.Signal, record: dict[str, Any]) -> str:
    """BLAKE2b-128 over what follows received_time, encoded by fastavro."""
    avro = schema.of(signal).avro
    hashed = fastavro.parse_schema({**avro, "name": "hashed", "fields": avro["fields"][3:]})
    out = io.BytesIO()
    fastavro.schemaless_writer(out, hashed, {key: record[key] for key in list(record)[3:]})
    return hashlib.blake2b(out.getvalue(), digest_size=16).hexdigest()
