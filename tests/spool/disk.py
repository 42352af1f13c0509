"""A disk that can lose power: real files, and a model of what a power failure may leave of them.

SQLite writes through a VFS; what the spool does beside SQLite goes through `os`, which `installed` wraps. A file keeps
what was synced; of everything later each 512-byte sector may be kept or lost, in any order. Names follow the rule of
journalling file systems: creations, renames and deletions become durable in order, all of them by any sync of a new
log or a directory, and else any number of them.
"""

import contextlib
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import apsw

SECTOR_BYTES = 512
BASE = "unix-none"  # the spool's lock is its own


class Power(apsw.IOError, OSError):
    """There is none: every operation fails until the crash is over."""


class Content:
    """A file: what is durable, and the operations since."""

    def __init__(self, durable: bytes = b"") -> None:
        self.durable = bytearray(durable)
        self.pending: list[tuple[int, bytes | None]] = []  # offset and bytes, or size and None for a truncation

    def sync(self) -> None:
        for operation in self.pending:
            self._apply(operation)
        self.pending.clear()

    def survive(self, chance: random.Random) -> bytes:
        how = chance.choice(["none", "all", "some", "some"])
        pending = {"none": [], "all": self.pending}.get(how)
        if pending is None:
            pending = [part for operation in self.pending for part in _sectors(operation) if chance.random() < 0.5]
            chance.shuffle(pending)
        for operation in pending:
            self._apply(operation)
        return bytes(self.durable)

    def _apply(self, operation: tuple[int, bytes | None]) -> None:
        at, data = operation
        self.durable.extend(bytes(max(0, at - len(self.durable))))
        if data is None:
            del self.durable[at:]
        else:
            self.durable[at : at + len(data)] = data


def _sectors(operation: tuple[int, bytes | None]) -> list[tuple[int, bytes | None]]:
    at, data = operation
    if data is None:
        return [operation]
    return [(at + n, data[n : n + SECTOR_BYTES]) for n in range(0, len(data), SECTOR_BYTES)]


