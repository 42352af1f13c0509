"""Walking a request record by record gives what parsing it whole gives: protobuf itself is the judge."""

import random
import re

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import otlp
from pipeline.errors import Rejected
from pipeline.otlp.json import REQUEST
from pipeline.otlp.messages import METRIC, METRICS
from pipeline.otlp.rules import OUTDATED
from pipeline.otlp.wire import level
from pipeline.record import schema
from tests.otlp.decode import ORIGIN, records
from tests.otlp.hostile import deep, nested, record, request
from tests.otlp.requests import ONE_OF_EVERYTHING, REQUESTS
from tests.otlp.scramble import mutate, scramble

signals = pytest.mark.parametrize("signal", schema.SIGNALS)
seeds = st.integers(0, (1 << 64) - 1)


def encode(signal: schema.Signal, body: bytes) -> otlp.Encoded:
    return otlp.encode(signal, body, ORIGIN, partitions=3)


def agree(signal: schema.Signal, body: bytes) -> bool:
    """Check `body` against protobuf's own parser; say whether it was a request.

    What protobuf parses and writes again is in canonical form: in order, merged, without unknown fields.
    """
    try:
        whole = REQUEST[signal].FromString(body)
    except DecodeError:
        try:
            encoded = encode(signal, body)
        except Rejected:
            return False
        # What is not taken is not looked into; here that is a span without ids, a metric without a known temporality,
        # a kind of data that a later one displaced.
        assert encoded.refused or (signal == "metrics" and _has_displaced_data(body)), body.hex()
        return False
    whole.DiscardUnknownFields()
    assert encode(signal, body) == encode(signal, whole.SerializeToString()), body.hex()
    return True


def _has_displaced_data(body: bytes) -> bool:
    """Whether a metric was sent with two kinds of data, of which the last counts."""
    spans = [(0, len(body))]
    for part in METRICS:
        spans = [child[1:] for span in spans for child in level(part, body, span, 1000).children]
    return any(len({child[0] for child in level(METRIC, body, span, 1000).children}) > 1 for span in spans)


@signals
@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=seeds)
def test_other_bytes_of_a_message_are_the_same_records(signal: schema.Signal, data: st.DataObject, seed: int) -> None:
    """Any order, repetition, merging, unknown fields and groups: the same groups as from the canonical bytes."""
    message: Message = data.draw(REQUESTS[signal])
    rng = random.Random(seed)
    for _ in range(5):
        assert agree(signal, scramble(message.SerializeToString(), message.DESCRIPTOR, rng))


@signals
@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=seeds)
def test_mutated_bytes_are_taken_or_rejected_as_protobuf_does(
    signal: schema.Signal, data: st.DataObject, seed: int
) -> None:
    """Damage that protobuf takes is taken alike, and what it rejects is Rejected."""
    rng = random.Random(seed)
    message = data.draw(st.just(ONE_OF_EVERYTHING[signal]) | REQUESTS[signal])
    body = message.SerializeToString()
    for _ in range(10):
        agree(signal, mutate(body, rng))
        agree(signal, mutate(scramble(body, message.DESCRIPTOR, rng), rng))


