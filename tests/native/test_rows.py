"""PostgreSQL's rows by the extension and by the reference: the same rows, counts, hours and series."""

import random
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import native, otlp
from pipeline.record import container, schema
from pipeline.timescale import writer
from tests.otlp.decode import ORIGIN
from tests.otlp.requests import ONE_OF_EVERYTHING, REQUESTS, metrics
from tests.otlp.scramble import mutate

HEAD = schema.of("metrics").head


def file(*requests: Any, origin: otlp.Origin = ORIGIN) -> bytes:
    """One container file of all points of some requests."""
    found = [otlp.encode("metrics", request.SerializeToString(), origin, partitions=3) for request in requests]
    return container.join(HEAD, [group.value for encoded in found for group in encoded.groups])


def split(rows: bytes) -> list[bytes]:
    """Binary COPY rows, sorted."""
    found, at = [], 0
    while at < len(rows):
        start = at
        [fields] = struct.unpack_from(">h", rows, at)
        at += 2
        for _ in range(fields):
            [size] = struct.unpack_from(">i", rows, at)
            at += 4 + max(size, 0)
        found.append(rows[start:at])
    return sorted(found)


def prepared(implementation: native.Implementation, joined: bytes) -> Any:
    native.choose(implementation)
    tables, series = writer.prepared(joined)
    return series, [
        table._replace(hours=sorted(table.hours), rows=split(b"".join(table.rows)))  # type: ignore[arg-type]
        for table in tables
    ]


def taken(joined: bytes) -> bool:
    """Whether the extension reads the file itself; then the reference says the same."""
    native.choose("native")
    extension = native.chosen()
    assert extension is not None
    if extension.copy_rows(HEAD, joined) is None:
        return False
    assert prepared("native", joined) == prepared("python", joined)
    return True


def test_one_of_everything_is_the_same_rows() -> None:
    """Every table, twins and their later receipts, two regions, absurd times, and none at all."""
    later = ORIGIN._replace(region="eu", received_time=ORIGIN.received_time + 10**9)
    again = metrics()
    again.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points[0].as_double = 7.0
    untimed = metrics()
    untimed.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points[0].time_unix_nano = (1 << 64) - 1
    both = container.join(HEAD, [file(metrics(), again, untimed), file(metrics(), again, origin=later)])
    assert taken(both)
    _, tables = prepared("native", both)
    assert len(tables) == 4
    assert sum(table.beaten for table in tables) == 1
    assert taken(HEAD)


@settings(deadline=None, max_examples=25)
@given(st.lists(REQUESTS["metrics"], max_size=3))
def test_any_points_are_the_same_rows(requests: list[Any]) -> None:
    """Generated points of every kind."""
    assert taken(file(*requests))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, (1 << 64) - 1))
def test_damaged_files_are_left_to_the_reference_or_the_same(seed: int) -> None:
    """What the extension takes of mutated files, the reference takes alike."""
    rng = random.Random(seed)
    joined = file(ONE_OF_EVERYTHING["metrics"])
    for _ in range(20):
        taken(HEAD + mutate(joined[len(HEAD) :], rng))


def test_other_versions_are_left_to_the_reference() -> None:
    """A file with another head is not looked into."""
    assert not taken(b"Obj\1" + bytes(30))
