"""Metric points as columns and as COPY's binary rows.

Source of the format: PostgreSQL documentation, COPY, "Binary Format". Times become microseconds since 2000, as
timestamptz holds them; an id becomes a uuid of the same 16 bytes.
"""

import io
import queue
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import polars_avro

from pipeline.errors import Rejected
from pipeline.record.times import RECEIPT_NS, SANE_AHEAD_NS, SANE_FROM_NS

DECODE_WITHIN_S = 5.0  # 16 MB take 0.1 s
EPOCH_2000_US = 946_684_800 * 10**6
SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"
SERIES_COLUMNS = (
    "series_id", "tenant", "metric_name", "service", "host", "description", "unit", "type", "temporality", "monotonic",
    "resource_attributes", "scope_name", "scope_version", "scope_attributes", "attributes",
)  # fmt: skip
POINT_COLUMNS = ("event_id", "region", "received_time", "type", "series_id", "time", "value")
OBSERVATIONS = ("count", "sum", "min", "max")
NO_RECORDED_VALUE = 1  # OTLP's DataPointFlags
FLOAT8, INT8 = 701, 20  # OIDs


class Stuck(Rejected):
    """Some record among these is damaged so that decoding does not end."""


# Tables of the types that are not plain numbers, and their columns after the five that all tables share.
HISTOGRAM_TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "histogram": ("metrics_histograms", (*OBSERVATIONS, "explicit_bounds", "bucket_counts")),
    "exponential_histogram": (
        "metrics_exponential_histograms",
        (
            *OBSERVATIONS, "scale", "zero_count", "zero_threshold",
            "positive_offset", "positive_counts", "negative_offset", "negative_counts",
        ),
    ),
    "summary": ("metrics_summaries", ("count", "sum", "quantiles", "quantile_values")),
}  # fmt: skip
POINTS_TABLE = ("metrics_points", ("value",))
SHARED_COLUMNS = ("time", "series_id", "event_id", "region", "received_time")


