"""Registered tables for tests: as a team declares them, and their rows as the gateway puts them into Kafka."""

import datetime
import itertools
import json
import pathlib
from typing import Any

from pipeline.delivery import Message
from pipeline.record.framing import Origin
from pipeline.settings import RegistrySettings
from pipeline.tables import model
from pipeline.tables.client import Tables
from pipeline.tables.model import Table
from pipeline.tables.rows import Limits, Rows

AT = "2026-11-20T10:00:00Z"
NOW = 1_795_000_000 * 10**9
DAY_NS = 86_400 * 10**9
NOBODY = RegistrySettings(url="http://127.0.0.1:1")
_offsets = itertools.count()


def plain(kind: str) -> Any:
    if kind in model.LOGICAL:
        return {"type": model.LOGICAL[kind], "logicalType": kind}
    return {"type": "map", "values": "string"} if kind == "map" else kind


SIMPLE = [
    "boolean", "int", "long", "float", "double", "string", "bytes", "timestamp-millis", "timestamp-micros",
    "timestamp-nanos", "date",
]  # fmt: skip
# Of every type that there is: a value as a client writes it, and the greatest or oddest one.
VALUES: dict[str, tuple[Any, Any]] = {
    "boolean": (True, False),
    "int": (-5, 2**31 - 1),
    "long": (1 << 40, -(2**63)),
    "float": (1.5, "-Infinity"),
    "double": (0.1, 5e-324),
    "string": ("it's", "\\ \" ' ` {} %s $1 \n é 𝄞"),
    "bytes": ("AP8=", ""),
    "timestamp-millis": ("2026-11-20T10:00:00.123Z", "1970-01-01T00:00:00Z"),
    "timestamp-micros": ("2026-11-20T10:00:00.123456Z", "1999-12-31T23:59:59.999999Z"),
    "timestamp-nanos": ("2026-11-20T10:00:00.123456Z", "2100-01-01T00:00:00Z"),
    "date": ("2026-11-20", "1969-12-31"),
    "map": ({"a": "it's", "ü": ""}, {}),
}
FIELDS = {
    **{f"f_{name.replace('-', '_')}": plain(name) for name in VALUES},
    **{f"a_{name.replace('-', '_')}": {"type": "array", "items": plain(name)} for name in SIMPLE},
}
ROWS = [
    {
        f"{what}_{name.replace('-', '_')}": both[n] if what == "f" else [both[n], both[0]] * n
        for name, both in VALUES.items()
        for what in ("f", "a")
        if (what, name) != ("a", "map")
    }
    for n in (0, 1)
]


def declared(name: str, fields: dict[str, Any], **more: Any) -> Table:
    """Version 1."""
    said = {"stores": ["postgres", "clickhouse"], "retention_days": 30, "owner": "tests", **more}
    return model.registered(
        model.declared({"name": name, "schema": record(name, fields), **said}), who="tests", at=AT
    )  # fmt: skip


def record(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "record",
        "name": name,
        "fields": [{"name": key, **(kind if "type" in kind and "default" in kind else {"type": kind})}
                   if isinstance(kind, dict) else {"name": key, "type": kind} for key, kind in fields.items()],
    }  # fmt: skip


def evolved(table: Table, *fields: dict[str, Any], **more: Any) -> Table:
    """The next version, with these fields more."""
    avro = {**table.avro, "fields": [*table.avro["fields"], *fields]}
    wanted = model.evolution({"expected_version": table.version, "schema": avro, **more})
    return model.evolved(table, wanted, who="tests", at=AT)


def message(table: Table, *rows: dict[str, Any], received: int = NOW, region: str = "eu") -> Message:
    """One message of its latest version."""
    taken = Rows(table).encode(rows, Origin("acme", region, received), partitions=1, limits=Limits())
    assert not taken.problems
    [group] = taken.groups
    headers = {
        "schema": table.schema_name.encode(), "records": b"%d" % group.records,
        "min_time": b"%d" % group.min_time, "max_time": b"%d" % group.max_time,
    }  # fmt: skip
    return Message("events_raw", 0, next(_offsets), headers, group.value)


def known(file: pathlib.Path, *tables: Table) -> Tables:
    """What a process knows whose registry is away."""
    file.write_text(json.dumps({"tables": [table.as_json() for table in tables]}))
    return Tables(NOBODY, file=file)


def day(n: int) -> str:
    """RFC 3339, n days before NOW."""
    return datetime.datetime.fromtimestamp((NOW - n * DAY_NS) / 1e9, datetime.UTC).isoformat().replace("+00:00", "Z")
