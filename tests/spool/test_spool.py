"""The spool on a sound disk, on a full one, and among other processes."""

import shutil
import subprocess
import sys
import time
from concurrent.futures import wait
from pathlib import Path
from unittest import mock

import pytest

from pipeline.errors import Misconfigured, Unavailable
from pipeline.settings import ROOT
from pipeline.spool import spool as module
from pipeline.spool.message import ROW_BYTES, Damaged, Message, pack, unpack
from pipeline.spool.spool import ADOPT_EVERY_S
from tests.spool.disk import Disk
from tests.spool.world import Clock, everything, message, number_of, put, spool


def test_as_put(tmp_path: Path) -> None:
    """A message comes back byte for byte, oldest first, with its headers in order and repeated ones kept."""
    clock = Clock()
    working = spool(tmp_path, clock=clock)
    messages = [message(n, size) for n, size in enumerate([0, 1, 1000, 50_000, 800_000])]
    messages.append(Message("events_raw", 0, 1, (("a", b""), ("a", b"\xff\x00")), b""))
    put(working, messages)
    assert [each.message for each in working.oldest(100, 1 << 30)] == messages
    assert {each.spooled_at_s for each in everything(working)} == {clock.now_s}
    working.close()
    again = spool(tmp_path, clock=clock)
    assert [each.message for each in again.oldest(100, 1 << 30)] == messages
    again.close()


def test_a_directory_that_it_makes_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new directory's entry is fsynced too, or a power failure after the first OK takes the spool with it."""
    synced = set()
    monkeypatch.setattr(module, "sync_directory", synced.add)
    spool(tmp_path / "a" / "b").close()
    assert {tmp_path, tmp_path / "a"} <= synced
    synced.clear()
    spool(tmp_path / "a" / "b").close()
    assert tmp_path not in synced


def test_limits_of_a_read(tmp_path: Path) -> None:
    """A read stops at its count and at its bytes, and yet returns one message that alone is over them."""
    working = spool(tmp_path)
    put(working, [message(n, size=10_000) for n in range(5)])
    assert len(working.oldest(3, 1 << 30)) == 3
    assert len(working.oldest(100, 25_000)) == 2
    assert len(working.oldest(100, 1)) == 1
    working.close()


def test_delete(tmp_path: Path) -> None:
    """What was deleted does not come back, and an id that is gone may be deleted again."""
    working = spool(tmp_path)
    put(working, [message(n) for n in range(5)])
    ids = [each.id for each in working.oldest(2, 1 << 30)]
    working.delete(ids)
    working.delete(ids)
    assert [number_of(each.message) for each in everything(working)] == [2, 3, 4]
    assert working.level().messages == 3
    working.close()


def test_an_emptied_file_repeats_no_id(tmp_path: Path) -> None:
    """Also over a restart: what a salvage finds left of a deleted row is never taken for a new one."""
    clock, seen = Clock(), []
    for _ in range(3):
        working = spool(tmp_path, clock=clock)
        put(working, [message(n) for n in range(3)])
        ids = [each.id for each in everything(working)]
        seen += ids
        working.delete(ids)
        working.close()
        clock.now_s += 1
    assert len(set(seen)) == len(seen)


def test_level(tmp_path: Path) -> None:
    """The level counts messages, records, compressed bytes and age, and survives a restart."""
    clock = Clock()
    working = spool(tmp_path, clock=clock, max_bytes=1_000_000)
    assert working.level() == (0.0, 0, 0, 0, None)
    put(working, [message(0, records=10)])
    clock.now_s += 7
    put(working, [message(1, records=5)])
    level = working.level()
    assert level.messages == 2
    assert level.records == 15
    assert 2 * 1000 < level.used_bytes < 2 * (1000 + ROW_BYTES + 1000)
    assert level.fraction == level.used_bytes / 1_000_000
    assert level.oldest_s == 7
    working.close()
    again = spool(tmp_path, clock=clock, max_bytes=1_000_000)
    assert again.level() == level
    again.delete([each.id for each in again.oldest(1, 1)])
    assert again.level().oldest_s == 0
    again.close()


def size_of(number: int) -> int:
    return pack(1 << 50, 1.5e9, message(number)).size


def test_watermarks(tmp_path: Path) -> None:
    """The fraction is exact below 80 %, above it and at 100 %; the put that would go over is refused unwritten."""
    each = size_of(100)
    working = spool(tmp_path, clock=Clock(), max_bytes=each * 100)
    put(working, [message(n) for n in range(100, 179)])
    assert working.level().fraction == pytest.approx(0.79, abs=1e-9)
    put(working, [message(180)])
    assert working.level().fraction == pytest.approx(0.80, abs=1e-9)
    put(working, [message(n) for n in range(181, 200)])
    assert working.level().fraction == pytest.approx(0.99, abs=1e-9)
    with pytest.raises(Unavailable, match=r"spool\.max_bytes"):
        put(working, [message(200, size=1001)])
    put(working, [message(201)])
    assert working.level().fraction == 1.0
    assert working.put(message(202)).done(), "refused at once"
    with pytest.raises(Unavailable, match=r"spool\.max_bytes"):
        put(working, [message(202)])
    assert working.level().messages == 100
    working.delete([stored.id for stored in working.oldest(50, 1 << 30)])
    put(working, [message(203)])
    assert working.level().fraction == pytest.approx(0.51, abs=1e-9)
    working.close()


