"""OTLP/JSON bodies by the letter of the specification; what is wrong is named by its place."""

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Rejected, TooLarge
from pipeline.otlp.json import REQUEST, to_protobuf
from pipeline.record.schema import SIGNALS, Signal


def log_request(**fields: Any) -> bytes:
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [fields]}]}]}).encode()


def parsed(body: bytes) -> Any:
    request: Any = REQUEST["logs"].FromString(to_protobuf("logs", body))
    return request.resource_logs[0].scope_logs[0].log_records[0]


def read(signal: Signal, document: str) -> Any:
    return REQUEST[signal].FromString(to_protobuf(signal, document.encode()))


def test_integers_may_be_text_or_numbers() -> None:
    """64-bit integers come as decimal text or as numbers."""
    record = parsed(log_request(timeUnixNano="1544712660300000000", observedTimeUnixNano=5, severityNumber="9"))
    assert (record.time_unix_nano, record.observed_time_unix_nano, record.severity_number) == (
        1544712660300000000,
        5,
        9,
    )


def test_ids_are_hex_in_either_case() -> None:
    """Trace and span ids are hex, case-insensitive, unlike other bytes."""
    record = parsed(log_request(traceId="5B8EFFF798038103D269B633813FC60C", spanId="eee19b7ec3c1b174"))
    assert (record.trace_id.hex(), record.span_id.hex()) == ("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174")


def test_unknown_keys_and_nulls_are_ignored() -> None:
    """Fields of a later protocol version do no harm, and null is absent."""
    assert parsed(log_request(tomorrow={"a": [1]}, body=None, severityText="INFO")).severity_text == "INFO"


def test_names_of_the_proto_file_are_unknown_keys() -> None:
    """Keys are lowerCamelCase only."""
    assert parsed(log_request(severity_text="INFO")).severity_text == ""


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("signal", SIGNALS)
def test_scopes_may_have_the_names_of_before_1_0(signal: Signal) -> None:
    """SDKs of 2021 and 2022, as browsers still run them, know instrumentation libraries and no scopes."""
    named = {"logs": ("Logs", "logRecords"), "metrics": ("Metrics", "metrics"), "traces": ("Spans", "spans")}
    of, records = named[signal]
    now = json.dumps({f"resource{of}": [{f"scope{of}": [{"scope": {"name": "shop"}, records: [{}, {}]}]}]})
    before = now.replace(f"scope{of}", f"instrumentationLibrary{of}").replace('"scope"', '"instrumentationLibrary"')
    before = before.replace("logRecords", "logs")
    assert "shop" in str(read(signal, now))
    assert read(signal, before) == read(signal, now)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(
    ("metric", "place"),
    [
        ({"doubleSum": {"dataPoints": [{"value": 1}]}}, "doubleSum"),
        ({"intGauge": {}}, "intGauge"),
        ({"gauge": {"dataPoints": [{"asDouble": 1, "labels": [{"key": "a", "value": "b"}]}]}}, "dataPoints[0].labels"),
        ({"summary": {"dataPoints": [{"labels": []}]}}, "dataPoints[0].labels"),
    ],
)
def test_metrics_of_before_0_9_are_refused_by_name(metric: dict[str, Any], place: str) -> None:
    """Passed over as unknown they would be gone, or points without what tells them apart."""
    body = json.dumps({"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]}).encode()
    with pytest.raises(Rejected, match=re.escape(place) + ": metrics as before OTLP 0.9, of 2021"):
        to_protobuf("metrics", body)


def test_an_empty_value_is_kept() -> None:
    """A value object without a kind is the empty AnyValue, not an error."""
    assert parsed(log_request(attributes=[{"key": "a", "value": {}}])).attributes[0].value.WhichOneof("value") is None


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"severityNumber": "SEVERITY_NUMBER_INFO"}, "logRecords[0].severityNumber: expected an integer"),
        ({"severityNumber": True}, "severityNumber: expected an integer"),
        ({"severityNumber": 1.5}, "severityNumber: expected an integer"),
        ({"severityNumber": 1 << 31}, "severityNumber: expected an integer"),
        ({"timeUnixNano": "-1"}, "timeUnixNano: expected an integer from 0"),
        ({"timeUnixNano": "1 "}, "timeUnixNano: expected an integer"),
        ({"timeUnixNano": "9" * 30}, "timeUnixNano: expected an integer"),
        ({"traceId": "xyz"}, "traceId: expected hex digits, got 'xyz'"),
        ({"traceId": "aa bb"}, "traceId: expected hex digits"),
        ({"traceId": 5}, "traceId: expected text"),
        ({"severityText": ["INFO"]}, "severityText: expected text, got ['INFO']"),
        ({"severityText": "\ud800"}, "severityText: half a surrogate pair"),
        ({"body": "text"}, "body: expected an object, got 'text'"),
        ({"body": {"doubleValue": "many"}}, "body.doubleValue: expected a number"),
        ({"body": {"doubleValue": 10**400}}, "body.doubleValue: expected a number"),
        ({"body": {"boolValue": 1}}, "body.boolValue: expected true or false"),
        ({"body": {"bytesValue": "a*b"}}, "body.bytesValue: expected base64"),
        ({"attributes": {"a": "b"}}, "attributes: expected an array"),
        ({"attributes": ["a"]}, "attributes[0]: expected an object"),
    ],
)
def test_a_wrong_value_is_named_by_its_place(fields: dict[str, Any], sentence: str) -> None:
    """The sentence says where, what was expected and what came."""
    with pytest.raises(Rejected) as caught:
        to_protobuf("logs", log_request(**fields))
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("resourceLogs[0].scopeLogs[0].logRecords[0]")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "expected an object"),
        (b"null", "expected an object"),
        (b"\xff", "not UTF-8"),
        (b'{"a":' + b"1" * 10_000 + b"}", "not JSON"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":' + b'{"arrayValue":{"values":[' * 60 + b"]}}" * 60 + b"}]}]}]}",
         "nested deeper"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_rejected(body: bytes, sentence: str) -> None:
    """Broken, huge-numbered and endlessly nested documents are a sentence, never a crash."""
    with pytest.raises(Rejected, match=sentence):
        to_protobuf("logs", body)


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["resourceLogs", "scopeLogs", "logRecords", "body", "attributes", "value", "key", "stringValue",
                         "resourceSpans", "scopeSpans", "spans", "events", "traceId", "resourceMetrics", "gauge", "dataPoints",
                         "scopeMetrics", "metrics", "asDouble", "timeUnixNano", "arrayValue", "values"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(documents, st.sampled_from(SIGNALS))
def test_any_document_is_a_request_or_rejected(document: Any, signal: Any) -> None:
    """No JSON document makes the reader fail in another way."""
    with contextlib.suppress(Rejected):
        to_protobuf(signal, json.dumps(document).encode())


@pytest.mark.parametrize("body", [b"[" + b"[]," * 400_000, b"{" + b'"a":{},' * 400_000, b"[" * 600_000])
def test_more_values_than_the_limit_are_not_even_read(body: bytes) -> None:
    """Tiny values are refused by their number before they become a hundred bytes of memory each."""
    with pytest.raises(TooLarge, match=r"more than 500000 values \(gateway\.max_json_values\)"):
        to_protobuf("logs", body, max_values=500_000)
