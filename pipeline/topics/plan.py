"""From what is declared and what there is to changes, which can be kept in a file and carried out later."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import Misconfigured
from pipeline.kafka.admin import Cluster, LiveTopic
from pipeline.topics.declared import Topic

Values = dict[str, str | int | None]
# Kafka itself sets these while it moves replicas; they are not drift
THROTTLES = frozenset({"leader.replication.throttled.replicas", "follower.replication.throttled.replicas"})


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a plan; `before` and `after` hold what differs, None in `after` where an override is removed."""

    action: Literal["create", "configure", "grow"]
    topic: str
    before: Values
    after: Values

    def __str__(self) -> str:
        if self.action == "create":
            return f"create {self.topic}: " + ", ".join(f"{key}={value}" for key, value in self.after.items())
        steps = (
            f"{key} {self.before[key]} → {'the default' if value is None else value}"
            for key, value in self.after.items()
        )
        return f"{self.action} {self.topic}: " + ", ".join(steps)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Plan(BaseModel):
    """Changes of one cluster as a file; `before` in each says what they were made for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cluster_id: str
    changes: tuple[Change, ...]

    @classmethod
    def parse(cls, text: str, where: str) -> "Plan":
        """From the text of a plan file; raises Misconfigured with every problem of it."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as invalid:
            raise Misconfigured(
                [
                    f"{where}: {'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}."
                    for e in invalid.errors(include_input=False, include_url=False)
                ]
            ) from None


def plan(topics: Iterable[Topic], cluster: Cluster) -> list[Change]:
    """What would make `cluster` hold `topics` as declared; empty where it does.

    Raises Misconfigured with every difference that no plan may remove.
    """
    topics = list(topics)
    live = cluster.topics(topic.name for topic in topics)
    changes: list[Change] = []
    problems: list[str] = []
    for topic in topics:
        if topic.name not in live:
            counts: Values = {"partitions": topic.partitions, "replication_factor": topic.replication_factor}
            changes.append(Change("create", topic.name, {}, {**counts, **topic.config}))
        else:
            problems += _refused(topic, live[topic.name])
            changes += _differences(topic, live[topic.name])
    if problems:
        raise Misconfigured(problems)
    return changes


def apply(changes: Sequence[Change], cluster: Cluster) -> None:
    """Carry out a plan, in order; nothing of it where the cluster is not as the plan found it.

    Raises Misconfigured with everything that moved since.
    """
    live = cluster.topics({change.topic for change in changes})
    moved = [problem for change in changes for problem in _moved(change, live.get(change.topic))]
    if moved:
        raise Misconfigured(moved)
    for change in changes:
        after = dict(change.after)
        if change.action == "grow":
            cluster.grow(change.topic, int(after["partitions"] or 0))
        elif change.action == "configure":
            cluster.configure(change.topic, {key: _text(value) for key, value in after.items()})
        else:
            cluster.create(
                change.topic,
                partitions=int(after.pop("partitions") or 0),
                replication_factor=int(after.pop("replication_factor") or 0),
                config={key: str(value) for key, value in after.items()},
            )


def _moved(change: Change, live: LiveTopic | None) -> list[str]:
    """What of the cluster is not as the change found it."""
    if change.action == "create":
        return [f"{change.topic}: was made since this plan; plan again."] if live else []
    if live is None:
        return [f"{change.topic}: is gone since this plan; plan again."]
    now: Values = {"partitions": live.partitions} if change.action == "grow" else dict(live.config)
    return [
        f"{change.topic}: {key} was {value} when this was planned and is {now.get(key)} now; plan again."
        for key, value in change.before.items()
        if now.get(key) != value
    ]


def _refused(topic: Topic, live: LiveTopic) -> list[str]:
    problems = []
    if live.partitions > topic.partitions:
        problems.append(
            f"{topic.file}: partitions: the cluster has {live.partitions} and Kafka cannot shrink a topic; "
            f"declare {live.partitions}."
        )
    if live.replication_factor != topic.replication_factor:
        problems.append(
            f"{topic.file}: replication_factor: the cluster has {live.replication_factor}; Kafka's own "
            "kafka-reassign-partitions moves replicas: `pipeline topics replicas` prints the file that it takes, and "
            "how; or declare what is there."
        )
    return problems


def _differences(topic: Topic, live: LiveTopic) -> list[Change]:
    changes = []
    if live.partitions < topic.partitions:
        changes.append(Change("grow", topic.name, {"partitions": live.partitions}, {"partitions": topic.partitions}))
    declared = topic.config
    after: Values = {key: value for key, value in declared.items() if live.config.get(key) != value}
    after |= dict.fromkeys(sorted(live.overrides - declared.keys() - THROTTLES))
    if after:
        changes.append(Change("configure", topic.name, {key: live.config.get(key) for key in after}, after))
    return changes


def _text(value: str | int | None) -> str | None:
    return None if value is None else str(value)
