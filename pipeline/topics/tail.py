"""What flows through a topic, readable: the latest records, and those that follow."""

import heapq
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, NamedTuple, Self

from pipeline.errors import Misconfigured
from pipeline.kafka.connection import hidden
from pipeline.kafka.reader import Message, Range, Reader
from pipeline.record.readable import decode
from pipeline.settings import KafkaSettings

POLL_S = 0.5
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
SEVERITIES = ("trace", "debug", "info", "warn", "error", "fatal")  # four numbers each, from 1
SPAN_STATUS = ("", "OK", "ERROR")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records; what is None selects all. `severity` is the least severity_number."""

    service: str | None = None
    trace: str | None = None
    severity: int | None = None

    @classmethod
    def parse(cls, service: str | None, trace: str | None, severity: str | None) -> Self:
        """From words of a command line; raises Misconfigured with every problem."""
        problems = []
        if trace is not None and not re.fullmatch(r"[0-9a-fA-F]{32}", trace):
            problems.append(f"--trace: {trace[:100]!r} is no trace id: that is 32 hex digits.")
        if severity is not None and severity.lower() not in SEVERITIES:
            problems.append(f"--severity: {severity[:100]!r} is none of {', '.join(SEVERITIES)}.")
        if problems:
            raise Misconfigured(problems)
        least = None if severity is None else 4 * SEVERITIES.index(severity.lower()) + 1
        return cls(service, trace.lower() if trace else None, least)

    def __contains__(self, record: object) -> bool:
        if not isinstance(record, dict):
            return False
        severity = record.get("severity_number")
        return (
            self.service in (None, record.get("service"))
            and self.trace in (None, record.get("trace_id"))
            and (self.severity is None or (isinstance(severity, int) and severity >= self.severity))
        )


class Found(NamedTuple):
    """One record and where it stands; they are ordered by time of receipt, then by place."""

    timestamp_ms: int
    topic: str
    partition: int
    offset: int
    ordinal: int  # within its message
    record: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {"topic": self.topic, "partition": self.partition, "offset": self.offset, "record": self.record}

    def __str__(self) -> str:
        return line(self.record)


class Tail:
    """One topic, read without a group. Every call raises Unavailable where Kafka does not answer."""

    def __init__(self, settings: KafkaSettings, topic: str, wanted: Filter) -> None:
        """Raise Misconfigured where there is no such topic."""
        self._reader = Reader(settings)
        self._topic = topic
        self._wanted = wanted
        there = sorted(self._reader.topics())
        if topic not in there:
            near = get_close_matches(topic, there, 3) or [name for name in there if not name.startswith("__")]
            there_are = ", ".join(near) or "none"
            raise Misconfigured(f"There is no topic {topic}; there are {there_are}{hidden(settings)}.")
        self._ranges = self._reader.retained([topic])

    def latest(self, start_ms: int, end_ms: int | None, limit: int) -> list[Found]:
        """The last `limit` records received from `start_ms` to before `end_ms`, in order."""
        ranges = self._reader.between(self._ranges, start_ms, end_ms)
        return sorted(heapq.nlargest(limit, self._records(ranges), key=lambda found: found[:5]), key=lambda f: f[:5])

    def following(self) -> Iterator[Found]:
        """What comes after all that was there when this was made, for ever."""
        position = {each.partition: each.end for each in self._ranges}
        while True:
            now = self._reader.retained([self._topic])
            new = [
                Range(each.topic, each.partition, max(each.start, position.get(each.partition, 0)), each.end)
                for each in now
            ]
            yield from sorted(self._records(new), key=lambda found: found[:5])
            position = {each.partition: each.end for each in now}
            time.sleep(POLL_S)

    def _records(self, ranges: Sequence[Range]) -> Iterator[Found]:
        for message in self._reader.read(ranges):
            for ordinal, record in enumerate(_decoded(message)):
                if record in self._wanted:
                    place = message.topic, message.partition, message.offset
                    yield Found(message.timestamp_ms, *place, ordinal, record)


def _decoded(message: Message) -> list[dict[str, Any]]:
    """Its records; what does not decode stands in their place, as `error`."""
    records, error = decode(message.value)
    found = [record for record in records if isinstance(record, dict)]
    return [*found, {"error": error, "bytes": len(message.value)}] if error else found


def line(record: dict[str, Any]) -> str:
    """A record in one line, control characters escaped."""
    try:
        text = _text(record)
    except (KeyError, TypeError, AttributeError):  # another's, with a field that is called like one of ours
        text = str(record)
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _text(record: dict[str, Any]) -> str:
    if "error" in record:
        return f"{record['bytes']} bytes that are no container file: {record['error']}"
    when = moment(record.get("time") or record.get("start_time") or record.get("received_time") or 0)
    return " ".join(part for part in (when, *_words(record)) if part)


def _words(record: dict[str, Any]) -> tuple[str, ...]:
    service = record.get("service") or "-"
    if "body" in record:
        trace = f"trace={record['trace_id']}" if record["trace_id"] else ""
        severity = record["severity_text"] or _severity(record["severity_number"])
        return severity, service, record["event_name"], record["body"], trace
    if "span_id" in record:
        took = f"{(record['end_time'] - record['start_time']) / 1e6:.3f} ms"
        status = SPAN_STATUS[record["status_code"]] if 0 <= record["status_code"] < len(SPAN_STATUS) else ""
        return took, service, record["name"], status, record["status_message"], f"trace={record['trace_id']}"
    if "metric_name" in record:
        value = record["value"] if record["value"] is not None else f"count={record['count']} sum={record['sum']}"
        labels = ",".join(f"{key}={value}" for key, value in sorted(record["attributes"].items()))
        return service, record["metric_name"], f"{{{labels}}}", f"{value} {record['unit']}".strip(), record["type"]
    return (str(record),)


def _severity(number: int) -> str:
    return SEVERITIES[(number - 1) // 4].upper() if 1 <= number <= 24 else ""


def moment(time_ns: int) -> str:
    """ISO 8601 in UTC with milliseconds; the number where no calendar has it."""
    try:
        return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{time_ns} ns"


def ago_ms(text: str, now_ms: int) -> int:
    """The time that is `text` (such as 5m, 90s, 2h, 1d) before `now_ms`; raises Misconfigured where it says none."""
    said = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if said is None:
        raise Misconfigured(f"--last: {text[:100]!r} is no length of time: write 90s, 5m, 2h or 1d.")
    return now_ms - int(said[1]) * UNITS_S[said[2]] * 1000
