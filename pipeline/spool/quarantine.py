"""Where damaged things go: kept whole, counted, and said."""

import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from pipeline.spool.message import Row

log = structlog.get_logger()


class Losses(NamedTuple):
    """What could not be read since this process started; `records` as far as they are known."""

    messages: int = 0
    records: int = 0


class Quarantine:
    """The directory `quarantine` of a spool. Nothing here is ever deleted by us."""

    def __init__(self, directory: Path, clock: Callable[[], float]) -> None:
        self._directory = directory / "quarantine"
        self._clock = clock
        self._lock = threading.Lock()
        self._losses = Losses()

    @property
    def losses(self) -> Losses:
        return self._losses

    def moment(self, file: int) -> str:
        """A name for now, under which no damaged file of this number is kept yet."""
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock()))
        names = itertools.chain([now], (f"{now}+{n}" for n in itertools.count(2)))
        return next(name for name in names if not any((self._directory / f"{name}-{file}").glob("spool-*")))

    def place(self, moment: str, file: int) -> Path:
        """A directory for what is found damaged in spool file `file`; fsynced."""
        place = self._directory / f"{moment}-{file}"
        place.mkdir(parents=True, exist_ok=True)
        for directory in (self._directory.parent, self._directory):
            sync_directory(directory)
        return place

    def keep(self, file: int, row: Row, reason: str) -> None:
        """Write a row that failed its checksum as JSON, blobs in hex; on return it is fsynced and counted."""
        path = self.place(self.moment(file), file) / f"message-{row.id}.json"
        content = {k: v.hex() if isinstance(v, bytes) else v for k, v in row._asdict().items()}
        with path.open("w") as out:
            json.dump(content, out)
            out.flush()
            os.fsync(out.fileno())
        sync_directory(path.parent)
        self.count(1, row.records if isinstance(row.records, int) else 0)
        log.error(
            f"a spooled message was damaged on disk and is lost to Kafka unless you restore it from {path}",
            reason=reason, records=row.records,
        )  # fmt: skip

    def count(self, messages: int, records: int) -> None:
        with self._lock:
            self._losses = Losses(self._losses.messages + messages, self._losses.records + records)


def sync_directory(directory: Path) -> None:
    """Make creations and renames in it durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
