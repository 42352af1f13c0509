"""Plan and apply against a real broker."""

import uuid
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from pipeline import topics
from pipeline.errors import Misconfigured, Unavailable
from pipeline.kafka.admin import Cluster
from pipeline.settings import KafkaSettings, Settings
from tests.agents.kafka_tools import CONFIGS, kafka_tool


@pytest.fixture
def cluster(kafka: str) -> Cluster:
    return Cluster(KafkaSettings(bootstrap_servers=kafka))


def declared(**changes: Any) -> topics.Topic:
    fields = {
        "name": f"t_{uuid.uuid4().hex}", "signal": "logs", "description": "d", "owner": "o", "partitions": 2,
        "replication_factor": 1, "min_insync_replicas": 1, "retention_hours": 1, "max_message_bytes": 1048576,
    }  # fmt: skip
    return topics.Topic.model_validate(fields | changes)


def test_plan_apply_plan(cluster: Cluster) -> None:
    """What was planned and applied is what the cluster has, so a second plan is empty."""
    wanted = [declared(), declared(retention_bytes=1 << 30, cleanup_policy="compact,delete")]
    planned = topics.plan(wanted, cluster)
    assert [(change.action, change.topic) for change in planned] == [("create", topic.name) for topic in wanted]
    topics.apply(planned, cluster)
    assert topics.plan(wanted, cluster) == []
    live = cluster.topics([wanted[1].name])[wanted[1].name]
    assert (live.partitions, live.replication_factor) == (2, 1)
    assert live.config["retention.bytes"] == str(1 << 30)


def test_the_shipped_topics_are_applied_at_once_and_once(kafka: str) -> None:
    """`apply_all` leaves nothing for a second one to do."""
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=kafka))
    topics.apply_all(settings)
    assert topics.apply_all(settings) == []


def test_drift_is_seen_and_repaired(cluster: Cluster, kafka: str) -> None:
    """A changed value, a removed one and one that no file knows, by Kafka's own tool, are found and put right."""
    topic = declared()
    topics.apply(topics.plan([topic], cluster), cluster)
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=kafka))
    kafka_tool(
        CONFIGS, settings, "--alter", "--topic", topic.name, "--delete-config", "max.message.bytes",
        "--add-config", "retention.ms=1,segment.bytes=1048576",
    )  # fmt: skip
    planned = topics.plan([topic], cluster)
    assert [change.after for change in planned] == [
        {"max.message.bytes": "1048576", "retention.ms": "3600000", "segment.bytes": None}
    ]
    assert "retention.ms 1 → 3600000" in str(planned[0])
    topics.apply(planned, cluster)
    assert topics.plan([topic], cluster) == []


def test_partitions_grow_and_never_shrink(cluster: Cluster) -> None:
    """More partitions are a change; fewer partitions or other replicas are refused, all at once, by file and field."""
    topic, other = declared(), declared()
    topics.apply(topics.plan([topic, other], cluster), cluster)
    grown = topic.model_copy(update={"partitions": 3})
    planned = topics.plan([grown], cluster)
    assert [(change.before, change.after) for change in planned] == [({"partitions": 2}, {"partitions": 3})]
    topics.apply(planned, cluster)
    assert topics.plan([grown], cluster) == []
    with pytest.raises(Misconfigured) as caught:
        topics.plan([topic, other.model_copy(update={"replication_factor": 2})], cluster)
    assert [problem.split(": ")[:2] for problem in caught.value.problems] == [
        [f"topics/{topic.name}.yaml", "partitions"], [f"topics/{other.name}.yaml", "replication_factor"],
    ]  # fmt: skip


def test_nothing_is_deleted(cluster: Cluster, kafka: str) -> None:
    """A topic that no file declares stays."""
    topic = declared()
    topics.apply(topics.plan([topic], cluster), cluster)
    topics.apply(topics.plan([declared()], cluster), cluster)
    assert topic.name in AdminClient({"bootstrap.servers": kafka}).list_topics(timeout=10).topics


def test_what_the_cluster_refuses_is_ours(cluster: Cluster) -> None:
    """A plan that the cluster has overtaken or cannot hold is Misconfigured, with Kafka's reason."""
    topic = declared()
    planned = topics.plan([topic], cluster)
    topics.apply(planned, cluster)
    with pytest.raises(Misconfigured, match="was made since"):
        topics.apply(planned, cluster)
    with pytest.raises(Misconfigured, match="replication factor"):
        topics.apply(topics.plan([declared(replication_factor=3)], cluster), cluster)


def test_a_cluster_that_is_away_is_the_worlds() -> None:
    """No broker at the address is Unavailable, and the sentence names the address."""
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 could not describe topics"):
        topics.plan([declared()], Cluster(KafkaSettings(bootstrap_servers="127.0.0.1:1")))


def test_a_plan_survives_its_file_and_meets_no_moved_cluster(cluster: Cluster) -> None:
    """What is written is read back; once the cluster differs from what the plan found, nothing of it is done."""
    topic, other = declared(), declared()
    topics.apply(topics.plan([topic], cluster), cluster)
    grown = topic.model_copy(update={"partitions": 3, "retention_hours": 2})
    changes = topics.plan([grown, other], cluster)
    kept = topics.Plan(cluster_id=cluster.id(), changes=tuple(changes))
    assert topics.Plan.parse(kept.model_dump_json(), "plan.json") == kept
    cluster.configure(topic.name, {"retention.ms": "77"})
    with pytest.raises(Misconfigured, match=r"retention\.ms was 3600000 when this was planned and is 77 now"):
        topics.apply(kept.changes, cluster)
    live = cluster.topics([topic.name, other.name])
    assert (set(live), live[topic.name].partitions) == ({topic.name}, 2)


@pytest.mark.parametrize("text", ["", "[]", '{"changes": []}', '{"cluster_id": "a", "changes": [], "more": 1}'])
def test_what_is_no_plan_is_told(text: str) -> None:
    """A cut, foreign or older file is Misconfigured, with its name."""
    with pytest.raises(Misconfigured, match=r"plan\.json: "):
        topics.Plan.parse(text, "plan.json")


def test_the_wrong_cluster_is_refused(kafka: str) -> None:
    """Another id than the settings say, or none said in production, and nothing is planned or applied."""
    right = Cluster(KafkaSettings(bootstrap_servers=kafka)).id()
    for environment, said, refused in (
        ("local", None, None), ("local", right, None), ("local", "other", "kafka.cluster_id says other"),
        ("production", None, f"is {right}: set kafka.cluster_id"), ("production", right, None),
    ):  # fmt: skip
        settings = Settings(
            environment=environment,  # type: ignore[arg-type]
            kafka=KafkaSettings(bootstrap_servers=kafka, cluster_id=said),
        )
        if refused is None:
            assert topics.cluster_of(settings).id() == right
        else:
            with pytest.raises(Misconfigured, match=refused):
                topics.cluster_of(settings)
