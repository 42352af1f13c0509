"""Schemas as published: which versions of a record may stand beside each other, and their lock.

    check(directory) → lock(report, directory)

Every version reads what every other version wrote (FULL_TRANSITIVE), by Avro's own rules. An event_id is a hash of the
encoded fields from `tenant` on, so these are the same in every version: a new one adds its fields before `tenant`. What
needs a new hashed field is a new record.
"""

import itertools
import json
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import fastavro
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.errors import AvroException
from avro.schema import make_avsc_object
from fastavro.schema import SchemaParseException, UnknownType

from pipeline.errors import Misconfigured
from pipeline.record import schema
from pipeline.tables.names import RESERVED

FILE_NAME = re.compile(r"([a-z][a-z0-9_]*)\.v([1-9][0-9]{0,4})\.avsc")
NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")  # 63 bytes: what PostgreSQL keeps of an identifier
UNHASHED = [
    {"name": "event_id", "type": {"type": "fixed", "name": "event_id", "size": 16}},
    {"name": "region", "type": "string"},
    {"name": "received_time", "type": "long"},
]
FIRST_HASHED = {"name": "tenant", "type": "string"}
LAST = {"name": "ordinal", "type": "int"}


@dataclass(slots=True)
class Report:
    """What the files are: fingerprints by schema name, those that no lock holds yet, and what is wrong."""

    fingerprints: dict[str, str] = field(default_factory=dict)
    unlocked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check(directory: pathlib.Path = schema.DIRECTORY) -> Report:
    """Hold every file to the lock, to the rules for one schema, and to all other versions of its record."""
    report = Report()
    try:
        locked = schema.locked(directory)
    except Misconfigured as unreadable:
        report.problems += unreadable.problems
        locked = {}
    records: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for path in sorted(directory.glob("*.avsc")):
        named = FILE_NAME.fullmatch(path.name)
        if not named:
            report.problems.append(f"schemas/{path.name}: a schema is called <record>.v<version>.avsc, in lower case.")
            continue
        record, version = named[1], int(named[2])
        try:
            avro = _parsed(path)
        except (ValueError, AvroException, SchemaParseException, UnknownType) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            report.problems.append(f"schemas/{path.name}: is no Avro schema of a record: {reason}.")
            continue
        report.fingerprints[f"{record}/{version}"] = schema.fingerprint(avro)
        problems = [*_misnamed(avro, record), *_misplaced(avro)]
        report.problems += [f"schemas/{path.name}: {problem}" for problem in problems]
        records[record][version] = avro
    for record, versions in records.items():
        report.problems += _incompatible(record, dict(sorted(versions.items())))
    report.problems += _unlike(locked, report.fingerprints, directory)
    report.unlocked = [name for name in report.fingerprints if name not in locked]
    return report


def lock(report: Report, directory: pathlib.Path = schema.DIRECTORY) -> None:
    """Publish what `report` found unlocked; raise Misconfigured with its problems where it has any."""
    if report.problems:
        raise Misconfigured(report.problems)
    fingerprints = dict(sorted(report.fingerprints.items()))
    (directory / schema.LOCK).write_text(json.dumps(fingerprints, indent=2) + "\n")


def unreadable(reader: dict[str, Any], writer: dict[str, Any]) -> str:
    """Why `reader` cannot read all that `writer` writes; nothing where it can."""
    judge = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]
    result = judge.get_compatibility(make_avsc_object(reader), make_avsc_object(writer))
    if result.compatibility is SchemaCompatibilityType.compatible:
        return ""
    kinds = sorted({kind.value.replace("_", " ") for kind in result.incompatibilities})
    return f"{', '.join(kinds)} ({'; '.join(sorted(result.messages))}) at {', '.join(sorted(result.locations - {'/'}))}"


def _parsed(path: pathlib.Path) -> dict[str, Any]:
    """Both libraries must understand it: Apache's knows bad structure better, fastavro bad defaults."""
    avro = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(avro, dict) or avro.get("type") != "record":
        raise ValueError("its type is not record")
    make_avsc_object(avro)
    fastavro.parse_schema(avro)
    return schema.without_docs(avro)  # type: ignore[no-any-return]


def _misnamed(avro: dict[str, Any], record: str) -> Iterator[str]:
    if avro["name"] != record:
        yield f"name: is {avro['name']}, but the file's is {record}; they must be equal."
    for name in _names(avro):
        if not NAME.fullmatch(name):
            yield f"`{name}`: a name has lower-case letters, digits and _, and at most 63 of them."
        elif name in RESERVED:
            yield f"`{name}`: is a reserved word of SQL and would need quotes in every query; choose another name."


def _names(node: Any) -> Iterator[str]:
    """Names of records, fields, enums and fixed types, in the file's order."""
    for part in node if isinstance(node, list) else [node]:
        if isinstance(part, dict):
            if "name" in part:
                yield part["name"]
            for below in ("type", "fields", "items", "values"):
                yield from _names(part.get(below))


def _misplaced(avro: dict[str, Any]) -> Iterator[str]:
    fields = [_shape(one) for one in avro["fields"]]
    if fields[: len(UNHASHED)] != UNHASHED:
        yield "the first fields are event_id (fixed, 16 bytes), region (string) and received_time (long)."
    if FIRST_HASHED not in fields[len(UNHASHED) :]:
        yield "tenant (string) is missing behind them: the hashed fields start with it."
    if fields[-1] != LAST:
        yield "the last field is ordinal (int): it tells twins of one request apart."


def _incompatible(record: str, versions: dict[int, dict[str, Any]]) -> Iterator[str]:
    for version in range(1, max(versions)):
        if version not in versions:
            yield f"schemas/{record}.v{version}.avsc is missing: versions are numbered from 1 without a gap."
    (first, oldest), *newer = versions.items()
    for version, avro in newer:
        changed = _changed(_hashed(oldest), _hashed(avro))
        if changed:
            yield (
                f"schemas/{record}.v{version}.avsc: changes what is hashed since version {first} ({changed}): stored "
                "content would get another event_id. Add fields before tenant, or publish a new record."
            )
    for (reader, reads), (writer, wrote) in itertools.permutations(versions.items(), 2):
        reason = unreadable(reads, wrote)
        if reason:
            yield (
                f"{record}/{reader} cannot read what {record}/{writer} wrote: {reason}. "
                "Give a new field a default, and keep the types of the others."
            )


def _hashed(avro: dict[str, Any]) -> list[dict[str, Any]]:
    fields = [_shape(one) for one in avro["fields"]]
    return fields[fields.index(FIRST_HASHED) :] if FIRST_HASHED in fields else fields


def _changed(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    if before == after:
        return ""
    names = {one["name"]: None for one in [*before, *after] if one not in before or one not in after}
    return ", ".join(names) or "their order"


def _shape(node: Any) -> Any:
    """What of a field or type decides its bytes: defaults and aliases only matter to who reads."""
    if isinstance(node, dict):
        return {key: _shape(value) for key, value in node.items() if key not in ("default", "aliases")}
    return [_shape(item) for item in node] if isinstance(node, list) else node


def _unlike(locked: dict[str, str], found: dict[str, str], directory: pathlib.Path) -> Iterator[str]:
    for name, fingerprint in locked.items():
        path = schema.file_name(name)
        if not (directory / path).is_file():
            yield f"schemas/{path} is locked but missing: restore it, the records on the wire need it."
        elif name in found and found[name] != fingerprint:
            yield f"schemas/{path} differs from schemas/{schema.LOCK}: restore it and publish a new version."
