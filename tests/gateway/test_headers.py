"""HPACK as any client writes it, held to the hpack library's own reader."""

import random

import hpack
from hpack.hpack import encode_integer
from hypothesis import given
from hypothesis import strategies as st

from pipeline.gateway.headers import Reader

MAX_BYTES = 16 * 1024
NAMES = [":path", ":method", "te", "grpc-timeout", "content-type", "x-" + "long" * 50]
fields = st.lists(st.tuples(st.sampled_from(NAMES) | st.text("abz-", max_size=9), st.text(max_size=40)), max_size=8)
blocks = st.lists(st.tuples(fields, st.booleans(), st.sampled_from([None, None, 0, 100, 4096])), min_size=1, max_size=6)
Blocks = list[tuple[list[tuple[str, str]], bool, int | None]]


def written(sent: Blocks, rng: random.Random | None = None) -> list[bytes]:
    """The blocks of one connection; with `rng` some have fields that no table may keep."""
    encoder, found = hpack.Encoder(), []
    for few, huffman, table_bytes in sent:
        if table_bytes is not None:
            encoder.header_table_size = table_bytes
        tuples = [(hpack.NeverIndexedHeaderTuple if rng and rng.random() < 0.3 else hpack.HeaderTuple)(*f) for f in few]
        found.append(encoder.encode(tuples, huffman=huffman))
    return found


@given(sent=blocks, seed=st.integers(0, 2**32))
def test_blocks_are_read_as_they_were_sent(sent: Blocks, seed: int) -> None:
    """Indexed or not, with Huffman's code or without, whatever becomes of the table between them."""
    reader = Reader(MAX_BYTES)
    for (few, _, _), block in zip(sent, written(sent, random.Random(seed)), strict=True):
        assert reader.read(block) == [(name.encode(), value.encode()) for name, value in few]


@given(sent=blocks, seed=st.integers(0, 2**32))
def test_mutated_blocks_are_read_or_refused_as_by_the_library(sent: Blocks, seed: int) -> None:
    """The same fields, or an error of HPACK's, at the same block."""
    rng = random.Random(seed)
    reader, library = Reader(200), hpack.Decoder(200)
    for block in map(bytearray, written(sent)):
        for _ in range(rng.randrange(4)):
            place = rng.randrange(len(block) + 1)
            block[place : place + rng.randrange(3)] = rng.choice([b"", b"\xff", b"\x80", b"\x3f", rng.randbytes(3)])
        try:
            expected = [tuple(field) for field in library.decode(bytes(block), raw=True)]
        except hpack.HPACKError:
            try:
                read = reader.read(bytes(block))
            except hpack.HPACKError:
                return
            raise AssertionError(f"{bytes(block)!r} was read as {read}") from None
        assert reader.read(bytes(block)) == expected


def test_integers_of_every_length_are_read() -> None:
    """A value's size is written in one byte, in two, or in more of them than it needs."""
    for size in (0, 1, 126, 127, 128, 254, 255, 300, 2000):
        lengths, rest = [bytes(encode_integer(size, 7))], size - 127
        if rest >= 0:
            lengths.append(bytes([0x7F, rest & 0x7F | 0x80, rest >> 7 | 0x80, 0]))
        for length in lengths:
            assert Reader(MAX_BYTES).read(b"\x00\x01n" + length + b"v" * size) == [(b"n", b"v" * size)]