def test_free_disk_counts(tmp_path: Path) -> None:
    """Where the disk is nearer to full than the spool, the disk is the level; space within the file is free too."""
    clock = Clock()
    free = 1 << 40
    working = spool(tmp_path, clock=clock, min_free_bytes=5_000_000, free_bytes=lambda _: free)
    put(working, [message(n, size=10_000) for n in range(100)])
    used = working.level().used_bytes
    free = 5_000_000 + used // 4
    working._look()
    assert working.level().fraction == pytest.approx(0.8, abs=0.02)
    free = 3_000_000
    working._look()
    assert working.level().fraction == 1.0
    with pytest.raises(Unavailable, match=r"spool\.min_free_bytes"):
        put(working, [message(200)])
    working.delete([stored.id for stored in working.oldest(90, 1 << 30)])
    working._look()
    assert working.level().fraction == 1.0, "what the file could give is still less than must stay free"
    free = 5_000_000
    working._look()
    assert working.level().fraction < 0.2
    put(working, [message(200)])
    working.close()


def test_idle_level_is_right(tmp_path: Path) -> None:
    """The free disk is looked at also while nothing is put."""
    free = 1 << 40
    working = spool(tmp_path, free_bytes=lambda _: free)
    assert working.level().fraction == 0
    free = 0
    time.sleep(module.LOOK_EVERY_S * 1.5)
    assert working.level().fraction == 1
    working.close()


def test_group_commit(tmp_path: Path) -> None:
    """A hundred messages put at once share a few fsyncs."""
    disk = Disk(tmp_path / "disk")
    with disk.installed():
        working = spool(disk.directory, vfs=disk.vfs)
        put(working, [message(0)])
        before = disk.syncs
        put(working, [message(n) for n in range(1, 101)])
        assert disk.syncs - before <= 5
        working.close()


def test_waiting_bytes_are_bounded(tmp_path: Path) -> None:
    """While the disk stands still puts are refused once enough wait in memory, and none blocks."""
    working = spool(tmp_path)
    with mock.patch.object(module, "WAITING_BYTES", 1_000_000), working._own._turn:
        futures = [working.put(message(n, size=100_000)) for n in range(20)]
        refused = [future for future in futures if future.done()]
        assert 9 <= len(refused) <= 11
        with pytest.raises(Unavailable, match="slower"):
            refused[0].result()
    wait(futures, 30)
    assert working.level().messages == 20 - len(refused)
    working.close()


def test_space_is_given_back(tmp_path: Path) -> None:
    """When the spool is empty its files are small again."""
    working = spool(tmp_path)
    put(working, [message(n, size=100_000) for n in range(100)])
    while stored := working.oldest(30, 1 << 30):
        working.delete([each.id for each in stored])
    assert sum(path.stat().st_size for path in tmp_path.glob("spool-*")) < 200_000
    assert working.level() == (0.0, 0, 0, 0, None)
    working.close()


def test_full_disk(tmp_path: Path) -> None:
    """On a full disk puts fail with a sentence, delivered messages are not read again, and all goes on when it is over."""
    disk = Disk(tmp_path / "disk")
    with disk.installed():
        working = spool(disk.directory, vfs=disk.vfs)
        put(working, [message(n, size=20_000) for n in range(4)])
        disk.full = True
        with pytest.raises(Unavailable, match="disk is full"):
            put(working, [message(4, size=20_000)])
        stored = working.oldest(2, 1 << 30)
        with pytest.raises(Unavailable, match="disk is full"):
            working.delete([each.id for each in stored])
        assert [number_of(each.message) for each in working.oldest(10, 1 << 30)] == [2, 3]
        disk.full = False
        put(working, [message(5)])
        assert [number_of(each.message) for each in working.oldest(10, 1 << 30)] == [2, 3, 5]
        assert working.level().messages == 3, "what was delivered is deleted as soon as the disk allows it"
        working.close()


def test_full_disk_at_start(tmp_path: Path) -> None:
    """A process that starts on a full disk after a crash can read and drain what is there."""
    disk = Disk(tmp_path / "disk")
    with disk.installed():
        before = spool(disk.directory, vfs=disk.vfs)
        put(before, [message(n, size=20_000) for n in range(4)])
        shutil.copytree(disk.directory, tmp_path / "copy")
        before.close()
    disk = Disk(tmp_path / "copy")
    disk.adopt()
    disk.full = True
    with disk.installed():
        working = spool(disk.directory, vfs=disk.vfs)
        assert [number_of(each.message) for each in working.oldest(10, 1 << 30)] == [0, 1, 2, 3]
        working.close()


