"""The schemas in schemas/ are the ones that were published."""

import json

import fastavro
import pytest

from pipeline.errors import Misconfigured
from pipeline.record import schema


def test_every_schema_file_is_locked_and_valid() -> None:
    """Each file parses as Avro and has the fingerprint that schemas/lock.json holds, and no other is locked."""
    locked = json.loads((schema.DIRECTORY / "lock.json").read_text())
    names = [path.stem.replace(".v", "/") for path in schema.files()]
    assert sorted(locked) == names
    for name in names:
        fastavro.parse_schema(schema.load(name).avro)


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
