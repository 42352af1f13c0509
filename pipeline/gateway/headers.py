"""The headers of a request: HPACK (RFC 7541) read, and what RFC 9113 allows in them.

By hand over the tables and the Huffman code of the hpack library, whose own reader takes three times as long.
"""

import re

from hpack import HPACKDecodingError, InvalidTableSizeError, OversizedHeaderListError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from pipeline.gateway.frames import Code, Violation

ENTRY_BYTES = 32  # of a field, beside its name and value
LONGEST_INTEGER = 5  # bytes behind its first

NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
NO_VALUE = re.compile(rb"[\0\r\n]")
PSEUDO = {b":method", b":scheme", b":path", b":authority"}
HOP_BY_HOP = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
Field = tuple[bytes, bytes]
Headers = dict[bytes, bytes]


class Reader:
    """Reads the header blocks of one connection, in their order; a list longer than `max_bytes` is an HPACKError."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._table = HeaderTable()

    def read(self, block: bytes) -> list[Field]:
        """The fields of a block; raise HPACKError where it is none."""
        table = self._table
        fields: list[Field] = []
        at, end, size = 0, len(block), 0
        while at < end:
            first = block[at]
            if first & 0x80:
                index, at = (first & 0x7F, at + 1) if first != 0xFF else _integer(block, at, 0x7F)
                field = table.get_by_index(index)
            elif first & 0x60 == 0x20:
                if fields:
                    raise HPACKDecodingError("a table's size changes before the first field")
                most, at = _integer(block, at, 0x1F)
                if most > HeaderTable.DEFAULT_SIZE:
                    raise InvalidTableSizeError("a table is larger than was allowed")
                table.maxsize = most
                continue
            else:
                kept = first & 0x40
                index, at = _integer(block, at, 0x3F if kept else 0x0F)
                if index:
                    name = table.get_by_index(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                field = name, value
                if kept:
                    table.add(name, value)
            size += len(field[0]) + len(field[1]) + ENTRY_BYTES
            if size > self._max_bytes:
                raise OversizedHeaderListError("the headers are too long")
            fields.append(field)
        return fields


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """An integer whose first byte, at `at`, holds it under `mask`, and the place after it."""
    number = block[at] & mask
    if number < mask:
        return number, at + 1
    for n, byte in enumerate(block[at + 1 : at + 1 + LONGEST_INTEGER]):
        number += (byte & 0x7F) << (7 * n)
        if byte < 0x80:
            return number, at + 2 + n
    raise HPACKDecodingError("an integer is cut short, or too long")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """A string, and the place after it."""
    if at >= len(block):
        raise HPACKDecodingError("a string is cut short")
    size, start = _integer(block, at, 0x7F)
    end = start + size
    if end > len(block):
        raise HPACKDecodingError("a string is cut short")
    found = block[start:end]
    return (decode_huffman(found) if block[at] & 0x80 else found), end


def is_request(fields: list[Field]) -> bool:
    """Whether these are no trailers, which have no pseudo-headers (8.1)."""
    return any(name.startswith(b":") for name, _ in fields)


def request(fields: list[Field]) -> Headers:
    """A request's headers, the last of those of one name; raise Violation where 8.2 or 8.3 forbid them.

    Several `authorization` that differ are one that nobody has.
    """
    headers: Headers = {}
    regular = False
    for name, value in fields:
        if name.startswith(b":"):
            wrong = regular or name not in PSEUDO or name in headers
        else:
            regular = True
            wrong = name in HOP_BY_HOP or (name == b"te" and value != b"trailers") or not NAME.fullmatch(name)
        if wrong or NO_VALUE.search(value):
            raise Violation(Code.PROTOCOL_ERROR, "a header that no request may have")
        headers[name] = value
    if len(headers) < len(fields):
        shown = dict.fromkeys(value for name, value in fields if name == b"authorization")
        if shown:
            headers[b"authorization"] = b", ".join(shown)
    if not headers.get(b":path") or b":method" not in headers or b":scheme" not in headers:
        raise Violation(Code.PROTOCOL_ERROR, "a request without :method, :scheme or :path")
    return headers
