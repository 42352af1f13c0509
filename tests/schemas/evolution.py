"""Made-up versions beside the published ones, and their records by another library than ours."""

import copy
import hashlib
import io
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import fastavro

from pipeline import schemas
from pipeline.record import schema

Avro = dict[str, Any]
Change = Callable[[list[Avro]], Any]  # of a list of fields, in place
ZONE = {"name": "zone", "type": "string", "default": "nowhere"}


def published(record: str) -> Avro:
    avro: Avro = json.loads((schema.DIRECTORY / f"{record}.v1.avsc").read_text())
    return avro


def changed(record: str, change: Change) -> Avro:
    avro = copy.deepcopy(published(record))
    change(avro["fields"])
    return avro


def with_zone(fields: list[Avro]) -> None:
    """The lawful change: a field more behind the unhashed ones."""
    fields.insert(len(schemas.UNHASHED), ZONE)


def directory(where: pathlib.Path, **added: Avro) -> pathlib.Path:
    """A copy of schemas/ with more files, called after the keywords: `span_v2` is span.v2.avsc."""
    shutil.copytree(schema.DIRECTORY, where, dirs_exist_ok=True)
    for name, avro in added.items():
        (where / f"{name.replace('_v', '.v')}.avsc").write_text(json.dumps(avro))
    return where


def written(avro: Avro, record: Avro) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(avro), record)
    return out.getvalue()


def read(data: bytes, writer: Avro, reader: Avro) -> Any:
    parsed = fastavro.parse_schema(writer), fastavro.parse_schema(reader)
    return fastavro.schemaless_reader(io.BytesIO(data), *parsed)


def event_id(avro: Avro, record: Avro) -> bytes:
    """As the design defines it, from the bytes of an encoded record."""
    unhashed = avro | {"fields": avro["fields"][: [field["name"] for field in avro["fields"]].index("tenant")]}
    tail = written(avro, record)[len(written(unhashed, record)) :]
    return hashlib.blake2b(tail, digest_size=16).digest()
