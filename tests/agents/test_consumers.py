"""What a writer asks of a broker."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.agents import consumers


@pytest.mark.parametrize(("batch_within_s", "gathered_ms"), [(0.25, 31), (2.0, 250), (60.0, 250), (0.001, 10)])
def test_a_broker_gathers_while_messages_come(batch_within_s: float, gathered_ms: int) -> None:
    """What comes first is answered at once; then the broker gathers an eighth of the time that a batch may wait, within
    bounds; a second after the last message it is as at first."""
    came: dict[str, list[int]] = {}
    fetcher = SimpleNamespace()

    async def sleep(_: float) -> None:
        pass

    async def getmany(_: Any, __: float) -> dict[str, list[int]]:
        return came

    consumer = SimpleNamespace(
        sleep=sleep, _getmany=getmany, _buffered_partitions=set(),
        _thread=SimpleNamespace(_consumer=SimpleNamespace(_fetcher=fetcher)),
    )  # fmt: skip
    consumers.shorten_waits(consumer, batch_within_s)

    def asked() -> tuple[int, int]:
        assert asyncio.run(consumer._getmany(None, 1.0)) == came
        return fetcher._fetch_max_wait_ms, fetcher._fetch_min_bytes

    at_first = consumers.IDLE_WAIT_MS, 1
    assert asked() == at_first
    came["logs_raw"] = [1]
    assert asked() == (gathered_ms, consumers.FETCH_BYTES)
    came.clear()
    assert asked() == (gathered_ms, consumers.FETCH_BYTES)
    with pytest.MonkeyPatch.context() as later:
        now = time.monotonic()
        later.setattr(time, "monotonic", lambda: now + consumers.BUSY_S + 0.1)
        assert asked() == at_first
