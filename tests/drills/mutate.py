"""Requests that no exporter would send: request N of a seed is always the same bytes."""

# ruff: noqa: PLR0912, PLR0915 - a mutation is a branch

import copy
import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lz4.frame
from backports import zstd
from cramjam import snappy

from pipeline.gateway.compression import SNAPPY_STREAM
from pipeline.record.schema import SIGNALS, Signal
from tests.bench import payload
from tests.otlp import requests
from tests.otlp.as_json import as_json

PROTOBUF, JSON = "application/x-protobuf", "application/json"
START_NS = 1_795_000_000_000_000_000
BOMB_BYTES = 100_000_000
SIGNAL_MESSAGES = {
    "logs": requests.logs("one", {"two": [2]}),
    "metrics": requests.metrics(),
    "traces": requests.traces(),
}
PLAIN: dict[Signal, list[bytes]] = {
    signal: [
        SIGNAL_MESSAGES[signal].SerializeToString(),
        *(payload.request(signal, count, START_NS, random.Random(count)) for count in (1, 3, 10)),
    ]
    for signal in SIGNALS
}
TEXT: dict[Signal, bytes] = {signal: as_json(message) for signal, message in SIGNAL_MESSAGES.items()}
WORDS = [
    "",
    "0",
    "-1",
    "NaN",
    "é" * 7,
    "\x00",
    "x" * 300,
    "true",
    "1e999",
    "0x10",
    "2026-11-18T10:26:40Z",
    "=?",
    "\ufeff",
]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, -0.0, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 1e308, float("nan"),
    float("inf"), "", "x", "-1", "1" * 25, "1e5", "Infinity", "é\ud800", [], {}, [None], {"": ""}, "00" * 16, "zz" * 16,
]  # fmt: skip
KEYS = [
    "",
    "resourceLogs",
    "resource_logs",
    "stringValue",
    "intValue",
    "arrayValue",
    "values",
    "timeUnixNano",
    "x" * 500,
    "é",
]


