"""Where records and their fields lie, as the extension tells it and as the reference reads it."""

import random

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import native, otlp
from pipeline.errors import Rejected
from pipeline.record import schema
from pipeline.record.layout import Layout
from tests.otlp.decode import ORIGIN
from tests.otlp.requests import ONE_OF_EVERYTHING, REQUESTS
from tests.otlp.scramble import mutate

signals = pytest.mark.parametrize("signal", schema.SIGNALS)


def outcome(signal: schema.Signal, value: bytes) -> object:
    """All records with what they share and their fields' bounds, or the sentence that refuses them."""
    try:
        return [
            (raw.event_id, raw.shared.data, raw.shared.ends, list(raw.bounds))
            for raw in Layout(schema.of(signal)).records(value)
        ]
    except Rejected as reason:
        return str(reason)


def alike(signal: schema.Signal, value: bytes) -> object:
    native.choose("python")
    by_python = outcome(signal, value)
    native.choose("native")
    assert outcome(signal, value) == by_python, value.hex()
    return by_python


@signals
@hypothesis.settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_both_find_the_same_records(signal: schema.Signal, data: st.DataObject) -> None:
    """One of everything and generated requests: every record, what it shares with others, where each field ends."""
    for request in (ONE_OF_EVERYTHING[signal], data.draw(REQUESTS[signal])):
        found = otlp.encode(signal, request.SerializeToString(), ORIGIN, partitions=3)
        for group in found.groups:
            records = alike(signal, group.value)
            assert isinstance(records, list)
            assert len(records) == group.records


@signals
def test_both_refuse_the_same_with_the_same_words(signal: schema.Signal) -> None:
    """Bytes changed, cut out and added at random: the same records, or the same sentence."""
    rng = random.Random(6)
    request = ONE_OF_EVERYTHING[signal].SerializeToString()
    [group] = otlp.encode(signal, request, ORIGIN, partitions=1).groups
    head = len(schema.of(signal).head)
    refused = sum(
        isinstance(alike(signal, group.value[:head] + mutate(group.value[head:], rng)), str) for _ in range(1000)
    )
    assert 500 < refused < 1000
