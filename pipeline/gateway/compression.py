"""Opening compressed bodies within a limit, whatever they were made to become."""

import zlib
from collections.abc import Callable, Iterator

from backports import zstd

from pipeline.errors import Rejected, TooLarge

MAX_MEMBERS = 1000  # or frames, one after another: each costs, however little is in it
SLICE_BYTES = 64 * 1024  # of input at a time
PIECE_BYTES = 256 * 1024  # of output at a time: what is over the limit was never made
ZSTD_WINDOW_LOG = 23  # 8 MiB, what RFC 9659 lets an HTTP sender use


class UnknownCoding(Rejected):
    """A content coding that we do not speak."""


def opened(body: bytes, coding: str, limit: int) -> bytes:
    """`body` without its content coding: identity, gzip, deflate or zstd.

    Raise UnknownCoding, Rejected where it is not what it says, and TooLarge before more than `limit` bytes are held.
    """
    if coding in ("", "identity"):
        return body
    pieces = CODINGS.get(coding)
    if pieces is None:
        raise UnknownCoding(f"Content-Encoding {coding[:40]} is not supported: send gzip, deflate, zstd or none.")
    found, size = [], 0
    try:
        for piece in pieces(body):
            size += len(piece)
            if size > limit:
                raise TooLarge(f"The body is larger than {limit} bytes when decompressed: send smaller batches.")
            found.append(piece)
    except (zlib.error, zstd.ZstdError) as error:
        raise Rejected(f"The body is not {coding}, as its header says: {error}.") from None
    return b"".join(found)


def _gzip(body: bytes) -> Iterator[bytes]:
    return _inflated(body, 31)


def _deflate(body: bytes) -> Iterator[bytes]:
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


def _zstd(body: bytes) -> Iterator[bytes]:
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


CODINGS: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zlib": _deflate,  # as the Collector's exporter calls it
    "zstd": _zstd,
}