class Disk:
    """The files under `directory`, until `crash`. `fuse` counts the operations that still succeed; None: all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fuse: int | None = None
        self.dead = False
        self.full = False
        self.failing: int | None = None  # operations until one fails alone
        self.bad_sector: int | None = None  # an offset that cannot be read through SQLite
        self.operations = 0
        self.syncs = 0
        self.names: dict[str, Content] = {}
        self._durable_names: dict[str, Content] = {}
        self._pending_names: list[Callable[[dict[str, Content]], object]] = []
        self.vfs = f"crashing-{id(self)}"
        self._vfs = Vfs(self.vfs, self)

    def step(self) -> None:
        """Before every operation that changes something."""
        self.operations += 1
        if self.fuse is not None:
            self.fuse -= 1
            self.dead = self.dead or self.fuse < 0
        if self.dead:
            raise Power("no power")
        if self.failing is not None:
            self.failing -= 1
            if self.failing < 0:
                self.failing = None
                raise apsw.IOError("one operation failed")

    def change_names(self, change: Callable[[dict[str, Content]], object]) -> None:
        change(self.names)
        self._pending_names.append(change)

    def sync_names(self) -> None:
        for change in self._pending_names:
            change(self._durable_names)
        self._pending_names.clear()

    def crash(self, chance: random.Random) -> None:
        """Lose power and come back: every user of the disk must have let go."""
        count = len(self._pending_names)
        for change in self._pending_names[: chance.choice([0, count, chance.randint(0, count)])]:
            change(self._durable_names)
        contents = {name: content.survive(chance) for name, content in sorted(self._durable_names.items())}
        self.fuse, self.dead, self.failing, self.full = None, False, None, False
        for path in self.directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._pending_names.clear()
        for name, content in contents.items():
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.names = {name: Content(content) for name, content in contents.items()}
        self._durable_names = dict(self.names)

    def adopt(self) -> None:
        """Take what is there, written by whom so ever, as durable."""
        paths = [path for path in self.directory.rglob("*") if path.is_file()]
        self.names = {str(path): Content(path.read_bytes()) for path in paths}
        self._durable_names = dict(self.names)
        self._pending_names.clear()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap what the spool does beside SQLite."""
        rename, unlink, mkdir = os.rename, os.unlink, os.mkdir

        def crash_rename(source: Any, target: Any) -> None:
            if self._is_ours(source):
                self.step()
                self.change_names(_renaming(str(source), str(target)))
            rename(source, target)

        def crash_unlink(path: Any, **options: Any) -> None:
            if str(path) in self.names:
                self.step()
                self.change_names(lambda names: names.pop(str(path), None))
            unlink(path, **options)

        def crash_mkdir(path: Any, *others: Any) -> None:
            if self._is_ours(path):
                self.step()
            mkdir(path, *others)

        def crash_fsync(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path != self.directory and not self._is_ours(path):
                return
            self.step()
            self.syncs += 1
            if path.is_dir():
                self.sync_names()
                return
            content = Content(path.read_bytes())
            if str(path) in self.names:
                self.names[str(path)].durable[:] = content.durable
            else:
                self.change_names(lambda names: names.__setitem__(str(path), content))

        unraisable = sys.unraisablehook

        def crash_unraisable(raised: Any) -> None:
            """SQLite goes on after some failures, such as a checkpoint's: then nobody is there to catch ours."""
            if not isinstance(raised.exc_value, apsw.Error):
                unraisable(raised)

        with (
            mock.patch("sys.unraisablehook", crash_unraisable),
            mock.patch("os.rename", crash_rename),
            mock.patch("os.replace", crash_rename),
            mock.patch("os.unlink", crash_unlink),
            mock.patch("os.mkdir", crash_mkdir),
            mock.patch("os.fsync", crash_fsync),
        ):
            yield

    def _is_ours(self, path: Any) -> bool:
        return str(path).startswith(str(self.directory) + "/")


def _renaming(source: str, target: str) -> Callable[[dict[str, Content]], object]:
    def change(names: dict[str, Content]) -> None:
        if source in names:
            names[target] = names.pop(source)

    return change


class Vfs(apsw.VFS):
    def __init__(self, name: str, disk: Disk) -> None:
        self._disk = disk
        super().__init__(name, BASE)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        if name is None:
            return super().xOpen(name, flags)
        path = name if isinstance(name, str) else name.filename()
        if path not in self._disk.names and flags[0] & apsw.SQLITE_OPEN_CREATE:
            self._disk.step()
            content = Content()
            self._disk.change_names(lambda names: names.__setitem__(path, content))
        return File(self._disk, name, path, flags)

    def xDelete(self, path: str, sync: bool) -> None:  # noqa: N802
        self._disk.step()
        super().xDelete(path, sync)
        self._disk.change_names(lambda names: names.pop(path, None))
        if sync:
            self._disk.sync_names()

    def excepthook(self, *_: Any) -> None:
        """What a dead disk says while it is let go of is no news."""


class File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, path: str, flags: list[int]) -> None:
        super().__init__(BASE, name, flags)
        self._disk = disk
        self._content = disk.names.get(path, Content())
        # SQLite's own sync of a new log or journal syncs the directory too.
        self._syncs_names = bool(flags[0] & (apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL))

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        if self._disk.bad_sector is not None and offset <= self._disk.bad_sector < offset + amount:
            error = apsw.IOError("a bad sector")
            error.extendedresult = apsw.SQLITE_IOERR_READ
            raise error
        return super().xRead(amount, offset)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        if self._disk.full and offset + len(data) > self.xFileSize():
            raise apsw.FullError("the disk is full")
        self._change((offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._change((size, None))
        super().xTruncate(size)

    def _change(self, operation: tuple[int, bytes | None]) -> None:
        try:
            self._disk.step()
        except Power:
            self._content.pending.append(operation)  # power goes just now: it may be done, or half done
            raise
        self._content.pending.append(operation)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._disk.step()
        self._disk.syncs += 1
        self._content.sync()
        if self._syncs_names:
            self._disk.sync_names()

    def excepthook(self, *_: Any) -> None:
        """See Vfs."""
