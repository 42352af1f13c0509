"""A topic prefilled with what a busy gateway makes: real container files of which every copy has records of its own.

A few hundred messages are encoded once and kept on disk; copies of them get other ids and later times, in place.
"""

import hashlib
import pathlib
import pickle
import random
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any, NamedTuple

import fastavro
import numpy as np
import numpy.typing as npt
from confluent_kafka import Producer
from rich.console import Console
from rich.progress import track

from pipeline import otlp
from pipeline.record import container, schema
from pipeline.record.avro import long
from pipeline.record.schema import Signal
from pipeline.settings import Settings
from tests.bench import payload

MESSAGE_RECORDS = 500  # 250 KB of logs
PATTERNS = 400
STEP_NS = 10**9  # from one message to the next
COPY_NS = (PATTERNS + 10) * STEP_NS  # no two points of a series meet
EARLY_NS = 1 << 60  # 2006: an Avro long of as many bytes as today's
TIME_BYTES = 9
TIMES: dict[Signal, tuple[str, ...]] = {
    "logs": ("received_time", "time", "observed_time"),
    "metrics": ("received_time", "time"),
    "traces": ("received_time", "start_time", "end_time"),
}


class Pattern(NamedTuple):
    """A message: where in it the ids and the times of its records lie, and the times since the first pattern's."""

    value: bytes
    ids: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    times_ns: npt.NDArray[np.int64]

    def copy(self, mask: bytes, start_ns: int) -> bytes:
        """The message with ids of its own, and times from `start_ns` on."""
        data = np.frombuffer(self.value, dtype=np.uint8).copy()
        data[self.ids[:, None] + np.arange(16)] ^= np.frombuffer(mask, dtype=np.uint8)
        zigzag = (self.times_ns + start_ns).astype(np.uint64) << np.uint64(1)
        sevens = zigzag[:, None] >> np.arange(0, 7 * TIME_BYTES, 7, dtype=np.uint64)
        more = np.array([0x80] * (TIME_BYTES - 1) + [0], dtype=np.uint8)
        data[self.times[:, None] + np.arange(TIME_BYTES)] = (sevens & np.uint64(0x7F)).astype(np.uint8) | more
        return data.tobytes()


def messages(signal: Signal, records: int, home: pathlib.Path, start_ns: int) -> Iterator[bytes]:
    """`records` records from `start_ns` on, no two of one id, and no two points of one series and time."""
    patterns = _kept(signal, home)
    rng = random.Random(3)
    for n in range(records // MESSAGE_RECORDS):
        copy, which = divmod(n, PATTERNS)
        if which == 0:
            mask = rng.randbytes(16)
        yield patterns[which].copy(mask, start_ns + copy * COPY_NS)


def fill(settings: Settings, signal: Signal, records: int, start_ns: int) -> None:
    """Put that many records into the signal's raw topic, a message a partition in turn."""
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "zstd",
            "compression.level": 1,
            "linger.ms": 1,
            "queue.buffering.max.kbytes": 64 * 1024,
        }
    )
    headers: list[tuple[str, str | bytes | None]] = [
        ("schema", schema.of(signal).name),
        ("records", str(MESSAGE_RECORDS)),
    ]
    topic, failed = schema.topic(signal), []
    made = messages(signal, records, settings.local.home, start_ns)
    for n, value in enumerate(_track(made, f"filling {topic}", records // MESSAGE_RECORDS)):
        while True:
            try:
                producer.produce(
                    topic, value, partition=n % 4, headers=headers,
                    on_delivery=lambda error, _: failed.append(error) if error else None,
                )  # fmt: skip
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    if producer.flush(60) or failed:
        raise RuntimeError(f"Kafka did not take the records of the bench: {failed[:1]}")


def _kept(signal: Signal, home: pathlib.Path) -> list[Pattern]:
    """The patterns, from disk where they were made from the same payload and schema."""
    made_from = hashlib.blake2b(pathlib.Path(payload.__file__).read_bytes() + schema.of(signal).head, digest_size=8)
    path = home / "patterns" / f"{signal}-{PATTERNS}-{made_from.hexdigest()}.pickle"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = random.Random(7)
        made = [_pattern(signal, n, rng) for n in _track(range(PATTERNS), f"encoding {signal}, once", PATTERNS)]
        path.with_suffix(".new").write_bytes(pickle.dumps(made))
        path.with_suffix(".new").rename(path)
    patterns: list[Pattern] = pickle.loads(path.read_bytes())
    return patterns


def _pattern(signal: Signal, number: int, rng: random.Random) -> Pattern:
    known = schema.of(signal)
    start_ns = EARLY_NS + number * STEP_NS
    body = payload.request(signal, MESSAGE_RECORDS, start_ns, rng)
    encoded = otlp.encode(signal, body, otlp.Origin("default", "local", start_ns), partitions=1)
    value = container.join(known.head, [group.value for group in encoded.groups])
    ids, times, times_ns, place = [], [], [], 0
    for record in fastavro.reader(BytesIO(value)):
        place = value.index(record["event_id"], place)
        ids.append(place)
        for name in TIMES[signal]:
            place = value.index(long(record[name]), place)
            times.append(place)
            place += TIME_BYTES
            times_ns.append(record[name] - EARLY_NS)
    return Pattern(value, np.array(ids), np.array(times), np.array(times_ns))


def _track(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    return track(items, what, total, console=Console(stderr=True))
