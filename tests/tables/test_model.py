"""What may be declared, and what a table may become."""

import json
from typing import Any

import fastavro
import pytest
from avro.schema import make_avsc_object
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import schemas
from pipeline.tables import model
from pipeline.tables.model import Conflict, Evolution, Invalid
from tests.tables import made

Fields = list[tuple[dict[str, Any], Any]]


def evolution(version: int = 1, **changes: Any) -> Evolution:
    return model.evolution({"expected_version": version, **changes})


def problems(document: object) -> list[tuple[str, str]]:
    """(path, got) of all that is wrong with a declaration."""
    with pytest.raises(Invalid) as error:
        model.declared(document)
    return [(problem.path, problem.got) for problem in error.value.problems]


@settings(deadline=None, max_examples=30)
@given(made.fields())
def test_what_is_declared_reads_as_it_was_written(fields: Fields) -> None:
    """A table's document gives the same table again, and its wire schema is Avro to both libraries."""
    table = made.table(made.any_table(fields))
    assert model.parsed(json.loads(json.dumps(table.as_json()))) == table
    make_avsc_object(table.wire)
    fastavro.parse_schema(table.wire)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_every_version_reads_every_other(data: st.DataObject) -> None:
    """What evolution lets through is compatible in both directions by Avro's own rules, over several versions."""
    fields = data.draw(made.fields())
    document = made.any_table(fields)
    versions = [made.table(document)]
    for n in range(2):
        added = data.draw(made.fields(optional=True))
        more = [{**field, "name": f"added{n}_{field['name']}"} for field, _ in added]
        document["schema"] = made.with_fields(document, *more)
        versions.append(model.evolved(versions[-1], evolution(n + 1, schema=document["schema"]), who="bob", at=made.AT))
    assert [table.version for table in versions] == [1, 2, 3]
    for one in versions:
        assert versions[-1].fields_of(one.version) == one.columns
        for other in versions:
            assert schemas.unreadable(one.wire, other.wire) == ""


