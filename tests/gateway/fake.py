"""A publisher in memory; tests/contract/test_publisher.py holds it to what the real one does."""

import asyncio
import io
from typing import Any, NamedTuple

import fastavro

from pipeline.errors import Unavailable
from pipeline.kafka.producer import Headers, Settled


class Published(NamedTuple):
    topic: str
    partition: int
    value: bytes
    headers: dict[str, bytes]

    @property
    def records(self) -> list[dict[str, Any]]:
        return list(fastavro.reader(io.BytesIO(self.value)))


class FakePublisher:
    """Acknowledges at once, unless `hold` is set; then `release` does it. `away` makes it answer like Kafka's absence."""

    def __init__(self, partitions: int = 4) -> None:
        self.published: list[Published] = []
        self.hold = False
        self.away: str | None = None
        self.fatal: str | None = None
        self.asked = True
        self.poison: bytes | None = None  # a value that is never acknowledged
        self._partitions = partitions
        self._held: list[Settled] = []

    def partitions(self, topic: str) -> int:
        if self.away:
            raise Unavailable(self.away)
        return self._partitions

    def publish(
        self, topic: str, partition: int, value: bytes, headers: Headers
    ) -> "asyncio.Future[Unavailable | None]":
        acknowledged: asyncio.Future[Unavailable | None] = asyncio.get_running_loop().create_future()
        self.send(topic, partition, value, headers, acknowledged.set_result)
        return acknowledged

    def send(self, topic: str, partition: int, value: bytes, headers: Headers, settled: Settled) -> None:
        self.published.append(Published(topic, partition, value, dict(headers)))
        if self.hold:
            self._held.append(settled)
        else:
            refused = self.away or ("too large" if value == self.poison else None)
            settled(Unavailable(refused) if refused else None)

    def known_partitions(self) -> dict[str, int]:
        return dict.fromkeys(("logs_raw", "metrics_raw", "traces_raw", "events_raw"), self._partitions)

    def release(self, failure: Unavailable | None = None) -> None:
        held, self._held = self._held, []
        for settled in held:
            settled(failure)

    def unready(self) -> str | None:
        return self.away
