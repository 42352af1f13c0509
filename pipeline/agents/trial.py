"""An agent over what a topic holds now: before and after, written nowhere."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.agents.isolated import Isolated
from pipeline.delivery import Message
from pipeline.errors import Misconfigured, Rejected
from pipeline.kafka.reader import Range, Reader
from pipeline.record.readable import decode
from pipeline.settings import KafkaSettings


class Tried(NamedTuple):
    """One record: what came in, what went out to which topic, and why nothing did."""

    before: dict[str, Any]
    after: list[tuple[str, dict[str, Any]]]
    reason: str

    def __str__(self) -> str:
        """The id, and for each record that came out of it the fields that differ."""
        name = self.before["event_id"]
        if not self.after:
            return f"{name} → nothing: {self.reason}"
        lines = []
        for topic, record in self.after:
            same_kind = record.keys() == self.before.keys()
            differ = [field for field in record if same_kind and record[field] != self.before[field]]
            told = [field for field in differ if field != "received_time"] if same_kind else list(record)
            lines.append(f"{name} → {topic}{'' if told else ', unchanged'}")
            lines += [f"    {field}: {self.before.get(field)!r} → {record[field]!r}" for field in told]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        after = [{"topic": topic, "record": record} for topic, record in self.after]
        return {"before": self.before, "after": after, "reason": self.reason}


def newest(kafka: KafkaSettings, topic: str, from_ms: int, most: int) -> list[Message]:
    """The topic's messages of `from_ms` or later, `most` a partition, the latest of them."""
    reader = Reader(kafka)
    if topic not in reader.topics():
        raise Misconfigured(f"Kafka has no topic {topic}: run `pipeline topics apply`, or name another with --from.")
    ranges = reader.between(reader.retained([topic]), from_ms, None)
    last = [Range(each.topic, each.partition, max(each.start, each.end - most), each.end) for each in ranges]
    return [
        Message(each.topic, each.partition, each.offset, each.headers, each.value, each.pairs, each.timestamp_ms)
        for each in reader.read(last)
    ]


def tried(isolated: Isolated, message: Message) -> Iterator[Tried]:
    """What the agent makes of each record of a message."""
    before, _ = decode(message.value)
    try:
        made = isolated.transform(message)
    except Rejected as reason:
        yield from (Tried(record, [], str(reason)) for record in before)
        return
    after: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    dropped: dict[str, str] = {}
    for output in made.outputs:
        records, _ = decode(output.value)
        said = dict(output.headers)
        if said["signal"] == b"drops":
            dropped |= {record["event_id"]: record["reason"] for record in records}
            continue
        own = said.get("parents", b"")
        parents = [own[at : at + 16].hex() for at in range(0, len(own), 16)] or [each["event_id"] for each in records]
        for parent, record in zip(parents, records, strict=True):
            after.setdefault(parent, []).append((output.topic, record))
    failed = {each.number: each.reason for each in made.failed}
    for number, record in enumerate(before):
        name = record["event_id"]
        yield Tried(record, after.get(name, []), failed.get(number) or dropped.get(name, ""))