def test_all_problems_are_told_at_once() -> None:
    """Path and value of everything that is wrong, in one answer: keys, names, types, defaults, what keys may be."""
    fields = [
        {"name": "select", "type": "string"},
        {"name": "Event", "type": "string"},
        {"name": "tenant", "type": "string"},
        {"name": "xmin", "type": "string"},
        {"name": "a", "type": "decimal"},
        {"name": "b", "type": ["string", "null"]},
        {"name": "c", "type": "int", "default": 1 << 31},
        {"name": "d", "type": {"type": "map", "values": "int"}},
        {"name": "e", "type": {"type": "array", "items": {"type": "array", "items": "int"}}},
        {"name": "f", "type": "string", "aliases": ["g"]},
        {"name": "f", "type": "string"},
        7,
    ]
    document = made.deployments(
        name="events", schema={"type": "record", "name": "events", "fields": fields}, stores=["mysql"], colour="red"
    )
    assert problems(document) == [
        ("stores.0", '"mysql"'),
        ("colour", '"red"'),
        ("name", '"events"'),
        ("schema.fields[0].name", '"select"'),
        ("schema.fields[1].name", '"Event"'),
        ("schema.fields[2].name", '"tenant"'),
        ("schema.fields[3].name", '"xmin"'),
        ("schema.fields[4].type", '"decimal"'),
        ("schema.fields[5].type", "an array of 2"),
        ("schema.fields[6].default", "2147483648"),
        ("schema.fields[7].type.values", '"int"'),
        ("schema.fields[8].type.items", '"array"'),
        ("schema.fields[9].aliases", "an array of 1"),
        ("schema.fields[10].name", "f"),
        ("schema.fields[11]", "7"),
        ("order[0]", '"service"'),
        ("time", '"deployed_at"'),
    ]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"keys": ["nobody"]}, "keys[0]"),
        ({"keys": ["duration_s"]}, "keys[0]"),
        ({"order": ["tags"]}, "order[0]"),
        ({"order": ["service", "service"]}, "order"),
        ({"time": "service"}, "time"),
        ({"stores": ["postgres", "postgres"]}, "stores"),
        ({"stores": []}, "stores"),
        ({"retention_days": 0}, "retention_days"),
        ({"retention_days": "30"}, "retention_days"),
        ({"labels": {"a": 1}}, "labels.a"),
        ({"owner": "a\0b"}, "owner"),
        ({"name": "deploys"}, "schema.name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_together_is_told(changes: dict[str, Any], path: str) -> None:
    """Keys, order and time are fields of fitting types, texts can be stored, and the schema is called like the table."""
    assert [found for found, _ in problems(made.deployments(**changes))] == [path]


HOSTILE = [
    "",
    "a;drop table x",
    'a"b',
    "a`b",
    "a'b",
    "é",
    "a b",
    "a.b",
    "a__b",
    "_a",
    "1a",
    "a" * 49,
    "pg_class",
    "table",
    "a\n",
    "\u0410",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_refused(name: str) -> None:
    """No table and no field may have a name that would need quoting, or that helpers of the stores may have."""
    document = made.deployments(name=name)
    document["schema"] = document["schema"] | {"name": name}
    assert ("name", json.dumps(name)) in problems(document)
    field = {"name": name, "type": "string"}
    if name != "pg_class":
        assert problems(made.deployments(schema=made.with_fields(made.deployments(), field)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=10,
)


@settings(deadline=None, max_examples=50)
@given(
    JSON, st.sampled_from(sorted(made.deployments())), st.integers(0, 5), st.sampled_from(["name", "type", "default"])
)
def test_no_document_is_more_than_refused(value: Any, key: str, n: int, inner: str) -> None:
    """Whatever JSON stands for a document or any part of it: it is taken, or refused with problems."""
    document = made.deployments()
    field = {**document["schema"]["fields"][n], inner: value}
    fields = [*document["schema"]["fields"]]
    fields[n] = field
    for wrong in (value, document | {key: value}, document | {"schema": document["schema"] | {"fields": fields}}):
        try:
            made.table(wrong)
        except Invalid as error:
            told = json.dumps([problem._asdict() for problem in error.problems])
        else:
            continue
        assert told != "[]"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda fields: fields[:-1], "schema.fields[5]"),
        (lambda fields: [{"name": "first", "type": ["null", "int"]}, *fields], "schema.fields[0]"),
        (lambda fields: [fields[0], {**fields[1], "type": "bytes"}, *fields[2:]], "schema.fields[1]"),
        (lambda fields: [*fields[:4], {**fields[4], "default": 2}, fields[5]], "schema.fields[4]"),
        (lambda fields: [*fields, {"name": "added", "type": "int"}], "schema.fields[6]"),
    ],
    ids=["removed", "before", "type", "default", "demanded"],
)
def test_what_could_not_be_read_is_no_version(change: Any, path: str) -> None:
    """A field never goes, moves, or changes its type or default, and a new one has a default."""
    table = made.table(made.deployments())
    schema = table.avro | {"fields": change(table.avro["fields"])}
    with pytest.raises(Invalid) as error:
        model.evolved(table, evolution(schema=schema), who="bob", at=made.AT)
    assert path in [problem.path for problem in error.value.problems]


def test_history_says_who_did_what() -> None:
    """Versions follow one another only from the one that was looked at, nothing new is none, and a retired table is."""
    table = made.table(made.deployments())
    assert model.evolved(table, evolution(), who="bob", at=made.AT) is table
    second = model.evolved(table, evolution(retention_days=7), who="bob", at="later")
    with pytest.raises(Conflict, match="has version 2, not 1"):
        model.evolved(second, evolution(retention_days=8), who="bob", at=made.AT)
    retired = model.retired(second, 2, who="eve", at="last")
    assert [(one.version, one.action, one.who, one.at) for one in retired.history] == [
        (1, "registered", "ann", made.AT),
        (2, "evolved", "bob", "later"),
        (2, "retired", "eve", "last"),
    ]
    with pytest.raises(Conflict, match="is retired"):
        model.evolved(retired, evolution(2), who="bob", at=made.AT)
