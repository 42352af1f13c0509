"""Limits, shedding and static attributes: what each takes from a request, how it is counted, what it leaves alone."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pipeline import otlp
from pipeline.errors import TooLarge
from pipeline.otlp.rules import CUT, TOO_DEEP
from pipeline.record import schema
from tests.otlp.decode import ORIGIN, records
from tests.otlp.hostile import nested, record, request
from tests.otlp.requests import ONE_OF_EVERYTHING, SPAN_ID, any_value, any_values, attributes, logs, traces

pytestmark = pytest.mark.usefixtures("implementation")
signals = pytest.mark.parametrize("signal", schema.SIGNALS)


def encode(signal: schema.Signal, request: Any, **rules: Any) -> otlp.Encoded:
    body = request if isinstance(request, bytes) else request.SerializeToString()
    return otlp.encode(signal, body, ORIGIN, partitions=4, rules=otlp.Rules(**rules))


def attributes_of(values: dict[str, Any], **rules: Any) -> tuple[dict[str, str], int]:
    """A log record's attributes as stored, and how many were cut."""
    message = ExportLogsServiceRequest()
    message.resource_logs.add().scope_logs.add().log_records.add(attributes=attributes(values))
    encoded = encode("logs", message, **rules)
    return records(encoded)[0]["attributes"], encoded.cut


@signals
def test_rules_that_nothing_offends_change_nothing(signal: schema.Signal) -> None:
    """Every byte is as it is without rules, and nothing is counted."""
    encoded = encode(
        signal, ONE_OF_EVERYTHING[signal], shed_below_severity=13, keep_spans=0.0 if signal != "traces" else 1
    )
    assert encoded == otlp.encode(signal, ONE_OF_EVERYTHING[signal].SerializeToString(), ORIGIN, partitions=4)
    assert (encoded.refused, encoded.shed, encoded.cut) == ({}, {}, 0)


@signals
def test_of_too_many_records_the_first_are_accepted(signal: schema.Signal) -> None:
    """The rest are refused by name and not looked into."""
    several = [record(signal, b"\x19" + n.to_bytes(8, "big")) for n in range(5)]
    malformed = nested(1 if signal == "metrics" else 2, b"\xff")
    encoded = encode(signal, request(signal, b"".join([*several, malformed])), max_records=3)
    assert (encoded.accepted, encoded.refused) == (3, {"too_many_records": 3})
    assert "gateway.max_records" in otlp.REFUSALS["too_many_records"]
    assert encoded.groups == encode(signal, request(signal, b"".join(several[:3]))).groups


@signals
def test_max_records_is_of_the_whole_request(signal: schema.Signal) -> None:
    """Records count together over all resources and scopes."""
    encoded = encode(signal, request(signal, record(signal) * 2) * 3, max_records=5)
    assert (encoded.accepted, encoded.refused) == (5, {"too_many_records": 1})


@pytest.mark.parametrize(
    ("signal", "body", "named"),
    [
        ("logs", b"\x0a\0" * 4, "resources"),
        ("traces", nested(1, b"\x12\0" * 4), "scopes"),
        ("traces", nested(1, b"\x12\0" * 2) * 2, "scopes"),
        ("metrics", nested(1, nested(2, b"\x12\0" * 4)), "metrics"),
    ],
)
def test_more_resources_scopes_or_metrics_than_records_are_too_large(
    signal: schema.Signal, body: bytes, named: str
) -> None:
    """Of empty parts there is no record to refuse: the request is TooLarge, and the sentence says of what."""
    with pytest.raises(TooLarge, match=rf"more than 3 {named} \(gateway.max_records\)"):
        encode(signal, body, max_records=3)


@signals
def test_of_too_many_bytes_the_first_are_accepted(signal: schema.Signal) -> None:
    """Once one encoded record does not fit, it and all after it are refused by name and not looked into."""
    malformed = nested(1 if signal == "metrics" else 2, b"\xff")
    resource = nested(1, nested(1, b"k") + nested(2, nested(1, b"v" * 10_000)))
    encoded = encode(signal, request(signal, record(signal) * 3 + malformed, resource), max_encoded_bytes=25_000)
    assert (encoded.accepted, encoded.refused) == (2, {"too_many_bytes": 2})
    assert "gateway.max_encoded_bytes" in otlp.REFUSALS["too_many_bytes"]


