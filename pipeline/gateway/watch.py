"""Tenants and certificates read again while a process runs: when their files change, or at SIGHUP."""

import asyncio
import contextlib
import pathlib
from collections.abc import Sequence
from typing import Protocol

import structlog

from pipeline.errors import Misconfigured
from pipeline.telemetry import metrics

log = structlog.get_logger()
LOOK_S = 1.0  # for changed files


class Part(Protocol):
    def reload(self) -> None:
        """Raise Misconfigured where the files do not read, and keep what was known."""


async def watch(files: Sequence[pathlib.Path], reload: asyncio.Event, parts: Sequence[Part]) -> None:
    """Have the parts read again, for ever, when one of their files changes or `reload` is set."""
    seen = _versions(files)
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reload.wait(), LOOK_S)
        found = _versions(files)
        if found == seen and not reload.is_set():
            continue
        seen = found
        reload.clear()
        for part in parts:
            name = type(part).__name__
            try:
                part.reload()
            except Misconfigured as error:
                metrics.RELOADS.labels("failed").inc()
                log.error(f"{name} do not read, what was known stays in force", problems=error.problems)
            else:
                metrics.RELOADS.labels("done").inc()
                log.info(f"{name} were read again")


def _versions(files: Sequence[pathlib.Path]) -> list[tuple[int, int, int] | None]:
    found: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return found
