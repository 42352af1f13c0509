"""What belongs to a sandbox is called `sandbox_<id>…`: no other name can be made here."""

import pathlib
import re
from dataclasses import dataclass
from typing import Self

from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from pipeline.errors import Misconfigured
from pipeline.settings import KafkaSettings, PostgresSettings, ReplaySettings, Settings

NAME = re.compile(r"[a-z](?:-?[a-z0-9]){0,31}")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Every name that a sandbox may use; `name` is what people call it.

    The id has neither dash nor underscore, so that no sandbox's names begin with another's.
    """

    name: str

    @classmethod
    def called(cls, name: str) -> Self:
        """Raise Misconfigured where that is no name for a sandbox."""
        if not NAME.fullmatch(name):
            raise Misconfigured(
                f"{name[:60]!r} is no name for a sandbox: lower-case letters, digits and single dashes, a letter "
                "first, 32 at most, such as rule-42."
            )
        return cls(name)

    @property
    def id(self) -> str:
        return self.name.replace("-", "")

    @property
    def owner(self) -> str:
        """Its database in ClickHouse, its schema and role in PostgreSQL, its principal in Kafka."""
        return f"sandbox_{self.id}"

    @property
    def prefix(self) -> str:
        """Of its topics and groups."""
        return f"{self.owner}_"

    def topic(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def folder(self, settings: Settings) -> pathlib.Path:
        return settings.replay.directory / self.id

    def settings(self, base: Settings, live: Settings, password: str) -> Settings:
        """`base` with nothing left of it that leads out of the sandbox: its processes run with these.

        They log in as the sandbox, which may not write elsewhere. Prefix, database and role are held against each other
        whenever settings are loaded.
        """
        folder = self.folder(live)
        return Settings(
            **{
                **dict(base),
                "environment": live.environment,
                "topics_directory": base.topics_directory.absolute(),  # its processes run in the folder of their code
                "region": live.region,
                "mirrored_regions": (),  # mirrors are copied into the topic that they mirror
                "kafka": self.kafka(live, password),
                "postgres": PostgresSettings(
                    dsn=SecretStr(
                        make_conninfo(
                            live.postgres.dsn.get_secret_value(), user=self.owner, password=password,
                            application_name=self.owner,
                        )
                    )
                ),
                "clickhouse": live.clickhouse.model_copy(
                    update={
                        "user": live.replay.clickhouse_user,
                        "password": live.replay.clickhouse_password,
                        "database": self.owner,
                    }
                ),
                "registry": live.registry,
                "replay": ReplaySettings(),  # it makes no sandboxes
                "spool": live.spool.model_copy(update={"directory": folder / "spool"}),
                "local": live.local.model_copy(update={"home": folder / "home"}),
            }
        )  # fmt: skip

    def kafka(self, live: Settings, password: str) -> KafkaSettings:
        """Where it logs in as itself; where replay.kafka_servers is empty, as whoever `kafka` says."""
        known: dict[str, object] = {"prefix": self.prefix}
        if live.replay.kafka_servers:
            tls = live.kafka.security_protocol.endswith("SSL")
            known |= {
                "bootstrap_servers": live.replay.kafka_servers,
                "security_protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT",
                "sasl_mechanism": "SCRAM-SHA-512",
                "sasl_username": self.owner,
                "sasl_password": SecretStr(password),
            }
        return KafkaSettings(**{**dict(live.kafka), **known})
