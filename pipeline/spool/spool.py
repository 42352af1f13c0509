"""The spool: puts that share an fsync, a drain in order of age, a level that costs nothing to ask for."""

import json
import os
import shutil
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import NamedTuple

import structlog

from pipeline.errors import Misconfigured, Unavailable
from pipeline.settings import SpoolSettings
from pipeline.spool.message import Id, Message, Row, Stored, pack
from pipeline.spool.quarantine import Losses, Quarantine, sync_directory
from pipeline.spool.store import Store, numbers, take

log = structlog.get_logger()

WAITING_BYTES = 192 * 1024 * 1024  # of values put and not yet written: more than one request may become
COMMIT_BYTES = 8 * 1024 * 1024  # of values in one transaction
PARTITIONS = "partitions.json"
LOOK_EVERY_S = 1.0  # at the free disk
ADOPT_EVERY_S = 10.0  # and not at start: workers that start together find their own files first


class Level(NamedTuple):
    """How full the spool is."""

    fraction: float  # of max_bytes or of the disk, whichever is nearer to full; 1 is full, more is possible
    used_bytes: int  # compressed
    messages: int
    records: int
    oldest_s: float | None  # age


class Spool:
    """Messages on disk in a directory that several processes may share.

    Each process writes a file of its own and drains what dead processes left. `settings.max_bytes` bounds what this
    process holds: where several share the directory, each gets its part.
    """

    def __init__(
        self,
        settings: SpoolSettings,
        *,
        clock: Callable[[], float] = time.time,
        vfs: str = "",
        free_bytes: Callable[[Path], int] = lambda directory: shutil.disk_usage(directory).free,
    ) -> None:
        """Take a file; raise Misconfigured where the directory cannot be used."""
        directory = self._directory = settings.directory
        self._max_bytes = settings.max_bytes
        self._min_free_bytes = settings.min_free_bytes
        self._clock = clock
        self._vfs = vfs
        self._free_bytes = free_bytes
        self._quarantine = Quarantine(directory, clock)
        self._waiting: deque[tuple[Message, Future[None]]] = deque()
        self._waiting_bytes = 0
        self._wake = threading.Condition()
        self._closed = False
        self._adopted: tuple[Store, ...] = ()
        self._adopted_at_s = clock()
        try:
            missing = [each for each in (directory, *directory.parents) if not each.exists()]
            directory.mkdir(parents=True, exist_ok=True)
            for each in missing:
                sync_directory(each.parent)
            self._own = self._take()
        except OSError as error:
            raise Misconfigured(f"spool.directory: {directory} cannot be used: {error}.") from error
        try:
            self._own.open()
        except Unavailable as failure:
            log.error("the spool cannot take messages yet", reason=str(failure))
        self._unusable: Unavailable | None = None
        self._available_bytes = 0
        self._looked_at_s = 0.0
        self._look()
        self._writer = threading.Thread(target=self._write, name="spool-writer", daemon=True)
        self._writer.start()

    def put(self, message: Message) -> Future[None]:
        """Never blocks. The future is done when the message is fsynced.

        It raises Unavailable where that is not known: the message may be kept all the same. Callbacks run in the
        caller's thread or the writer's.
        """
        future: Future[None] = Future()
        size = len(message.value)
        with self._wake:
            refusal = self._refusal(1)
            if self._closed:
                refusal = Unavailable("The spool is closed.")
            elif self._waiting_bytes + size > WAITING_BYTES:
                refusal = Unavailable(f"The disk of the spool in {self._directory} is slower than what is put into it.")
            if refusal is None:
                self._waiting.append((message, future))
                self._waiting_bytes += size
                self._wake.notify()
        if refusal is not None:
            future.set_exception(refusal)
        return future

    def oldest(self, limit_messages: int, limit_bytes: int) -> list[Stored]:
        """Messages to publish, from the file whose oldest is oldest; the same ones until they are deleted.

        At most `limit_messages`, of at most `limit_bytes` of values, but one at least if there is any. Files of dead
        processes are found here: ask now and then also when the level says nothing is there. Blocks. One thread calls
        this and `delete`. Raise Unavailable where a disk does not play along and nothing else can be read.
        """
        self._adopt_now_and_then()
        failure: Unavailable | None = None
        for store in sorted(self._stores(), key=lambda store: store.totals.oldest_at_s or 0.0):
            try:
                found = store.oldest(limit_messages, limit_bytes)
            except Unavailable as unavailable:
                failure = unavailable
            else:
                if found:
                    return found
        if failure is not None:
            raise failure
        return []

    def delete(self, ids: Iterable[Id]) -> None:
        """Forget messages that Kafka has. Blocks; on return they are durably gone.

        Raise Unavailable where the disk refuses: then `oldest` does not return them again either, and deletes them when
        it can; only a restart before that repeats them.
        """
        rows: defaultdict[int, list[int]] = defaultdict(list)
        for file, row in ids:
            rows[file].append(row)
        failure: Unavailable | None = None
        for store in self._stores():
            if store.number in rows:
                try:
                    store.delete(rows[store.number])
                except Unavailable as unavailable:
                    failure = unavailable
        if failure is not None:
            raise failure

    def level(self) -> Level:
        """Touches no disk."""
        totals = [store.totals for store in self._stores()]
        used = sum(each.bytes for each in totals)
        limit = self._limit(used)
        ages = [each.oldest_at_s for each in totals if each.oldest_at_s is not None]
        return Level(
            used / limit if limit else 1.0,
            used,
            sum(each.messages for each in totals),
            sum(each.records for each in totals),
            max(0.0, self._clock() - min(ages)) if ages else None,
        )

    @property
    def losses(self) -> Losses:
        """Messages and records that could not be read and are in quarantine, since this process started."""
        return self._quarantine.losses

    def remember(self, partitions: dict[str, int]) -> None:
        """Keep how many partitions each topic has, for `recall` in any process of this directory. Blocks."""
        path = self._directory / PARTITIONS
        unfinished = path.with_suffix(f".{os.getpid()}")
        try:
            with unfinished.open("w") as file:
                json.dump(partitions, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            sync_directory(self._directory)
        except OSError as error:
            raise Unavailable(f"{path} cannot be written: {error}.") from error

    def recall(self) -> dict[str, int]:
        """What was last remembered; empty where nothing is, or it cannot be read."""
        try:
            return {
                str(topic): int(number)
                for topic, number in json.loads((self._directory / PARTITIONS).read_bytes()).items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            log.warning("remembered partitions cannot be read", reason=str(error))
            return {}

    def close(self) -> None:
        """Write what waits, then let go of the files. Blocks."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._writer.join()
        for store in self._stores():
            store.close()

    def _stores(self) -> tuple[Store, ...]:
        return (self._own, *self._adopted)

    def _take(self) -> Store:
        stores = (self._hold(number) for number in count())
        return next(store for store in stores if store is not None)

    def _hold(self, number: int) -> Store | None:
        return take(self._directory, number, self._quarantine, clock=self._clock, vfs=self._vfs)

    def _adopt_now_and_then(self) -> None:
        """Let go of adopted files that are empty, and take those that nobody holds and that are not."""
        if 0 <= self._clock() - self._adopted_at_s < ADOPT_EVERY_S:
            return
        self._adopted_at_s = self._clock()
        kept = [store for store in self._adopted if store.totals.messages]
        for store in self._adopted:
            if store not in kept:
                store.close()
        held = {self._own.number, *(store.number for store in kept)}
        for number in numbers(self._directory):
            adopted = None if number in held else self._adopt(number)
            if adopted is not None:
                kept.append(adopted)
        self._adopted = tuple(kept)

    def _adopt(self, number: int) -> Store | None:
        """The file, if nobody holds it and it has messages. An empty one stays: its next holder may be at the door."""
        try:
            store = self._hold(number)
        except OSError as error:
            log.warning("a spool file cannot be adopted", number=number, reason=str(error))
            return None
        if store is None:
            return None
        try:
            store.open()
        except Unavailable as failure:
            log.warning("a spool file cannot be adopted", number=number, reason=str(failure))
        if store.totals.messages:
            return store
        store.close()
        return None

    def _write(self) -> None:
        """The writer thread: everything that waits, up to COMMIT_BYTES, shares a transaction and its fsync."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closed, LOOK_EVERY_S)
                batch, size = self._next_batch()
                closed = self._closed
            if not batch or not 0 <= self._clock() - self._looked_at_s < LOOK_EVERY_S:
                self._look()
            if batch:
                self._commit([(message, future) for message, future in batch if future.set_running_or_notify_cancel()])
                with self._wake:
                    self._waiting_bytes -= size
            elif closed:
                return

    def _next_batch(self) -> tuple[list[tuple[Message, Future[None]]], int]:
        batch, size = [], 0
        while self._waiting and size < COMMIT_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1][0].value)
        return batch, size

    def _commit(self, batch: list[tuple[Message, Future[None]]]) -> None:
        kept: list[tuple[Row, Future[None]]] = []
        size = 0
        try:
            for row_id, (message, future) in zip(self._own.reserve(len(batch)), batch, strict=True):
                row = pack(row_id, self._clock(), message)
                refusal = self._refusal(size + row.size)
                if refusal is not None:
                    future.set_exception(refusal)
                    continue
                kept.append((row, future))
                size += row.size
            if kept:
                self._own.insert([row for row, _ in kept])
        except Exception as error:
            if not isinstance(error, Unavailable):
                log.exception("the spool's writer met a bug")
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        self._available_bytes = max(0, self._available_bytes - size)
        for _, future in kept:
            future.set_result(None)

    def _look(self) -> None:
        """At what the disk and the file have room for."""
        self._looked_at_s = self._clock()
        try:
            free = self._free_bytes(self._directory) + self._own.reusable_bytes()
        except (OSError, Unavailable) as error:
            self._unusable = Unavailable(str(error))
            self._available_bytes = 0
        else:
            self._unusable = None
            self._available_bytes = max(0, free - self._min_free_bytes)

    def _limit(self, used: int) -> int:
        return min(self._max_bytes, used + self._available_bytes)

    def _refusal(self, size: int) -> Unavailable | None:
        """Why so many bytes more cannot be kept, or None."""
        used = sum(store.totals.bytes for store in self._stores())
        limit = self._limit(used)
        if self._unusable is not None:
            return self._unusable
        if used + size <= limit:
            return None
        if limit == self._max_bytes:
            return Unavailable(
                f"The spool in {self._directory} is full: {used} bytes of spool.max_bytes = {self._max_bytes}. "
                "It empties when Kafka is back; raise spool.max_bytes if the disk has room."
            )
        return Unavailable(
            f"The disk of the spool in {self._directory} is full: {self._available_bytes} bytes are left above "
            f"spool.min_free_bytes = {self._min_free_bytes}. Free some; the spool empties when Kafka is back."
        )
