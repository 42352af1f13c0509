"""What an agent makes of a message: identity, order, provenance, and what becomes of records that it cannot take."""

import asyncio
import hashlib
import io
import subprocess
import sys
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import otlp
from pipeline.agents import Agent, LogRecord, MetricPoint, Record, Span, SpanEvent, agent, drop
from pipeline.agents.laws import records_of
from pipeline.agents.transform import DROPS_TOPIC, Made, Running, derived_id, remainder, transform
from pipeline.delivery import Message
from pipeline.errors import Rejected
from pipeline.record import container, schema
from pipeline.record.layout import layout
from pipeline.record.records import TYPES, encoded, read
from pipeline.record.schema import SIGNALS, Signal
from tests.otlp.requests import T0, log_requests, metric_requests, trace_requests

TOPICS: dict[Signal, str] = {"logs": "logs_norm", "metrics": "metrics_norm", "traces": "traces_norm"}
REQUESTS = {"logs": log_requests, "metrics": metric_requests, "traces": trace_requests}


def message(signal: Signal, value: bytes) -> Message:
    of = schema.of(signal)
    count = b"%d" % container.count(of.head, value)
    return Message(f"{signal}_raw", 2, 17, {"schema": of.name.encode(), "records": count, "tenant": b"shop"}, value)


def of(*records: Record) -> Message:
    """A message of these, with ids of their own."""
    signal = records[0].signal
    pieces = [encoded(each, bytes((n,)) * 16, type(each)(), T0) for n, each in enumerate(records)]
    return message(signal, container.value(schema.of(signal).head, pieces))


def made(one: Agent, given: Message, topics: dict[Signal, str] | None = None) -> Made:
    return transform(Running(one, one.function, topics or TOPICS), given)


def emitted(found: Made, topic: str) -> list[Any]:
    return [
        record for each in found.outputs if each.topic == topic for record in fastavro.reader(io.BytesIO(each.value))
    ]


@agent(reads="logs_raw", writes=tuple(TOPICS.values()), version=3)
def keep(record: LogRecord) -> LogRecord:
    return record


