"""The extension against the Python that it stands in for: the same bytes, the same refusals, the same sentences."""

import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import native, otlp
from pipeline.errors import Misconfigured
from pipeline.record import schema
from pipeline.settings import ROOT
from tests.native import licences
from tests.native.both import alike, json_alike, rules
from tests.otlp.as_json import as_json
from tests.otlp.requests import ONE_OF_EVERYTHING, REQUESTS, T0, any_value, any_values, attributes, logs
from tests.otlp.scramble import mutate, scramble
from tests.otlp.test_json import documents, log_request

GOLDEN = ROOT / "tests" / "otlp" / "golden"
signals = pytest.mark.parametrize("signal", schema.SIGNALS)
seeds = st.integers(0, (1 << 64) - 1)


@signals
def test_golden_requests_are_the_same_bytes(signal: schema.Signal) -> None:
    """What was published once is encoded alike, and so is one of everything."""
    for body in ((GOLDEN / f"{signal}.binpb").read_bytes(), ONE_OF_EVERYTHING[signal].SerializeToString(), b""):
        assert isinstance(alike(signal, body), otlp.Encoded)


@signals
@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=seeds)
def test_any_request_under_any_rules_is_the_same(signal: schema.Signal, data: st.DataObject, seed: int) -> None:
    """Generated requests, in other bytes and in mutated ones, under limits that bite: groups, counts and sentences."""
    message, rng = data.draw(REQUESTS[signal] | st.just(ONE_OF_EVERYTHING[signal])), random.Random(seed)
    body = message.SerializeToString()
    for _ in range(5):
        scrambled = scramble(body, message.DESCRIPTOR, rng)
        for sent in (scrambled, mutate(scrambled, rng), mutate(body, rng)):
            alike(signal, sent, rules(rng))


@settings(deadline=None, max_examples=200)
@given(any_values, st.integers(16, 80), st.integers(1, 6))
def test_any_value_is_the_same_text(value: object, most: int, depth: int) -> None:
    """Attributes and bodies of every kind, cut anywhere and at any depth."""
    message = logs(value)
    message.resource_logs[0].scope_logs[0].log_records[0].attributes.extend(attributes({"v": value}))
    alike("logs", message.SerializeToString(), otlp.Rules(max_text_bytes=most, max_key_bytes=most, max_depth=depth))


@settings(deadline=None, max_examples=300)
@given(st.floats(width=64) | st.builds(lambda odd, power: odd * 2.0**power, st.integers(1, 2**53), st.integers(-60, 4)))
@example(562949953421312.25)  # as near to .2 as to .3
@example(2.0**-25)  # as near to …12e-08 as to …13e-08
@example(1.5e-05)
@example(-1e-05)
@example(1e16)
def test_doubles_are_the_same_text(number: float) -> None:
    """The shortest text that reads back equal, of two as near the even one, with the same point or exponent."""
    message = logs(number)
    message.resource_logs[0].scope_logs[0].log_records[0].body.CopyFrom(any_value([number]))
    alike("logs", message.SerializeToString())


def test_equal_records_have_the_same_ordinals() -> None:
    """Twins by the hundred, over more than one message."""
    alike("logs", logs(*["a", "b", "x" * 30_000] * 130).SerializeToString())


def test_bodies_of_every_size_are_split_alike() -> None:
    """Where a message is full, and which record is too large, to the byte."""
    alike("logs", logs(*["x" * n for n in range(898_000, 899_200, 7)][:90]).SerializeToString())


def test_ids_are_the_same_at_every_length() -> None:
    """Contents and what they share, of every length around the hash's blocks of 128 bytes; one record or many."""
    of_logs, of_metrics = type(ONE_OF_EVERYTHING["logs"])(), type(ONE_OF_EVERYTHING["metrics"])()
    for size in range(270):
        resource = of_logs.resource_logs.add()  # type: ignore[attr-defined]
        resource.resource.attributes.extend(attributes({"k": "r" * size}))
        for body in range(1 + size % 30):
            resource.scope_logs.add().log_records.add(time_unix_nano=T0).body.string_value = "b" * (body * 9)
        resource = of_metrics.resource_metrics.add()  # type: ignore[attr-defined]
        resource.resource.attributes.extend(attributes({"k": "r" * (size % 140)}))
        metric = resource.scope_metrics.add().metrics.add(name="m" * size)
        for label in range(1 + size % 7):
            metric.gauge.data_points.add(as_int=1).attributes.extend(attributes({"l": "v" * (label * 19)}))
    assert isinstance(alike("logs", of_logs.SerializeToString()), otlp.Encoded)
    assert isinstance(alike("metrics", of_metrics.SerializeToString()), otlp.Encoded)


@pytest.mark.parametrize(
    "state",
    ["ot=th:8", "a=b, ot=rv:0123456789abcd;x", "\x1cot=rv:ffffffffffffff", "ot=rv:0", ",ot=;th:1", "ot=a,ot=th:1"],
)
def test_spans_are_shed_alike(state: str) -> None:
    """By the trace's own randomness, wherever in its tracestate that is."""
    message = type(ONE_OF_EVERYTHING["traces"])()
    scope = message.resource_spans.add().scope_spans.add()  # type: ignore[attr-defined]
    for n in range(20):
        scope.spans.add(trace_id=bytes([n * 12 + 1] * 16), span_id=b"12345678", trace_state=state)
    alike("traces", message.SerializeToString(), otlp.Rules(keep_spans=0.5))


