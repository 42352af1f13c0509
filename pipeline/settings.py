"""Settings: defaults fit the local stack; a TOML file and the environment override them.

Order, strongest first: environment (`PIPELINE_KAFKA__BOOTSTRAP_SERVERS=…`), the file named by `PIPELINE_SETTINGS`
(TOML, same names), defaults. An unknown key in either is an error, and all problems are reported at once.
Units are in the names.
"""

import os
import pathlib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from pipeline.errors import Misconfigured

ROOT = pathlib.Path(__file__).resolve().parents[1]  # schemas/, topics/, migrations/ and deploy/ live beside the package
PREFIX = "PIPELINE_"
MIB = 1024 * 1024
FILE_VARIABLE = "PIPELINE_SETTINGS"

Port = Annotated[int, Field(ge=1, le=65535)]
Alias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]  # a dot would break MirrorMaker's topic names
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(Part):
    """The region's own cluster."""

    bootstrap_servers: str = "127.0.0.1:9092"


class PostgresSettings(Part):
    dsn: SecretStr = SecretStr("host=127.0.0.1 port=15432 user=pipeline dbname=pipeline")


class ClickHouseSettings(Part):
    url: str = "http://127.0.0.1:8123"
    user: str = "default"
    password: SecretStr = SecretStr("")
    database: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")] = "default"


class GatewaySettings(Part):
    """The OTLP front door."""

    host: str = "127.0.0.1"
    http_port: Port = 4318
    grpc_port: Port = 4317
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    max_body_bytes: Positive = 16 * MIB  # as received
    max_decoded_bytes: Positive = 64 * MIB  # after decompression
    acknowledge_within_s: Seconds = 8.0  # Kafka's budget; exporters give up after 10 s
    retry_after_s: Seconds = 5.0  # what a client that must come again is told, jittered; exporters try six times


class WriterSettings(Part):
    """A writer; worker n serves /livez, /readyz and /metrics on loopback at `health_port` + n."""

    health_port: Port
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    batch_messages: Positive = 100
    batch_bytes: Positive  # of one store transaction, one message at least
    batch_within_s: Seconds = 0.25


class LocalSettings(Part):
    """The stack on this machine; it listens where the other settings point."""

    home: pathlib.Path = ROOT / ".local"  # data, logs, pid files
    parts: pathlib.Path = ROOT / ".local" / "parts"  # what was fetched, shared by all homes


class Settings(BaseSettings):
    """Everything that can be set. Immutable; pass the part that is needed, not the whole."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    region: Alias = "local"
    tenant: Alias = "default"
    kafka: KafkaSettings = KafkaSettings()
    postgres: PostgresSettings = PostgresSettings()
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    gateway: GatewaySettings = GatewaySettings()
    pg_writer: WriterSettings = WriterSettings(health_port=9110, batch_bytes=16 * MIB)  # 40,000 points
    ch_writer: WriterSettings = WriterSettings(health_port=9210, batch_bytes=24 * MIB)  # 50,000 log records
    local: LocalSettings = LocalSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get(FILE_VARIABLE)
        toml = (TomlConfigSettingsSource(settings_cls, pathlib.Path(file)),) if file else ()
        return (init_settings, env_settings, *toml)


def as_environment(settings: Settings) -> dict[str, str]:
    """The variables that make `load` give these settings, in another process."""
    variables = {}
    for name, part in settings:
        for key, value in part if isinstance(part, Part) else [(None, part)]:
            plain = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            variables[PREFIX + (f"{name}__{key}" if key else name).upper()] = plain
    return variables


def _names_something(variable: str) -> bool:
    """Whether there is such a setting, or a part that may have it: what is unknown in a part, its model tells."""
    name, _, below = variable.removeprefix(PREFIX).lower().partition("__")
    field = Settings.model_fields.get(name)
    if field is None:
        return False
    return not below or (isinstance(field.annotation, type) and issubclass(field.annotation, Part))


def load() -> Settings:
    """Read the environment and the settings file; raise Misconfigured with every problem at once."""
    file = os.environ.get(FILE_VARIABLE)
    if file and not pathlib.Path(file).is_file():
        raise Misconfigured(
            f"{FILE_VARIABLE} names {file}, which is not a file: correct the path or unset the variable."
        )
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    problems = [
        f"environment: {variable} is not a setting; known are {', '.join(sorted(known))}."
        for variable in sorted(os.environ)
        if variable.startswith(PREFIX) and variable != FILE_VARIABLE and not _names_something(variable)
    ]
    try:
        settings = Settings()
    except ValidationError as error:
        problems += [f"settings: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
    except ValueError as error:  # TOML syntax
        problems.append(f"settings: {file}: {error}")
    if problems:
        raise Misconfigured(problems)
    return settings