@signals
@pytest.mark.parametrize("place", ["record", "resource"])
def test_what_cannot_fit_a_message_is_refused_unread(signal: schema.Signal, place: str) -> None:
    """A record of more than 900,000 bytes, or in a resource of more, is refused without a look; others are not."""
    huge = nested(1, b"\xff" * 900_001)
    if place == "record":
        body = request(signal, record(signal) + record(signal, huge) + record(signal))
    else:
        body = request(signal, record(signal) * 2) + request(signal, record(signal), huge)
    encoded = encode(signal, body)
    assert (encoded.accepted, encoded.refused) == (2, {"record_too_large": 1})


def test_attributes_over_the_limit_are_dropped_and_told() -> None:
    """The first are kept; the others are counted where the record has a place for it, and in `cut`."""
    message = logs()
    log = message.resource_logs[0].scope_logs[0].log_records[0]
    del log.attributes[:]
    log.attributes.extend(attributes({f"k{n}": n for n in range(5)}))
    encoded = encode("logs", message, max_attributes=3)
    [stored] = records(encoded)
    assert stored["attributes"] == {"k0": "0", "k1": "1", "k2": "2"}
    assert stored["dropped_attributes_count"] == 2 + 2
    assert len(stored["resource_attributes"]) == 3
    assert encoded.cut == 2 + 1


def test_each_part_of_a_span_has_the_limit_of_attributes() -> None:
    """A span, its events and its links each drop and count their own."""
    message = traces()
    message.resource_spans[0].resource.Clear()
    span = message.resource_spans[0].scope_spans[0].spans[0]
    span.dropped_attributes_count = 0
    for owner in (span, span.events[0], span.links[0]):
        del owner.attributes[:]  # type: ignore[attr-defined]
        owner.attributes.extend(attributes({"a": 1, "b": 2, "c": 3}))  # type: ignore[attr-defined]
    encoded = encode("traces", message, max_attributes=2)
    stored = next(span for span in records(encoded) if span["events"])
    parts = (stored, stored["events"][0], stored["links"][0])
    assert [part["dropped_attributes_count"] for part in parts] == [1, 1, 1]
    assert encoded.cut == 3


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.integers(16, 60))
def test_texts_and_keys_are_cut_at_a_character(text: str, most: int) -> None:
    """What is longer than its limit ends in the marker, within the limit, and is the start of what was sent."""
    stored, cut = attributes_of({text: text}, max_key_bytes=most, max_text_bytes=most + 1)
    [(key, value)] = stored.items()
    for kept, limit in ((key, most), (value, most + 1)):
        if len(text.encode()) <= limit:
            assert kept == text
        else:
            assert kept.endswith(CUT)
            assert text.startswith(kept.removesuffix(CUT))
            assert limit - 3 <= len(kept.encode()) <= limit
    assert cut == (len(text.encode()) > most)


@settings(deadline=None, max_examples=300)
@given(any_values, st.integers(16, 80))
def test_a_cut_text_is_the_start_of_the_whole(value: Any, most: int) -> None:
    """Of arrays, maps and bytes too: stopping early gives what cutting the whole text would give."""
    [whole] = attributes_of({"k": value})[0].values()
    [kept] = attributes_of({"k": value}, max_text_bytes=most)[0].values()
    if len(whole.encode()) <= most:
        assert kept == whole
    else:
        assert kept == whole.encode()[: most - len(CUT.encode())].decode(errors="ignore") + CUT


def test_values_nested_too_deep_are_replaced() -> None:
    """A value below the depth is a marker, in an attribute and in a body, and what is above it is whole."""
    value = ["a", ["b", ["c"]]]
    assert attributes_of({"k": value}, max_depth=4) == ({"k": '["a",["b",["c"]]]'}, 0)
    assert attributes_of({"k": value}, max_depth=3) == ({"k": f'["a",["b",["{TOO_DEEP}"]]]'}, 1)
    message = ExportLogsServiceRequest()
    message.resource_logs.add().scope_logs.add().log_records.add(body=any_value({"a": {"b": 1}}))
    encoded = encode("logs", message, max_depth=2)
    assert (records(encoded)[0]["body"], encoded.cut) == (f'{{"a":{{"b":"{TOO_DEEP}"}}}}', 1)


def test_a_cut_is_counted_each_time() -> None:
    """What was met before is looked up, but never what a limit changed: attributes are counted, not kinds of them."""
    message = ExportLogsServiceRequest()
    scope = message.resource_logs.add().scope_logs.add()
    for _ in range(7):
        scope.log_records.add(attributes=attributes({"long": "x" * 40, "short": "y"}))
    assert [encode("logs", message, max_text_bytes=most).cut for most in (32, 32, 64)] == [7, 7, 0]


