"""Topics as code: what `topics/*.yaml` declare against what a cluster has.

    load(directory) → plan(topics, cluster) → apply(changes, cluster)

A plan creates, configures and grows. It never shrinks and never deletes: what would need that is a problem that the
plan names and refuses. `apply` carries out the plan that was read, not a newer one.
"""

import pathlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import Misconfigured
from pipeline.kafka.admin import Cluster, LiveTopic
from pipeline.settings import ROOT, Positive, Settings

Values = dict[str, str | int | None]
DIRECTORY = ROOT / "topics"
# Kafka itself sets these while it moves replicas; they are not drift
THROTTLES = frozenset({"leader.replication.throttled.replicas", "follower.replication.throttled.replicas"})


class Topic(BaseModel):
    """One topic as its file declares it. The name has no dot: MirrorMaker 2 names mirrored topics `<region>.<name>`.

    `schema` is the record that its values hold (a file in `schemas/`); none where the values are raw bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,199}$")]
    signal: Literal["logs", "metrics", "traces", "events"]
    description: Annotated[str, Field(min_length=1)]
    owner: Annotated[str, Field(min_length=1)]
    schema_name: Annotated[str | None, Field(alias="schema", pattern=r"^[a-z_]+/[1-9][0-9]*$")] = None
    partitions: Positive
    replication_factor: Annotated[int, Field(ge=1, le=32767)]
    min_insync_replicas: Positive
    retention_hours: Positive
    retention_bytes: Annotated[int | None, Field(gt=0)] = None  # a partition's; none: time alone decides
    cleanup_policy: Literal["delete", "compact", "compact,delete"] = "delete"
    compression_type: Literal["producer", "zstd", "lz4", "snappy", "gzip", "uncompressed"] = "producer"
    max_message_bytes: Annotated[int, Field(ge=1024, le=100 * 1024 * 1024)]

    @property
    def config(self) -> dict[str, str]:
        """The same in Kafka's words."""
        return {
            "cleanup.policy": self.cleanup_policy,
            "compression.type": self.compression_type,
            "max.message.bytes": str(self.max_message_bytes),
            "message.timestamp.type": "CreateTime",
            "min.insync.replicas": str(self.min_insync_replicas),
            "retention.bytes": str(self.retention_bytes or -1),
            "retention.ms": str(self.retention_hours * 3_600_000),
        }


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


def load(directory: pathlib.Path = DIRECTORY) -> list[Topic]:
    """The topics that the files of `directory` declare, sorted by name.

    Raises Misconfigured with every problem of every file.
    """
    topics: dict[str, Topic] = {}
    problems: list[str] = []
    for path in sorted(directory.glob("*.yaml")):
        where = f"{directory.name}/{path.name}"
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            problems.append(f"{where}: is not YAML: {' '.join(str(error).split())}.")
            continue
        try:
            topic = Topic.model_validate(document)
        except ValidationError as invalid:
            problems += [
                f"{where}: {'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}."
                for e in invalid.errors(include_input=False, include_url=False)
            ]
            continue
        problems += [f"{where}: {problem}" for problem in _problems(topic, path.stem)]
        topics[topic.name] = topic
    if not topics and not problems:
        problems.append(f"{directory.name}/ declares no topic: restore its *.yaml files.")
    if problems:
        raise Misconfigured(problems)
    return [topics[name] for name in sorted(topics)]


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


def apply(changes: Iterable[Change], cluster: Cluster) -> None:
    """Carry out a plan, in order. A plan that the cluster has overtaken fails at the step that no longer fits."""
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


def apply_all(settings: Settings) -> list[Change]:
    """Plan and apply at once, for a stack that is nobody else's; return what was changed."""
    topics, cluster = load(), Cluster(settings.kafka)
    changes = plan(topics, cluster)
    apply(changes, cluster)
    return changes


def _problems(topic: Topic, stem: str) -> list[str]:
    problems = []
    if topic.name != stem:
        problems.append(f"name: is {topic.name}, but the file's is {stem}; they must be equal.")
    if topic.min_insync_replicas > topic.replication_factor:
        problems.append(
            f"min_insync_replicas: {topic.min_insync_replicas} of {topic.replication_factor} replicas can never be in "
            "sync: lower it or raise replication_factor."
        )
    if topic.schema_name and not (ROOT / "schemas" / f"{topic.schema_name.replace('/', '.v')}.avsc").is_file():
        problems.append(f"schema: {topic.schema_name} is no file in schemas/.")
    return problems


def _refused(topic: Topic, live: LiveTopic) -> list[str]:
    problems = []
    if live.partitions > topic.partitions:
        problems.append(
            f"topics/{topic.name}.yaml: partitions: the cluster has {live.partitions} and Kafka cannot shrink a topic; "
            f"declare {live.partitions}."
        )
    if live.replication_factor != topic.replication_factor:
        problems.append(
            f"topics/{topic.name}.yaml: replication_factor: the cluster has {live.replication_factor}; it changes by "
            "reassigning partitions (kafka-reassign-partitions), not by a plan: do that, or declare what is there."
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
