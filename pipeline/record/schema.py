"""Avro schemas of the records: one file a version in `schemas/`, held to their fingerprints by `schemas/lock.json`."""

import functools
import hashlib
import io
import json
import pathlib
from dataclasses import dataclass
from typing import Any, Literal

import fastavro

from pipeline.errors import Misconfigured
from pipeline.record.container import SYNC
from pipeline.settings import ROOT

Signal = Literal["logs", "metrics", "traces", "events"]
SIGNALS: tuple[Signal, ...] = ("logs", "metrics", "traces")  # OTLP's, whose schemas are files; events' are registered
CURRENT: dict[Signal, str] = {"logs": "log_record/1", "metrics": "metric_point/1", "traces": "span/1"}
DIRECTORY = ROOT / "schemas"
LOCK = "lock.json"


@dataclass(frozen=True, slots=True)
class Schema:
    """One record type in one version.

    `name` is what the Kafka header `schema` says (`log_record/1`); `avro` is the schema without docs, as it stands in
    every message; `head` is the constant start of every container file of it.
    """

    name: str
    avro: dict[str, Any]
    head: bytes


@functools.cache
def load(name: str) -> Schema:
    """The schema called `name`; raise Misconfigured where the file is missing or differs from the lock."""
    path = DIRECTORY / file_name(name)
    try:
        avro = without_docs(json.loads(path.read_text()))
    except FileNotFoundError:
        raise Misconfigured(f"schemas/{path.name} is missing: restore it, the records on the wire need it.") from None
    if locked().get(name) != fingerprint(avro):
        raise Misconfigured(f"schemas/{path.name} differs from schemas/lock.json: a published version never changes.")
    return made(name, avro)


def made(name: str, avro: dict[str, Any]) -> Schema:
    """`avro`, which holds no docs, as it goes on the wire."""
    head = io.BytesIO()
    fastavro.writer(head, fastavro.parse_schema(avro), [], codec="null", sync_marker=SYNC, metadata={})
    return Schema(name, avro, head.getvalue())


def locked(directory: pathlib.Path | None = None) -> dict[str, str]:
    """Fingerprints of the published schemas by name; raise Misconfigured where the lock is missing or unreadable."""
    path = (directory or DIRECTORY) / LOCK
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise Misconfigured(f"schemas/{LOCK} is missing: restore it, it says which schemas there are.") from None
    except (ValueError, TypeError) as error:
        raise Misconfigured(f"schemas/{LOCK} is no JSON object of fingerprints by name: {error}. Restore it.") from None


def of(signal: Signal) -> Schema:
    """The schema that the gateway writes for `signal`."""
    return load(CURRENT[signal])


def topic(signal: Signal) -> str:
    """The regional topic that is the truth for `signal`."""
    return f"{signal}_raw"


def file_name(name: str) -> str:
    """`log_record.v1.avsc` of `log_record/1`."""
    return f"{name.replace('/', '.v')}.avsc"


def fingerprint(avro: dict[str, Any]) -> str:
    """SHA-256, in hex, of the schema without docs, as compact JSON in the file's order."""
    return hashlib.sha256(json.dumps(without_docs(avro), separators=(",", ":")).encode()).hexdigest()


def without_docs(node: Any) -> Any:
    """A schema, or a part of one, without what is for people."""
    if isinstance(node, dict):
        return {key: without_docs(value) for key, value in node.items() if key != "doc"}
    if isinstance(node, list):
        return [without_docs(item) for item in node]
    return node