@dataclass
class Case:
    """One request. `raw` stands for head and body where HTTP itself is broken: then any 4xx or a closed door is fine."""

    number: int
    protocol: str  # http, grpc, or wire: bytes at the gRPC port
    signal: Signal
    body: bytes
    kinds: list[str] = field(default_factory=list)
    headers: list[tuple[str, str]] = field(default_factory=list)
    coding: str = "identity"  # of gRPC
    raw: bytes | None = None

    def content_type(self) -> str:
        return next((value for name, value in self.headers if name == "Content-Type"), "")

    def http(self) -> bytes:
        """Head and body as they go over the wire."""
        if self.raw is not None:
            return self.raw
        lines = [
            f"POST /v1/{self.signal} HTTP/1.1",
            "Host: fuzz",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join([*lines, f"Content-Length: {len(self.body)}", "", ""]).encode("latin-1") + self.body


def case(seed: int, number: int) -> Case:
    """Request `number` of `seed`."""
    rng = random.Random(f"{seed}:{number}")
    signal = rng.choice(SIGNALS)
    chance = rng.random()
    protocol = "http" if chance < 0.78 else "grpc" if chance < 0.985 else "wire"
    as_text = protocol == "http" and rng.random() < 0.35
    made = Case(number, protocol, signal, b"")
    if as_text:
        made.body = _text(signal, rng, made.kinds)
    else:
        made.body = _protobuf(signal, rng, made.kinds)
    if rng.random() < 0.25:
        made.body = _bytes(made.body, rng, made.kinds)
    if protocol == "http":
        made.headers = [("Content-Type", JSON if as_text else PROTOBUF)]
        if rng.random() < 0.25:
            _coded(made, rng)
        if rng.random() < 0.15:
            _headers(made, rng)
        if rng.random() < 0.06:
            _framing(made, rng)
    elif protocol == "grpc":
        made.coding = rng.choice(["identity", "identity", "gzip", "deflate"])
    else:
        made.body = _wire(made.body, rng, made.kinds)
    return made


# Bytes ---------------------------------------------------------------------------------------------------------------


def _bytes(body: bytes, rng: random.Random, kinds: list[str]) -> bytes:
    """Blind damage: flips, cuts, doubles, splices, noise."""
    damaged = bytearray(body)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        size = len(damaged)
        at, upto = sorted((rng.randrange(size + 1), rng.randrange(size + 1)))
        kind = rng.choice(["flip", "flip", "flip", "cut", "double", "splice", "noise", "remove", "empty"])
        kinds.append(kind)
        if kind == "flip" and size:
            for _ in range(rng.choice([1, 1, 3, 20])):
                damaged[rng.randrange(size)] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del damaged[at:]
        elif kind == "double":
            damaged[at:at] = damaged[at:upto][:5000]
        elif kind == "splice":
            other = rng.choice(PLAIN[rng.choice(SIGNALS)])
            damaged[at:] = other[rng.randrange(len(other)) :]
        elif kind == "noise":
            damaged[at:at] = rng.randbytes(rng.choice([1, 4, 16, 200]))
        elif kind == "remove":
            del damaged[at : min(upto, at + 16)]
        elif kind == "empty" and rng.random() < 0.2:
            damaged.clear()
    return bytes(damaged)


# Protobuf ------------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _protobuf(signal: Signal, rng: random.Random, kinds: list[str]) -> bytes:
    body = rng.choice(PLAIN[signal])
    for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
        body = _rewritten(body, rng, kinds)
    if rng.random() < 0.03:
        body += _big_record(signal, rng, kinds)
    return body


def _fields(body: bytes) -> list[tuple[int, int, bytes]] | None:
    """(number, wire type, value) of a message's fields; None where the bytes are no message."""
    found, place, size = [], 0, len(body)
    while place < size:
        tag, place = _read_varint(body, place)
        number, kind = tag >> 3, tag & 7
        start = place
        if kind == 0:
            _, place = _read_varint(body, place)
        elif kind == 1:
            place += 8
        elif kind == 5:
            place += 4
        elif kind == 2:
            length, start = _read_varint(body, place)
            place = start + length
        else:
            return None
        if place > size or place < 0 or number == 0:
            return None
        found.append((number, kind, body[start:place]))
    return found


def _read_varint(body: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(body) and shift < 70:
        byte = body[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    return 0, len(body) + 1


def _written(number: int, kind: int, value: bytes) -> bytes:
    return varint(number << 3 | kind) + (varint(len(value)) if kind == 2 else b"") + value


def _rewritten(body: bytes, rng: random.Random, kinds: list[str]) -> bytes:
    """Go down to a field anywhere in the message, do something to it, and mend the lengths above it."""
    fields = _fields(body)
    if not fields:
        return body
    at = rng.randrange(len(fields))
    number, kind, value = fields[at]
    if kind == 2 and rng.random() < 0.8 and _fields(value):
        changed = _written(number, kind, _rewritten(value, rng, kinds))
    else:
        changed = _changed(number, kind, value, rng, kinds)
    pieces = [changed if n == at else _written(*one) for n, one in enumerate(fields)]
    return b"".join(pieces)


def _changed(number: int, kind: int, value: bytes, rng: random.Random, kinds: list[str]) -> bytes:
    done = rng.choice(
        ["gone", "twice", "many", "other number", "other type", "huge varint", "lying length", "bad utf-8", "long", "deep",
         "random value", "group", "reserved type"]
    )  # fmt: skip
    kinds.append(done)
    match done:
        case "gone":
            return b""
        case "twice":
            return _written(number, kind, value) * 2
        case "many":
            return _written(number, kind, value) * min(rng.choice([10, 1000]), 100_000 // (len(value) + 2) + 1)
        case "other number":
            return _written(rng.choice([1, 2, 3, 4, 5, 15, 100, 2**29 - 1]), kind, value)
        case "other type":
            kind = rng.choice([0, 1, 2, 5])
            fixed = {0: varint(rng.getrandbits(64)), 1: rng.randbytes(8), 5: rng.randbytes(4), 2: value}
            return _written(number, kind, fixed[kind])
        case "huge varint":
            huge = [b"\xff" * 9 + b"\x01", b"\xff" * 10 + b"\x01", b"\xff" * 40, b"\x80" * 9 + b"\x00", varint(2**63)]
            return varint(number << 3) + rng.choice(huge)
        case "lying length":
            lie = rng.choice([len(value) + 1, max(0, len(value) - 1), 2**31 - 1, 2**32, 2**63, 2**64 - 1])
            return varint(number << 3 | 2) + varint(lie) + value
        case "bad utf-8":
            return _written(
                number, 2, rng.choice([b"\xff\xfe", b"a\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80"])
            )
        case "long":
            return _written(number, 2, b"k" * rng.choice([300, 5000, 100_000]))
        case "deep":
            return _written(number, 2, deep_value(rng.choice([2, 31, 32, 33, 90, 101, 500, 2000]), rng.random() < 0.5))
        case "group":
            return varint(number << 3 | 3) * rng.choice([1, 50, 5000]) + varint(number << 3 | 4)
        case "reserved type":
            return varint(number << 3 | rng.choice([6, 7])) + value
        case _:
            return _written(
                number, kind, rng.randbytes(8)[: {1: 8, 5: 4}.get(kind, 8)] if kind else varint(rng.getrandbits(64))
            )


def deep_value(depth: int, as_map: bool) -> bytes:
    """An AnyValue that holds an AnyValue that holds …"""
    value = _written(1, 2, b"bottom")
    for _ in range(depth):
        if as_map:
            pair = _written(1, 2, b"k") + _written(2, 2, value)
            value = _written(6, 2, _written(1, 2, pair))
        else:
            value = _written(5, 2, _written(1, 2, value))
    return value


def _big_record(signal: Signal, rng: random.Random, kinds: list[str]) -> bytes:
    """One more resource with many attributes, a giant key or a giant value."""
    done = rng.choice(["many attributes", "giant key", "giant value", "many records"])
    kinds.append(done)

    def attribute(key: bytes, value: bytes) -> bytes:
        return _written(1, 2, _written(1, 2, key) + _written(2, 2, _written(1, 2, value)))

    record = b""
    if done == "many attributes":
        attributes = b"".join(attribute(b"key-%d" % n, b"v") for n in range(rng.choice([130, 1025, 5000])))
    elif done == "giant key":
        attributes = attribute(b"k" * rng.choice([2000, 70_000, 1_000_000]), b"v")
    elif done == "giant value":
        attributes = attribute(b"key", b"v" * rng.choice([70_000, 1_000_000]))
    else:
        attributes, record = attribute(b"service.name", b"many"), _written(2, 2, b"") * rng.choice([100, 3000])
    if not record and signal != "metrics":
        record = _written(2, 2, b"")
    return _written(1, 2, _written(1, 2, attributes) + _written(2, 2, record))


# JSON ----------------------------------------------------------------------------------------------------------------


def _text(signal: Signal, rng: random.Random, kinds: list[str]) -> bytes:
    document = json.loads(TEXT[signal])
    for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
        _json_changed(document, rng, kinds)
    text = json.dumps(document)
    if rng.random() < 0.12:
        text = _json_text(text, rng, kinds)
    coded = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.01:
        kinds.append("utf-16")
        coded = text.encode("utf-16", "surrogatepass")
    return coded


def _json_changed(document: Any, rng: random.Random, kinds: list[str]) -> None:
    """Go down to a node anywhere in the document and do something to it."""
    node = document
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.85:
            node = node[key]
            continue
        break
    done = rng.choice(
        ["json type", "json type", "json type", "json gone", "json key", "json many", "json deep", "json word"]
    )
    kinds.append(done)
    if done == "json type":
        node[key] = copy.copy(rng.choice(VALUES))  # its own: a later mutation may fill it
    elif done == "json gone":
        del node[key]
    elif done == "json key" and isinstance(node, dict):
        node[rng.choice(KEYS)] = node.pop(key)
    elif done == "json many" and isinstance(node, list):
        node.extend([node[key]] * rng.choice([5, 300]))
    elif done == "json deep":
        value: Any = {"stringValue": "bottom"}
        for _ in range(rng.choice([2, 33, 90, 300])):
            value = {"arrayValue": {"values": [value]}}
        node[key] = value
    else:
        node[key] = rng.choice(WORDS)


def _json_text(text: str, rng: random.Random, kinds: list[str]) -> str:
    done = rng.choice(
        ["brackets", "long integer", "long double", "comma", "bom", "tail", "doubled key", "comment", "scalar"]
    )
    kinds.append(done)
    at = rng.randrange(len(text))
    match done:
        case "brackets":
            return rng.choice(["[", '{"a":', '{"resourceLogs":[']) * rng.choice([50, 1000, 100_000])
        case "long integer":
            return text.replace('"1', '"' + "1" * rng.choice([30, 5000]), 1).replace(":1", ":" + "1" * 5000, 1)
        case "long double":
            return text.replace(":1", ":1." + "1" * 5000 + "e-4000", 1).replace("1.5", "1e400", 1)
        case "comma":
            return text[:at] + "," + text[at:]
        case "bom":
            return "\ufeff" + text
        case "tail":
            return text + rng.choice(["\n\n", "x", "{}", "\x00"])
        case "doubled key":
            return text[:-1] + "," + text[1:]
        case "comment":
            return text[:at] + "/* */" + text[at:]
        case _:
            return rng.choice(["null", "1", '"x"', "[]", "true", "", " ", "NaN", "[1]", '{"resourceLogs":null}'])


# HTTP ----------------------------------------------------------------------------------------------------------------


def _bombs() -> dict[str, bytes]:
    zeros = bytes(1_000_000)

    def filled(compress: Callable[[bytes], bytes], flush: Callable[[], bytes]) -> bytes:
        return b"".join([*(compress(zeros) for _ in range(BOMB_BYTES // len(zeros))), flush()])

    zipped, raw, framed = zlib.compressobj(9, wbits=31), zlib.compressobj(9, wbits=-15), zlib.compressobj(9)
    zst = zstd.ZstdCompressor()
    return {
        "gzip": filled(zipped.compress, zipped.flush),
        "raw deflate": filled(raw.compress, raw.flush),
        "deflate": filled(framed.compress, framed.flush),
        "zstd": filled(zst.compress, zst.flush),
        **{coding: CODERS[coding](bytes(BOMB_BYTES)) for coding in ("snappy", "x-snappy-framed", "lz4")},
    }


CODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: gzip.compress(body, 1, mtime=0),
    "deflate": lambda body: zlib.compress(body, 1),
    "zstd": lambda body: zstd.compress(body, 1),
    "snappy": lambda body: bytes(snappy.compress_raw(body)),
    "x-snappy-framed": lambda body: bytes(snappy.compress(body)) or SNAPPY_STREAM,
    "lz4": lz4.frame.compress,
}
_made_bombs: dict[str, bytes] = {}


def _coded(made: Case, rng: random.Random) -> None:
    coding = rng.choice(["gzip", *CODERS])
    if rng.random() < 0.004:
        if not _made_bombs:
            _made_bombs.update(_bombs())
        made.kinds.append(f"{coding} bomb")
        made.body = _made_bombs[coding]
    else:
        made.body = CODERS[coding](made.body)
    done = rng.choice(
        [
            "",
            "",
            "",
            "cut code",
            "damaged code",
            "wrong code",
            "plain",
            "twice coded",
            "unknown code",
            "two members",
            "code tail",
        ]
    )
    made.kinds.append(f"{coding} {done}".strip())
    match done:
        case "cut code":
            made.body = made.body[: rng.randrange(len(made.body))]
        case "damaged code":
            damaged = bytearray(made.body)
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            made.body = bytes(damaged)
        case "wrong code":
            coding = rng.choice(list(CODERS))
        case "plain":
            made.body = rng.choice(PLAIN[made.signal])
        case "twice coded":
            made.body, coding = gzip.compress(made.body, 1, mtime=0), f"{coding}, gzip"
        case "unknown code":
            coding = rng.choice(["br", "x" * 500, "GZIP", "gzip;q=1", "", "aws-chunked", "identity"])
        case "two members":
            made.body *= 2
        case "code tail":
            made.body += rng.randbytes(rng.choice([1, 30]))
    made.headers.append(("Content-Encoding", coding))


def _headers(made: Case, rng: random.Random) -> None:
    done = rng.choice(
        ["no type", "wrong type", "odd type", "other type", "traceparent", "many headers", "long header", "auth"]
    )
    made.kinds.append(done)
    [(_, content_type), *rest] = made.headers
    match done:
        case "no type":
            made.headers = rest
        case "wrong type":
            wrong = [
                "text/plain",
                "application/grpc",
                "application/octet-stream",
                "x",
                "",
                "/",
                "application/x-protobuf2",
                ";",
            ]
            made.headers = [("Content-Type", rng.choice(wrong)), *rest]
        case "odd type":
            odd = [
                f"{content_type}; charset=utf-8",
                content_type.upper(),
                f"{content_type};",
                f"{content_type}; charset=klingon",
            ]
            made.headers = [("Content-Type", rng.choice(odd)), *rest]
        case "other type":
            made.headers = [("Content-Type", JSON if content_type == PROTOBUF else PROTOBUF), *rest]
        case "traceparent":
            made.headers.append(("traceparent", rng.choice(["x", "00-" + "0" * 60, "\xff\xfe", "a" * 5000])))
        case "many headers":
            made.headers += [(f"X-{n}", "y") for n in range(rng.choice([50, 200]))]
        case "long header":
            made.headers.append(("X-Long", "y" * rng.choice([4000, 9000, 100_000])))
        case _:
            made.headers.append(("Authorization", rng.choice(["Bearer x", "Basic ====", "Bearer " + "\xe9" * 20, ""])))


def _framing(made: Case, rng: random.Random) -> None:
    """Break HTTP itself, or only bend it: chunked bodies are whole requests."""
    done = rng.choice(
        ["chunked", "chunked", "chunked cut", "chunked bad", "long length", "short length", "negative length", "no length",
         "two lengths", "both", "http/1.0", "no host", "bad method", "bad version", "garbage", "nul", "bare lf", "folded",
         "expect", "get", "path"]
    )  # fmt: skip
    made.kinds.append(done)
    body, size = made.body, len(made.body)
    first, version = f"POST /v1/{made.signal}", "HTTP/1.1"
    lines = ["Host: fuzz", *(f"{name}: {value}" for name, value in made.headers)]
    length = [f"Content-Length: {size}"]
    if done.startswith("chunked"):
        length = ["Transfer-Encoding: chunked"]
        step = rng.choice([1, 7, 1000, 100_000]) if size < 5000 else 100_000
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in _pieces(body, step)) + b"0\r\n\r\n"
        if done == "chunked cut":
            body = body[: rng.randrange(len(body))]
        elif done == "chunked bad":
            body = rng.choice([b"zz\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"5;" + b"x" * 9000 + b"\r\n"]) + body
    match done:
        case "long length":
            length = [f"Content-Length: {size + rng.choice([1, 1000, 10**9, 10**30])}"]
        case "short length":
            length = [f"Content-Length: {rng.randrange(size + 1)}"]
        case "negative length":
            length = [f"Content-Length: {rng.choice(['-1', '+5', '0x10', '1e3', '', '1_0'])}"]
        case "no length":
            length = []
        case "two lengths":
            length = [f"Content-Length: {size}", f"Content-Length: {size + 1}"]
        case "both":
            length = [f"Content-Length: {size}", "Transfer-Encoding: chunked"]
        case "http/1.0":
            version = "HTTP/1.0"
        case "no host":
            lines = lines[1:]
        case "bad method":
            first = f"{rng.choice(['PÖST', 'P' * 300, 'post', 'PUT', 'BREW', 'OPTIONS', 'DELETE'])} /v1/{made.signal}"
        case "bad version":
            version = rng.choice(["HTTP/9.9", "HTTP/1.1.1", "HTTQ/1.1", ""])
        case "nul":
            lines.append("X-Nul: a\x00b")
        case "bare lf":
            lines.append("X: y\nZ: q")
        case "folded":
            lines.append("X: y\r\n z")
        case "expect":
            lines.append(
                rng.choice(
                    [
                        "Expect: 100-continue",
                        "Expect: 200-ok",
                        "Connection: close",
                        "Upgrade: h2c",
                        "Connection: upgrade",
                    ]
                )
            )
        case "get":
            first = f"GET /v1/{made.signal}"
        case "path":
            paths = [
                "/",
                "/v1/log",
                "/v1/logs/",
                "//v1/logs",
                "/v1/%00",
                "/v1/logs?x=" + "y" * 500,
                "*",
                "http://x/v1/logs",
                "/" + "p" * 9000,
            ]
            first = f"POST {rng.choice(paths)}"
    made.raw = "\r\n".join([f"{first} {version}", *lines, *length, "", ""]).encode("latin-1", "replace") + body
    if done == "garbage":
        made.raw = rng.randbytes(rng.choice([1, 30, 3000])) + rng.choice([b"", b"\r\n\r\n"])


def _pieces(body: bytes, step: int) -> list[bytes]:
    return [body[place : place + step] for place in range(0, len(body), step)]


# HTTP/2 --------------------------------------------------------------------------------------------------------------


def _wire(body: bytes, rng: random.Random, kinds: list[str]) -> bytes:
    """What goes to the gRPC port on a connection of its own: HTTP/2 and gRPC framing, broken somewhere."""
    done = rng.choice(["noise", "preface", "frames", "prefix length", "prefix flag", "damaged", "http/1.1"])
    kinds.append(f"wire {done}")
    message = b"\0" + struct.pack(">I", len(body)) + body
    if done == "prefix length":
        message = b"\0" + struct.pack(">I", rng.choice([0, len(body) + 1, max(0, len(body) - 1), 2**32 - 1])) + body
    elif done == "prefix flag":
        message = bytes([rng.choice([1, 2, 255])]) + message[1:]
    head = b"\x83\x86" + b"".join(
        name + bytes([len(value)]) + value
        for name, value in (
            (b"\x04", b"/opentelemetry.proto.collector.logs.v1.LogsService/Export"), (b"\x01", b"fuzz"),
            (b"\x0f\x10", b"application/grpc"), (b"\x00\x02te", b"trailers"),
        )
    )  # fmt: skip
    stream = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"") + _frame(1, 4, 1, head)
    stream += b"".join(_frame(0, 0, 1, piece) for piece in _pieces(message[:60_000], 16_000)) + _frame(0, 1, 1, b"")
    match done:
        case "noise":
            return rng.randbytes(rng.choice([1, 24, 500, 20_000]))
        case "preface":
            return stream[: rng.randrange(40)]
        case "frames":
            frames = b"".join(
                _frame(
                    rng.randrange(12),
                    rng.getrandbits(8),
                    rng.choice([0, 1, 2, 3, 2**31 - 1]),
                    rng.randbytes(rng.choice([0, 4, 8, 60])),
                )
                for _ in range(rng.choice([1, 10, 100]))
            )
            return stream[:33] + frames
        case "damaged":
            return _bytes(stream, rng, kinds)
        case "http/1.1":
            return b"POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    return stream


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body
