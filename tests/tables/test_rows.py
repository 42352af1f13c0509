"""Rows of registered tables: what they become, what identifies them, and what is refused."""

import hashlib
import io
import json
import time
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Rejected, TooLarge
from pipeline.record.avro import STRING, long
from pipeline.record.framing import MAX_VALUE_BYTES, Origin
from pipeline.tables import model, rows
from pipeline.tables.model import Table
from tests.tables import made

NOW = 1_795_000_000 * 10**9
ORIGIN = Origin("shop", "eu", NOW)
DEPLOYMENT = {"service": "cart", "version": "1.2", "deployed_at": "2026-11-15T10:00:00.5Z"}
ENTRY = {"entry": 1, "actor": "ann", "allowed": True, "time": "2026-11-15T10:00:00Z"}


def encode(table: Table, given: list[Any], origin: Origin = ORIGIN, partitions: int = 4, **limits: int) -> rows.Taken:
    return rows.Rows(table).encode(given, origin, partitions=partitions, limits=rows.Limits(**limits))


def records(taken: rows.Taken) -> list[dict[str, Any]]:
    return [record for group in taken.groups for record in fastavro.reader(io.BytesIO(group.value))]  # type: ignore[misc]


def ids(taken: rows.Taken) -> list[bytes]:
    return [record["event_id"] for record in records(taken)]


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_good_rows_are_files_that_fastavro_writes_equal(data: st.DataObject) -> None:
    """A row that fits is taken, and its record is what a generic encoder makes of the same values, byte for byte."""
    fields = data.draw(made.fields())
    table = made.table(made.any_table(fields))
    given = data.draw(st.lists(made.row(fields), min_size=1, max_size=4))
    taken = encode(table, given)
    assert (taken.accepted, taken.problems) == (len(given), [])
    schema = rows.Rows(table).schema
    for group in taken.groups:
        written = io.BytesIO()
        found = list(fastavro.reader(io.BytesIO(group.value)))
        fastavro.writer(
            written,
            fastavro.parse_schema(schema.avro),
            found,
            codec="null",
            sync_marker=b"pipeline-ocf-v01",
            metadata={},
        )
        if not any(isinstance(value, float) and value != value for one in found for value in one.values()):  # noqa: PLR0124
            assert written.getvalue() == group.value


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_field_that_is_added_changes_no_id(data: st.DataObject) -> None:
    """A row has the same event_id in every version of its table that knows its fields, in any order of its keys."""
    fields, added = data.draw(made.fields()), data.draw(made.fields(optional=True))
    document = made.any_table(fields)
    old = made.table(document)
    more = [{**field, "name": f"added_{field['name']}"} for field, _ in added]
    new = model.evolved(
        old, model.evolution({"expected_version": 1, "schema": made.with_fields(document, *more)}), who="b", at=made.AT
    )
    row = data.draw(made.row(fields))
    other = Origin("shop", "us", NOW + 5)
    assert ids(encode(old, [row])) == ids(encode(new, [dict(reversed(row.items()))], other))


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_rows_that_differ_are_two_events(data: st.DataObject) -> None:
    """Of two rows with different records no two have one id; nor have twins of one request."""
    fields = data.draw(made.fields(least=2))
    table = made.table(made.any_table(fields))
    one, two = data.draw(made.row(fields)), data.draw(made.row(fields))
    stored = [{**record, "event_id": 0} for given in (one, two) for record in records(encode(table, [given]))]
    same = repr(stored[0]) == repr(stored[1])
    assert (ids(encode(table, [one])) == ids(encode(table, [two]))) is same
    assert len(set(ids(encode(table, [one, two, one, two])))) == 4
    assert sorted(ids(encode(table, [one, two, one]))) == sorted(ids(encode(table, [one, two, one])))


