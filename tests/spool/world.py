"""What the spool's tests share."""

import random
from pathlib import Path
from typing import Any

from pipeline.settings import SpoolSettings
from pipeline.spool.message import Message, Stored
from pipeline.spool.spool import Spool

HEADERS = (("tenant", b"acme"), ("records", b"200"), ("bytes", bytes(range(256))))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def message(number: int, size: int = 1000, records: int = 200) -> Message:
    """The same for the same number; its value does not compress."""
    return Message("logs_raw", number % 7, records, HEADERS, b"%d:" % number + random.Random(number).randbytes(size))


def number_of(message: Message) -> int:
    return int(message.value.partition(b":")[0])


def spool(directory: Path, *, max_bytes: int = 1 << 40, min_free_bytes: int = 0, **others: Any) -> Spool:
    others.setdefault("free_bytes", lambda _: 1 << 40)
    settings = SpoolSettings(directory=directory, max_bytes=max_bytes, min_free_bytes=min_free_bytes)
    return Spool(settings, **others)


def put(into: Spool, messages: list[Message]) -> None:
    for future in [into.put(each) for each in messages]:
        future.result(30)


def everything(of: Spool) -> list[Stored]:
    """All that is kept, not only in the file whose turn it is."""
    return [stored for store in of._stores() for stored in store.oldest(1 << 30, 1 << 40)]