@pytest.mark.parametrize("signal", SIGNALS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_fields_are_those_that_fastavro_reads(signal: Signal, data: st.DataObject) -> None:
    """Every field of every record that a gateway makes reads as Avro's library reads it, and is written back as it
    was."""
    request = data.draw(REQUESTS[signal]())
    laid = layout(schema.CURRENT[signal])
    for group in otlp.encode(signal, request.SerializeToString(), otlp.Origin("t", "eu", T0), partitions=2).groups:
        wanted = fastavro.reader(io.BytesIO(group.value))
        for raw, want in zip(laid.records(group.value), wanted, strict=True):
            record = read(raw, laid, TYPES[signal])
            assert repr(plain(record.as_dict())) == repr(plain(want))
            again = type(record)(**{name: getattr(record, name) for name in own_fields(record)})
            assert all(again.piece(name) == record.piece(name) for name in own_fields(record))


def own_fields(record: Record) -> list[str]:
    given = ("event_id", "region", "received_time", "tenant", "series_id")
    return [name for name in record.as_dict() if name not in given]


def plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if hasattr(value, "items"):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


@settings(max_examples=30, deadline=None)
@given(st.lists(records_of("logs"), min_size=1, max_size=4))
def test_a_kept_record_is_the_same_but_for_its_receipt(records: list[LogRecord]) -> None:
    """Id and content as they were, received later by the agent's version in microseconds."""
    came = of(*records)
    went = emitted(made(keep, came), "logs_norm")
    wanted = list(fastavro.reader(io.BytesIO(came.value)))
    assert repr(went) == repr([{**one, "received_time": one["received_time"] + 3000} for one in wanted])


def test_one_from_one_keeps_its_id_and_further_records_have_their_own() -> None:
    """The first that is still the record keeps its id; the others' are made of the parent's, the agent's name and a
    number; the header says the parents."""

    @agent(reads="logs_raw", writes=tuple(TOPICS.values()), version=1)
    def many(record: LogRecord) -> list[Record]:
        return [
            MetricPoint(metric_name="lines", service=record.service, time=record.time, value=1.0, type="sum"),
            record.replace(body="1"), record.replace(body="2"), LogRecord(body="3"),
        ]  # fmt: skip

    found = made(many, of(LogRecord(body="0", service="a", time=T0)))
    parent = bytes(16)
    logs, points = emitted(found, "logs_norm"), emitted(found, "metrics_norm")
    assert [one["event_id"] for one in points] == [derived_id(parent, "many", 0)]
    assert [one["event_id"] for one in logs] == [parent, derived_id(parent, "many", 1), derived_id(parent, "many", 2)]
    assert derived_id(parent, "many", 1) == hashlib.blake2b(parent + b"many/1", digest_size=16).digest()
    headers = dict(next(each.headers for each in found.outputs if each.topic == "logs_norm"))
    assert headers["parents"] == parent * 3
    assert (headers["agent"], headers["agent_version"], headers["source"]) == (b"many", b"1", b"logs_raw/2@17")
    assert points[0]["series_id"] != 0


@pytest.mark.parametrize(
    ("record", "change", "moves"),
    [
        (LogRecord(service="a", time=T0), {"body": "b"}, False),
        (LogRecord(service="a", time=T0), {"service": "a"}, False),
        (LogRecord(service="a", time=T0), {"service": "b"}, True),
        (LogRecord(service="a", time=T0), {"time": T0 + 1}, True),
        (Span(events=(SpanEvent(T0, "x"),)), {"events": (SpanEvent(T0, "y"),)}, False),
        (Span(events=(SpanEvent(T0, "x"),)), {"events": ()}, True),
        (MetricPoint(metric_name="m"), {"description": "d"}, False),
        (MetricPoint(metric_name="m"), {"attributes": {"a": "b"}}, True),
        (MetricPoint(metric_name="m"), {"scope_attributes": {"a": "b"}}, True),
    ],
)
def test_what_stores_file_elsewhere_is_another_event(record: Record, change: dict[str, Any], moves: bool) -> None:
    """A record changed in a column by which stores find it has an id of its own, else two rows would have one."""

    @agent(reads="any", writes=tuple(TOPICS.values()), version=1)
    def changed(given: Record) -> Record:
        return given.replace(**change)

    [went] = emitted(made(changed, of(record)), TOPICS[record.signal])
    assert went["event_id"] == (derived_id(bytes(16), "changed", 0) if moves else bytes(16))


def test_drops_are_told_with_their_reasons() -> None:
    """Each dropped id and its reason are a message of their own topic; an agent of another signal says that it read."""

    @agent(reads="logs_raw", writes="logs_norm", version=1)
    def quiet(record: LogRecord) -> LogRecord | None:
        return [None, drop(42), drop("half of \ud83d")][record.severity_number]  # type: ignore[arg-type, return-value]

    found = made(quiet, of(LogRecord(), LogRecord(severity_number=1), LogRecord(severity_number=2)))
    assert found.drops == {"returned None": 1, "42": 1, "half of \\ud83d": 1}
    assert [(one["event_id"], one["reason"]) for one in emitted(found, DROPS_TOPIC)] == [
        (bytes(16), "returned None"), (b"\1" * 16, "42"), (b"\2" * 16, "half of \\ud83d"),
    ]  # fmt: skip
    [receipt] = made(quiet, of(LogRecord()), {"metrics": "metrics_norm"}).outputs
    assert (receipt.topic, receipt.records, dict(receipt.headers)["source"]) == (DROPS_TOPIC, 0, b"logs_raw/2@17")


def test_a_record_that_fails_leaves_its_neighbours_alone() -> None:
    """Neighbours are emitted; what failed is told with file and line, and is all that is left of the message."""

    @agent(reads="logs_raw", writes="logs_norm", version=1)
    def picky(record: LogRecord) -> LogRecord:
        return record.replace(body=str(1 // record.severity_number))

    came = of(LogRecord(severity_number=1), LogRecord(), LogRecord(severity_number=2))
    found = made(picky, came)
    assert [one["body"] for one in emitted(found, "logs_norm")] == ["1", "0"]
    [failed] = found.failed
    assert failed.number == 1
    assert failed.reason.startswith(f"{__file__}:")
    assert failed.reason.endswith("ZeroDivisionError: integer division or modulo by zero")
    left = remainder(came, found.failed)
    assert left.headers["records"] == b"1"
    assert [one["event_id"] for one in fastavro.reader(io.BytesIO(left.value))] == [b"\1" * 16]


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("failure", [SystemExit("bye"), asyncio.CancelledError("bye"), pytest.skip.Exception("bye")])
def test_what_ends_a_program_ends_no_agent(batch: bool, failure: BaseException) -> None:
    """A library that calls sys.exit, or a panic of Rust's, is a failure like others, with file and line."""

    @agent(reads="logs_raw", writes="logs_norm", version=1, batch=batch)
    def exits(given: Any) -> Any:
        if "bad" in [each.body for each in (given if batch else [given])]:
            raise failure
        return given

    found = made(exits, of(LogRecord(body="a"), LogRecord(body="bad")))
    assert [one["body"] for one in emitted(found, "logs_norm")] == ["a"]
    [failed] = found.failed
    assert failed.reason.startswith(f"{__file__}:")
    assert failed.reason.endswith(f"{type(failure).__name__}: bye")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (7, "returned int; it may return a record, None, drop(…) or a list of records."),
        ([LogRecord(), "x"], "returned str;"),
        (Span(), "returned a Span, but writes no topic of traces"),
    ],
)
def test_a_wrong_answer_is_a_sentence(answer: Any, said: str) -> None:
    """A value that is no record, and a record of a signal that the agent does not write: nothing of it is emitted."""

    @agent(reads="logs_raw", writes="logs_norm", version=1)
    def wrong(record: LogRecord) -> Any:
        return answer

    found = made(wrong, of(LogRecord()), {"logs": "logs_norm"})
    assert [one.reason for one in found.failed if said in one.reason]
    assert emitted(found, "logs_norm") == []


@pytest.mark.parametrize("first", [{"body": "first half"}, {"service": "elsewhere"}])
def test_an_answer_of_which_one_record_is_too_large_is_nothing(first: dict[str, Any]) -> None:
    """The record is told as failed, and what else was answered for it is not emitted; its neighbour is."""

    @agent(reads="logs_raw", writes="logs_norm", version=1)
    def grows(record: LogRecord) -> Any:
        return [record.replace(**first), record.replace(body="x" * 2_000_000)] if record.body == "big" else record

    found = made(grows, of(LogRecord(body="big"), LogRecord(body="small")))
    assert [one["body"] for one in emitted(found, "logs_norm")] == ["small"]
    [failed] = found.failed
    assert (failed.number, "made a record of 2,000," in failed.reason) == (0, True)


def test_what_is_raised_elsewhere_has_the_place_of_its_function() -> None:
    """Between other topics, as in another's file, it is the line that raised; outside both, the agent's own."""
    raised = keep.between("raised", reads="logs_raw", writes="logs_norm")
    raised.file = "another.py"

    def helped(record: LogRecord) -> Any:
        return record.replace(body=str(1 // 0))

    raised.function = helped
    [failed] = made(raised, of(LogRecord())).failed
    assert failed.reason.startswith(f"{__file__}:{helped.__code__.co_firstlineno + 1}: ZeroDivisionError")
    raised.function = lambda: None
    [failed] = made(raised, of(LogRecord())).failed
    assert failed.reason.startswith(f"another.py:{raised.line}: TypeError")


def test_a_batch_has_an_answer_for_each() -> None:
    """One record that raises is found by halving; a list of another length is told, and nothing of it is emitted."""

    @agent(reads="logs_raw", writes="logs_norm", version=1, batch=True)
    def some(records: list[LogRecord]) -> list[LogRecord]:
        if any(record.body == "bad" for record in records):
            raise ValueError("bad")
        return [] if records[0].body == "short" else records

    found = made(some, of(*(LogRecord(body=body) for body in ("a", "bad", "c", "b"))))
    assert [one["body"] for one in emitted(found, "logs_norm")] == ["a", "c", "b"]
    assert [one.number for one in found.failed] == [1]
    [failed] = made(some, of(LogRecord(body="short"))).failed
    assert failed.reason.endswith("some returned 0 answers for 1 records.")


def test_records_do_not_change() -> None:
    """A field cannot be set, nor a map in it; what does not fit the schema is told by its name."""
    record = LogRecord(attributes={"a": "b"})
    with pytest.raises(AttributeError, match=r"use record\.replace\(body=…\)"):
        record.body = "x"
    with pytest.raises(TypeError):
        record.attributes["a"] = "c"  # type: ignore[index]
    with pytest.raises(TypeError, match="body must be str, not int"):
        record.replace(body=1)
    with pytest.raises(TypeError, match="no field 'bodies'"):
        record.replace(bodies="x")
    with pytest.raises(TypeError, match="tenant of LogRecord is the platform's"):
        record.replace(tenant="x")


@pytest.mark.parametrize("said", [b"9" * 5000, b"soon", b""])
def test_a_time_that_is_none_is_passed_over(said: bytes) -> None:
    """A header `min_time` of any length costs no record: the other one and the records' own times stand."""
    came = of(LogRecord(body="x"))
    found = made(keep, came._replace(headers={**came.headers, "min_time": said, "max_time": b"7"}))
    [output] = found.outputs
    assert (output.records, dict(output.headers)["min_time"], found.failed) == (1, b"7", [])


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_damage_is_rejected(cut: int) -> None:
    """A value cut short, or with a count that is not so, is no message of records."""
    came = of(LogRecord(body="x" * 300), LogRecord())
    with pytest.raises(Rejected):
        made(keep, came._replace(value=came.value[:-cut]))
    damaged = bytearray(came.value)
    damaged[len(schema.of("logs").head)] += 2  # one record more than there are
    with pytest.raises(Rejected):
        made(keep, came._replace(value=bytes(damaged)))


def test_damage_that_only_the_answer_meets_is_its_records() -> None:
    """Fields are read where they are asked for: one that no function read and that is damaged fails its record, and
    neither its neighbours nor the process."""

    @agent(reads="metrics_raw", writes="metrics_norm", version=1)
    def moved(record: MetricPoint) -> MetricPoint:
        return record.replace(attributes={"a": "b"})

    rooms = ("a", "damaged", "c")
    came = of(*(MetricPoint(metric_name="m", time=T0, value=1.0, resource_attributes={"room": each}) for each in rooms))
    found = made(moved, came._replace(value=came.value.replace(b"damaged", b"\xffamaged")))
    [failed] = found.failed
    assert (failed.number, failed.reason.partition(": ")[0]) == (1, "The record does not decode")
    assert [each["resource_attributes"]["room"] for each in emitted(found, "metrics_norm")] == ["a", "c"]


def test_the_import_is_light() -> None:
    """An agent's file brings neither Faust nor polars."""
    code = "import sys, pipeline.agents; sys.exit(any(name in sys.modules for name in ('faust', 'polars', 'aiokafka')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("given", "change", "numbers"),
    [
        ({"int_value": 7}, {}, (7.0, 7)),
        ({"value": 1.5}, {"int_value": 7}, (7.0, 7)),
        ({"int_value": 7}, {"value": 1.5}, (1.5, None)),
        ({"int_value": 7}, {"value": None}, (None, None)),
        ({"int_value": (1 << 53) + 1}, {"value": float(1 << 53)}, (float(1 << 53), (1 << 53) + 1)),
        ({"int_value": 7}, {"int_value": None}, (7.0, None)),
        ({"int_value": 7}, {"value": 8.0, "int_value": 9}, (8.0, 9)),
        ({"int_value": 7}, {"unit": "s"}, (7.0, 7)),
    ],
)
def test_a_point_has_one_number(
    given: dict[str, Any], change: dict[str, Any], numbers: tuple[float | None, int | None]
) -> None:
    """Stores add up `value`, and otlp_writer sends `int_value`: an agent that gives one of them means the other too."""
    point = MetricPoint(**given).replace(**change)
    assert (point.value, point.int_value) == numbers
