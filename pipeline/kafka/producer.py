"""Publishing with acks=all: a message is safe or the caller hears that it is not known to be."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline.errors import Unavailable
from pipeline.kafka.connection import configuration, unseen
from pipeline.settings import KafkaSettings

log = structlog.get_logger()
Headers = Sequence[tuple[str, bytes | None]]
Settled = Callable[[Unavailable | None], None]
ANY_PARTITION = -1
PROBE_S = 2.0
BUSY_POLL_S, IDLE_POLL_S = 0.001, 0.1  # for acknowledgements; idle, for errors alone
QUEUE_KBYTES = 64 * 1024
OUTBOX_WITHIN_S = 30.0
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # dead letters hold poison of any size; what a topic takes is its own setting


def _configuration(settings: KafkaSettings, within_s: float) -> dict[str, Any]:
    return {
        **configuration(settings),
        "acks": "all",
        "enable.idempotence": True,
        "compression.type": "zstd",
        "compression.level": 1,
        "linger.ms": 1,  # who flushes waits for it
        "message.timeout.ms": int(within_s * 1000),
        "message.max.bytes": MAX_MESSAGE_BYTES,
        "reconnect.backoff.max.ms": 1000,
        "log_level": 2,
    }


class Outgoing(NamedTuple):
    """A message to publish; where the topic has fewer partitions than `partition`, into the one modulo their count."""

    topic: str
    partition: int
    timestamp_ms: int
    headers: Headers
    value: bytes
    key: bytes | None = None


class Outbox:
    """One idempotent producer for one thread, which waits."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: Producer | None = None
        self._partitions: dict[str, int] = {}

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Return when all in-sync replicas have every message, those of a partition in this order.

        Raises Unavailable where that is not known: all may be there, or any part of them.
        """
        failures: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failures.append(error)

        try:
            producer = self._producer = self._producer or Producer(_configuration(self._settings, OUTBOX_WITHIN_S))
            for name, partition, timestamp_ms, headers, value, key in messages:
                topic = self._settings.named(name)
                where = partition % self._count(producer, topic)
                while True:
                    try:
                        producer.produce(
                            topic, value=value, key=key, partition=where, headers=[*headers], timestamp=timestamp_ms,
                            on_delivery=on_delivery,
                        )  # fmt: skip
                        break
                    except BufferError:
                        producer.poll(0.1)
            left = producer.flush(OUTBOX_WITHIN_S + 5)
        except KafkaException as error:
            self._producer = None
            raise Unavailable(f"Kafka refused a message: {error.args[0].str()}.") from error
        if left or failures:
            self._producer = None  # what it still holds may only come before what is published again
            why = failures[0].str() if failures else f"{left} messages are under way"
            raise Unavailable(f"Kafka at {self._settings.bootstrap_servers} did not acknowledge: {why}.")

    def _count(self, producer: Producer, topic: str) -> int:
        if topic not in self._partitions:
            found = producer.list_topics(topic, timeout=PROBE_S * 5).topics[topic]
            if found.error is not None:
                raise KafkaException(found.error)
            self._partitions[topic] = len(found.partitions)
        return self._partitions[topic]


class Publisher:
    """One idempotent producer for one event loop.

    A message is settled with None once all in-sync replicas have it, or with the Unavailable that says why that is not
    known; the same message may then still arrive later. Order within a partition is kept.
    """

    def __init__(self, settings: KafkaSettings, topics: Sequence[str], *, within_s: float) -> None:
        self._settings = settings
        self._named = settings.named
        self._topics = [*map(self._named, topics)]
        self._bootstrap = settings.bootstrap_servers
        self._partitions: dict[str, int] = {}
        self._away: str | None = f"no word yet from Kafka at {self._bootstrap}"
        self.asked = False  # whether it is known by now that Kafka answers, or that it does not
        self._fatal: str | None = None
        self._heard = ""  # why, where Kafka does not answer
        self._stop = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._producer = Producer(
            {
                **_configuration(settings, within_s),
                "linger.ms": 0,  # intake gathers already: to wait only adds to every answer
                "queue.buffering.max.kbytes": QUEUE_KBYTES,
                "error_cb": self._on_error,
            }
        )
        self._thread = threading.get_ident()
        self._polling = self._loop.call_later(IDLE_POLL_S, self._poll)
        self._busy = False
        self._probing = threading.Thread(target=self._probe, name="kafka-probe", daemon=True)
        self._probing.start()

    def partitions(self, topic: str) -> int:
        """How many the topic has; raise Unavailable while that is not known."""
        count = self._partitions.get(self._named(topic))
        if count is None:
            raise Unavailable(self._away or f"The topic {topic} is not known yet.")
        return count

    def known_partitions(self) -> dict[str, int]:
        """The count of each topic that the cluster named when it last answered; empty before it ever did."""
        return self._partitions

    def publish(
        self, topic: str, partition: int, value: bytes, headers: Headers
    ) -> "asyncio.Future[Unavailable | None]":
        """Queue one message; never blocks. The future is done with what the message is settled with."""
        return self._acknowledged(topic, partition=partition, value=value, headers=[*headers])

    def send(self, topic: str, partition: int, value: bytes, headers: Headers, settled: Settled) -> None:
        """Queue one message; never blocks. `settled` is called in the loop, at once where there is no room."""
        self._produce(topic, settled, partition=partition, value=value, headers=[*headers])

    def remove(self, topic: str, partition: int, key: bytes) -> "asyncio.Future[Unavailable | None]":
        """Queue the news, for a compacted topic, that `key` has no value any more; never blocks."""
        return self._acknowledged(topic, partition=partition, key=key, value=None)

    def _acknowledged(self, topic: str, **message: Any) -> "asyncio.Future[Unavailable | None]":
        acknowledged: asyncio.Future[Unavailable | None] = self._loop.create_future()
        self._produce(topic, lambda failure: _settle(acknowledged, failure), **message)
        return acknowledged

    def _produce(self, topic: str, settled: Settled, **message: Any) -> None:
        def on_delivery(error: KafkaError | None, _: Message) -> None:
            failure = None if error is None else Unavailable(f"Kafka did not acknowledge: {error.str()}.")
            if threading.get_ident() == self._thread:
                settled(failure)
            else:  # that of `close`
                self._loop.call_soon_threadsafe(settled, failure)

        try:
            self._producer.produce(self._named(topic), **message, on_delivery=on_delivery)
        except BufferError:
            settled(Unavailable("The queue to Kafka is full."))
        except KafkaException as error:
            settled(Unavailable(f"Kafka refused a message: {error.args[0].str()}."))
        if not self._busy:
            self._busy = True  # what is produced by a callback of this poll does not poll inside it
            self._polling.cancel()
            self._poll()

    def unready(self) -> str | None:
        """Why publishing would not work now, or None."""
        return self._fatal or self._away

    @property
    def fatal(self) -> str | None:
        """Set when this producer can never publish again: the process must be started anew."""
        return self._fatal

    def close(self, within_s: float) -> int:
        """Wait for what is queued, in a thread of its own; return how many messages were not acknowledged."""
        left: int = self._producer.flush(within_s)
        self._stop.set()
        self._probing.join(PROBE_S + 1)
        return left

    def _poll(self) -> None:
        """Serve librdkafka's callbacks in the loop: a thread for them would take the GIL and wake us for each."""
        if self._stop.is_set():
            return
        try:
            self._producer.poll(0)
        finally:
            self._busy = len(self._producer) > 0
            self._polling = self._loop.call_later(BUSY_POLL_S if self._busy else IDLE_POLL_S, self._poll)

    def _probe(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self._away = self._look()
            except KafkaException as error:
                self._away = f"Kafka at {self._bootstrap} does not answer: {self._heard or error.args[0].str()}"
            self.asked = True
            self._stop.wait(max(0.0, (PROBE_S if self._partitions else 0.2) - (time.monotonic() - started)))

    def _look(self) -> str | None:
        """Refresh partition counts; return what is missing."""
        cluster = self._producer.list_topics(timeout=PROBE_S).topics
        found = {topic: len(cluster[topic].partitions) for topic in self._topics if topic in cluster}
        self._partitions = found
        missing = [topic for topic in self._topics if topic not in found]
        return f"topics {unseen(self._settings, missing)}" if missing else None

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = f"the producer cannot go on: {error.str()}"
            log.error("producer failed for good", reason=error.str())
        elif error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._heard = error.str()


def _settle(future: "asyncio.Future[Unavailable | None]", result: Unavailable | None) -> None:
    if not future.done():
        future.set_result(result)
