"""What a topic file may say, and what an environment adds to it and demands of it."""

import json
import pathlib
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import Misconfigured
from pipeline.settings import ROOT, Environment, Positive

DIRECTORY = ROOT / "topics"
ENVIRONMENTS = "environments.yaml"
TOPOLOGY = "topology.yaml"  # of pipeline.regions
NAME = r"^[a-z][a-z0-9_]{0,199}$"
Replicas = Annotated[int, Field(ge=1, le=32767)]
Model = ConfigDict(extra="forbid", frozen=True, strict=True)


class Topic(BaseModel):
    """One topic as its file declares it. The name has no dot: MirrorMaker 2 names mirrored topics `<region>.<name>`."""

    model_config = Model

    name: Annotated[str, Field(pattern=NAME, description="As in Kafka; the file's name is the same.")]
    signal: Annotated[
        Literal["logs", "metrics", "traces", "events", "drops"], Field(description="What its records are.")
    ]
    description: Annotated[str, Field(min_length=1, description="What it is for, in a sentence.")]
    owner: Annotated[str, Field(min_length=1, description="The team to ask.")]
    consumers: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(strict=False, description="Consumer groups that read it; `describe` shows where they stand."),
    ] = ()
    schema_name: Annotated[
        str | None,
        Field(
            alias="schema", pattern=r"^[a-z_]+/[1-9][0-9]*$",
            description="The record that its values hold, a file in schemas/; none: raw bytes.",
        ),
    ] = None  # fmt: skip
    partitions: Annotated[Positive, Field(description="How many; they only ever grow.")]
    replication_factor: Annotated[Replicas, Field(description="Copies of each partition; default: the environment's.")]
    min_insync_replicas: Annotated[
        Replicas, Field(description="Copies that must have a message before it is acknowledged; as above.")
    ]
    retention_hours: Annotated[Positive, Field(description="How long a message is kept at least.")]
    retention_bytes: Annotated[int | None, Field(gt=0, description="A partition's limit; none: time decides.")] = None
    cleanup_policy: Literal["delete", "compact", "compact,delete"] = "delete"
    compression_type: Literal["producer", "zstd", "lz4", "snappy", "gzip", "uncompressed"] = "producer"
    max_message_bytes: Annotated[int, Field(ge=1024, le=100 * 1024 * 1024, description="Of a batch, compressed.")]

    @property
    def file(self) -> str:
        """Its file; a mirrored topic, `<region>.<name>`, has that of its origin."""
        return f"{DIRECTORY.name}/{self.name.rpartition('.')[2]}.yaml"

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


class _Rules(BaseModel):
    """Of one environment: what stands in for what a topic file leaves out, and the least that it accepts."""

    model_config = Model

    replication_factor: Replicas
    min_insync_replicas: Replicas
    least_replication_factor: Replicas = 1
    least_min_insync_replicas: Replicas = 1
    replay_window_hours: Positive  # what can be replayed at any time: no topic may keep less


class _Environments(BaseModel):
    model_config = Model

    local: _Rules
    production: _Rules


def load(directory: pathlib.Path = DIRECTORY, *, environment: Environment = "local") -> list[Topic]:
    """The topics that the files of `directory` declare for `environment`, sorted by name.

    Raises Misconfigured with every problem of every file.
    """
    topics: dict[str, Topic] = {}
    problems: list[str] = []
    rules = _rules(directory, environment, problems)
    for path in sorted(directory.glob("*.yaml")):
        if path.name in (ENVIRONMENTS, TOPOLOGY):
            continue
        where = f"{directory.name}/{path.name}"
        document = _document(path, where, problems)
        if document is None:
            continue
        if rules and isinstance(document, dict):
            document = {
                "replication_factor": rules.replication_factor,
                "min_insync_replicas": rules.min_insync_replicas,
            } | document
        try:
            topic = Topic.model_validate(document)
        except ValidationError as invalid:
            problems += _told(where, invalid)
            continue
        problems += [f"{where}: {problem}" for problem in _problems(topic, path.stem)]
        problems += [f"{where}: {problem}" for problem in (_demanded(topic, environment, rules) if rules else ())]
        topics[topic.name] = topic
    if not topics and not problems:
        problems.append(f"{directory.name}/ declares no topic: restore its *.yaml files.")
    if problems:
        raise Misconfigured(problems)
    return [topics[name] for name in sorted(topics)]


def least_replicas(environment: Environment) -> int:
    """How many copies of a topic `environment` demands; raises Misconfigured where its rules do not read."""
    problems: list[str] = []
    rules = _rules(DIRECTORY, environment, problems)
    if rules is None:
        raise Misconfigured(problems)
    return rules.least_replication_factor


def json_schema() -> str:
    """What editors check and complete topic files by: JSON Schema, the text of topics/topic.schema.json."""
    schema = Topic.model_json_schema(by_alias=True)
    schema["required"] = [name for name in schema["required"] if name not in _Rules.model_fields]
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def _rules(directory: pathlib.Path, environment: Environment, problems: list[str]) -> _Rules | None:
    path, where = directory / ENVIRONMENTS, f"{directory.name}/{ENVIRONMENTS}"
    if not path.is_file():
        problems.append(f"{where} is missing: restore it, it says how many replicas each environment has.")
        return None
    document = _document(path, where, problems)
    if document is None:
        return None
    try:
        return getattr(_Environments.model_validate(document), environment)  # type: ignore[no-any-return]
    except ValidationError as invalid:
        problems += _told(where, invalid)
        return None


def _document(path: pathlib.Path, where: str, problems: list[str]) -> Any:
    """What the file holds; None where it is not YAML, which becomes a problem."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.append(f"{where}: is not YAML: {' '.join(str(error).split())}.")
        return None
    return {} if document is None else document


def _told(where: str, invalid: ValidationError) -> list[str]:
    return [
        f"{where}: {'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}."
        for e in invalid.errors(include_input=False, include_url=False)
    ]


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


def _demanded(topic: Topic, environment: Environment, rules: _Rules) -> list[str]:
    problems = []
    for name in ("replication_factor", "min_insync_replicas"):
        least = getattr(rules, f"least_{name}")
        if getattr(topic, name) < least:
            problems.append(f"{name}: {environment} demands {least} or more; leave it out to have the default.")
    if topic.retention_hours < rules.replay_window_hours:
        problems.append(
            f"retention_hours: {topic.retention_hours} is less than the replay window of {environment}, "
            f"{rules.replay_window_hours} hours; what was removed cannot be replayed."
        )
    return problems
