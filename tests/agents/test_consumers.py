"""What a writer asks of a broker."""

import asyncio
import contextlib
import json
import time
import urllib.request
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline.agents import consumers
from pipeline.local import Stack
from tests.agents.process import Process, until


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


@pytest.mark.timeout(180)
def test_readyz_names_kafka_while_it_is_frozen_or_gone(writer: Process, stack: Stack) -> None:
    """A writer stays ready, says under `degraded` that Kafka does not answer, and no longer when it does again."""
    port = writer.settings.pg_writer.health_port
    said: dict[str, Any] = {}

    def ready(degraded: str) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer,
        ):
            said.update(json.load(answer))
            return said["degraded"].keys() == {*degraded.split()}
        return False

    writer.start()
    until(lambda: ready(""), "never ready")
    [pid] = [row["pid"] for row in stack.status()["processes"] if row["name"] == "kafka"]
    broker = psutil.Process(pid)
    try:
        broker.suspend()
        until(lambda: ready("kafka"), "nothing said of a frozen Kafka", 30)
        assert writer.settings.kafka.bootstrap_servers in said["degraded"]["kafka"]
        broker.resume()
        until(lambda: ready(""), "still said of a Kafka that answers")
        stack.stop(["kafka"])
        until(lambda: ready("kafka"), "nothing said of a Kafka that is gone", 30)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            broker.resume()
        stack.start(["kafka"])
    until(lambda: ready(""), "still said of a Kafka that is back")
