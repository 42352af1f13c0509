"""Poison met by a writer process, with a burst of three dead letters and one a minute."""

from pipeline.delivery import Limit, Message
from pipeline.dlq import Letters, Selection
from pipeline.kafka.reader import Reader
from pipeline.settings import Settings
from tests.agents.process import Process, send, until
from tests.contract.test_stores import gauges, new_service, one
from tests.otlp.requests import T0


def poison() -> Message:
    message = one("metrics", gauges(new_service(), ("m", T0, 1.0)))
    pairs = (*message.headers.items(), ("topic", b"theirs"), ("topic", None))
    return message._replace(partition=2, value=message.value[:-1], pairs=pairs)


def dead(settings: Settings) -> int:
    return sum(each.end - each.start for each in Reader(settings.kafka).retained(["metrics_raw_dlq"]))


def test_poison_is_told_again_and_stops_a_writer_by_its_rate(writer: Process) -> None:
    """A replayed message that fails again is attempt 2 with its own headers as they were; the fourth dead letter stops
    the writer with a sentence, and starting it again gives it no new burst."""
    letters, sent = Letters(writer.settings.kafka), poison()
    [offset] = send(writer.settings, sent)
    writer.start()
    until(lambda: dead(writer.settings) == 1, "the poison was not dead-lettered")
    [first] = letters.pending()
    assert (first.attempt, first.headers, first.value) == (1, sent.pairs, sent.value)
    assert (first.topic, first.partition, first.offset) == ("metrics_raw", 2, offset)
    assert (first.writer, first.schema, first.exception) == (
        "pg_writer", "metric_point/1", "pipeline.errors.Rejected"
    )  # fmt: skip
    letters.apply(letters.plan("replay", Selection()))
    until(lambda: dead(writer.settings) == 2, "the replayed poison was not dead-lettered")
    [second] = letters.pending()
    assert (second.attempt, second.from_, second.headers) == (2, first.name, sent.pairs)
    assert second.offset > offset

    send(writer.settings, poison(), poison())
    code, said = writer.ended()
    assert (code, dead(writer.settings)) == (70, 3)
    assert "pg_writer meets more poison than it may dead-letter: over 3 messages at once and 1 a minute" in said
    assert "metrics_raw [2] @ " in said
    writer.start()
    assert writer.ended()[0] == 70
    assert dead(writer.settings) == 3


def test_what_was_spent_before_a_start_is_gone() -> None:
    """More than the burst leaves nothing, not less than nothing."""
    assert not Limit(60, 3, spent=10).take(0.0)
    assert Limit(60, 3, spent=2).take(0.0)