@pytest.mark.parametrize(
    ("damage", "taken"),
    [
        (b"\x8a\x80\x80\x80\x00\x00", True),  # a tag of five bytes
        (b"\x8a\x80\x80\x80\x80\x00\x00", False),  # of six
        (b"\x8a\x80\x80\x80\x10\x00", False),  # a field number of 2^29
        (b"\x0a\x80\x80\x80\x80\x00", True),  # a length of five bytes
        (b"\x0a\x80\x80\x80\x80\x80\x00", False),
        (b"\x0a\xff\xff\xff\xff\x07", False),  # longer than all
        (b"\x78" + b"\xff" * 9 + b"\x7f", True),  # a varint of ten bytes
        (b"\x78" + b"\xff" * 10 + b"\x01", False),
        (b"\x00\x00", False),  # field number 0
        (b"\x02\x00", False),
        (b"\x7b\x73\x7a\x00\x78\x01\x74\x7c", True),  # a group inside a group
        (b"\x7b\x74", False),  # ended by another
        (b"\x7b", False),  # not ended
        (b"\x7c", False),  # ended before it began
        (b"\x7b\x00\x00\x7c", True),  # field number 0, but in a group
        (b"\x7b\xf8\x80\x80\x80\x10\x00\x7c", False),  # a field number of 2^29 in a group
        (b"\x7e", False),  # wire types that do not exist
        (b"\x7f", False),
        (b"\x79\0\0\0", False),  # cut short
        (b"\x7d\0\0\0\0", True),
        (b"\x08\x05", True),  # a known field of another wire type is unknown
        (b"\x0a", False),
        (b"\x7a\x05ab", False),
    ],
)
@signals
def test_each_way_to_be_malformed_is_protobufs(signal: schema.Signal, damage: bytes, taken: bool) -> None:
    """In a request, a resource and a scope: what protobuf takes is taken, else the request is Rejected."""
    for body in (damage, nested(1, damage), nested(1, nested(2, damage)), nested(1, nested(1, b"") + damage)):
        assert agree(signal, body) is taken, body.hex()


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(
    ("data", "taken"),
    [
        (nested(5, nested(1, nested(1, b""))), False),  # labels of a number, a histogram and a summary
        (nested(7, nested(1, nested(7, b"") + nested(1, b"\xff"))), False),
        (nested(9, nested(1, nested(1, b""))), False),
        (nested(11, nested(1, nested(1, b""))), False),
        (nested(10, nested(1, nested(1, b""))), True),  # attributes, here
        (nested(5, nested(1, b"\x08\1")), True),  # no labels
        (nested(4, b""), False),  # IntGauge, IntSum, IntHistogram
        (nested(6, nested(1, b"")), False),
        (nested(8, b"\xff"), False),
        (nested(6, nested(1, b"")) + nested(7, nested(1, b"")), True),  # displaced
    ],
)
def test_metrics_of_before_0_9_are_refused(data: bytes, taken: bool) -> None:
    """Read as of today they would be gone, or points without what tells them apart."""
    body = nested(1, nested(2, nested(2, data)))
    if taken:
        assert encode("metrics", body).accepted == 1
    else:
        with pytest.raises(Rejected, match=re.escape(OUTDATED)):
            encode("metrics", body)


@signals
def test_a_resource_may_follow_its_records(signal: schema.Signal) -> None:
    """On the wire a resource and a scope may come last; they count for all records beside them."""
    resource = nested(1, nested(1, nested(1, b"service.name") + nested(2, nested(1, b"checkout"))))
    scope = nested(1, nested(1, b"shop"))
    of_scope = nested(2, nested(5, record(signal)) + nested(1, b"m")) if signal == "metrics" else record(signal)
    [stored] = records(encode(signal, nested(1, nested(2, of_scope + scope) + resource)))
    assert (stored["service"], stored["scope_name"]) == ("checkout", "shop")


@signals
def test_bad_text_anywhere_rejects_the_request(signal: schema.Signal) -> None:
    """Text that is not UTF-8 is malformed, in names, keys and values."""
    whole = ONE_OF_EVERYTHING[signal].SerializeToString()
    for text in (b"checkout", b"service.name"):
        assert text in whole
        assert not agree(signal, whole.replace(text, b"\xff" * len(text)))


def test_one_malformed_record_rejects_its_whole_request() -> None:
    """Nothing of a request is published when one record cannot be read."""
    body = request("logs", record("logs") * 5 + record("logs", nested(6, b"\xff")) + record("logs"))
    with pytest.raises(Rejected, match=r"is not a protobuf ExportLogsServiceRequest: .*KeyValue"):
        encode("logs", body)


def test_of_two_kinds_of_data_the_last_counts() -> None:
    """A metric sent as gauge, then as sum, is the sum; the gauge is not looked into, be it malformed."""
    gauge, total = nested(5, nested(1, b"\xff")), nested(7, nested(1, b"\x19" + bytes(8)) + b"\x10\x02")
    body = nested(1, nested(2, nested(2, nested(1, b"orders") + gauge + total)))
    [point] = records(encode("metrics", body))
    assert (point["type"], point["temporality"]) == ("sum", "cumulative")
    assert not agree("metrics", body)


def test_values_nested_too_deep_for_protobuf_reject_the_request() -> None:
    """From 100 messages inside one another on, counted from the attribute, a request is Rejected as before."""
    taken, refused = (
        request("logs", record("logs", nested(6, nested(1, b"k") + nested(2, deep(levels))))) for levels in (49, 50)
    )
    assert encode("logs", taken).cut == 1
    with pytest.raises(Rejected):
        encode("logs", refused)
