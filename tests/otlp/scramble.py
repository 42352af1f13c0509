"""The same protobuf message in other bytes, and other bytes altogether."""

import random

from google.protobuf.descriptor import Descriptor

LENGTH, GROUP, END_GROUP = 2, 3, 4


def scramble(data: bytes, message: Descriptor, rng: random.Random) -> bytes:
    """Bytes that any parser takes: fields in any order, twice, in pieces, between unknown ones, with long varints."""
    fields = []
    for number, wire_type, content in split(data):
        inner = message.fields_by_number[number].message_type
        if inner is not None and wire_type == LENGTH:
            # Two pieces of one message are one message, unless the field is repeated: then they are two.
            fields += [field(number, wire_type, scramble(piece, inner, rng), rng) for piece in _pieces(content, rng)]
        else:
            fields.append(field(number, wire_type, content, rng))
    if rng.random() < 0.3:
        rng.shuffle(fields)
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        fields.insert(rng.randrange(len(fields) + 1), unknown(rng))
    if fields and rng.random() < 0.1:
        fields.append(rng.choice(fields))
    return b"".join(fields)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, put in, or copied to elsewhere."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(out) + 1)
        size = rng.choice((1, 1, 2, 8, 30))
        match rng.randrange(5):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del out[at : at + size]
            case 2:
                out[at:at] = rng.randbytes(size)
            case 3:
                start = rng.randrange(len(out) + 1)
                out[at:at] = out[start : start + size]
            case 4:
                out[at : at + 1] = rng.choice((b"\x80", b"\xff", b"\0", b"\x0b", b"\x0c", b"\x7f"))
    return bytes(out)


def split(data: bytes) -> list[tuple[int, int, bytes]]:
    """The fields of canonical bytes: number, wire type, content."""
    fields, at = [], 0
    while at < len(data):
        tag, at = _read(data, at)
        match tag & 7:
            case 0:
                end = _read(data, at)[1]
            case 1:
                end = at + 8
            case 2:
                size, at = _read(data, at)
                end = at + size
            case _:
                end = at + 4
        fields.append((tag >> 3, tag & 7, data[at:end]))
        at = end
    return fields


def field(number: int, wire_type: int, content: bytes, rng: random.Random) -> bytes:
    length = varint(len(content), rng, 5) if wire_type == LENGTH else b""
    return varint(number << 3 | wire_type, rng, 5) + length + content


def unknown(rng: random.Random, depth: int = 0) -> bytes:
    """A field that no message has, in any wire type."""
    number = rng.choice((99, 1000, (1 << 29) - 1))
    match rng.randrange(5):
        case 0:
            return field(number, 0, varint(rng.getrandbits(64), rng, 10), rng)
        case 1:
            return field(number, 1, rng.randbytes(8), rng)
        case 2:
            return field(number, LENGTH, rng.randbytes(rng.randrange(200)), rng)
        case 3:
            return field(number, 5, rng.randbytes(4), rng)
        case _:
            inner = b"".join(unknown(rng, depth + 1) for _ in range(rng.randrange(3))) if depth < 5 else b""
            return field(number, GROUP, inner, rng) + field(number, END_GROUP, b"", rng)


def varint(n: int, rng: random.Random, longest: int) -> bytes:
    """`n`, one time in ten longer than it need be."""
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    if rng.random() < 0.1:
        more = rng.randrange(longest - len(out) + 1)
        if more:
            out[-1] |= 0x80
            out += b"\x80" * (more - 1) + b"\0"
    return bytes(out)


def _pieces(content: bytes, rng: random.Random) -> list[bytes]:
    if rng.random() < 0.8:
        return [content]
    fields = [field(*one, random.Random(0)) for one in split(content)]
    middle = rng.randrange(len(fields) + 1)
    return [b"".join(fields[:middle]), b"".join(fields[middle:])]


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