def test_a_series_whose_labels_are_cut_is_counted_each_time() -> None:
    """The memory of series does not swallow a count either."""
    point = nested(7, nested(1, b"k") + nested(2, nested(1, b"x" * 40)))
    body = request("metrics", record("metrics", point) * 3)
    assert [encode("metrics", body, max_text_bytes=most).cut for most in (32, 32, 64)] == [3, 3, 0]


@signals
def test_attributes_from_settings_override_the_clients(signal: schema.Signal) -> None:
    """They stand in every resource, even where none was sent, and name service and host."""
    own = (("service.name", "ours"), ("cloud.region", "eu"))
    of_scope = nested(2, nested(5, record(signal))) if signal == "metrics" else record(signal)
    stored = records(encode(signal, ONE_OF_EVERYTHING[signal], resource_attributes=own))
    stored += records(encode(signal, nested(1, nested(2, of_scope)), resource_attributes=own))
    assert {each["host"] for each in stored} == {"web-1", ""}
    for each in stored:
        assert each["service"] == "ours"
        assert dict(own).items() <= each["resource_attributes"].items()


def severities(shed_below_severity: int) -> tuple[list[int], dict[str, int]]:
    """What is kept of one log record of each severity, and what was shed."""
    message = ExportLogsServiceRequest()
    scope = message.resource_logs.add().scope_logs.add()
    for n in range(25):
        scope.log_records.add(severity_number=n)  # type: ignore[arg-type]
    encoded = encode("logs", message, shed_below_severity=shed_below_severity)
    assert encoded.accepted + encoded.shed.total() == 25
    return sorted(each["severity_number"] for each in records(encoded)), encoded.shed


def test_logs_are_shed_by_severity() -> None:
    """Those below the number go; WARN and above never do, nor what has no severity: it may be an error."""
    assert severities(0) == (list(range(25)), {})
    assert severities(5) == ([0, *range(5, 25)], {"TRACE": 4})
    assert severities(13) == ([0, *range(13, 25)], {"TRACE": 4, "DEBUG": 4, "INFO": 4})
    assert severities(24) == severities(13)


def spans_kept(keep: float, *, code: int = 0, **fields: Any) -> tuple[set[bytes], int]:
    """Of 1,000 traces with one span each, evenly spread, the trace_ids kept, and how many spans were shed."""
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    for n in range(1000):
        randomness = (n << 56) // 1000
        span = scope.spans.add(trace_id=b"t" * 9 + randomness.to_bytes(7, "big"), span_id=SPAN_ID, **fields)
        span.status.code = code  # type: ignore[assignment]
    encoded = encode("traces", message, keep_spans=keep)
    assert encoded.accepted + encoded.shed["SPAN"] == 1000
    return {each["trace_id"] for each in records(encoded)}, encoded.shed["SPAN"]


def test_spans_are_shed_by_the_trace_ids_last_56_bits() -> None:
    """A trace is kept where R >= (1 - keep) * 2^56: every gateway keeps the same ones, and a smaller share is of them."""
    quarter, shed = spans_kept(0.25)
    assert (len(quarter), shed) == (250, 750)
    assert all(int.from_bytes(trace_id[9:], "big") >= 3 << 54 for trace_id in quarter)
    assert spans_kept(0.1)[0] < quarter
    assert spans_kept(0.0) == (set(), 1000)
    assert spans_kept(1.0)[1] == 0


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"flags": 1}, 1000),  # sampled
        ({"flags": 0x301}, 1000),
        ({"flags": 0x300}, 250),
        ({"code": 2}, 1000),  # an error
        ({"code": 1}, 250),
        ({"trace_state": "ot=th:8"}, 1000),  # chosen by a sampler
        ({"trace_state": "a=b, ot=rv:00000000000000;th:8"}, 1000),
        ({"trace_state": "ot=p:8,x=th:8"}, 250),
        ({"trace_state": "not=th:8"}, 250),
        ({"trace_state": "ot=rv:ffffffffffffff"}, 1000),  # a trace's own randomness stands before its id's
        ({"trace_state": "ot=rv:00000000000000"}, 0),
    ],
)
def test_only_spans_that_look_unsampled_are_shed(fields: dict[str, Any], kept: int) -> None:
    """What was sampled on purpose, and errors, are kept."""
    assert len(spans_kept(0.25, **fields)[0]) == kept


def test_metrics_are_never_shed() -> None:
    """Points are kept whatever is shed beside them."""
    assert encode("metrics", ONE_OF_EVERYTHING["metrics"], shed_below_severity=13, keep_spans=0.0).accepted == 7
