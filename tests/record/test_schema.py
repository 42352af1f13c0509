"""The schemas in schemas/ are the ones that were published."""

import pytest

from pipeline.errors import Misconfigured
from pipeline.record import schema


@pytest.mark.parametrize("signal", schema.SIGNALS)
def test_unhashed_fields_come_first_and_the_ordinal_last(signal: schema.Signal) -> None:
    """The hashed bytes are the tail of a record."""
    fields = [field["name"] for field in schema.of(signal).avro["fields"]]
    assert fields[:4] == ["event_id", "region", "received_time", "tenant"]
    assert fields[-1] == "ordinal"


def test_a_missing_schema_is_named() -> None:
    """An unknown schema names the file that would hold it."""
    with pytest.raises(Misconfigured, match=r"schemas/log_record.v99.avsc is missing"):
        schema.load("log_record/99")
