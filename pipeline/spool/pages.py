"""Rows of a damaged file, read from its pages without SQLite.

SQLite gives up where a tree is broken; here every leaf is looked at, whatever still points to it. Format:
https://www.sqlite.org/fileformat2.html, sections 1 (pages, cells, records) and 4 (write-ahead log).
"""

import itertools
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.spool.message import Row, is_whole

PAGE_BYTES = 16384
TABLE_LEAF, INDEX_LEAF, INDEX_INTERIOR = 0x0D, 0x0A, 0x02
MAX_ROW_BYTES = 64 * 1024 * 1024  # no Kafka message is as large: what claims to be is no row
MAX_LOCAL = PAGE_BYTES - 35
MIN_LOCAL = (PAGE_BYTES - 12) * 32 // 255 - 23
MAGIC = b"SQLite format 3\0"
WAL_HEADER_BYTES = 32
WAL_MAGIC = 0x377F0682, 0x377F0683
FRAME_HEADER = struct.Struct(">IIII")  # page number, pages of the file after a commit or 0, both salts
FRAME_BYTES = 24 + PAGE_BYTES

Value = int | float | str | bytes | None


class Listed(NamedTuple):
    """What the index says of a row."""

    id: int
    records: int


class Pages:
    """A file and its write-ahead log over it, with no promise that either is whole, or there."""

    def __init__(self, file: Path, log: Path) -> None:
        self._file = _read_descriptor(file)
        self._log = _read_descriptor(log)
        frames = list(_frames(self._log)) if self._log is not None else []
        last = max((n for n, frame in enumerate(frames) if frame.commits), default=-1)
        most = -(-_size(self._file) // PAGE_BYTES) + len(frames)  # a damaged page number may be anything
        self._logged = {frame.page: frame.at for frame in frames[: last + 1] if frame.current and frame.page <= most}
        self._frames = [frame.at for frame in frames]
        self._count = max([_size(self._file) // PAGE_BYTES, *self._logged])
        self._free = set(self._free_pages())

    def close(self) -> None:
        for descriptor in (self._file, self._log):
            if descriptor is not None:
                os.close(descriptor)

    def rows(self) -> Iterator[Row]:
        """Every row in use whose checksum holds; where the list of free pages broke, also some that were deleted."""
        return self._whole_rows(self._pages_in_use())

    def leftovers(self) -> Iterator[Row]:
        """The same from free pages and older versions of pages: mostly rows that were deleted, or known already."""
        free = map(self._page, self._free)
        overwritten = (self._page_of_file(number) for number in self._logged)
        logged = (_page_at(self._log, at) for at in self._frames) if self._log is not None else ()
        return self._whole_rows(itertools.chain(free, overwritten, logged))

    def _whole_rows(self, pages: Iterable[bytes]) -> Iterator[Row]:
        for page in _of_kind(pages, TABLE_LEAF):
            for at in _cells(page, 8):
                try:
                    row = self._row(page, at)
                except (IndexError, ValueError, struct.error, TypeError):
                    continue
                if is_whole(row):
                    yield row

    def listed(self) -> Iterator[Listed]:
        """What can be read of the index: which rows there should be."""
        for kind, header, child in ((INDEX_LEAF, 8, 0), (INDEX_INTERIOR, 12, 4)):
            for page in _of_kind(self._pages_in_use(), kind):
                for at in _cells(page, header):
                    try:
                        size, at_payload = _varint(page, at + child)
                        _, records, _, row_id = _record(page[at_payload : at_payload + size])
                    except (IndexError, ValueError, struct.error):
                        continue
                    if isinstance(row_id, int) and isinstance(records, int):
                        yield Listed(row_id, records)

    def _pages_in_use(self) -> Iterator[bytes]:
        for number in range(2, self._count + 1):  # page 1 is the schema's
            if number not in self._free:
                yield self._page(number)

    def _page(self, number: int) -> bytes:
        if number in self._logged and self._log is not None:
            return _page_at(self._log, self._logged[number])
        return self._page_of_file(number)

    def _page_of_file(self, number: int) -> bytes:
        if number < 1 or self._file is None:
            return b""
        return _page_at(self._file, (number - 1) * PAGE_BYTES)

    def _free_pages(self) -> Iterator[int]:
        first = self._page(1)
        trunk = struct.unpack_from(">I", first, 32)[0] if first.startswith(MAGIC) else 0
        seen: set[int] = set()
        while trunk and trunk not in seen:
            seen.add(trunk)
            page = self._page(trunk)
            if len(page) < PAGE_BYTES:
                return
            following, leaves = struct.unpack_from(">II", page)
            if leaves > PAGE_BYTES // 4 - 2:  # no trunk: the list is broken, and what it says would hide rows
                return
            yield trunk
            yield from struct.unpack_from(f">{leaves}I", page, 8)
            trunk = following

    def _row(self, page: bytes, at: int) -> Row:
        size, at = _varint(page, at)
        row_id, at = _varint(page, at)
        if size > MAX_ROW_BYTES:
            raise ValueError("no row is so large")
        local = size
        if size > MAX_LOCAL:
            local = MIN_LOCAL + (size - MIN_LOCAL) % (PAGE_BYTES - 4)
            local = local if local <= MAX_LOCAL else MIN_LOCAL
        parts, missing = [page[at : at + local]], size - local
        following = struct.unpack_from(">I", page, at + local)[0] if missing else 0
        while missing > 0:
            overflow = self._page(following)
            if len(overflow) < PAGE_BYTES:
                raise ValueError("the row is cut off")
            parts.append(overflow[4 : 4 + missing])
            missing -= PAGE_BYTES - 4
            following = struct.unpack_from(">I", overflow)[0]
        _, spooled_at, *others = _record(b"".join(parts))
        # SQLite keeps a REAL without a fraction as an integer; the id is the cell's key.
        return Row(row_id, float(spooled_at or 0), *others)  # type: ignore[arg-type]


class _Frame(NamedTuple):
    page: int
    current: bool  # of the log's present generation
    commits: bool
    at: int  # where its page begins in the log


def log_is_doubtful(log: Path, accepted: int) -> bool:
    """Whether the log lost more than a torn last write, when SQLite took only its first `accepted` frames.

    Every commit is fsynced before the next begins, so a crash tears one transaction at most, the last.
    """
    descriptor = _read_descriptor(log)
    if descriptor is None:
        return False
    try:
        if _size(descriptor) < WAL_HEADER_BYTES + FRAME_BYTES:
            return False
        header = os.pread(descriptor, WAL_HEADER_BYTES, 0)
        if not _header_is_whole(header):
            return True
        return sum(frame.commits for frame in list(_frames(descriptor))[accepted:]) > 1
    finally:
        os.close(descriptor)


def _frames(log: int) -> Iterator[_Frame]:
    """All places for frames; their own checksums are not looked at, the rows have theirs."""
    header = os.pread(log, WAL_HEADER_BYTES + FRAME_HEADER.size, 0)
    if len(header) < WAL_HEADER_BYTES + FRAME_HEADER.size:
        return
    salts_at = 16 if _header_is_whole(header[:WAL_HEADER_BYTES]) else WAL_HEADER_BYTES + 8
    salts = struct.unpack_from(">II", header, salts_at)
    for at in range(WAL_HEADER_BYTES, _size(log) - FRAME_BYTES + 1, FRAME_BYTES):
        page, commit, *salt = FRAME_HEADER.unpack(os.pread(log, FRAME_HEADER.size, at))
        current = tuple(salt) == salts
        yield _Frame(page, current, current and commit > 0, at + 24)


def _header_is_whole(header: bytes) -> bool:
    words = struct.unpack(">8I", header)
    if words[0] not in WAL_MAGIC:
        return False
    first = second = 0
    pairs = struct.unpack((">" if words[0] & 1 else "<") + "6I", header[:24])
    for left, right in zip(pairs[::2], pairs[1::2], strict=True):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return (first, second) == words[6:]


def _read_descriptor(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None


def _page_at(descriptor: int, at: int) -> bytes:
    try:
        return os.pread(descriptor, PAGE_BYTES, at)
    except OSError:  # a bad sector
        return b""


def _size(descriptor: int | None) -> int:
    return os.fstat(descriptor).st_size if descriptor is not None else 0


def _of_kind(pages: Iterable[bytes], kind: int) -> Iterator[bytes]:
    return (page for page in pages if len(page) == PAGE_BYTES and page[0] == kind)


def _cells(page: bytes, header: int) -> Iterator[int]:
    count = struct.unpack_from(">H", page, 3)[0]
    for n in range(min(count, (len(page) - header) // 2)):
        yield struct.unpack_from(">H", page, header + 2 * n)[0]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for n in range(9):
        byte = data[at + n]
        if n == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + n + 1
    raise AssertionError("unreachable")


def _record(payload: bytes) -> list[Value]:
    end, at = _varint(payload, 0)
    body, values = end, []
    while at < end:
        kind, at = _varint(payload, at)
        value, body = _value(payload, kind, body)
        values.append(value)
    return values


def _value(payload: bytes, kind: int, at: int) -> tuple[Value, int]:
    if kind >= 12:
        end = at + (kind - 12) // 2
        if end > len(payload):
            raise ValueError("the value is cut off")
        return (payload[at:end].decode() if kind & 1 else payload[at:end]), end
    size = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[kind]
    raw = payload[at : at + size]
    if kind == 0:
        return None, at
    if kind >= 8:
        return kind - 8, at
    return (struct.unpack(">d", raw)[0] if kind == 7 else int.from_bytes(raw, "big", signed=True)), at + size
