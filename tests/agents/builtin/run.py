"""Built-in agents without Kafka: in this process, by settings as a file would give them."""

import io
from collections.abc import Sequence
from typing import Any

import fastavro

from pipeline import otlp
from pipeline.agents import Agent, builtin
from pipeline.agents.load import of_file, settings_of
from pipeline.agents.transform import Made, Running, transform
from pipeline.delivery import Message
from pipeline.record import container, schema
from pipeline.record.records import TYPES, Record, encoded
from pipeline.record.schema import Signal
from pipeline.settings import Settings

TOPICS: dict[str, Signal] = {"span_metrics": "metrics", "service_calls": "logs"} | {
    f"{signal}_norm": signal for signal in schema.SIGNALS
}


def found(name: str) -> Agent:
    """A built-in's agent by its own name, such as redact_logs."""
    return next(one for file in builtin.names() for one in of_file(builtin.path(file)) if one.name == name)


def names() -> list[str]:
    return [one.name for file in builtin.names() for one in of_file(builtin.path(file))]


class Here:
    """One agent, running."""

    def __init__(self, name: str, **own: Any) -> None:
        self.agent = found(name)
        _, settings = settings_of(self.agent, Settings(agents={name: own}))
        function, _ = self.agent.opened(settings)
        self._running = Running(self.agent, function, {TOPICS[topic]: topic for topic in self.agent.writes})

    def transform(self, message: Message) -> Made:
        return transform(self._running, message)

    def records(self, message: Message) -> list[Any]:
        """What it emits, as any Avro tool reads it; what it dropped as the drops' records."""
        made = self.transform(message)
        assert not made.failed, made.failed
        return [each for output in made.outputs for each in fastavro.reader(io.BytesIO(output.value))]


def of_request(signal: Signal, request: Any, received: int = 1_795_000_000 * 10**9) -> Message:
    """A request's records as the gateway sends them to its one partition."""
    [group] = otlp.encode(signal, request.SerializeToString(), otlp.Origin("shop", "eu", received), partitions=1).groups
    return message(signal, group.value, group.records)


def of_records(*records: Record) -> Message:
    """Made records, each with an id of its own."""
    signal = records[0].signal
    head = schema.of(signal).head
    blank = TYPES[signal]()
    ids = [b"%16d" % number for number in range(len(records))]
    pieces = [encoded(each, id_, blank, 1_795_000_000 * 10**9) for each, id_ in zip(records, ids, strict=True)]
    return message(signal, container.value(head, pieces), len(records))


def message(signal: Signal, value: bytes, records: int) -> Message:
    headers = {"schema": schema.CURRENT[signal].encode(), "records": b"%d" % records, "signal": signal.encode()}
    return Message(f"{signal}_raw", 0, 0, headers, value)


def together(messages: Sequence[Message]) -> Message:
    """One message of several, as a busy gateway sends them."""
    first = messages[0]
    signal: Any = first.headers["signal"].decode()
    records = sum(int(each.headers["records"]) for each in messages)
    return message(signal, container.join(schema.of(signal).head, [each.value for each in messages]), records)
