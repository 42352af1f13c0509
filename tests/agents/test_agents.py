"""Agents as processes, between real topics."""

import pathlib
import random
import textwrap
from collections.abc import Iterator

import pytest

from pipeline import migrations, otlp, topics
from pipeline.delivery import Message
from pipeline.record import schema
from pipeline.settings import KafkaSettings, Settings, WriterSettings
from tests.agents.agent_process import AWAY_TWICE, IDENTITY, Agents, read, records
from tests.agents.group import Group
from tests.agents.process import Process, send, until
from tests.audit.conftest import remove_topics
from tests.bench import payload
from tests.conftest import free_ports
from tests.drills import agents as agents_drill
from tests.drills.context import Context
from tests.otlp.requests import T0


@pytest.fixture
def world(kafka: str) -> Iterator[Settings]:
    """Empty topics."""
    remove_topics(kafka)
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=kafka))
    topics.apply_all(settings)
    yield settings
    remove_topics(kafka)


def messages(count: int, of: int = 100) -> list[Message]:
    """Log messages of `of` records each, as the gateway sends them."""
    rng = random.Random(7)
    made = []
    for n in range(count):
        body = payload.request("logs", of, T0 + n * of * 10**6, rng)
        [group] = otlp.encode("logs", body, otlp.Origin("shop", "eu", T0 + n * 10**9), partitions=1).groups
        headers = {
            "tenant": b"shop", "region": b"eu", "signal": b"logs", "schema": schema.CURRENT["logs"].encode(),
            "records": b"%d" % group.records, "min_time": b"%d" % group.min_time, "max_time": b"%d" % group.max_time,
        }  # fmt: skip
        made.append(Message("logs_raw", n % 4, 0, headers, group.value))
    return made


def run(folder: pathlib.Path, code: str, world: Settings, **own: object) -> Agents:
    (folder / "agents_here.py").write_text(textwrap.dedent(code))
    [port] = free_ports(1)
    return Agents(folder, world.model_copy(update={"agents": {"keep": {"health_port": port, **own}}}))


def test_identity(world: Settings, tmp_path: pathlib.Path) -> None:
    """Every record of logs_raw is in logs_norm with its id and content, in order, received later by a microsecond."""
    sent = messages(40)
    send(world, *sent)
    agents = run(tmp_path, IDENTITY, world)
    agents.start()
    try:
        until(lambda: len(read(world, "logs_norm")) == len(sent), "the agent did not read everything")
        assert agents.stop()[0] == 0
    finally:
        agents.close()
    for partition in range(4):
        came = [record for each in sent if each.partition == partition for record in records(each.value)]
        went = [
            record for each in read(world, "logs_norm") if each.partition == partition for record in records(each.value)
        ]
        assert went == [{**record, "received_time": record["received_time"] + 1000} for record in came]


def test_a_message_for_which_the_world_is_away_is_tried_again(world: Settings, tmp_path: pathlib.Path) -> None:
    """Twice `Unavailable`, then transformed: by the same process, and nothing is dead-lettered."""
    [sent] = messages(1)
    send(world, sent)
    agents = run(tmp_path, AWAY_TWICE, world)
    agents.start()
    try:
        until(lambda: read(world, "logs_norm"), "the agent emitted nothing")
        code, said = agents.stop()
    finally:
        agents.close()
    assert (code, said.count("the table is away"), "worker died" in said) == (0, 2, False), said
    [went] = read(world, "logs_norm")
    assert [one["event_id"] for one in records(went.value)] == [one["event_id"] for one in records(sent.value)]
    assert read(world, "logs_raw_dlq") == []


@pytest.mark.timeout(240)
def test_a_rolling_restart_loses_nothing(kafka: str, world: Settings, tmp_path: pathlib.Path) -> None:
    """A new process beside an old one, which is then stopped, while messages come: everything is emitted, and the old
    one ends in order."""
    sent = messages(30)
    old, new = (run(tmp_path, IDENTITY, world) for _ in range(2))
    group = Group(kafka, "keep")
    try:
        old.start()
        send(world, *sent[:10])
        until(lambda: read(world, "logs_norm"), "the old one emitted nothing", 120)
        new.start()
        send(world, *sent[10:20])
        until(lambda: group.settled(2), "the new one did not join", 120)
        send(world, *sent[20:])
        assert old.stop()[0] == 0
        wanted = {record["event_id"] for each in sent for record in records(each.value)}

        def emitted() -> set[bytes]:
            return {record["event_id"] for each in read(world, "logs_norm") for record in records(each.value)}

        until(lambda: emitted() == wanted, "something is missing", 120)
        assert new.stop()[0] == 0
    finally:
        old.close()
        new.close()


@pytest.mark.timeout(420)
def test_built_in_agents_in_a_row_are_killed_rewound_and_routed_to(
    kafka: str, settings: Settings, tmp_path: pathlib.Path
) -> None:
    """redact, sample, enrich and span_metrics, killed, and rewound while the writers go over from raw to what they make:
    audit closed, one row an event, no secret anywhere but in raw, and metrics that are the count of spans."""
    remove_topics(kafka)
    names = agents_drill.WRITERS
    own = {
        name: WriterSettings(health_port=port, batch_bytes=1 << 24)
        for name, port in zip(names, free_ports(len(names)), strict=True)
    }
    base = settings.model_copy(update={"kafka": KafkaSettings(bootstrap_servers=kafka), **own})
    world = agents_drill.with_topics(base, tmp_path / "chain")
    topics.apply_all(world)
    migrations.up_all(world)
    running: list[Process] = []
    said: list[str] = []

    def start(at: Settings) -> None:
        running[:] = [Process(name, at) for name in names]
        for each in running:
            each.start()

    def stop() -> None:
        for each in running:
            each.child.terminate()
        for each in running:
            code, text = each.ended()
            said.append(text)
            assert code == 0, text

    try:
        context = Context("agents", tmp_path, 7, short=True)
        around = agents_drill.World(start, stop, lambda: None, lambda: said)
        assert "no secret" in agents_drill.chained(context, world, tmp_path / "chain", around)
    finally:
        for each in running:
            each.close()
        remove_topics(kafka)