def test_an_id_can_be_checked_by_hand() -> None:
    """The id is BLAKE2b-128 over what the module says, here written out once for each kind of table."""
    row = {**DEPLOYMENT, "replicas": 1, "tags": ["x"]}
    at = 1_794_736_800_500_000
    content = (
        STRING["shop"] + STRING["deployments"] + long(at * 1000)
        + STRING["deployed_at"] + long(at) + STRING["service"] + STRING["cart"]
        + STRING["tags"] + b"\2" + STRING["x"] + b"\0" + STRING["version"] + STRING["1.2"] + STRING[""] + long(0)
    )  # fmt: skip
    assert ids(encode(made.table(made.deployments()), [row])) == [hashlib.blake2b(content, digest_size=16).digest()]
    content = STRING["shop"] + STRING["audit_log"] + long((at // 1000 - 500) * 10**6) + STRING["entry"] + long(1)
    assert ids(encode(made.table(made.audit_log()), [ENTRY])) == [hashlib.blake2b(content, digest_size=16).digest()]


def test_rows_of_one_key_are_one_event_and_the_last_is_the_latest() -> None:
    """Where a table has keys, what else differs changes no id, and within a request a later row was received later."""
    table = made.table(made.audit_log())
    found = records(
        encode(
            table, [ENTRY, {**ENTRY, "actor": "bob"}, {**ENTRY, "entry": 2}, {**ENTRY, "actor": "eve"}], partitions=1
        )
    )
    first = [record for record in found if record["entry"] == 1]
    assert len({record["event_id"] for record in found}) == 2
    assert [(one["actor"], one["received_time"]) for one in first] == [
        ("ann", NOW), ("bob", NOW + 1000), ("eve", NOW + 2000),
    ]  # fmt: skip
    moved = {**ENTRY, "time": "2026-11-15T10:00:01Z"}
    assert ids(encode(table, [moved])) != ids(encode(table, [ENTRY]))


@pytest.mark.parametrize("said", [None, "1999-12-31T00:00:00Z", "2200-01-01T00:00:00Z"])
def test_a_row_of_a_table_with_keys_needs_a_time(said: str | None) -> None:
    """Without a usable time a retry would be another row, so it is refused."""
    [found] = encode(made.table(made.audit_log()), [{**ENTRY, "time": said}]).problems
    assert (found.row, found.problem.path) == (0, "time")


def test_times_are_the_tables_field_then_the_rows_then_the_receipt() -> None:
    """A header's times are the events' where they are usable, and where not the receipt's, counted."""
    taken = encode(made.table(made.deployments()), [DEPLOYMENT])
    [group] = taken.groups
    assert (group.min_time, group.max_time, taken.untimed) == (1_794_736_800_500_000_000, 1_794_736_800_500_000_000, 0)
    table = made.table(made.deployments(time=None))
    other = "2026-11-15T11:00:00.123456789+01:00"
    [record] = records(encode(table, [{**DEPLOYMENT, "time": other}]))
    assert record["time"] == 1_794_736_800_123_456_789
    taken = encode(table, [DEPLOYMENT])
    assert [(group.min_time, taken.untimed) for group in taken.groups] == [(NOW, 1)]
    assert records(taken)[0]["time"] == 0


WRONG: list[tuple[str, Any, str]] = [
    ("service", 1, "service"),
    ("service", None, "service"),
    ("service", "a\0", "service"),
    ("service", "\ud800", "service"),
    ("service", "x" * 1024, "service"),
    ("version", [], "version"),
    ("deployed_at", "yesterday", "deployed_at"),
    ("deployed_at", "2026-02-30T00:00:00Z", "deployed_at"),
    ("deployed_at", "2026-11-15T10:00:00", "deployed_at"),
    ("deployed_at", "2026-11-15T10:00:00.1234567Z", "deployed_at"),
    ("deployed_at", 1 << 63, "deployed_at"),
    ("deployed_at", True, "deployed_at"),
    ("duration_s", "1", "duration_s"),
    ("duration_s", 10**400, "duration_s"),
    ("replicas", 1.0, "replicas"),
    ("replicas", 1 << 31, "replicas"),
    ("replicas", False, "replicas"),
    ("replicas", None, "replicas"),
    ("tags", "x", "tags"),
    ("tags", ["x", 1], "tags[1]"),
    ("time", "2026-11-15T10:00:00Z", "time"),
    ("replica", 1, "replica"),
]


@pytest.mark.parametrize(("key", "value", "path"), WRONG, ids=range(len(WRONG)))
def test_what_does_not_fit_is_refused_by_name(key: str, value: Any, path: str) -> None:
    """A wrong value is told with its path; the rows beside it are taken."""
    taken = encode(made.table(made.deployments()), [DEPLOYMENT, {**DEPLOYMENT, key: value}, DEPLOYMENT])
    assert (taken.accepted, taken.rejected) == (2, 1)
    assert [(found.row, found.problem.path) for found in taken.problems] == [(1, path)]
    json.dumps([found.as_json() for found in taken.problems]).encode()


def test_all_problems_of_a_row_are_told() -> None:
    """Everything that is wrong with a row is in one answer, with what was expected and what was there."""
    taken = encode(made.table(made.deployments()), [{"servise": "cart", "version": 1, "tags": [2, "x"]}])
    assert [tuple(found.problem) for found in taken.problems] == [
        ("service", "a value of type string", "nothing"),
        ("version", "a text without U+0000 and lone surrogates", "1"),
        ("deployed_at", "a value of type timestamp-micros", "nothing"),
        ("tags[0]", "a text without U+0000 and lone surrogates", "2"),
        ("servise", "no such field; near it is service", '"cart"'),
    ]
    assert taken.strange


@settings(deadline=None, max_examples=30)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3)),
       st.sampled_from(sorted(DEPLOYMENT | {"duration_s": 0, "replicas": 0, "tags": 0})))  # fmt: skip
