"""Opening compressed bodies within a limit, whatever they were made to become."""

import zlib
from collections.abc import Callable, Iterator

import lz4.frame
from backports import zstd
from cramjam import DecompressionError, snappy

from pipeline.errors import Rejected, TooLarge

MAX_MEMBERS = 1000  # or frames, one after another: each costs, however little is in it
SLICE_BYTES = 64 * 1024  # of input at a time
PIECE_BYTES = 256 * 1024  # of output at a time: what is over the limit was never made
ZSTD_WINDOW_LOG = 23  # 8 MiB, what RFC 9659 lets an HTTP sender use
SNAPPY_STREAM = b"\xff\x06\x00\x00sNaPpY"  # how framed snappy begins, and no block can
SNAPPY_RATIO = 22  # at most: three bytes become 64
NO_ROOM, CUT_SHORT = "failed to write whole buffer", "failed to fill whole buffer"  # as cramjam says it


class UnknownCoding(Rejected):
    """A content coding that we do not speak."""


def opened(body: bytes, coding: str, limit: int) -> bytes:
    """`body` without its content coding: identity, gzip, deflate, zstd, snappy or lz4.

    Raise UnknownCoding, Rejected where it is not what it says, and TooLarge before more than `limit` bytes are held.
    """
    if coding in ("", "identity"):
        return body
    pieces = CODINGS.get(coding)
    if pieces is None:
        known = "send gzip, deflate, zstd, snappy, lz4 or none"
        raise UnknownCoding(f"Content-Encoding {coding[:40]} is not supported: {known}.")
    found, size = [], 0
    try:
        for piece in pieces(body, limit):
            size += len(piece)
            if size > limit:
                raise _larger_than(limit)
            found.append(piece)
    except (zlib.error, zstd.ZstdError, DecompressionError, RuntimeError) as error:  # the last is lz4's
        raise Rejected(f"The body is not {coding}, as its header says: {error}.") from None
    return b"".join(found)


def _larger_than(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes when decompressed: send smaller batches.")


def _gzip(body: bytes, _: int) -> Iterator[bytes]:
    return _inflated(body, 31)


def _deflate(body: bytes, _: int) -> Iterator[bytes]:
    """zlib's format, as HTTP means it, or the bare stream that some clients send."""
    framed = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return _inflated(body, 15 if framed else -15)


def _inflated(body: bytes, wbits: int) -> Iterator[bytes]:
    """All members of `body`, in pieces."""
    rest = memoryview(body)
    for _ in range(MAX_MEMBERS):
        member = zlib.decompressobj(wbits)
        while not member.eof:
            if not rest:
                raise zlib.error("it is cut short")
            given = rest[:SLICE_BYTES]
            rest = rest[SLICE_BYTES:]
            piece = member.decompress(given, PIECE_BYTES)
            yield piece
            while not member.eof and (member.unconsumed_tail or len(piece) == PIECE_BYTES):
                piece = member.decompress(member.unconsumed_tail, PIECE_BYTES)
                yield piece
        rest = memoryview(body)[len(body) - len(rest) - len(member.unused_data) :]
        if not rest:
            return
    raise zlib.error(f"it has more than {MAX_MEMBERS} members")


def _zstd(body: bytes, _: int) -> Iterator[bytes]:
    """All frames of `body`, in pieces."""
    rest = memoryview(body)
    for _ in range(MAX_MEMBERS):
        frame = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})
        while not frame.eof:
            wanted = SLICE_BYTES if frame.needs_input else 0
            if wanted and not rest:
                raise zstd.ZstdError("it is cut short")
            yield frame.decompress(rest[:wanted], PIECE_BYTES)
            rest = rest[wanted:]
        rest = memoryview(body)[len(body) - len(rest) - len(frame.unused_data) :]
        if not rest:
            return
    raise zstd.ZstdError(f"it has more than {MAX_MEMBERS} frames")


def _snappy(body: bytes, limit: int) -> Iterator[bytes]:
    """A block, or the chunks of the framing format, which over gRPC, and in Collectors before 0.131, have this name."""
    if not body or body.startswith(SNAPPY_STREAM):
        yield from _snappy_framed(body, limit)
    else:
        size = snappy.decompress_raw_len(body)
        if size > SNAPPY_RATIO * len(body):
            raise DecompressionError(f"it says to become {size} bytes, which it cannot")
        if size > limit:
            raise _larger_than(limit)
        yield bytes(snappy.decompress_raw(body))


def _snappy_framed(body: bytes, limit: int) -> Iterator[bytes]:
    """All chunks of `body`, source: snappy's framing_format.txt. It marks no end, and of nothing Go makes nothing."""
    room = bytearray(min(limit, SNAPPY_RATIO * len(body)))
    try:
        size = snappy.decompress_into(body, room)
    except DecompressionError as error:
        if str(error) == NO_ROOM:
            raise _larger_than(limit) from None
        raise DecompressionError("it is cut short") if str(error) == CUT_SHORT else error from None
    yield bytes(memoryview(room)[:size])


def _lz4(body: bytes, _: int) -> Iterator[bytes]:
    """All frames of `body`, in pieces; a frame says its own block size, 4 MiB at most."""
    rest = memoryview(body)
    for _ in range(MAX_MEMBERS):
        frame = lz4.frame.LZ4FrameDecompressor()
        while not frame.eof:
            wanted = SLICE_BYTES if frame.needs_input else 0
            if wanted and not rest:
                raise RuntimeError("it is cut short")
            yield frame.decompress(rest[:wanted], PIECE_BYTES)
            rest = rest[wanted:]
        rest = memoryview(body)[len(body) - len(rest) - len(frame.unused_data or b"") :]
        if not rest:
            return
    raise RuntimeError(f"it has more than {MAX_MEMBERS} frames")


CODINGS: dict[str, Callable[[bytes, int], Iterator[bytes]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zlib": _deflate,  # as the Collector's exporter calls it
    "zstd": _zstd,
    "snappy": _snappy,
    "x-snappy-framed": _snappy_framed,
    "lz4": _lz4,
}
