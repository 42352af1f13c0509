"""event_id and series_id: the same content is the same id, on every road; other content is another."""

import copy
import json
import pathlib
import struct

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pipeline import otlp
from pipeline.otlp.json import to_protobuf
from pipeline.record import schema
from tests.otlp.as_json import as_json
from tests.otlp.decode import ORIGIN, id_by_the_book, ids, records
from tests.otlp.requests import ONE_OF_EVERYTHING, REQUESTS, T0, logs, metrics, traces

GOLDEN = pathlib.Path(__file__).parent / "golden"
signals = pytest.mark.parametrize("signal", schema.SIGNALS)


@signals
def test_golden_requests_keep_their_ids(signal: schema.Signal) -> None:
    """Ids that were published once never change: protobuf and JSON of the same request give the recorded ids."""
    expected = json.loads((GOLDEN / "ids.json").read_text())[signal]
    assert ids(signal, (GOLDEN / f"{signal}.binpb").read_bytes()) == expected
    assert ids(signal, to_protobuf(signal, (GOLDEN / f"{signal}.json").read_bytes())) == expected


def test_golden_series_ids() -> None:
    """Series ids that were published once never change."""
    found = {
        f"{point['metric_name']}/{len(point['attributes'])}": point["series_id"]
        for point in records(otlp.encode("metrics", (GOLDEN / "metrics.binpb").read_bytes(), ORIGIN, partitions=1))
    }
    assert found == json.loads((GOLDEN / "ids.json").read_text())["series"]


@signals
@settings(deadline=None)
@given(data=st.data())
def test_ids_are_blake2b_of_the_encoded_tail(signal: schema.Signal, data: st.DataObject) -> None:
    """Anybody can check an id: it is the hash of the record's own fields, encoded by any Avro library."""
    body = data.draw(REQUESTS[signal]).SerializeToString()
    for record in records(otlp.encode(signal, body, ORIGIN, partitions=2)):
        assert record["event_id"].hex() == id_by_the_book(signal, record)


@signals
@settings(deadline=None)
@given(data=st.data())
def test_json_gives_the_ids_of_protobuf(signal: schema.Signal, data: st.DataObject) -> None:
    """The same request in JSON becomes the same records."""
    request: Message = data.draw(REQUESTS[signal])
    assert ids(signal, to_protobuf(signal, as_json(request))) == ids(signal, request.SerializeToString())


def test_every_nan_is_one() -> None:
    """NaN has many bit patterns in protobuf and one spelling in JSON: the id is the same."""
    found = set()
    for bits in (0x7FF8000000000000, 0xFFF8000000000001, 0x7FF0000000000001):
        request = ExportMetricsServiceRequest()
        metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
        metric.gauge.data_points.add(as_double=0.5)
        body = request.SerializeToString().replace(struct.pack("<d", 0.5), struct.pack("<Q", bits))
        found.update(ids("metrics", body))
    assert len(found) == 1


@signals
def test_region_and_receipt_do_not_count(signal: schema.Signal) -> None:
    """A retry, at another time and through another region, gives the same ids."""
    body = ONE_OF_EVERYTHING[signal].SerializeToString()
    elsewhere = otlp.Origin("default", "eu", ORIGIN.received_time + 10**12)
    assert ids(signal, body, elsewhere) == ids(signal, body)


@signals
def test_another_tenant_is_another_event(signal: schema.Signal) -> None:
    """Two tenants that send the same bytes share no id."""
    body = ONE_OF_EVERYTHING[signal].SerializeToString()
    assert not set(ids(signal, body, ORIGIN._replace(tenant="other"))) & set(ids(signal, body))


@signals
@settings(deadline=None)
@given(data=st.data())
def test_order_of_attributes_does_not_count(signal: schema.Signal, data: st.DataObject) -> None:
    """Reordered attributes, at any depth, give the same ids."""
    request: Message = data.draw(REQUESTS[signal])
    reordered = copy.deepcopy(request)
    _reverse_attributes(reordered)
    assert ids(signal, reordered.SerializeToString()) == ids(signal, request.SerializeToString())


def _reverse_attributes(message: Message) -> None:
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        items = list(value) if field.is_repeated else [value]
        for item in items:
            _reverse_attributes(item)
        if field.is_repeated and field.message_type.name == "KeyValue":
            reversed_items = [copy.deepcopy(item) for item in reversed(items)]
            del value[:]
            value.extend(reversed_items)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=8))
def test_equal_lines_in_one_request_stay_as_many(bodies: list[str]) -> None:
    """n equal log lines in one request are n ids, and the retried request gives the same n."""
    body = logs(*bodies).SerializeToString()
    first = ids("logs", body)
    assert len(set(first)) == len(bodies)
    assert ids("logs", body, ORIGIN._replace(received_time=T0)) == first


def _leaves(message: Message, path: str = "") -> list[tuple[Message, str, int | None]]:
    """Every scalar that is set: its message, field name and index."""
    found: list[tuple[Message, str, int | None]] = []
    for field, value in message.ListFields():
        if field.message_type is None:
            found += (
                [(message, field.name, n) for n in range(len(value))]
                if field.is_repeated
                else [(message, field.name, None)]
            )
        else:
            for item in list(value) if field.is_repeated else [value]:
                found += _leaves(item)
    return found


def _changed(value: object) -> object:
    match value:
        case bool():
            return not value
        case int():
            return value - 1 if value > 1 else value + 1
        case float():
            return 0.25
        case str():
            return value + "'"
        case bytes():
            return value[:-1] + bytes([value[-1] ^ 1])
    raise TypeError(value)


@pytest.mark.parametrize(("signal", "make"), [("logs", lambda: logs("a")), ("metrics", metrics), ("traces", traces)])
def test_any_changed_content_gives_another_id(signal: schema.Signal, make: object) -> None:
    """Of everything that is set in a request no single value can change without changing an id."""
    before = ids(signal, make().SerializeToString())  # type: ignore[operator]
    for n in range(len(_leaves(make()))):  # type: ignore[operator]
        request = make()  # type: ignore[operator]
        message, name, index = _leaves(request)[n]
        if index is None:
            setattr(message, name, _changed(getattr(message, name)))
        else:
            getattr(message, name)[index] = _changed(getattr(message, name)[index])
        assert ids(signal, request.SerializeToString()) != before, f"{type(message).__name__}.{name}"