@signals
@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=seeds)
def test_json_is_the_same_request(signal: schema.Signal, data: st.DataObject, seed: int) -> None:
    """What a client writes is taken; what is damaged is refused by both or left to the reference."""
    rng = random.Random(seed)
    body = as_json(data.draw(REQUESTS[signal] | st.just(ONE_OF_EVERYTHING[signal])))
    assert json_alike(signal, body) or b'"NaN"' not in body
    ascii_only = json.dumps(json.loads(body)).encode()
    for sent in (ascii_only, mutate(body, rng), mutate(ascii_only, rng), mutate(body, rng)):
        json_alike(signal, sent)


@pytest.mark.parametrize(
    ("record", "taken"),
    [
        ('{"severityNumber": "9", "timeUnixNano": "1544712660300000000", "flags": 3}', True),
        ('{"body": {"doubleValue": -0}}', True),
        ('{"body": {"doubleValue": 9007199254740993}}', True),
        ('{"body": {"doubleValue": 1e400}}', True),
        ('{"body": {"stringValue": "\\ud83d\\ude00 \\u00e9 \\n\\/"}}', True),
        ('{"body": {"bytesValue": "_-8"}, "unknown": [1.5e3, {"a": null}, true, "x"]}', True),
        ('{"body": {"stringValue": "a", "intValue": 5}}', True),
        ('{"body": null, "attributes": null}', True),
        ('{"severityNumber": 9.0}', False),
        ('{"body": {"doubleValue": "1.5"}}', False),
        ('{"unknown": "\\ud800"}', False),
        ('{"severityText": "a", "severityText": "b"}', False),
    ],
)
def test_plain_json_is_taken_and_the_rest_is_left_to_the_reference(record: str, taken: bool) -> None:
    """Each is a valid request; which of them the extension reads itself is what its module says."""
    body = '{"resourceLogs": [{"scopeLogs": [{"logRecords": [' + record.replace("\\\\", "\\") + "]}]}]}"
    assert json_alike("logs", body.encode()) is taken


@pytest.mark.parametrize(
    "text",
    ["", "AP8=", "AP8", "AP8==", "=", "====", "A", "AA=", "AA==", "A_-8", "A+/8", "AP9", "AP=8", "AP8=AP8=", "AP 8"],
)
def test_base64_is_the_same_bytes(text: str) -> None:
    """Of either alphabet, with padding or without; what is none is refused by both."""
    json_alike("logs", log_request(body={"bytesValue": text}))


@pytest.mark.parametrize(
    ("scope", "taken"),
    [
        ('{"instrumentationLibrary": {"name": "a"}, "metrics": [{"name": "m"}]}', True),
        ('{"instrumentationLibrary": {"name": "a", "version": "1"}, "scope": {"name": "b"}}', True),
        ('{"metrics": [{"doubleSum": {}}]}', False),
        ('{"labels": 1}', False),
    ],
)
def test_what_otlp_once_was_is_the_same(scope: str, taken: bool) -> None:
    """Former names beside today's, and keys that are refused where they once stood."""
    for scopes in ("scopeMetrics", "instrumentationLibraryMetrics"):
        assert json_alike("metrics", f'{{"resourceMetrics": [{{"{scopes}": [{scope}]}}]}}'.encode()) is taken


@given(documents, st.sampled_from(schema.SIGNALS))
def test_any_document_is_the_same(document: object, signal: schema.Signal) -> None:
    """Documents of the right keys in wrong places."""
    json_alike(signal, json.dumps(document).encode())


def test_python_can_be_forced_and_is_told() -> None:
    """A setting forces either, and a process says which one runs and what that costs."""
    said = {
        wanted: subprocess.run(
            [sys.executable, "-m", "pipeline", "--version"],
            env=os.environ | {"PIPELINE_IMPLEMENTATION": wanted}, capture_output=True, text=True, check=True,
        ).stdout
        for wanted in ("native", "python")
    }  # fmt: skip
    assert "hot path: native" in said["native"]
    assert re.search("hot path: python.*slower", said["python"])


def test_without_the_extension_native_is_a_misconfiguration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who demands what was not built hears what to do; who does not gets Python."""
    monkeypatch.setattr(native, "_built", None)
    with pytest.raises(Misconfigured, match="install Rust"):
        native.choose("native")
    native.choose("auto")
    assert native.chosen() is None
    assert "not built" in native.name()


def test_no_source_holds_unsafe_code() -> None:
    """The compiler is told to refuse it, and no file lifts that."""
    crate = ROOT / "pipeline" / "native"
    assert 'unsafe_code = "forbid"' in (crate / "Cargo.toml").read_text()
    for path in (crate / "src").glob("*.rs"):
        assert "unsafe" not in path.read_text(), pathlib.Path(path).name


def test_licences_are_read_as_spdx_says() -> None:
    """Of OR one is enough, of AND all are needed, and `make lint` fails for what is not allowed."""
    assert licences.allowed("MIT OR GPL-3.0-only")
    assert licences.allowed("(MIT OR Apache-2.0) AND Unicode-3.0")
    assert not licences.allowed("GPL-3.0-only")
    assert not licences.allowed("MIT AND GPL-3.0-only")
    if shutil.which("cargo"):
        assert licences.problems() == []
