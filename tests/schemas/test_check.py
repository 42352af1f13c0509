"""Which versions of a schema may stand beside each other."""

import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from fastavro.utils import generate_one
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import schemas
from pipeline.errors import Misconfigured
from pipeline.record import schema
from pipeline.settings import ROOT
from tests.schemas.evolution import Avro, Change, changed, directory, event_id, published, read, with_zone, written

RECORDS = ("log_record", "metric_point", "span")


def test_the_published_schemas_pass() -> None:
    """Every file is locked, lawful, and readable by every other version of its record."""
    report = schemas.check()
    assert (report.problems, report.unlocked) == ([], [])
    assert set(schema.CURRENT.values()) <= set(report.fingerprints) == set(schema.locked())


def test_the_reserved_words_are_the_servers(postgres: str) -> None:
    """What PostgreSQL itself lists as reserved, no more and no less."""
    with psycopg.connect(postgres) as connected:
        words = connected.execute("SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')").fetchall()
    assert {word for (word,) in words} == schemas.RESERVED


@pytest.mark.parametrize("record", RECORDS)
def test_a_field_before_the_hashed_ones_is_lawful(tmp_path: pathlib.Path, record: str) -> None:
    """A new version with it has no problem, is told to be unlocked, and is locked once."""
    where = directory(tmp_path, **{f"{record}_v2": changed(record, with_zone)})
    report = schemas.check(where)
    assert (report.problems, report.unlocked) == ([], [f"{record}/2"])
    schemas.lock(report, where)
    report = schemas.check(where)
    assert (report.problems, report.unlocked) == ([], [])
    assert schema.locked(where)[f"{record}/1"] == schema.locked()[f"{record}/1"]


def place(fields: list[Avro], name: str) -> int:
    return [field["name"] for field in fields].index(name)


def replaced(name: str, **with_: Any) -> Change:
    return lambda fields: fields[place(fields, name)].update(with_)


def added(before: str, **field: Any) -> Change:
    return lambda fields: fields.insert(place(fields, before), field)


def moved(name: str, before: str) -> Change:
    return lambda fields: fields.insert(place(fields, before), fields.pop(place(fields, name)))


UNLAWFUL: dict[str, tuple[Change, list[str]]] = {
    "a hashed field more": (
        added("ordinal", name="color", type="string", default=""),
        ["log_record.v2.avsc: changes what is hashed since version 1 (color): stored content would get another"],
    ),
    "a hashed field less": (
        lambda fields: fields.pop(place(fields, "flags")),
        ["(flags): stored", "log_record/1 cannot read what log_record/2 wrote: reader field missing default"],
    ),
    "hashed fields in another order": (moved("service", "tenant"), ["changes what is hashed since version 1 (service"]),
    "hashed fields in another order, behind tenant": (moved("span_id", "trace_id"), ["version 1 (their order)"]),
    "a hashed field of another type": (
        replaced("severity_number", type="long"),
        ["(severity_number)", "log_record/1 cannot read what log_record/2 wrote: type mismatch"],
    ),
    "a hashed field that may be null": (
        replaced("body", type=["string", "null"]),
        ["(body)", "log_record/1 cannot read what log_record/2 wrote"],
    ),
    "a new field without a default": (
        added("tenant", name="zone", type="string"),
        ["log_record/2 cannot read what log_record/1 wrote: reader field missing default value (zone) at /fields/3"],
    ),
    "an unhashed field of another type": (replaced("region", type="bytes"), ["the first fields are event_id"]),
    "a field before event_id": (added("event_id", name="zone", type="string", default=""), ["the first fields are"]),
    "no tenant": (lambda fields: fields.pop(place(fields, "tenant")), ["tenant (string) is missing"]),
    "ordinal not last": (moved("ordinal", "flags"), ["the last field is ordinal (int)"]),
    "a reserved word": (added("tenant", name="user", type="string", default=""), ["`user`: is a reserved word"]),
    "a reserved word in a nested record": (
        added("tenant", name="zone", default={"table": ""}, type={
            "type": "record", "name": "zone_type", "fields": [{"name": "table", "type": "string"}]}),
        ["`table`: is a reserved word"],
    ),
    "capitals": (added("tenant", name="timeZone", type="string", default=""), ["`timeZone`: a name has lower-case"]),
    "a default of another type": (
        added("tenant", name="zone", type="string", default=5),
        ["is no Avro schema of a record: Default value <5> must match schema type: string"],
    ),
    "a field twice": (
        added("tenant", name="region", type="string", default=""),
        ["is no Avro schema of a record: Field name region already in use"],
    ),
    "an unknown type": (added("tenant", name="zone", type="text"), ["is no Avro schema of a record"]),
}  # fmt: skip


@pytest.mark.parametrize("case", UNLAWFUL)
def test_an_unlawful_version_is_refused_by_name(tmp_path: pathlib.Path, case: str) -> None:
    """Each broken rule is a sentence, and what has problems is not locked."""
    change, expected = UNLAWFUL[case]
    where = directory(tmp_path, log_record_v2=changed("log_record", change))
    report = schemas.check(where)
    for sentence in expected:
        assert any(sentence in problem for problem in report.problems), report.problems
    with pytest.raises(Misconfigured):
        schemas.lock(report, where)
    assert schema.locked(where) == schema.locked()


