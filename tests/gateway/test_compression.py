"""Compressed bodies open to what they were, and never to more than the limit."""

import contextlib
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Rejected, TooLarge
from pipeline.gateway.compression import MAX_MEMBERS, PIECE_BYTES, UnknownCoding, opened


def bare_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


CODINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", bare_deflate),
    ("zlib", zlib.compress),
    ("zstd", zstd.compress),
]
every_coding = pytest.mark.parametrize(("coding", "compress"), CODINGS, ids=["gzip", "deflate", "bare", "zlib", "zstd"])


@every_coding
@given(
    parts=st.lists(
        st.one_of(st.binary(max_size=100), st.integers(0, 2 * PIECE_BYTES).map(bytes)),
        min_size=1,
        max_size=4,
    )
)
def test_what_was_compressed_comes_back(coding: str, compress: Callable[[bytes], bytes], parts: list[bytes]) -> None:
    """Also of several members one after another, and when it fills the limit exactly."""
    whole = b"".join(parts)
    assert opened(b"".join(map(compress, parts)), coding, len(whole)) == whole


@every_coding
def test_more_members_than_are_read_are_no_shorter_body(coding: str, compress: Callable[[bytes], bytes]) -> None:
    """What stands behind the last that is read is not lost without a word."""
    member = compress(b"x")
    assert len(opened(member * MAX_MEMBERS, coding, 10**6)) == MAX_MEMBERS
    with pytest.raises(Rejected, match=f"more than {MAX_MEMBERS}"):
        opened(member * (MAX_MEMBERS + 1), coding, 10**6)


@every_coding
def test_one_byte_over_the_limit_is_too_large(coding: str, compress: Callable[[bytes], bytes]) -> None:
    """The limit is exact."""
    with pytest.raises(TooLarge, match="larger than 999 bytes"):
        opened(compress(bytes(1000)), coding, 999)


@every_coding
def test_a_bomb_costs_no_more_memory_than_the_limit(coding: str, compress: Callable[[bytes], bytes]) -> None:
    """256 MiB of zeros are given up at the limit of 8 MiB."""
    limit = 8 * 1024 * 1024
    bomb = compress(bytes(32 * limit))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            opened(bomb, coding, limit)
        assert tracemalloc.get_traced_memory()[1] < limit + 4 * PIECE_BYTES
    finally:
        tracemalloc.stop()


@every_coding
@given(cut=st.integers(1, 200), data=st.binary(min_size=200, max_size=300))
def test_what_is_cut_short_is_rejected(coding: str, compress: Callable[[bytes], bytes], cut: int, data: bytes) -> None:
    """Never half a body."""
    with pytest.raises(Rejected, match=f"is not {coding}"):
        opened(compress(data)[:-cut], coding, 1000)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
@given(body=st.binary(max_size=100))
def test_garbage_is_rejected_or_small(coding: str, body: bytes) -> None:
    """Whatever the bytes, the outcome is a rejection or a body within the limit."""
    with contextlib.suppress(Rejected):
        assert len(opened(body, coding, 1000)) <= 1000


def test_a_zstd_window_beyond_that_of_http_is_rejected() -> None:
    """128 MiB that one frame would need are not given."""
    frame = zstd.compress(bytes(200_000_000), options={zstd.CompressionParameter.window_log: 27})
    with pytest.raises(Rejected, match="too much memory"):
        opened(frame, "zstd", 1 << 30)


def test_other_codings_are_named() -> None:
    """With what would be understood."""
    with pytest.raises(UnknownCoding, match=r"br is not supported: send gzip, deflate, zstd or none\."):
        opened(b"", "br", 1)
    assert opened(b"as it is", "identity", 1) == b"as it is"
