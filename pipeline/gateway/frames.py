"""HTTP/2's wire (RFC 9113), as pure functions: frames, and what may be in them."""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME = struct.Struct(">BHBBI")  # of a frame's head: 24 bits of length, type, flags, stream
WORD = struct.Struct(">I")
SETTING = struct.Struct(">HI")
FIRST_WINDOW_BYTES = 65_535  # of streams and connections, until somebody says otherwise
FIRST_FRAME_BYTES = 16_384  # the least that a client may say it takes, and we never need more
MAX_WINDOW_BYTES = LAST_STREAM = (1 << 31) - 1


class Kind:
    """Of a frame, RFC 9113's type."""

    DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)


class Flag:
    """Of a frame."""

    END_STREAM = ACK = 1
    END_HEADERS, PADDED, PRIORITY = 4, 8, 32


class Code:
    """Of an error."""

    NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 0, 1, 3, 5, 6
    REFUSED_STREAM, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 7, 9, 11


class Setting:
    """By its identifier."""

    ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 2, 3, 4, 5, 6


OF_THE_CONNECTION = {Kind.SETTINGS, Kind.PING, Kind.GOAWAY}
SIZES = {Kind.PRIORITY: 5, Kind.RST_STREAM: 4, Kind.PING: 8, Kind.WINDOW_UPDATE: 4}


class Violation(Exception):
    """What a client may not do, by the code that says so."""

    def __init__(self, code: int, says: str) -> None:
        super().__init__(says)
        self.code = code


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """One frame, with its head."""
    size = len(payload)
    return FRAME.pack(size >> 16, size & 0xFFFF, kind, flags, stream_id) + payload


def header_block(stream_id: int, block: bytes, flags: int) -> list[bytes]:
    """The frames of one header block: HEADERS, and CONTINUATION where it is long."""
    frames, kind = [], Kind.HEADERS
    while len(block) > FIRST_FRAME_BYTES:
        frames.append(frame(kind, flags, stream_id, block[:FIRST_FRAME_BYTES]))
        block, kind, flags = block[FIRST_FRAME_BYTES:], Kind.CONTINUATION, 0
    return [*frames, frame(kind, flags | Flag.END_HEADERS, stream_id, block)]


def unpadded(payload: bytes, flags: int) -> bytes:
    """What a frame of DATA or HEADERS holds; raise Violation where there is more padding than frame."""
    if not flags & Flag.PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Violation(Code.PROTOCOL_ERROR, "more padding than there is frame")
    return payload[1 : len(payload) - payload[0]]


def without_priority(payload: bytes, flags: int) -> bytes:
    """What HEADERS hold; raise Violation where they are too short for the priority that they announce."""
    if not flags & Flag.PRIORITY:
        return payload
    if len(payload) < SIZES[Kind.PRIORITY]:
        raise Violation(Code.FRAME_SIZE_ERROR, "headers without the priority that they announce")
    return payload[SIZES[Kind.PRIORITY] :]


def opened(window: int, size: int) -> int:
    """A window that opens by `size`; raise Violation where that is more than there can be."""
    if window + size > MAX_WINDOW_BYTES:
        raise Violation(Code.FLOW_CONTROL_ERROR, f"a window of {window + size} bytes")
    return window + size
