"""`pipeline dlq` at a real Kafka: seen, sent back, given up."""

import json
from collections.abc import Iterator, Sequence

import pytest

from pipeline import dlq, topics
from pipeline.delivery import Message
from pipeline.dlq import Letters, Selection
from pipeline.errors import Misconfigured, Rejected
from pipeline.kafka.dead_letters import headers
from pipeline.kafka.reader import Message as Read
from pipeline.kafka.reader import Reader
from pipeline.settings import KafkaSettings, Settings
from tests.agents.process import Process, send
from tests.audit.conftest import remove_topics
from tests.audit.world import file, record

PAIRS = (("schema", b"log_record/1"), ("records", b"2"), ("topic", b"theirs"))


class World:
    """Empty topics, and dead letters in partition 0 of theirs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.letters = Letters(settings.kafka)
        self.pipeline = Process("none", settings)

    def bury(
        self, reason: str, value: bytes = b"raw", *, topic: str = "logs_raw", into: str = "", writer: str = "ch_writer"
    ) -> str:
        """Return the letter's name."""
        message = Message(topic, 1, 5, dict(PAIRS[:2]), value, PAIRS)
        pairs = tuple(headers(message, Rejected(reason), writer=writer, time_ns=1_700_000_000 * 10**9))
        dead = into or f"{topic}_dlq"
        [offset] = send(self.settings, Message(dead, 0, 0, {}, value, pairs))
        return f"{dead}/0@{offset}"

    def pending(self) -> list[str]:
        return [letter.name for letter in self.letters.pending()]

    def read(self, topic: str) -> Sequence[Read]:
        reader = Reader(self.settings.kafka)
        return list(reader.read(reader.retained([topic])))


@pytest.fixture
def world(kafka: str) -> Iterator[World]:
    remove_topics(kafka)
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=kafka))
    topics.apply_all(settings)
    yield World(settings)
    remove_topics(kafka)


def test_letters_are_listed_replayed_and_dropped(world: World) -> None:
    """Selected by reason or name, in any order: what was replayed is in its topic and partition as it came, what was
    dropped is nowhere else, neither is listed again, and reading changes nothing."""
    first, second, third = world.bury("late by 1 s", b"1"), world.bury("odd"), world.bury("late by 22 s", b"22")
    for _ in range(2):
        groups = {group.reason: group for group in world.letters.overview()}
        assert {reason: (group.messages, group.records) for reason, group in groups.items()} == {
            "late by # s": (2, 4), "odd": (1, 2)
        }  # fmt: skip
    world.letters.apply(world.letters.plan("replay", Selection(reason="late")))
    assert world.pending() == [second]
    came = {message.value: message for message in world.read("logs_raw")}
    assert set(came) == {b"1", b"22"}
    assert {message.partition for message in came.values()} == {1}
    for value, name in ((b"1", first), (b"22", third)):
        assert came[value].pairs == (*PAIRS, ("dlq_attempt", b"1"), ("dlq_from", name.encode()))
    fourth = world.bury("odd", topic="traces_raw")
    assert world.letters.plan("drop", Selection(topic="metrics_raw")) == []
    world.letters.apply(world.letters.plan("drop", Selection(messages=(second,))))
    assert world.pending() == [fourth]
    assert len(world.read("logs_raw")) == 2
    assert len(world.read("logs_raw_dlq")) == 3


