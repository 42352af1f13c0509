"""What status says of a link, from what MirrorMaker has written down; one real broker stands for both ends."""

import json
import pathlib
import shutil
import time
import uuid

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.errors import Unavailable
from pipeline.kafka.groups import Committed, Groups
from pipeline.regions import status
from pipeline.regions.failover import Failback, Failover
from pipeline.regions.topology import FILE, Link, Topology, parse
from pipeline.settings import ROOT, Settings
from tests.conftest import free_ports

TOPIC = """
name: {name}
signal: logs
description: A test's.
owner: tests
consumers: []
schema: log_record/1
partitions: 1
retention_hours: 168
max_message_bytes: 1048576
"""


@pytest.mark.parametrize(
    ("waits_s", "moved_s", "works"),
    [(300, 300, False), (300, None, False), (300, 5, True), (5, 300, True), (5, None, True), (None, 300, True)],
)
def test_a_task_that_died_is_told(
    kafka: str, tmp_path: pathlib.Path, waits_s: int | None, moved_s: int | None, works: bool
) -> None:
    """A link is broken where messages wait for long and none of their partition comes, whatever heartbeats say; not
    while it catches up, nor where there was nothing to bring."""
    name, source = f"still_{uuid.uuid4().hex[:8]}_raw", f"s{uuid.uuid4().hex[:8]}"
    (tmp_path / f"{name}.yaml").write_text(TOPIC.format(name=name))
    shutil.copy(ROOT / "topics" / "environments.yaml", tmp_path)
    topology = between(source, name, kafka)
    positions, heartbeats = f"mm2-offsets.{source}.internal", f"{source}.heartbeats"
    admin = AdminClient({"bootstrap.servers": kafka})
    made = admin.create_topics([NewTopic(each, 1, 1) for each in (name, f"{source}.{name}", positions, heartbeats)])
    for each in made.values():
        each.result(30)
    producer, now_ms = Producer({"bootstrap.servers": kafka}), int(time.time() * 1000)
    producer.produce(heartbeats, b"alive", timestamp=now_ms)
    if moved_s is not None:
        place = ["MirrorSourceConnector", {"cluster": source, "partition": 0, "topic": name}]
        producer.produce(name, b"brought", timestamp=now_ms - 400_000)
        producer.produce(positions, b'{"offset":0}', json.dumps(place), timestamp=now_ms - moved_s * 1000)
    if waits_s is not None:
        producer.produce(name, b"waits", timestamp=now_ms - waits_s * 1000)
    producer.flush(30)
    [link] = status.look(topology, Settings(topics_directory=tmp_path))
    assert (not link.broken) == works, link
    if not works:
        assert name in link.broken
        assert "Restart it" in link.broken


def test_a_kafka_that_was_made_anew_is_told(kafka: str, tmp_path: pathlib.Path) -> None:
    """Another cluster at the source's address is not taken for the one that was watched: status says what to do, and a
    failover counts what was lost with the other. One without topics is told, and watching goes on."""
    name, source = f"anew_{uuid.uuid4().hex[:8]}_raw", f"s{uuid.uuid4().hex[:8]}"
    (tmp_path / f"{name}.yaml").write_text(TOPIC.format(name=name))
    shutil.copy(ROOT / "topics" / "environments.yaml", tmp_path)
    topology, settings = between(source, name, kafka), Settings(topics_directory=tmp_path)
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([made := NewTopic(f"{source}.{name}", 1, 1)])[made.topic].result(30)
    status.note(topology, settings)
    refused = Failover(topology, settings, (source, "central")).look().steps[0]
    assert (refused.state, f"it has no {name}: run `pipeline topics apply`" in refused.why) == ("refused", True)
    admin.create_topics([made := NewTopic(name, 1, 1)])[made.topic].result(30)
    seen = Committed(5, f"{int(time.time() * 1000)}/another")
    Groups(topology.regions[source].kafka).move(status.GROUP, {(f"{source}.{name}", 0): seen})
    [link] = status.look(topology, settings)
    assert "it was cluster another" in link.broken
    assert f"pipeline regions failback --from central --to {source}" in link.broken
    course = Failover(topology, settings, (source, "central")).look()
    assert [lost.messages for lost in course.lost] == [5]
    assert {step.state for step in course.steps[:2]} == {"done"}


def test_a_failback_to_a_region_that_is_away_is_the_worlds(kafka: str, tmp_path: pathlib.Path) -> None:
    """It is tried again later, and nothing is refused for good."""
    topology = between("eu", "logs_raw", kafka)
    away = topology.regions["eu"].model_copy(update={"bootstrap_servers": f"127.0.0.1:{free_ports(1)[0]}"})
    topology = topology.model_copy(update={"regions": {**topology.regions, "eu": away}})
    with pytest.raises(Unavailable, match=r"could not tell its id"):
        Failback(topology, Settings(), ("eu", "central")).look()


def between(source: str, topic: str, kafka: str) -> Topology:
    """One link, from `source` to central."""
    shipped = parse(FILE)
    regions = {
        alias: shipped.regions[like].model_copy(update={"bootstrap_servers": kafka})
        for alias, like in ((source, "eu"), ("central", "central"))
    }
    link = Link.model_validate({"from": source, "to": "central", "topics": [topic]})
    return Topology(regions=regions, links=(link,))
