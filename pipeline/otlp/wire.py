"""One level of a message, walked on its bytes, so that no more than one record is ever parsed at a time.

Source: the protobuf encoding; what is malformed is what protobuf's own C parser (upb) calls so.
"""

from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from pipeline.otlp.messages import Part
from pipeline.record.framing import MAX_VALUE_BYTES

VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = range(6)  # wire types
SHORT_VARINT_BYTES = 5  # of a tag or a length
LONG_VARINT_BYTES = 10
MAX_GROUPS = 100  # inside one another; protobuf counts the messages around them too, we do not


class Level(NamedTuple):
    """What one occurrence of a Part holds.

    `shell` are its fields that are no children, as sent, unknown ones left out: parsing it gives what parsing all would
    give; None where it is larger than MAX_VALUE_BYTES. `children` are (field number, start, end), in the order sent;
    `more` is how many children follow that are not listed.
    """

    shell: bytes | None
    children: list[tuple[int, int, int]]
    more: int


def level(part: Part, body: bytes, span: Sequence[int], most: int) -> Level:
    """Walk `body` from start to end of `span`, listing at most `most` children and looking into none.

    Raise DecodeError where it is malformed.
    """
    at, end = span
    shell: list[bytes] = []
    shell_bytes, seen = 0, 0
    children: list[tuple[int, int, int]] = []
    is_child, is_shell = part.children, part.shell
    try:
        while at < end:
            start = at
            tag = body[at]
            at += 1
            if tag >= 0x80:
                tag, at = _varint(body, start, SHORT_VARINT_BYTES)
            number = tag >> 3
            if tag & 7 == LENGTH:
                size = body[at]
                at += 1
                if size >= 0x80:
                    size, at = _varint(body, at - 1, SHORT_VARINT_BYTES)
                inner = at
                at += size
                if number in is_child:
                    seen += 1
                    if seen <= most:
                        children.append((number, inner, at))
                    continue
            else:
                at = _skip(body, at, tag)
            if number in is_shell:
                shell_bytes += at - start
                if shell_bytes <= MAX_VALUE_BYTES:
                    shell.append(body[start:at])
            elif not 0 < number < 1 << 29:
                raise DecodeError(f"no field can have number {number}")
    except IndexError:
        at = end + 1
    if at > end:
        raise DecodeError("a field is cut short")
    return Level(b"".join(shell) if shell_bytes <= MAX_VALUE_BYTES else None, children, seen - len(children))


def _varint(body: bytes, at: int, longest: int) -> tuple[int, int]:
    """An unsigned varint and the place after it."""
    value = shift = 0
    for place in range(at, at + longest):
        byte = body[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place + 1
        shift += 7
    raise DecodeError("a varint is too long")


def _skip(body: bytes, at: int, tag: int) -> int:
    """The place after a field of any wire type but LENGTH; a group is followed to its own end."""
    if tag & 7 == VARINT and body[at] < 0x80:
        return at + 1
    open_groups: list[int] = []
    while True:
        wire_type = tag & 7
        if wire_type == VARINT:
            at = _varint(body, at, LONG_VARINT_BYTES)[1]
        elif wire_type == FIXED64:
            at += 8
        elif wire_type == LENGTH:
            size, at = _varint(body, at, SHORT_VARINT_BYTES)
            at += size
        elif wire_type == GROUP:
            open_groups.append(tag >> 3)
            if len(open_groups) > MAX_GROUPS:
                raise DecodeError("groups are nested too deep")
        elif wire_type == FIXED32:
            at += 4
        elif wire_type != END_GROUP or not open_groups or open_groups.pop() != tag >> 3:
            raise DecodeError(f"wire type {wire_type} does not belong here")
        if not open_groups:
            return at
        tag, at = _varint(body, at, SHORT_VARINT_BYTES)
        if tag >= 1 << 32:  # in a group, unlike elsewhere, protobuf's parser takes number 0
            raise DecodeError(f"no field can have number {tag >> 3}")