def points(joined: bytes) -> pl.DataFrame:
    """All points of a container file, sorted by (series_id, time), with the columns of POINT_COLUMNS.

    `time` and `received_time` are in microseconds since 2000; `time` is the receipt where the point's own is missing or
    absurd (before 2000, more than a day ahead). Raise Rejected where the file does not decode.
    """
    received, time = pl.col("received_time"), pl.col("time")
    receipt = received // RECEIPT_NS * RECEIPT_NS
    sane = time.is_between(SANE_FROM_NS, receipt + SANE_AHEAD_NS)
    microseconds = [
        (pl.when(sane).then(time).otherwise(receipt) // 1000 - EPOCH_2000_US).alias("time"),
        (received // 1000 - EPOCH_2000_US).alias("received_time"),
    ]
    return read(joined, POINT_COLUMNS).with_columns(microseconds).sort("series_id", "time")


def read(joined: bytes, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of a container file of a signal, with a row number called `row`; raise as `decoded` does."""
    return decoded(joined, columns).with_row_index("row")


def decoded(joined: bytes, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of a container file, whatever they are called.

    Raise Rejected where it does not decode, and Stuck where that did not end: polars-avro does not come back from some
    damaged counts. The thread that tries is then lost, and busy until the process ends.
    """
    done: queue.SimpleQueue[pl.DataFrame | Exception] = queue.SimpleQueue()

    def decode() -> None:
        try:
            done.put(polars_avro.read_avro(io.BytesIO(joined), columns=list(columns)))
        except Exception as error:
            done.put(error)

    threading.Thread(target=decode, name="decode", daemon=True).start()
    try:
        result = done.get(timeout=DECODE_WITHIN_S)
    except queue.Empty:
        raise Stuck(f"The records did not decode within {DECODE_WITHIN_S:.0f} s: a count in them is damaged.") from None
    if isinstance(result, polars_avro.AvroError | pl.exceptions.PolarsError | ValueError):
        raise Rejected(f"The records do not decode: {result}")
    if isinstance(result, Exception):
        raise result
    return result


def number_rows(frame: pl.DataFrame) -> Iterator[bytes]:
    """Binary COPY rows of metrics_points, in order within runs of one region and of present or missing values."""
    for _, part in frame.group_by("region", pl.col("value").is_null().alias("missing"), maintain_order=True):
        region = part["region"][0].encode()
        missing = part["value"].null_count() > 0
        layout = [
            ("columns", ">i2"),
            ("time_size", ">i4"), ("time", ">i8"),
            ("series_id_size", ">i4"), ("series_id", ">i8"),
            ("event_id_size", ">i4"), ("event_id", "V16"),
            ("region_size", ">i4"), ("region", f"S{len(region)}"),
            ("received_time_size", ">i4"), ("received_time", ">i8"),
            ("value_size", ">i4"),
        ]  # fmt: skip
        rows = np.empty(part.height, dtype=layout if missing else [*layout, ("value", ">f8")])
        rows["columns"] = 6
        rows["time_size"] = rows["series_id_size"] = rows["received_time_size"] = 8
        rows["event_id_size"], rows["region_size"], rows["value_size"] = 16, len(region), -1 if missing else 8
        rows["region"] = region
        rows["event_id"] = _ids(part["event_id"])
        for column in ("time", "series_id", "received_time"):
            rows[column] = part[column].to_numpy()
        if not missing:
            rows["value"] = part["value"].to_numpy()
        yield rows.tobytes()


def _ids(ids: pl.Series) -> npt.NDArray[np.void]:
    halves = ids.bin.reinterpret(dtype=pl.Array(pl.UInt64, 2), endianness="little").to_numpy()
    return np.ascontiguousarray(halves).view("V16").ravel()


def histogram_rows(frame: pl.DataFrame, joined: bytes, kind: str) -> Iterator[bytes]:
    """Binary COPY rows of the table of `kind` for the points in `frame`.

    Where the client said that nothing was recorded, count, sum, min and max are null.
    """
    _, columns = HISTOGRAM_TABLES[kind]
    stored = ["quantiles"] if kind == "summary" else []
    wanted = ["flags", *stored, *(column for column in columns if column not in ("quantiles", "quantile_values"))]
    details = frame.join(read(joined, wanted), on="row", how="left", maintain_order="left")
    for point in details.iter_rows(named=True):
        if kind == "summary":
            pairs = point["quantiles"]
            point["quantiles"] = [pair["quantile"] for pair in pairs]
            point["quantile_values"] = [pair["value"] for pair in pairs]
        if point["flags"] & NO_RECORDED_VALUE:
            point.update(dict.fromkeys(OBSERVATIONS))
        yield _row(point, columns)


def _row(point: dict[str, Any], columns: tuple[str, ...]) -> bytes:
    pieces = [
        struct.pack(">hiqiq", 5 + len(columns), 8, point["time"], 8, point["series_id"]),
        _field(point["event_id"]),
        _field(point["region"].encode()),
        struct.pack(">iq", 8, point["received_time"]),
    ]
    pieces += [_ENCODE[column](point[column]) for column in columns]
    return b"".join(pieces)


def _field(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


def _float8(number: float | None) -> bytes:
    return NULL if number is None else struct.pack(">id", 8, number)


def _int8(number: int | None) -> bytes:
    return NULL if number is None else struct.pack(">iq", 8, number)


def _int4(number: int) -> bytes:
    return struct.pack(">ii", 4, number)


def _array(code: str, oid: int, numbers: Sequence[float]) -> bytes:
    """A one-dimensional array of 8-byte elements that starts at 1; an empty one has no dimension."""
    if not numbers:
        return _field(struct.pack(">iii", 0, 0, oid))
    elements = np.empty(len(numbers), dtype=[("size", ">i4"), ("element", code)])
    elements["size"], elements["element"] = 8, numbers
    return _field(struct.pack(">iiiii", 1, 0, oid, len(numbers), 1) + elements.tobytes())


def _float8s(numbers: Sequence[float]) -> bytes:
    return _array(">f8", FLOAT8, numbers)


def _int8s(numbers: Sequence[int]) -> bytes:
    return _array(">i8", INT8, numbers)


_ENCODE: dict[str, Callable[[Any], bytes]] = {
    "count": _int8, "sum": _float8, "min": _float8, "max": _float8,
    "explicit_bounds": _float8s, "bucket_counts": _int8s,
    "scale": _int4, "zero_count": _int8, "zero_threshold": _float8, "positive_offset": _int4, "positive_counts": _int8s,
    "negative_offset": _int4, "negative_counts": _int8s, "quantiles": _float8s, "quantile_values": _float8s,
}  # fmt: skip
