"""Compressed bodies open to what they were, and never to more than the limit."""

import contextlib
import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterable

import lz4.frame
import pytest
from backports import zstd
from cramjam import snappy
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.errors import Rejected, TooLarge
from pipeline.gateway.compression import MAX_MEMBERS, PIECE_BYTES, SNAPPY_STREAM, UnknownCoding, opened


def bare_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def framed_snappy(data: bytes) -> bytes:
    return bytes(snappy.compress(data))


def block_snappy(data: bytes) -> bytes:
    return bytes(snappy.compress_raw(data))


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "bare": ("deflate", bare_deflate),
    "zlib": ("zlib", zlib.compress),
    "zstd": ("zstd", zstd.compress),
    "snappy": ("snappy", framed_snappy),
    "x-snappy-framed": ("x-snappy-framed", framed_snappy),
    "lz4": ("lz4", lz4.frame.compress),
    "block": ("snappy", block_snappy),
}
MEMBERS = [name for name in CODINGS if name != "block" and "snappy" not in name]  # of those with an end


def coded(names: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("coding", "compress"), [CODINGS[name] for name in names], ids=list(names))


every_coding = coded(CODINGS)


@coded([name for name in CODINGS if name != "block"])
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


@given(data=st.one_of(st.binary(max_size=100), st.integers(0, 2 * PIECE_BYTES).map(bytes)))
def test_a_block_comes_back(data: bytes) -> None:
    """Snappy without a frame, as `Content-Encoding: snappy` means it, and when it fills the limit exactly."""
    assert opened(block_snappy(data), "snappy", len(data)) == data


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("snappy", "2e3c7768617420476f207772697465732c20761000"),
        ("snappy", "ff060000734e6150705900190000b56bfa7f2e3c7768617420476f207772697465732c20761000"),
        ("x-snappy-framed", "ff060000734e6150705900190000b56bfa7f2e3c7768617420476f207772697465732c20761000"),
        (
            "lz4",
            "04224d186470b926000000f8017768617420476f207772697465732c201000001000e0"
            "7768617420476f207772697465730000000017353c75",
        ),
    ],
)
def test_what_the_collectors_libraries_write_opens(coding: str, packed: str) -> None:
    """Go's snappy, block and framed, and Go's lz4; the Collector calls framed snappy by both names, by its version."""
    assert opened(bytes.fromhex(packed), coding, 100) == b", ".join([b"what Go writes"] * 3)


@coded(MEMBERS)
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
    """Never half a body, but between two chunks of framed snappy, which marks no end."""
    left = compress(data)[:-cut]
    assume("snappy" not in coding or left not in (b"", SNAPPY_STREAM))
    with pytest.raises(Rejected, match=f"is not {coding}"):
        opened(left, coding, 1000)


@every_coding
@given(
    data=st.binary(min_size=20, max_size=300).map(lambda part: part * 3),
    at=st.integers(0, 10**6),
    flipped=st.integers(1, 255),
)
def test_what_is_damaged_is_rejected_or_small(
    coding: str, compress: Callable[[bytes], bytes], data: bytes, at: int, flipped: int
) -> None:
    """Whichever byte changed, the outcome is a rejection or a body within the limit."""
    packed = bytearray(compress(data))
    packed[at % len(packed)] ^= flipped
    with contextlib.suppress(Rejected):
        assert len(opened(bytes(packed), coding, 1000)) <= 1000


@pytest.mark.parametrize(
    ("coding", "body", "says"),
    [
        ("snappy", b"\xff\xff\xff\xff\x0f\0a", "says to become 4294967295 bytes, which it cannot"),
        ("snappy", b"\x19\0a", "expected 25 decompressed bytes but got 1"),
        ("snappy", framed_snappy(b"x" * 300)[:-1], "is not snappy, as its header says: it is cut short"),
        ("x-snappy-framed", block_snappy(b"x" * 300), "expected stream header"),
        ("x-snappy-framed", SNAPPY_STREAM + b"\x01\x05\x00\x01" + bytes(65541), "unsupported chunk length"),
        ("lz4", lz4.frame.LZ4FrameCompressor().begin(1 << 40) + b"\1\0\0\x80x\0\0\0\0", "frameSize_wrong"),
        ("lz4", bytes.fromhex("02214c1800000000"), "frameType_unknown"),  # as lz4 was before it had frames
        ("lz4", b"", "cut short"),
    ],
)  # fmt: skip
def test_lengths_that_lie_are_told(coding: str, body: bytes, says: str) -> None:
    """And cost no memory."""
    tracemalloc.start()
    try:
        with pytest.raises(Rejected, match=says):
            opened(body, coding, 1000)
        assert tracemalloc.get_traced_memory()[1] < 2 * PIECE_BYTES
    finally:
        tracemalloc.stop()


def test_a_large_framed_body_is_told_from_a_damaged_one() -> None:
    """By a word of the library alone: should it change, a body that is large only would be refused for good."""
    packed = framed_snappy(bytes(100_000))
    with pytest.raises(TooLarge):
        opened(packed, "snappy", 99_999)
    with pytest.raises(Rejected, match="bad checksum") as refused:
        opened(packed[:14] + bytes([packed[14] ^ 1]) + packed[15:], "snappy", 100_000)
    assert not isinstance(refused.value, TooLarge)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd", "snappy", "x-snappy-framed", "lz4"])
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
    with pytest.raises(UnknownCoding, match=r"br is not supported: send gzip, deflate, zstd, snappy, lz4 or none\."):
        opened(b"", "br", 1)
    assert opened(b"as it is", "identity", 1) == b"as it is"