def test_all_problems_of_all_files_are_told_at_once(tmp_path: pathlib.Path) -> None:
    """Edited, lost, misnamed, unreadable files and gaps are one report."""
    where = directory(
        tmp_path,
        span_v1=changed("span", with_zone),
        log_record_v3=changed("log_record", with_zone),
        span_v2=published("log_record"),
    )
    (where / "metric_point.v1.avsc").unlink()
    (where / "Span.avsc").write_text("{}")
    (where / "event.v1.avsc").write_text("[")
    (where / "event.v2.avsc").write_text('"string"')
    problems = schemas.check(where).problems
    for expected in (
        "schemas/Span.avsc: a schema is called", "schemas/event.v1.avsc: is no Avro schema",
        "schemas/event.v2.avsc: is no Avro schema of a record: its type is not record.",
        "schemas/log_record.v2.avsc is missing: versions", "schemas/metric_point.v1.avsc is locked but missing",
        "schemas/span.v1.avsc differs from schemas/lock.json", "schemas/span.v2.avsc: name: is log_record",
        "span/1 cannot read what span/2 wrote", "span/2 cannot read what span/1 wrote",
    ):  # fmt: skip
        assert any(problem.startswith(expected) for problem in problems), (expected, problems)
    (where / "lock.json").write_text("[5]")
    assert any("schemas/lock.json is no JSON object" in problem for problem in schemas.check(where).problems)


def test_every_version_reads_every_other(tmp_path: pathlib.Path) -> None:
    """Not only its neighbour: a default that two versions have and a third has not is a problem of the third alone."""
    other_type = added("tenant", name="zone", type="long", default=0)
    where = directory(
        tmp_path,
        span_v2=changed("span", with_zone),
        span_v3=published("span"),
        span_v4=changed("span", other_type),
    )
    told = [problem.split(":")[0] for problem in schemas.check(where).problems]
    assert told == ["span/2 cannot read what span/4 wrote", "span/4 cannot read what span/2 wrote"]


TYPES = st.recursive(
    st.sampled_from(["null", "boolean", "int", "long", "float", "double", "bytes", "string"])
    | st.sampled_from([["A"], ["A", "B"], ["B", "C"]]).map(lambda s: {"type": "enum", "name": "kind", "symbols": s})
    | st.sampled_from([2, 3]).map(lambda size: {"type": "fixed", "name": "short", "size": size}),
    lambda below: (
        below.map(lambda items: {"type": "array", "items": items})
        | below.map(lambda values: {"type": "map", "values": values})
        | st.lists(st.sampled_from(["null", "int", "long", "double", "string"]), min_size=1, max_size=3, unique=True)
    ),
    max_leaves=3,
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(TYPES, TYPES, st.booleans())
def test_the_judge_agrees_with_what_really_reads(ours: Any, theirs: Any, defaults: bool) -> None:
    """What it lets pass fastavro reads, whatever the record; what it refuses fastavro cannot read some record of."""
    reader, writer = ({"type": "record", "name": "r", "fields": [{"name": "f", "type": t}]} for t in (ours, theirs))
    if defaults:
        reader["fields"].append({"name": "new", "type": "int", "default": 7})
    fails = False
    for record in [generate_one(writer) for _ in range(20)]:
        try:
            found = read(written(writer, record), writer, reader)
        except UnicodeDecodeError:  # bytes are read as a string by the rules, if they are text
            continue
        except Exception:
            fails = True
            continue
        assert found.keys() == {field["name"] for field in reader["fields"]}
    assert fails == bool(schemas.unreadable(reader, writer))


ADDED = st.dictionaries(
    st.sampled_from(["zone", "gateway", "hint"]),
    st.sampled_from(
        [("string", ""), ("long", -1), (["null", "double"], None), ({"type": "map", "values": "string"}, {})]
    ),
    min_size=1,
)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(RECORDS), ADDED)
def test_a_lawful_version_keeps_every_id_and_reads_both_ways(record: str, new: dict[str, Any]) -> None:
    """Same content, same id, and each version makes of the other's bytes what it knows of them."""
    fields = [{"name": name, "type": kind, "default": default} for name, (kind, default) in new.items()]
    old = published(record)
    avro = changed(record, lambda before: before.__setitem__(slice(3, 3), fields))
    assert not [*schemas.unreadable(old, avro), *schemas.unreadable(avro, old)]
    content: Any = generate_one(old)
    defaults = {name: default for name, (_, default) in new.items()}
    assert event_id(avro, content | defaults) == event_id(old, content)
    upgraded = read(written(old, content), old, avro)
    assert upgraded.items() >= defaults.items()
    assert written(old, read(written(avro, upgraded), avro, old)) == written(old, content)


@pytest.mark.parametrize(
    ("change", "default"),
    [
        (UNLAWFUL["a hashed field more"][0], {"color": ""}),
        (UNLAWFUL["a hashed field less"][0], {}),
        (UNLAWFUL["hashed fields in another order, behind tenant"][0], {}),
        (UNLAWFUL["a hashed field that may be null"][0], {}),
    ],
)
def test_an_unlawful_version_would_change_ids(change: Change, default: dict[str, Any]) -> None:
    """The refusal is no formality: the same content would be another event."""
    old, new = published("log_record"), changed("log_record", change)
    content: Any = generate_one(old)
    assert event_id(new, content | default) != event_id(old, content)


def test_the_command(tmp_path: pathlib.Path) -> None:
    """`check` is exit 0 or 2, `lock` asks, which without a yes is 130, and a release with an unlocked or unlawful file says so."""

    def run(*arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", "schemas", *arguments],
            cwd=tmp_path, input=answer, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    directory(tmp_path / "schemas", span_v2=changed("span", with_zone))
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    found = run("check", "--json")
    assert found.returncode == 2
    assert json.loads(found.stdout)["problems"] == [
        "span/2 is not locked: nobody may write it yet. Publish it with `pipeline schemas lock`."
    ]
    assert run("lock", answer="n\n").returncode == 130
    alone = run("lock")
    assert (alone.returncode, "Nothing was done: --yes answers" in alone.stderr) == (130, True)
    assert run("lock", "--yes").returncode == 0
    assert run("check").returncode == 0
