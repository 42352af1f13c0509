"""Requests that cost far more to hold than to send, and `python -m tests.otlp.hostile SIGNAL NAME`: what one costs."""

import json
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from pipeline import native, otlp
from pipeline.errors import Rejected
from tests.otlp.decode import ORIGIN

ATTRIBUTES = {"logs": 6, "traces": 9, "metrics": 7}  # field numbers in LogRecord, Span, NumberDataPoint
VALID = {"logs": b"", "metrics": b"", "traces": b"\x0a\x10" + b"t" * 16 + b"\x12\x08" + b"s" * 8}  # what one needs


def nested(number: int, inner: bytes) -> bytes:
    """`inner` as field `number`."""
    size, length = len(inner), b""
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + inner


def request(signal: str, records: bytes, resource: bytes = b"") -> bytes:
    """One resource and one scope that hold `records`, made by `record`."""
    if signal == "metrics":
        records = nested(2, nested(1, b"m") + nested(5, records))
    return nested(1, nested(1, resource) + nested(2, records))


def record(signal: str, fields: bytes = b"") -> bytes:
    return nested(1 if signal == "metrics" else 2, VALID[signal] + fields)


def attribute(signal: str, fields: bytes) -> bytes:
    return nested(ATTRIBUTES[signal], fields)


def deep(levels: int) -> bytes:
    """An AnyValue of arrays inside one another."""
    value = b""
    for _ in range(levels):
        value = nested(5, nested(1, value))
    return value


def distinct(signal: str, count: int) -> bytes:
    return b"".join(record(signal, b"\x19" + n.to_bytes(8, "big")) for n in range(count))  # field 3 or 11: fixed64


# Field 1 of a scope is the scope, of a gauge a point; field 15 is unknown to both.
HOSTILE: dict[str, Callable[[str], bytes]] = {
    "a million empty records": lambda s: request(s, (record(s) if s == "metrics" else b"\x12\0") * 1_000_000),
    "30M empty attributes of a record": lambda s: request(s, record(s, attribute(s, b"") * 30_000_000)),
    "30M empty attributes in records of 880 KB": lambda s: request(s, record(s, attribute(s, b"") * 440_000) * 70),
    "30M empty attributes of a resource": lambda s: request(s, record(s), nested(1, b"") * 30_000_000),
    "200,000 distinct attributes": lambda s: request(
        s, b"".join(
            record(s, b"".join(attribute(s, nested(1, b"%08d" % (1000 * m + n))) for n in range(1000)))
            for m in range(200)
        )
    ),
    "20,000 records of a 10 KB resource": lambda s: request(
        s, distinct(s, 20_000), nested(1, nested(1, b"k") + nested(2, nested(1, b"v" * 10_000)))
    ),
    "8M empty resources": lambda _: b"\x0a\0" * 8_000_000,
    "2M empty scopes": lambda _: nested(1, b"\x12\0" * 2_000_000),
    "2M empty metrics or records": lambda _: nested(1, nested(2, b"\x12\0" * 2_000_000)),
    "a resource and a scope for each record": lambda s: request(s, record(s)) * 200_000,
    "2M unknown fields": lambda s: request(s, b"\x78\0" * 2_000_000),
    "2M fields that merge": lambda s: request(s, b"\x0a\0" * 2_000_000),
    "arrays of 400,000 nothings": lambda s: request(
        s, record(s, attribute(s, nested(2, nested(5, nested(1, b"") * 400_000)))) * 20
    ),
    "deep nesting": lambda s: request(s, record(s, attribute(s, nested(2, deep(40)))) * 20_000),
}  # fmt: skip


def main(signal: str, name: str) -> None:
    body = HOSTILE[name](signal)
    implementations: tuple[native.Implementation, ...] = ("python", "native") if native.chosen() else ("python",)
    for implementation in implementations:
        native.choose(implementation)
        print(json.dumps({"implementation": implementation} | _costs(signal, body)))


def _costs(signal: str, body: bytes) -> dict[str, Any]:
    otlp.encode(signal, b"", ORIGIN, partitions=1)  # type: ignore[arg-type]
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, cpu = _peak_bytes(), time.process_time()
    groups_bytes, outcome = 0, ""
    try:
        encoded = otlp.encode(signal, body, ORIGIN, partitions=4)  # type: ignore[arg-type]
        groups_bytes = sum(len(group.value) for group in encoded.groups)
        outcome = f"{encoded.accepted} accepted, {dict(encoded.refused)} refused, {encoded.cut} cut"
    except Rejected as error:
        outcome = type(error).__name__
    costs = {"body_mb": len(body) / 1e6, "groups_mb": groups_bytes / 1e6, "peak_mb": (_peak_bytes() - before) / 1e6}
    return costs | {"cpu_s": time.process_time() - cpu, "outcome": outcome}


def _peak_bytes() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
