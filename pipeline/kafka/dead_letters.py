"""Dead letters as they stand in `<topic>_dlq`: the raw bytes, the headers as they came, then ours that say why.

Ours start at the header `dlq_reason` and so never hide one of the original's. A message that was replayed carries two
of ours on its second way, `dlq_attempt` and `dlq_from`: how often it has been dead-lettered, and where it last was.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pipeline import digits
from pipeline.delivery import Message, Pairs
from pipeline.errors import Rejected
from pipeline.kafka import reader

SUFFIX = "_dlq"
FIRST = "dlq_reason"
ATTEMPT, FROM = "dlq_attempt", "dlq_from"
MAX_REASON_BYTES = 4096
UNKNOWN = -1  # a number that a header does not say


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message of a dead-letter topic: `topic`, `partition` and `offset` are where it came from.

    What no header says is empty or -1. `headers` are those that the original message had. `from_` is where its last
    replay took it from, empty for a first failure.
    """

    place: tuple[str, int, int]  # in the dead-letter topic
    reason: str
    exception: str
    topic: str
    partition: int
    offset: int
    schema: str
    attempt: int
    writer: str
    time_ns: int
    from_: str
    headers: Pairs
    value: bytes

    @classmethod
    def of(cls, message: reader.Message) -> Self:
        """Read one back; never fails."""
        names = [name for name, _ in message.pairs]
        start = names.index(FIRST) if FIRST in names else len(names)
        said = {name: (value or b"").decode(errors="replace") for name, value in message.pairs[start:]}

        def number(name: str, unknown: int = UNKNOWN) -> int:
            return digits.number(said.get(name, ""), 19, unknown)

        return cls(
            place=(message.topic, message.partition, message.offset),
            reason=said.get(FIRST, ""),
            exception=said.get("dlq_exception", ""),
            topic=said.get("dlq_topic", ""),
            partition=number("dlq_partition"),
            offset=number("dlq_offset"),
            schema=said.get("dlq_schema", ""),
            attempt=number(ATTEMPT, 1),
            writer=said.get("dlq_writer", ""),
            time_ns=number("dlq_time", message.timestamp_ms * 1_000_000),
            from_=said.get(FROM, ""),
            headers=message.pairs[:start],
            value=message.value,
        )

    @property
    def name(self) -> str:
        """`logs_raw_dlq/0@17`."""
        topic, partition, offset = self.place
        return f"{topic}/{partition}@{offset}"

    @property
    def origin(self) -> tuple[str, int, int, bytes]:
        """Equal for the letters that several writers made of one message; a topic made anew counts from 0 again."""
        place = self.place if self.offset == UNKNOWN else (self.topic, self.partition, self.offset)
        return (*place, hashlib.blake2b(self.value, digest_size=16).digest())

    def replay_headers(self) -> Pairs:
        """Headers for its second way: the original's, how often it failed, and where it lies."""
        return (*self.headers, (ATTEMPT, b"%d" % self.attempt), (FROM, self.name.encode()))


def headers(message: Message, reason: Rejected, *, writer: str, time_ns: int) -> list[tuple[str, bytes | None]]:
    """The headers of the dead letter of `message`."""
    came = message.pairs or tuple(message.headers.items())
    original = [pair for pair in came if pair[0] not in (ATTEMPT, FROM)]
    why = message.why(reason).encode(errors="backslashreplace")[:MAX_REASON_BYTES]  # it may quote half a character
    return [
        *original,
        (FIRST, why),
        ("dlq_exception", _class(reason).encode()),
        ("dlq_topic", message.topic.encode()),
        ("dlq_partition", b"%d" % message.partition),
        ("dlq_offset", b"%d" % message.offset),
        ("dlq_schema", message.headers.get("schema", b"")[:200]),
        (ATTEMPT, b"%d" % (_attempts(message.headers) + 1)),
        ("dlq_writer", writer.encode()),
        ("dlq_time", b"%d" % time_ns),
        *((name, value) for name, value in came if name == FROM),
    ]


def _attempts(found: dict[str, bytes]) -> int:
    return digits.number(found.get(ATTEMPT, b""), 9, 0)


def _class(reason: Rejected) -> str:
    """What the store's client raised, where that was translated; else ours."""
    kind = type(reason.__cause__ or reason)
    return f"{kind.__module__}.{kind.__qualname__}"


def topics(names: Sequence[str]) -> list[str]:
    """Those of `names` that are dead-letter topics, sorted."""
    return sorted(name for name in names if name.endswith(SUFFIX))
