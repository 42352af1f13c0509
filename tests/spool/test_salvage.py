"""Damaged files: what can be read goes on, what cannot is counted, and the damaged file is kept whole."""

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from pipeline.errors import Unavailable
from pipeline.spool import pages
from pipeline.spool.spool import ADOPT_EVERY_S, Spool
from pipeline.spool.store import REOPEN_AFTER_S
from tests.spool.disk import Disk
from tests.spool.world import Clock, everything, message, number_of, put, spool

COUNT = 60
Damage = Callable[[bytearray], object]


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A directory whose only spool file holds COUNT messages, as a clean stop leaves it."""
    directory = tmp_path / "spool"
    into = spool(directory, clock=Clock())
    for first in range(0, COUNT, 10):
        put(into, [message(n, size=3000) for n in range(first, first + 10)])
    into.close()
    return directory


def damage(directory: Path, how: Damage, suffix: str = "") -> bytes:
    path = directory / f"spool-0.sqlite{suffix}"
    content = bytearray(path.read_bytes())
    how(content)
    path.write_bytes(content)
    return bytes(content)


def read_all(of: Spool) -> list[int]:
    """Whatever damage is met on the way; sorted numbers."""
    for _ in range(10):
        try:
            return sorted(number_of(each.message) for each in everything(of))
        except Unavailable:
            continue
    raise AssertionError("the spool never came to rest")


def page(number: int) -> slice:
    return slice((number - 1) * pages.PAGE_BYTES, number * pages.PAGE_BYTES)


def overwrite(number: int) -> Damage:
    return lambda content: content.__setitem__(page(number), random.Random(number).randbytes(pages.PAGE_BYTES))


@pytest.mark.parametrize("number", range(1, 15))
def test_corrupt_page(filled: Path, number: int) -> None:
    """One page of garbage costs at most the messages on it; each is counted, and the damaged file is in quarantine."""
    damaged = damage(filled, overwrite(number))
    with_damage = spool(filled, clock=Clock())
    found = read_all(with_damage)
    lost = COUNT - len(found)
    assert lost <= pages.PAGE_BYTES // 3000 + 1
    assert with_damage.losses == (lost, 200 * lost)
    [kept] = (filled / "quarantine").glob("*-0/spool-0.sqlite")
    assert kept.read_bytes() == damaged
    assert with_damage.level().messages == len(found)
    put(with_damage, [message(COUNT)])
    assert read_all(with_damage) == [*found, COUNT]
    with_damage.close()


@pytest.mark.parametrize(
    ("how", "lost"),
    [
        (lambda content: content.__setitem__(slice(None), b"this is no database\n" * 1000), COUNT),
        (lambda content: content.__delitem__(slice(5 * pages.PAGE_BYTES, None)), None),
        (lambda content: content.__delitem__(slice(5 * pages.PAGE_BYTES + 77, None)), None),
        (lambda content: content.clear(), COUNT),
        (lambda content: content.__delitem__(slice(100, None)), COUNT),
        (lambda content: content.__setitem__(slice(60, 64), b"\0\0\0\x09"), 0),
    ],
    ids=["garbage", "truncated", "truncated in a page", "empty", "almost empty", "of another version"],
)
def test_damaged_file(filled: Path, how: Damage, lost: int | None, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever became of a file, the spool goes on with what is readable, keeps the file and says where it is."""
    damaged = damage(filled, how)
    after = spool(filled, clock=Clock())
    found = read_all(after)
    assert lost is None or COUNT - len(found) == lost
    [kept] = (filled / "quarantine").glob("*-0/spool-0.sqlite")
    assert kept.read_bytes() == damaged
    assert str(kept.parent) in capfd.readouterr().out
    put(after, [message(COUNT)])
    assert read_all(after) == [*found, COUNT]
    after.close()


