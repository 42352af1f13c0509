"""The form of a dead letter, and what is remembered of those that were handled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.delivery import Message
from pipeline.dlq import Handled
from pipeline.errors import Misconfigured, Rejected
from pipeline.kafka import reader
from pipeline.kafka.dead_letters import DeadLetter, headers
from pipeline.kafka.groups import Committed
from pipeline.kafka.reader import Range

PAIRS = (("tenant", b"acme"), ("topic", b"theirs"), ("topic", b"twice"), ("dlq_topic", b"odd"), ("writer", None),
         ("schema", b"log_record/1"), ("records", b"3"))  # fmt: skip


def came(pairs: tuple[tuple[str, bytes | None], ...] = PAIRS) -> Message:
    return Message("logs_raw", 2, 7, {name: value or b"" for name, value in pairs}, b"raw \xff bytes", pairs)


def buried(message: Message, reason: Rejected, offset: int = 0) -> DeadLetter:
    """As it is read back from the dead-letter topic."""
    pairs = tuple(headers(message, reason, writer="ch_writer", time_ns=42))
    found = {name: value or b"" for name, value in pairs}
    return DeadLetter.of(reader.Message("logs_raw_dlq", 0, offset, 1, found, message.value, pairs))


def test_a_dead_letter_keeps_what_came_and_says_why() -> None:
    """Headers as they came, doubles, nulls and names like ours included, beside reason, place, class and time."""
    reason = Rejected("no such day")
    reason.__cause__ = ValueError()
    letter = buried(came(), reason)
    assert (letter.headers, letter.value) == (PAIRS, b"raw \xff bytes")
    assert (letter.topic, letter.partition, letter.offset) == ("logs_raw", 2, 7)
    assert (letter.reason, letter.exception) == ("no such day", "builtins.ValueError")
    assert (letter.schema, letter.attempt, letter.writer, letter.time_ns) == ("log_record/1", 1, "ch_writer", 42)
    assert buried(came(), Rejected("logs_raw [2] @ 7: The value is cut.")).reason == "The value is cut."
    assert buried(came(), Rejected("half of \ud83d")).reason == "half of \\ud83d"
    assert buried(came(), Rejected("x")).exception == "pipeline.errors.Rejected"


def test_a_second_failure_says_so() -> None:
    """A replayed message that fails again has the original's headers once, attempt 2, and where it lay before."""
    letter = buried(came(), Rejected("no"), offset=17)
    for attempt in (2, 3):
        again = came(letter.replay_headers())
        letter = buried(again, Rejected("still no"), offset=17 + attempt)
        assert (letter.attempt, letter.headers) == (attempt, PAIRS)
        assert letter.from_ == ("logs_raw_dlq/0@17" if attempt == 2 else "logs_raw_dlq/0@19")


def test_what_is_no_dead_letter_of_ours_is_read_all_the_same() -> None:
    """A message without our headers, or with numbers that are none, says nothing of its origin and does not fail."""
    stranger = DeadLetter.of(reader.Message("logs_raw_dlq", 0, 1, 5, {}, b"", PAIRS))
    assert (stranger.topic, stranger.partition, stranger.attempt, stranger.headers) == ("", -1, 1, PAIRS)
    odd = (("dlq_reason", b"\xff"), ("dlq_partition", "²".encode()), ("dlq_time", b"9" * 50))
    assert DeadLetter.of(reader.Message("logs_raw_dlq", 0, 1, 5, {}, b"", odd)).time_ns == 5_000_000


offsets = st.sets(st.integers(0, 60), max_size=30)


@given(st.integers(0, 20), st.lists(offsets, max_size=4))
def test_handled_offsets_are_remembered_exactly(start: int, several: list[set[int]]) -> None:
    """In any order and cut, also through what is committed, exactly the handled ones are handled."""
    retained = Range("logs_raw_dlq", 0, start, 61)
    committed = None
    for some in several:
        committed = Handled.of(committed, retained).adding((n, n + 1) for n in some if n >= start).committed()
    handled = Handled.of(committed, retained)
    gone = set(range(start)).union(*several) if several else set(range(start))
    assert {n for n in range(70) if n in handled} == gone
    assert all(end > begin > handled.until for begin, end in handled.ranges)


def test_more_gaps_than_kafka_keeps_are_a_sentence() -> None:
    """Said before anything is replayed or dropped, with the way out."""
    apart = Handled(0).adding((n, n + 1) for n in range(1, 2000, 2))
    with pytest.raises(Misconfigured, match="first replay or drop the oldest"):
        apart.committed()


@given(st.integers(0, 99), st.text(max_size=30))
def test_foreign_metadata_makes_nothing_handled_that_is_not(offset: int, metadata: str) -> None:
    """Words that somebody else committed, or a topic made anew, leave letters pending rather than lose them."""
    handled = Handled.of(Committed(offset, metadata), Range("logs_raw_dlq", 0, 5, 50))
    assert handled.until >= 5
    if offset > 50:
        assert handled == Handled(5)
    for beyond in ("40-51", "9-7", "1000-2000"):
        assert Handled.of(Committed(6, beyond), Range("logs_raw_dlq", 0, 5, 50)) == Handled(6)
