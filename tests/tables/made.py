"""Declarations of tables and rows for them: two that read like a team's, and any."""

import base64
from typing import Any

from hypothesis import strategies as st

from pipeline.tables import names
from pipeline.tables.model import LOGICAL, RANGES, Table, declared, registered

AT = "2026-11-20T10:00:00.000Z"
MICROS = {"type": "long", "logicalType": "timestamp-micros"}


def deployments(**changes: Any) -> dict[str, Any]:
    """Rows are known by their content."""
    fields = [
        {"name": "service", "type": "string"},
        {"name": "version", "type": "string"},
        {"name": "deployed_at", "type": MICROS},
        {"name": "duration_s", "type": ["null", "double"]},
        {"name": "replicas", "type": "int", "default": 1},
        {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []},
    ]
    return {
        "name": "deployments",
        "schema": {"type": "record", "name": "deployments", "fields": fields},
        "stores": ["postgres", "clickhouse"],
        "order": ["service"],
        "time": "deployed_at",
        "retention_days": 90,
        "owner": "platform",
        "labels": {"tier": "1"},
    } | changes


def audit_log(**changes: Any) -> dict[str, Any]:
    """Rows are known by their number: a later one of it replaces it."""
    fields = [
        {"name": "entry", "type": "long"},
        {"name": "actor", "type": "string"},
        {"name": "allowed", "type": "boolean"},
        {"name": "details", "type": {"type": "map", "values": "string"}, "default": {}},
    ]
    return {
        "name": "audit_log",
        "schema": {"type": "record", "name": "audit_log", "fields": fields},
        "stores": ["postgres", "clickhouse"],
        "keys": ["entry"],
        "retention_days": 365,
        "owner": "security",
    } | changes


def table(document: dict[str, Any]) -> Table:
    return registered(declared(document), who="ann", at=AT)


def with_fields(document: dict[str, Any], *more: dict[str, Any]) -> dict[str, Any]:
    """The same schema with `more` at its end."""
    schema = document["schema"]
    return schema | {"fields": [*schema["fields"], *more]}  # type: ignore[no-any-return]


_names = st.from_regex(r"[a-z][a-z0-9]{0,8}(_[a-z0-9]{1,5})?", fullmatch=True)
_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
_PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "string": _text,
    "float": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "double": st.floats(allow_nan=False, allow_infinity=False),
    **{kind: st.integers(*edges) for kind, edges in RANGES.items()},
}
VALUES = _PLAIN | {
    "float": st.one_of(_PLAIN["float"], st.sampled_from(["NaN", "Infinity", "-Infinity"])),
    "bytes": st.binary(max_size=9).map(lambda data: base64.b64encode(data).decode()),
}


def avro(kind: str) -> Any:
    return {"type": LOGICAL[kind], "logicalType": kind} if kind in LOGICAL else kind


@st.composite
def fields(draw: st.DrawFn, *, optional: bool = False, least: int = 1) -> list[tuple[dict[str, Any], Any]]:
    """Some fields, each with a strategy for its values; with `optional` only such as a later version may add."""
    found = []
    for name in draw(
        st.lists(_names.filter(lambda one: not names.column_problem(one)), min_size=least, max_size=5, unique=True)
    ):
        kind = draw(st.sampled_from(sorted(VALUES)))
        shape = draw(st.sampled_from(["plain", "nullable", "array", "map", "default"]))
        field: dict[str, Any] = {"name": name, "type": avro(kind)}
        values = VALUES[kind]
        if shape == "nullable":
            field["type"], values = ["null", avro(kind)], st.none() | values
        elif shape == "array":
            field |= {"type": {"type": "array", "items": avro(kind)}, "default": []}
            values = st.lists(values, max_size=3)
        elif shape == "map":
            field |= {"type": {"type": "map", "values": "string"}, "default": {}}
            values = st.dictionaries(_text, _text, max_size=3)
        elif shape == "default" or optional:
            field["default"] = "" if kind == "bytes" else draw(_PLAIN[kind])
        found.append((field, values))
    return found


@st.composite
def row(draw: st.DrawFn, of: list[tuple[dict[str, Any], Any]]) -> dict[str, Any]:
    """A good row; what may be left out sometimes is."""
    found = {}
    for field, values in of:
        optional = "default" in field or isinstance(field["type"], list)
        if not (optional and draw(st.booleans())):
            found[field["name"]] = draw(values)
    return found


def any_table(of: list[tuple[dict[str, Any], Any]], **more: Any) -> dict[str, Any]:
    return {
        "name": "things",
        "schema": {"type": "record", "name": "things", "fields": [field for field, _ in of]},
        "stores": ["clickhouse"],
        "retention_days": 1,
        "owner": "ann",
    } | more