def test_no_row_is_more_than_refused(value: Any, key: str) -> None:
    """Whatever JSON stands for a row or a value: it is taken or refused, and its neighbour is taken."""
    for table, good in ((made.deployments(), DEPLOYMENT), (made.audit_log(), ENTRY)):
        taken = encode(made.table(table), [value, {**good, key: value}, good])
        assert taken.accepted + taken.rejected == 3
        assert taken.accepted >= 1


def test_a_request_has_limits() -> None:
    """Of too many rows or bytes the first are taken; a row larger than a message is refused; problems are bounded."""
    table = made.table(made.deployments())
    assert encode(table, [DEPLOYMENT] * 5, max_rows=3).rejected == 2
    assert encode(table, [DEPLOYMENT] * 5, max_encoded_bytes=300).accepted in range(1, 5)
    large = {**DEPLOYMENT, "version": "x" * MAX_VALUE_BYTES}
    assert encode(table, [large, DEPLOYMENT]).accepted == 1
    taken = encode(table, [{}] * rows.MAX_PROBLEMS)
    assert (len(taken.problems), taken.omitted) == (rows.MAX_PROBLEMS, 2 * rows.MAX_PROBLEMS)
    many = encode(table, [{**DEPLOYMENT, "version": "x" * 1000 + str(n)} for n in range(3000)])
    assert many.accepted == 3000
    assert all(len(group.value) <= MAX_VALUE_BYTES for group in many.groups)


def test_bodies_are_read_in_three_shapes() -> None:
    """An object, an array and lines give the same rows; a bad line is its own problem, a bad body everybody's."""
    table = made.table(made.deployments())
    text = json.dumps(DEPLOYMENT).encode()
    shapes = [(text, False), (b"[" + text + b"]", False), (text + b"\n", True), (b"\r\n\n" + text, True)]
    found = [ids(encode(table, rows.read(body, lines=lines, max_values=100))) for body, lines in shapes]
    assert found == [found[0]] * 4
    taken = encode(table, rows.read(b"\n".join([text, b"{", b"\xff", b"null", text]), lines=True, max_values=100))
    assert (taken.accepted, [found.row for found in taken.problems]) == (2, [1, 2, 3])
    assert encode(table, rows.read(b"[null]", lines=False, max_values=9)).rejected == 1
    for body in (b"", b"{", b"\xff", b'{"a": NaN}', b"[" * 100_000, b"1" * 5000):
        with pytest.raises(Rejected):
            rows.read(body, lines=False, max_values=10**6)
    with pytest.raises(TooLarge):
        rows.read(b"[" + b"[]," * 100 + b"[]]", lines=False, max_values=100)


def test_equal_rows_of_a_request_are_counted_over_all_of_it() -> None:
    """A large request goes to more than one partition, and still no two of its rows are one event."""
    table = made.table(made.deployments())
    given = [DEPLOYMENT if n % 2 else {**DEPLOYMENT, "replicas": n} for n in range(5000)]
    started = time.process_time()
    taken = encode(table, given)
    assert time.process_time() - started < 5
    assert len({group.partition for group in taken.groups}) == 3
    assert len(set(ids(taken))) == 5000
    assert sorted(ids(encode(table, given))) == sorted(ids(taken))
