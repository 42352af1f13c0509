"""Agents as processes, between real topics."""

import pathlib
import random
import textwrap
from collections.abc import Iterator

import pytest

from pipeline import otlp, topics
from pipeline.delivery import Message
from pipeline.record import schema
from pipeline.settings import KafkaSettings, Settings
from tests.agents.agent_process import IDENTITY, Agents, read, records
from tests.agents.process import send, until
from tests.audit.conftest import remove_topics
from tests.bench import payload
from tests.conftest import free_ports
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