def test_missing_file(filled: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file that vanished is not silently begun anew."""
    (filled / "spool-0.sqlite").unlink()
    after = spool(filled, clock=Clock())
    assert read_all(after) == []
    assert "spool-0.sqlite was damaged" in capfd.readouterr().out
    after.close()


def test_bad_row(filled: Path) -> None:
    """A row whose checksum does not hold is kept in quarantine and counted, and does not hold up those behind it."""
    with apsw.Connection(str(filled / "spool-0.sqlite")) as connection:
        connection.execute(
            "UPDATE messages SET partition = partition + 1 WHERE id = (SELECT min(id) + 0 FROM messages)"
        )
    connection.close()
    after = spool(filled, clock=Clock())
    assert read_all(after) == list(range(1, COUNT))
    assert after.losses == (1, 200)
    assert after.level().messages == COUNT - 1
    [kept] = (filled / "quarantine").glob("*-0/message-*.json")
    assert '"topic": "logs_raw"' in kept.read_text()
    after.close()


def test_text_that_is_no_text(filled: Path) -> None:
    """A bit that flips in a topic or a header, and leaves no UTF-8, costs that message alone."""
    damage(filled, lambda content: content.__setitem__(content.rindex(b"logs_raw"), 0xFF))
    after = spool(filled, clock=Clock())
    assert len(read_all(after)) == COUNT - 1
    assert after.losses == (1, 200)
    after.close()


def drain(of: Spool) -> list[int]:
    """As the gateway does, whatever damage is met on the way; numbers."""
    found: list[int] = []
    for _ in range(20):
        try:
            while stored := of.oldest(7, 1 << 30):
                assert all(each.message == message(number_of(each.message), size=3000) for each in stored)
                found += [number_of(each.message) for each in stored]
                of.delete([each.id for each in stored])
        except Unavailable:
            continue
    return found


def test_row_that_vanished(filled: Path) -> None:
    """A row that the index lists and the table does not have is counted as lost, though SQLite sees no error."""

    def hide_last(content: bytearray) -> None:
        leaf = next(n for n in range(2, 99) if content[page(n)][0] == pages.TABLE_LEAF)
        content[page(leaf).start + 4] -= 1

    damage(filled, hide_last)
    after = spool(filled, clock=Clock())
    assert len(drain(after)) == COUNT - 1
    assert after.losses == (1, 200)
    assert after.level().messages == 0
    after.close()


def test_second_salvage_in_a_second(filled: Path) -> None:
    """What is in quarantine is never overwritten."""
    clock = Clock()
    for _ in range(2):
        damage(filled, overwrite(5))
        after = spool(filled, clock=clock)
        read_all(after)
        after.close()
    assert len(list((filled / "quarantine").glob("*/spool-0.sqlite"))) == 2


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bits(filled: Path, seed: int) -> None:
    """Whatever bits flip, every message is read as it was put or is counted as lost."""
    chance = random.Random(seed)

    def flip(content: bytearray) -> None:
        for _ in range(5):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)

    damage(filled, flip)
    after = spool(filled, clock=Clock())
    found = drain(after)
    assert after.level().messages == 0
    assert 0 <= after.losses.messages - (COUNT - len(set(found))) <= 5, "a flipped bit may list a row that never was"
    after.close()


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A directory as kill -9 leaves it: messages in the file and in its write-ahead log."""
    directory, copy = tmp_path / "spool", tmp_path / "copy"
    into = spool(directory, clock=Clock())
    for n in range(COUNT):
        put(into, [message(n, size=3000)])
    shutil.copytree(directory, copy)
    into.close()
    return copy


@pytest.mark.parametrize("at", [0, 20, 40, 20_000, 300_000, 500_000])
def test_damaged_log(logged: Path, at: int) -> None:
    """A bit that flips in the log costs at most what was in that page; SQLite alone would drop all that follows."""
    damage(logged, lambda content: content.__setitem__(at, content[at] ^ 0x55), "-wal")
    after = spool(logged, clock=Clock())
    found = read_all(after)
    assert COUNT - len(found) <= 1
    assert after.losses.messages == COUNT - len(found)
    after.close()


def test_torn_last_write(logged: Path) -> None:
    """A log whose last transaction is cut off is what a crash leaves: no damage, and no alarm."""
    damage(logged, lambda content: content.__delitem__(slice(len(content) - 1000, None)), "-wal")
    after = spool(logged, clock=Clock())
    assert read_all(after) == list(range(COUNT - 1))
    assert not (logged / "quarantine").exists()
    after.close()


def test_pages_read_as_sqlite_does(logged: Path) -> None:
    """On a sound file the reader without SQLite finds exactly the rows that SQLite does, deleted ones not."""
    working = spool(logged, clock=Clock())
    put(working, [message(COUNT, size=100_000), message(COUNT + 1, size=0)])
    stored = everything(working)
    working.delete([each.id for each in stored[::3]])
    reader = pages.Pages(logged / "spool-0.sqlite", logged / "spool-0.sqlite-wal")
    expected = sorted(each.id.row for each in stored if each not in stored[::3])
    assert sorted(row.id for row in reader.rows()) == expected
    assert sorted(listed.id for listed in reader.listed()) == expected
    reader.close()
    working.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    with disk.installed():
        yield disk


def survive(disk: Disk, work: Callable[[], Spool], *, operations: int, seed: int) -> bool:
    """Do the work until power fails after so many operations; return whether it did."""
    disk.fuse = operations
    work().close()
    failed = disk.dead
    if failed:
        disk.crash(random.Random(seed))
    disk.fuse = None
    return failed


def test_bad_sector(filled: Path, disk: Disk) -> None:
    """A page that the disk can no longer give does not hold up the others."""
    shutil.copytree(filled, disk.directory)
    disk.adopt()
    after = spool(disk.directory, clock=Clock(), vfs=disk.vfs)
    disk.bad_sector = 6 * pages.PAGE_BYTES
    with pytest.raises(Unavailable, match="bad sector"):
        everything(after)
    disk.bad_sector = None
    assert len(read_all(after)) == COUNT
    assert list(disk.directory.glob("quarantine/*/spool-0.sqlite"))
    after.close()


@pytest.mark.parametrize("seed", range(3))
def test_power_fails_during_salvage(filled: Path, disk: Disk, seed: int) -> None:
    """Whenever power fails during a salvage, the next start ends with the same messages as an undisturbed one."""
    damage(filled, overwrite(4))

    def begin() -> Spool:
        each = spool(disk.directory, clock=Clock(), vfs=disk.vfs)
        for _ in range(3):
            try:
                everything(each)
            except Unavailable:
                continue
        return each

    def restart(operations: int) -> tuple[bool, list[int]]:
        shutil.rmtree(disk.directory, ignore_errors=True)
        shutil.copytree(filled, disk.directory)
        disk.adopt()
        failed = survive(disk, begin, operations=operations, seed=seed)
        after = spool(disk.directory, clock=Clock(), vfs=disk.vfs)
        found = read_all(after)
        after.close()
        return failed, found

    _, expected = restart(10**9)
    assert len(expected) >= COUNT - 6
    operations = 0
    while True:
        failed, found = restart(operations)
        assert found == expected, f"power failed after {operations} operations"
        if not failed:
            break
        operations += 1
    assert operations > 20


def test_one_operation_fails_while_a_file_is_made(disk: Disk) -> None:
    """Whichever operation of a new file's making fails, what is acknowledged afterwards outlives a power failure."""
    for operations, seed in itertools.product(range(25), range(3)):
        shutil.rmtree(disk.directory, ignore_errors=True)
        disk.adopt()
        disk.failing = operations
        clock = Clock()
        before = spool(disk.directory, clock=clock, vfs=disk.vfs)
        clock.now_s += REOPEN_AFTER_S
        kept = []
        for number in range(3):
            try:
                put(before, [message(number)])
                kept.append(number)
            except Unavailable:
                continue
        disk.dead = True
        before.close()
        disk.crash(random.Random(seed))
        after = spool(disk.directory, clock=clock, vfs=disk.vfs)
        assert set(kept) <= set(read_all(after))
        after.close()


def test_power_fails_while_space_is_given_back(disk: Disk) -> None:
    """Whenever power fails while an emptied file shrinks, deleted stays deleted and the file goes on."""
    operations, failed = 0, True
    while failed:
        shutil.rmtree(disk.directory, ignore_errors=True)
        disk.adopt()
        before = spool(disk.directory, clock=Clock(), vfs=disk.vfs)
        put(before, [message(n, size=30_000) for n in range(5)])
        disk.fuse = operations
        deleted = True
        try:
            before.delete([each.id for each in before.oldest(10, 1 << 30)])
        except Unavailable:
            deleted = False
        before.close()
        failed = disk.dead
        if failed:
            disk.crash(random.Random(operations))
        disk.fuse = None
        after = spool(disk.directory, clock=Clock(), vfs=disk.vfs)
        found = read_all(after)
        assert found == [] if deleted else found in ([], [0, 1, 2, 3, 4])
        put(after, [message(9)])
        assert read_all(after) == [*found, 9]
        assert after.losses == (0, 0)
        after.close()
        operations += 1
    assert operations > 10


def test_power_fails_during_adoption(disk: Disk) -> None:
    """Whenever power fails while a dead process's file is adopted and drained, what was not deleted is there."""
    operations, failed = 0, True
    while failed:
        shutil.rmtree(disk.directory, ignore_errors=True)
        disk.adopt()
        clock = Clock()
        own = spool(disk.directory, clock=clock, vfs=disk.vfs)
        dead = spool(disk.directory, clock=clock, vfs=disk.vfs)
        put(dead, [message(n, size=5_000) for n in range(4)])
        dead.close()
        clock.now_s += ADOPT_EVERY_S
        disk.fuse = operations
        left, unknown = {0, 1, 2, 3}, set[int]()
        try:
            while stored := own.oldest(1, 1):
                unknown = {number_of(each.message) for each in stored}
                own.delete([each.id for each in stored])
                left -= unknown
                unknown = set()
        except Unavailable:
            assert disk.dead
        own.close()
        failed = disk.dead
        if failed:
            disk.crash(random.Random(operations))
        disk.fuse = None
        after = spool(disk.directory, clock=clock, vfs=disk.vfs)
        clock.now_s += ADOPT_EVERY_S
        after.oldest(1, 1)
        assert left - unknown <= set(read_all(after)) <= left | unknown
        after.close()
        operations += 1
    assert operations > 10
