"""What status says of a link, from what MirrorMaker has written down; one real broker stands for both ends."""

import json
import pathlib
import shutil
import time
import uuid

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.regions import status
from pipeline.regions.topology import FILE, Link, Topology, parse
from pipeline.settings import ROOT, Settings

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


def between(source: str, topic: str, kafka: str) -> Topology:
    """One link, from `source` to central."""
    shipped = parse(FILE)
    regions = {
        alias: shipped.regions[like].model_copy(update={"bootstrap_servers": kafka})
        for alias, like in ((source, "eu"), ("central", "central"))
    }
    link = Link.model_validate({"from": source, "to": "central", "topics": [topic]})
    return Topology(regions=regions, links=(link,))