def test_file_size_limit(tmp_path: Path) -> None:
    """A real write error of the operating system refuses puts, and loses nothing that was acknowledged."""
    script = """
import resource, signal, sys
from pathlib import Path
from pipeline.errors import Unavailable
from tests.spool.world import everything, message, number_of, put, spool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
working = spool(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
kept = []
for n in range(100):
    try:
        put(working, [message(n, size=30_000)])
        kept.append(n)
    except Unavailable as failure:
        last = failure
assert 5 < len(kept) < 100, kept
assert sorted(number_of(each.message) for each in everything(working)) == kept
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
put(working, [message(100)])
working.close()
again = spool(Path(sys.argv[1]))
assert sorted(number_of(each.message) for each in everything(again)) == [*kept, 100]
again.close()
print(last)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "spool-0.sqlite does not play along" in done.stdout


def test_directory_that_cannot_be(tmp_path: Path) -> None:
    """A directory that cannot be used is a setting to correct."""
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match=r"spool\.directory"):
        spool(tmp_path / "file")


def test_closed(tmp_path: Path) -> None:
    """What was put before the close is kept; what is put after it is refused."""
    working = spool(tmp_path)
    futures = [working.put(message(n)) for n in range(50)]
    working.close()
    assert all(future.exception() is None for future in futures)
    with pytest.raises(Unavailable, match="closed"):
        put(working, [message(50)])


def test_partitions_are_remembered(tmp_path: Path) -> None:
    """Any process of the directory recalls what one remembered; rubbish is recalled as nothing."""
    one, other = spool(tmp_path), spool(tmp_path)
    assert other.recall() == {}
    one.remember({"logs_raw": 12, "events_raw": 4})
    assert other.recall() == {"logs_raw": 12, "events_raw": 4}
    (tmp_path / "partitions.json").write_text("[1")
    assert other.recall() == {}
    one.close()
    other.close()


def test_checksum_covers_every_field() -> None:
    """A row that differs in any field is not taken for whole."""
    row = pack(7, 1.5, message(1))
    assert unpack(row) == message(1)
    for field, other in {
        "id": 8, "spooled_at_s": 1.6, "topic": "x", "partition": 99, "records": 1, "size": 1, "headers": "[]",
        "checksum": b"", "value": b"x", "topic ": None,
    }.items():  # fmt: skip
        with pytest.raises(Damaged):
            unpack(row._replace(**{field.strip(): other}))


def test_each_process_has_its_file(tmp_path: Path) -> None:
    """Two holders of one directory do not see each other's messages until one is gone; then they are adopted, once."""
    clock = Clock()
    one, other = spool(tmp_path, clock=clock), spool(tmp_path, clock=clock)
    put(one, [message(1)])
    put(other, [message(2), message(3)])
    clock.now_s += ADOPT_EVERY_S
    assert [number_of(each.message) for each in one.oldest(10, 1 << 30)] == [1]
    other.close()
    clock.now_s += ADOPT_EVERY_S
    one.delete([each.id for each in one.oldest(10, 1 << 30)])
    assert [number_of(each.message) for each in one.oldest(10, 1 << 30)] == [2, 3]
    assert one.level().messages == 2
    late = spool(tmp_path, clock=clock)
    assert late._own.number == 2, "an adopted file is held"
    one.delete([each.id for each in one.oldest(10, 1 << 30)])
    clock.now_s += ADOPT_EVERY_S
    assert one.oldest(10, 1 << 30) == []
    last = spool(tmp_path, clock=clock)
    assert last._own.number == 1, "an emptied file is let go, not deleted"
    for each in (one, late, last):
        each.close()


def start(directory: Path, first: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.spool.worker", str(directory), str(first)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def drained(directory: Path) -> list[int]:
    """Everything that is in the directory, drained as the gateway does."""
    clock = Clock()
    of, found = spool(directory, clock=clock), []
    for _ in range(2):
        clock.now_s += ADOPT_EVERY_S
        while stored := of.oldest(50, 1 << 20):
            found += [each.message for each in stored]
            of.delete([each.id for each in stored])
    assert of.losses == (0, 0)
    of.close()
    assert all(each == message(number_of(each), size=number_of(each) % 10 * 3000) for each in found)
    return sorted(map(number_of, found))


def test_killed_again_and_again(tmp_path: Path) -> None:
    """Two processes on one directory are killed with SIGKILL, three times: each acknowledged message is drained, once."""
    acknowledged: list[int] = []
    for n in range(3):
        workers = [start(tmp_path, (2 * n + which) * 1_000_000) for which in (0, 1)]
        heads = [worker.stdout.readline() for worker in workers if worker.stdout]
        time.sleep(0.2 + 0.13 * n)
        for worker in workers:
            worker.kill()
        outputs = [worker.communicate()[0] for worker in workers]
        acknowledged += [int(line) for text in (*heads, *outputs) for line in text.split("\n") if line]
    assert len(acknowledged) > 100
    found = drained(tmp_path)
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
    assert drained(tmp_path) == []
