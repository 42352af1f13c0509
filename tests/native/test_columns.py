"""The same records sent to ClickHouse by the extension, by column, and without it, as Avro."""

import random
import uuid

import hypothesis
import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from pipeline import native, otlp
from pipeline.agents.ch_writer import TABLES
from pipeline.clickhouse.body import body
from pipeline.clickhouse.inserts import Inserts
from pipeline.record import schema
from pipeline.settings import Settings
from tests.otlp.decode import ORIGIN
from tests.otlp.requests import ONE_OF_EVERYTHING, REQUESTS
from tests.otlp.scramble import mutate

signals = pytest.mark.parametrize("signal", schema.SIGNALS)
FORMS: dict[native.Implementation, str] = {"python": "Avro", "native": "Native"}
STORED: dict[schema.Signal, list[str]] = {
    "logs": ["logs_events"],
    "traces": ["spans", "span_events", "span_links"],
    "metrics": ["metrics_points"],
}


@signals
@hypothesis.settings(
    max_examples=3, deadline=None, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_both_forms_store_the_same_rows(
    signal: schema.Signal, store: Client, settings: Settings, data: st.DataObject
) -> None:
    """One of everything and some generated requests: all columns of all tables are the same, but when."""
    requests = [ONE_OF_EVERYTHING[signal], *data.draw(st.lists(REQUESTS[signal], min_size=5, max_size=5))]
    made = [encoded(signal, request.SerializeToString()) for request in requests]
    values = [group.value for one in made for group in one.groups]
    found = []
    for implementation, form in FORMS.items():
        native.choose(implementation)
        assert body(schema.of(signal), values)[0] == form
        inserts = Inserts(settings.clickhouse, TABLES[signal])
        inserts.insert(schema.of(signal), values, records=sum(one.accepted for one in made), token=uuid.uuid4().hex)
        found.append(
            [
                store.query(f"SELECT * EXCEPT inserted_time FROM {table} ORDER BY ALL").result_rows
                for table in STORED[signal]
            ]
        )
        for table in STORED[signal]:
            store.command(f"TRUNCATE TABLE {table} SYNC")
    assert repr(found[0]) == repr(found[1])  # NaN is itself


@signals
def test_a_spoiled_value_is_left_to_clickhouse_or_read_within_its_own_size(signal: schema.Signal) -> None:
    """Bytes changed, cut out and added at random: Avro as it came, or blocks of at most nine times the value: a long of
    one byte is eight."""
    native.choose("native")
    rng = random.Random(5)
    [group] = encoded(signal, ONE_OF_EVERYTHING[signal].SerializeToString(), partitions=1).groups
    left = 0
    for _ in range(20_000):
        spoiled = group.value[: len(schema.of(signal).head)] + mutate(group.value[len(schema.of(signal).head) :], rng)
        form, parts = body(schema.of(signal), [spoiled])
        if form == "Avro":
            left += 1
            assert b"".join(parts) == spoiled
        else:
            assert sum(map(len, parts)) < 9 * len(spoiled)
    assert 10_000 < left < 20_000


@pytest.mark.parametrize(("last", "fits"), [(1, True), (2, False)])
def test_a_number_of_more_than_64_bits_is_damage(last: int, fits: bool) -> None:
    """Nine full bytes and 1 are the lowest long there is; whatever is larger is not cut to fit."""
    native.choose("native")
    extension = native.chosen()
    assert extension
    number = b"\xff" * 9 + bytes([last])
    value = b"\x02" + bytes([2 * len(number)]) + number + bytes(16)
    if fits:
        [block] = extension.columns([("n", "l")], [value], 0, 10)
        assert block.endswith((-(2**63)).to_bytes(8, "little", signed=True))
    else:
        with pytest.raises(extension.Malformed):
            extension.columns([("n", "l")], [value], 0, 10)


def encoded(signal: schema.Signal, request: bytes, partitions: int = 3) -> otlp.Encoded:
    return otlp.encode(signal, request, ORIGIN, partitions=partitions)
