"""Records for people: a container file decoded, slowly, as far as that goes."""

import datetime
import io
from typing import Any

import fastavro


def decode(value: bytes) -> tuple[list[Any], str]:
    """The records of a container file up to the first that does not decode, and why that does not; bytes as hex."""
    found: list[Any] = []
    file = io.BytesIO(value)
    try:
        whole = fastavro.reader(file)
        if whole.codec != "null":
            found += map(_readable, whole)
            return found, ""
        while file.tell() < len(value):  # record by record, since fastavro's reader wants whole blocks
            count: Any = fastavro.schemaless_reader(file, "long", None)
            fastavro.schemaless_reader(file, "long", None)
            for _ in range(count):
                found.append(_readable(fastavro.schemaless_reader(file, whole.writer_schema, None)))
            file.read(16)  # the sync marker
    except Exception as error:  # fastavro promises no type for what foreign bytes do to it
        return found, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return found, ""


def _readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: _readable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_readable(each) for each in value]
    if isinstance(value, datetime.date):  # a datetime too
        return value.isoformat()
    return value
