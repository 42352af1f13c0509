"""Container files join by concatenation, and damage is seen in the framing."""

import io
import json

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import otlp
from pipeline.errors import Rejected
from pipeline.record import avro, container, readable, schema
from tests.contract.registered import FIELDS, ROWS, declared, message
from tests.otlp.decode import ORIGIN
from tests.otlp.requests import logs

HEAD = schema.of("logs").head


def value(*bodies: str) -> bytes:
    [group] = otlp.encode("logs", logs(*bodies).SerializeToString(), ORIGIN, partitions=1).groups
    return group.value


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_long_is_avros(n: int) -> None:
    """Every 64-bit integer is encoded as fastavro encodes it."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, "long", n)
    assert avro.long(n) == out.getvalue()


@given(st.lists(st.lists(st.text(max_size=3), min_size=1, max_size=3), min_size=1, max_size=4))
def test_joined_values_are_one_file_of_all_records(groups: list[list[str]]) -> None:
    """Joining decodes to the records of all values in order, and the framing counts them."""
    values = [value(*bodies) for bodies in groups]
    joined = container.join(HEAD, values)
    apart = [record for one in values for record in fastavro.reader(io.BytesIO(one))]
    assert list(fastavro.reader(io.BytesIO(joined))) == apart
    assert container.count(HEAD, joined) == len(apart)


@given(st.integers(0, len(value("a", "b")) - 1))
def test_a_cut_value_is_rejected(length: int) -> None:
    """Half a message is never joined to its neighbours."""
    if length == len(HEAD):  # a file of no blocks is whole: the header `records` tells that it should have some
        return
    with pytest.raises(Rejected):
        container.count(HEAD, value("a", "b")[:length])


def test_every_type_is_readable_as_json() -> None:
    """What people are shown of a registered table's rows: bytes as hex, times and dates as ISO 8601."""
    rows, error = readable.decode(message(declared("everything", FIELDS), *ROWS).value)
    assert error == ""
    first, second = json.loads(json.dumps(rows))
    assert (first["f_bytes"], first["f_date"], second["a_date"]) == ("00ff", "2026-11-20", ["1969-12-31", "2026-11-20"])
    assert first["f_timestamp_millis"] == "2026-11-20T10:00:00.123000+00:00"
    assert second["a_timestamp_micros"][0] == "1999-12-31T23:59:59.999999+00:00"


@pytest.mark.parametrize(
    "damage", [b"", b"garbage", HEAD + b"\x01", HEAD + b"\xff" * 30, HEAD + b"\x02\x7f", b"\0" + HEAD]
)
def test_damaged_framing_is_rejected(damage: bytes) -> None:
    """Values that are no container file of the schema are rejected with a sentence."""
    if damage == b"":
        damage = HEAD[:-1]
    with pytest.raises(Rejected, match="The value"):
        container.count(HEAD, damage)