@pytest.mark.parametrize("at_once", [100, 1])
def test_what_two_writers_dead_lettered_goes_back_once(
    world: World, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Both writers read it again, so one copy is enough, and neither letter is pending; another message is another.
    Also where they are so far apart that they are not sent together."""
    monkeypatch.setattr(dlq, "AT_ONCE", at_once)
    for writer in ("ch_writer", "pg_writer"):
        world.bury(f"{writer} is older", b"1", writer=writer)
    world.bury("older", b"2")
    world.letters.apply(world.letters.plan("replay", Selection()))
    assert sorted(message.value for message in world.read("logs_raw")) == [b"1", b"2"]
    assert world.pending() == []


def test_a_plan_is_carried_out_as_it_was_read(world: World) -> None:
    """What was dead-lettered after the plan stays pending; a plan done twice sends twice and loses nothing."""
    world.bury("odd")
    plan = world.letters.plan("replay", Selection())
    later = world.bury("odd")
    for count in (1, 2):
        world.letters.apply(plan)
        assert (world.pending(), len(world.read("logs_raw"))) == ([later], count)


def test_nothing_is_replayed_into_itself_or_to_where_it_did_not_come_from(world: World) -> None:
    """Letters of another cluster, of no known origin, or of a partition that is gone stay pending, each with a reason."""
    names = [
        world.bury("a", topic="logs_raw", into="traces_raw_dlq"),
        world.bury("b", topic="logs_raw_dlq", into="logs_raw_dlq"),
    ]
    send(world.settings, Message("logs_raw_dlq", 0, 0, {}, b"stranger"))
    gone = Message("logs_raw", 99, 5, dict(PAIRS[:2]), b"", PAIRS)
    send(
        world.settings,
        Message("logs_raw_dlq", 0, 0, {}, b"", tuple(headers(gone, Rejected("c"), writer="w", time_ns=1))),
    )
    plan = world.letters.plan("replay", Selection())
    assert [change.action for change in plan] == ["leave"] * 4
    said = " ".join(str(change) for change in plan)
    for why in ("stand in traces_raw_dlq", "stand in logs_raw_dlq", "do not say where", "[99] does not exist"):
        assert why in said
    world.letters.apply(plan)
    assert sorted(world.pending()) == sorted([*names, "logs_raw_dlq/0@1", "logs_raw_dlq/0@2"])
    assert world.read("logs_raw") == []


def test_commands_say_what_they_do(world: World) -> None:
    """list and show read, replay and drop print their plan and do nothing without a yes; exit codes are as documented."""
    run = world.pipeline.run
    assert run("dlq list") == (0, "")
    good = file("logs", [record("logs", "one", body="hello"), record("logs", "two")])
    name = world.bury("The value is cut.", good[:-30])
    code, listed = run("dlq list --json")
    [group] = json.loads(listed)
    assert (code, group["topic"], group["messages"], group["example"]) == (1, "logs_raw_dlq", 1, name)
    code, shown = run(f"dlq show {name} --json")
    letter = json.loads(shown)
    assert (code, letter["reason"], letter["bytes"]) == (0, "The value is cut.", len(good) - 30)
    assert [one["body"] for one in letter["records"]][:1] == ["hello"]
    assert "Error: " in letter["error"]
    assert letter["headers"] == [[key, value.decode()] for key, value in PAIRS]
    assert bytes.fromhex(letter["head"]) == good[:64]
    assert run("dlq show logs_raw_dlq/0@99")[0] == run("dlq show logs_raw/0@0")[0] == 2
    assert run("dlq drop --time yesterday/")[0] == 2
    for verb in ("list", "replay", "drop"):  # a slip of the pen is no good news
        code, said = run(f"dlq {verb} --topic logs_rwa")
        assert (code, "no dead letters of logs_rwa: there are " in said) == (2, True)
    code, said = run("dlq replay")
    assert (code, "replay into logs_raw [1]: logs_raw_dlq: 1 messages (2 records)" in said) == (130, True)
    assert world.pending() == [name]
    assert run("dlq drop --time /2023-01-01 --yes") == (0, "Nothing to do.\n")
    assert run("dlq drop --time 2023-01-01/ --yes")[0] == 0
    assert run("dlq list") == (0, "")


def test_a_name_that_is_none_is_refused() -> None:
    """Before anything is asked of Kafka."""
    for name in ("logs_raw_dlq", "logs_raw_dlq/x@1", "logs_raw/0@1", "logs_raw_dlq/0@-1"):
        with pytest.raises(Misconfigured, match="names no dead letter"):
            Selection.parse(None, None, [name], None)
