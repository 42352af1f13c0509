"""Where replicas shall be when a file declares other ones than there are."""

import json
import pathlib

import pytest

from pipeline import topics
from pipeline.errors import Misconfigured
from pipeline.kafka.admin import Cluster
from pipeline.settings import KafkaSettings, Settings
from pipeline.topics.replicas import document, reassignment, spread
from tests.agents.kafka_tools import kafka_tool
from tests.topics.test_cluster import declared

REASSIGN = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand"


def test_more_replicas_go_to_other_racks_and_idle_brokers() -> None:
    """What is there stays in its place; no rack has two replicas while another has none, no broker twice as many."""
    racks = {broker: f"r{broker % 3}" for broker in range(6)}
    partitions = [[n % 6] for n in range(12)]
    wider = spread(partitions, 3, racks)
    assert [replicas[:1] for replicas in wider] == partitions
    assert all(len({racks[broker] for broker in replicas}) == 3 for replicas in wider)
    counts = [sum(broker in replicas for replicas in wider) for broker in racks]
    assert (min(counts), max(counts)) == (6, 6)


def test_fewer_replicas_are_the_first_ones() -> None:
    """The preferred leader stays."""
    assert spread([[1, 2, 3], [3, 1, 2]], 2, {1: "a", 2: "b", 3: "c"}) == [[1, 2], [3, 1]]


def test_a_cluster_of_too_few_brokers_is_told(kafka: str) -> None:
    """Every such topic is named, and those that are as declared are not in the file."""
    cluster = Cluster(KafkaSettings(bootstrap_servers=kafka))
    topic = declared()
    topics.apply(topics.plan([topic], cluster), cluster)
    assert reassignment([topic, declared()], cluster) == {"version": 1, "partitions": []}
    with pytest.raises(Misconfigured, match=rf"topics/{topic.name}\.yaml: replication_factor: 3 .* has 1\."):
        reassignment([topic.model_copy(update={"replication_factor": 3})], cluster)


def test_kafkas_tool_takes_the_file(kafka: str, tmp_path: pathlib.Path) -> None:
    """What is printed is what kafka-reassign-partitions carries out."""
    cluster = Cluster(KafkaSettings(bootstrap_servers=kafka))
    topic = declared()
    topics.apply(topics.plan([topic], cluster), cluster)
    [[broker], _] = cluster.replicas([topic.name])[topic.name]
    file = tmp_path / "replicas.json"
    file.write_text(json.dumps(document({topic.name: [[broker, 99], [broker]]}, {topic.name: [[broker], [broker]]})))
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=kafka))
    told = kafka_tool(REASSIGN, settings, "--reassignment-json-file", str(file), "--execute", "--throttle", "50000000")
    assert "Successfully started partition reassignment" in told
    assert f"{topic.name}-0" in told
    told = kafka_tool(REASSIGN, settings, "--reassignment-json-file", str(file), "--verify")
    assert f"Reassignment of partition {topic.name}-0 is completed." in told
