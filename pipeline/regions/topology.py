"""What `topics/topology.yaml` may say: regions, what is mirrored where, who stores it, and how much loss is allowed."""

import json
import os
import pathlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from pipeline.errors import Misconfigured
from pipeline.settings import ROOT, Address, ClickHouseSettings, Database, KafkaSettings, Positive, PostgresSettings
from pipeline.topics import Topic

FILE = ROOT / "topics" / "topology.yaml"
Text = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Text, ...], Field(strict=False)]
Model = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Recovery(BaseModel):
    """The goals that `pipeline regions failover` measures itself by."""

    model_config = Model

    rpo_s: Annotated[Positive, Field(description="Of how many seconds may records be lost with the region.")]
    rto_s: Annotated[Positive, Field(description="After how many seconds must the rest be readable elsewhere.")]


class Region(BaseModel):
    """One Kafka cluster, its stores, and whose records its writers store.

    Secrets are named, not held: with `credentials: EU` they are read from the environment, EU_KAFKA_USERNAME and
    EU_KAFKA_PASSWORD, EU_CLICKHOUSE_USER and EU_CLICKHOUSE_PASSWORD, EU_POSTGRES_PASSWORD.
    """

    model_config = Model

    role: Annotated[Literal["edge", "central"], Field(description="An edge stores only what is its own.")]
    bootstrap_servers: Annotated[Text, Field(description="Of its Kafka.")]
    replication_factor: Annotated[
        int | None, Field(ge=1, description="Of what is mirrored here and of MirrorMaker's own topics; must be said.")
    ] = None
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    credentials: Annotated[
        str | None,
        Field(pattern=r"^[A-Z][A-Z0-9_]*$", description="The prefix of the variables that hold its secrets."),
    ] = None
    ca_file: Annotated[str | None, Field(description="PEM; default: the system's.")] = None
    clickhouse_url: Annotated[Address, Field(min_length=1)]
    clickhouse_database: Database = "default"
    postgres: Annotated[Text, Field(description="Host, port, user and dbname; no password.")]
    writers: Annotated[Names, Field(description="Whose records its writers store, itself included.")]
    recovery: Recovery

    @property
    def kafka(self) -> KafkaSettings:
        """How our own clients connect; raises Misconfigured where a secret is not in the environment."""
        sasl = self.security_protocol.startswith("SASL")
        return KafkaSettings(
            bootstrap_servers=self.bootstrap_servers,
            security_protocol=self.security_protocol,
            sasl_mechanism=self.sasl_mechanism,
            sasl_username=self._secret("KAFKA_USERNAME") if sasl else "",
            sasl_password=SecretStr(self._secret("KAFKA_PASSWORD") if sasl else ""),
            ssl_ca_file=pathlib.Path(self.ca_file) if self.ca_file else None,
        )

    @property
    def clickhouse(self) -> ClickHouseSettings:
        own = ClickHouseSettings(url=self.clickhouse_url, database=self.clickhouse_database)
        if self.credentials is None:
            return own
        return own.model_copy(
            update={
                "user": self._secret("CLICKHOUSE_USER"),
                "password": SecretStr(self._secret("CLICKHOUSE_PASSWORD")),
            }
        )

    @property
    def postgres_settings(self) -> PostgresSettings:
        if self.credentials is None:
            return PostgresSettings(dsn=SecretStr(self.postgres))
        password = self._secret("POSTGRES_PASSWORD").replace("\\", "\\\\").replace("'", "\\'")
        return PostgresSettings(dsn=SecretStr(f"{self.postgres} password='{password}'"))

    def _secret(self, name: str) -> str:
        variable = f"{self.credentials}_{name}"
        value = os.environ.get(variable)
        if value is None or (not value and name.startswith("KAFKA")):
            raise Misconfigured(f"The environment has no {variable}, which {FILE.name} refers to: set it.")
        return value


class Link(BaseModel):
    """What one region's Kafka is given of another's, as `<from>.<topic>`."""

    model_config = Model

    source: Annotated[Text, Field(alias="from")]
    target: Annotated[Text, Field(alias="to")]
    topics: Annotated[Names, Field(min_length=1, description="Names of declared topics; * stands for any part of one.")]
    retention_hours: Annotated[
        Positive | None, Field(description="At the target; default: as declared, and not less than that.")
    ] = None

    def __str__(self) -> str:
        return f"{self.source}->{self.target}"

    def of(self, declared: Sequence[Topic]) -> list[Topic]:
        """Those of `declared` that it mirrors. Patterns end here: MirrorMaker is given names alone, so that it can
        never take a mirrored topic for one of them."""
        return [topic for topic in declared if any(fnmatchcase(topic.name, each) for each in self.topics)]


class Topology(BaseModel):
    """All regions and links."""

    model_config = Model

    regions: Annotated[dict[str, Region], Field(min_length=1)]
    links: Annotated[tuple[Link, ...], Field(strict=False)] = ()
    query: Annotated[Names, Field(description="The regions whose stores `pipeline query` joins.")] = ()

    def links_to(self, target: str) -> list[Link]:
        return [link for link in self.links if link.target == target]

    def mirrored_into(self, alias: str) -> tuple[str, ...]:
        """The regions whose mirrored topics the writers of `alias` read."""
        return tuple(source for source in self.regions[alias].writers if source != alias)


def parse(path: pathlib.Path) -> Topology:
    """The topology as the file has it, its parts alone; raises Misconfigured with every problem of them."""
    where = f"{path.parent.name}/{path.name}"
    try:
        return Topology.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise Misconfigured(f"{path} cannot be read: {error.strerror}; restore it, or correct `topology`.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{where}: is not YAML: {' '.join(str(error).split())}.") from None
    except ValidationError as invalid:
        raise Misconfigured(
            [
                f"{where}: {'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}."
                for e in invalid.errors(include_input=False, include_url=False)
            ]
        ) from None


def write(topology: Topology, path: pathlib.Path) -> None:
    """The file that `parse` reads back as the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = topology.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    path.write_text(yaml.safe_dump(said, sort_keys=False))


def json_schema() -> str:
    """What editors check and complete the file by: JSON Schema, the text of topics/topology.schema.json."""
    schema = Topology.model_json_schema(by_alias=True)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"
