"""Settings: defaults fit the local stack; a TOML file and the environment override them.

Order, strongest first: environment (`PIPELINE_KAFKA__BOOTSTRAP_SERVERS=…`), the file named by `PIPELINE_SETTINGS`
(TOML, same names), defaults. An unknown key in either is an error, and all problems are reported at once.
Units are in the names.
"""

import ipaddress
import json
import os
import pathlib
import re
from sysconfig import get_path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pipeline.errors import Misconfigured
from pipeline.native import Implementation

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
# Where schemas/, topics/, migrations/ and deploy/local/ are; a wheel brings them along.
ROOT = CHECKOUT if (CHECKOUT / "schemas").is_dir() else pathlib.Path(get_path("data"), "share", "pipeline")
PREFIX = "PIPELINE_"
MIB = 1024 * 1024
GIB = 1024 * MIB
FILE_VARIABLE = "PIPELINE_SETTINGS"
LOOPBACK = "127.0.0.1"


def _showable(address: str) -> str:
    if "@" in address or "?" in address:
        raise ValueError("is shown, and so cannot hold a user, a password or a query: there are settings for secrets")
    return address


def _of_http(address: str) -> str:
    try:
        url = urlsplit(address)
        whole = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # a port, or a bracket
        whole = False
    if not whole:
        raise ValueError("must be an address with its scheme, as http://127.0.0.1:8123")
    return address


Shown = Annotated[str, AfterValidator(_showable)]
Address = Annotated[Shown, AfterValidator(_of_http)]
Port = Annotated[int, Field(ge=1, le=65535)]
Alias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]  # a dot would break MirrorMaker's topic names
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=2_000_000)]  # as milliseconds they fit what Kafka takes
Days = Annotated[int, Field(gt=0, le=36_500)]
Database = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
Environment = Literal["local", "production"]
SANDBOX = r"sandbox_[a-z][a-z0-9]{0,31}"  # no name of production's begins so
# What a variable must hold, by pydantic's name of the problem.
JSON = {
    "tuple_type": 'an array, such as ["a", "b"]',
    "dict_type": 'an object, such as {{"key": …}}',
    "model_type": 'an object, such as {{"key": …}}, or in its place {}__KEY for each key',
}


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(Part):
    """The region's own cluster, and who we are there."""

    bootstrap_servers: str = "127.0.0.1:9092"
    cluster_id: str | None = None  # `pipeline topics` changes no other cluster; needed in production
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str = ""
    sasl_password: SecretStr = SecretStr("")
    ssl_ca_file: pathlib.Path | None = None  # default: the system's
    ssl_certificate_file: pathlib.Path | None = None  # with its key: our own, where brokers ask for one
    ssl_key_file: pathlib.Path | None = None
    prefix: Annotated[str, Field(pattern=rf"^({SANDBOX}_)?$")] = ""  # a sandbox's, set by `pipeline replay`

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError(f"{self.security_protocol} needs sasl_username and sasl_password")
        if (self.ssl_certificate_file is None) != (self.ssl_key_file is None):
            raise ValueError("ssl_certificate_file and ssl_key_file come together")
        return self

    def named(self, name: str) -> str:
        """A topic or group as the cluster knows it: whatever is read or written, in a sandbox it begins so."""
        return name if name.startswith(self.prefix) else self.prefix + name


class PostgresSettings(Part):
    dsn: SecretStr = SecretStr("host=127.0.0.1 port=15432 user=pipeline dbname=pipeline")


class RetentionSettings(Part):
    """What the stores keep, by the records' own time, and in which pieces; `pipeline maintain` applies it.

    Days are UTC days, and only whole pieces are removed.
    """

    # PostgreSQL
    points_days: Days = 30  # metrics_points, histograms of both kinds, summaries
    metrics_1m_days: Days = 90
    metrics_1h_days: Annotated[int, Field(ge=4, le=36_500)] = 400
    metrics_1d_days: Annotated[int, Field(ge=4, le=36_500)] = 3650
    events_days: Days = 30
    chunk_hours: Positive = 24  # TimescaleDB, of chunks to come; without it a partition is a day
    columnstore_after_days: Days = 7  # TimescaleDB: older chunks are compressed
    partitions_ahead_days: Days = 3  # without TimescaleDB

    # ClickHouse
    logs_days: Days = 180
    traces_days: Days = 180
    clickhouse_points_days: Days = 180
    clickhouse_metrics_1m_days: Days = 365
    warm_after_days: Days = 7  # where the server has the storage policy hot_warm_cold
    cold_after_days: Days = 30  # also of metrics_1m, which is never warm

    @model_validator(mode="after")
    def _coarser_stays_longer(self) -> Self:
        if not self.points_days <= self.metrics_1m_days <= self.metrics_1h_days <= self.metrics_1d_days:
            raise ValueError(
                "each is made of the one before, so it must be kept as long: "
                "points_days <= metrics_1m_days <= metrics_1h_days <= metrics_1d_days"
            )
        if not self.clickhouse_points_days <= self.clickhouse_metrics_1m_days:
            raise ValueError("minutes are kept as long as points: clickhouse_points_days <= clickhouse_metrics_1m_days")
        if not self.warm_after_days < self.cold_after_days:
            raise ValueError("rows are warm before they are cold: warm_after_days < cold_after_days")
        return self


class ClickHouseSettings(Part):
    url: Address = "http://127.0.0.1:8123"
    user: str = "default"
    password: SecretStr = SecretStr("")
    database: Database = "default"


class GatewaySettings(Part):
    """The OTLP front door.

    Without `tenants_file` and without `tls_client_ca_file` nobody is asked who they are: then only loopback is served.
    """

    host: str = "127.0.0.1"
    http_port: Port = 4318
    grpc_port: Port = 4317
    workers: Annotated[int, Field(ge=1, le=64)] = 1

    health_port: Port | None = None  # plain HTTP for /livez, /readyz and /metrics; default: they are on http_port

    tenants_file: pathlib.Path | None = None  # tenants, their keys, certificates and rates; read again when it changes
    tls_certificate_file: pathlib.Path | None = None  # PEM; read again when it or its key changes
    tls_key_file: pathlib.Path | None = None
    tls_client_ca_file: pathlib.Path | None = None  # clients must show a certificate that it signed
    cors_origins: tuple[str, ...] = ()  # browsers' pages that may send, "*" for all
    resource_attributes: dict[str, str] = {}  # on every record; a client's own of these names are replaced

    max_body_bytes: Positive = 16 * MIB  # as received
    max_decoded_bytes: Positive = 32 * MIB  # after decompression
    max_records: Positive = 100_000  # of a request
    max_json_values: Positive = 1_000_000  # of a request in JSON: each costs memory, however few bytes it has
    max_encoded_bytes: Positive = 64 * MIB  # of a request's flat records, each with its resource
    max_attributes: Positive = 1024  # of a record, resource or scope
    max_key_bytes: Annotated[int, Field(ge=16)] = 1024  # longer keys are cut
    max_text_bytes: Annotated[int, Field(ge=16)] = 64 * 1024  # longer attribute values are cut
    max_depth: Annotated[int, Field(ge=1, le=64)] = 32  # of nested values
    max_requests: Positive = 1024  # at a time; more are told to come again
    max_in_flight_bytes: Positive = 64 * MIB  # of bodies and unacknowledged messages; more wait before they are read
    max_connection_age_s: Seconds = 600.0  # jittered; then the client is asked to connect anew

    receive_within_s: Seconds = 15.0  # a body
    acknowledge_within_s: Seconds = 5.0  # Kafka's budget, then the spool's turn; exporters give up after 10 s
    unready_for_s: Annotated[float, Field(ge=0)] = 1.0  # at SIGTERM, still serving: load balancers notice
    retry_after_s: Seconds = 5.0  # what a client that must come again is told, jittered; exporters try six times

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file come together")
        if self.tls_client_ca_file and not self.tls_certificate_file:
            raise ValueError("tls_client_ca_file needs tls_certificate_file and tls_key_file")
        return self


class SpoolSettings(Part):
    """Where the gateway keeps accepted records while Kafka is away; the workers share it."""

    directory: pathlib.Path = ROOT / ".local" / "spool"
    max_bytes: Positive = 10 * GIB  # as kept: compressed
    min_free_bytes: Annotated[int, Field(ge=0)] = GIB  # of the disk, which the spool leaves to others
    drain_bytes_per_s: Positive = 16 * MIB  # into Kafka, beside live traffic, before compression


class RegistrySettings(Part):
    """Who knows the registered tables: where it serves, and how others ask it.

    Without `api_key` nobody is asked who they are: then only loopback is served.
    """

    host: str = "127.0.0.1"
    port: Port = 4319
    url: Address | None = None  # where gateway, writers and commands find it; default: host and port
    api_key: SecretStr = SecretStr("")
    refresh_s: Seconds = 5.0  # within this time everybody sees a change; an unknown table is asked for at once
    max_tables: Positive = 500

    @property
    def address(self) -> str:
        return self.url or f"http://{self.host}:{self.port}"


class QuerySettings(Part):
    """Where questions over the stores of several regions are answered.

    Who asks shows a tenant's key of `gateway.tenants_file` and sees that tenant's records; without that file everybody
    sees all, and only loopback is served.
    """

    host: str = "127.0.0.1"
    port: Port = 4320
    within_s: Seconds = 10.0  # a region that takes longer is named as one that did not answer
    max_rows: Positive = 10_000  # of one answer
    max_questions: Positive = 16  # at a time; more are told to come again


class ReplaySettings(Part):
    """Sandboxes: where their plans and logs lie, who they are in Kafka and ClickHouse, and how much they may.

    `kafka_servers` is where a sandbox logs in by SCRAM-SHA-512, as a principal that ACLs keep to its prefix.
    Empty: it is whoever `kafka` says. `clickhouse_user` may write to databases `sandbox_*` and nowhere else.
    """

    directory: pathlib.Path = ROOT / ".local" / "replay"
    kafka_servers: str = "127.0.0.1:9094"
    clickhouse_user: str = "sandbox"
    clickhouse_password: SecretStr = SecretStr("")
    max_records_per_s: Positive = 200_000
    max_bytes: Positive = 100 * GIB  # of one sandbox's messages, compressed
    nice: Annotated[int, Field(ge=0, le=19)] = 10  # of a sandbox's processes
    lifetime_hours: Positive = 72  # then `pipeline maintain` drops it


class WriterSettings(Part):
    """A writer; worker n serves /livez, /readyz and the /metrics of all on loopback at `health_port` + n."""

    health_port: Port
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    batch_records: Positive = 200_000  # of one store transaction, one message at least; and
    batch_bytes: Positive
    batch_within_s: Seconds = 0.25
    dead_letters_burst: Positive = 300  # messages that no store can take, at once; one more stops the process
    dead_letters_per_min: Annotated[float, Field(gt=0)] = 60.0  # that many of the burst come back each minute


class OtlpWriterSettings(WriterSettings):
    """Where to send on what `routes` name; without `endpoint` nothing is."""

    health_port: Port = 9010
    batch_records: Positive = 20_000
    batch_bytes: Positive = 8 * MIB
    endpoint: Shown = ""  # https://otlp.example.com:4318; over HTTP /v1/<signal> is put behind it
    protocol: Literal["http", "grpc"] = "http"
    compression: Literal["gzip", "none"] = "gzip"
    headers: SecretStr = SecretStr("")  # key=value,key=value, as OTEL_EXPORTER_OTLP_HEADERS
    headers_file: pathlib.Path | None = None  # the same in a file, by commas or lines
    ca_file: pathlib.Path | None = None  # default: the system's
    signals: tuple[Literal["logs", "metrics", "traces"], ...] = ("logs", "metrics", "traces")
    timeout_s: Seconds = 30.0
    request_records: Positive = 5000  # of whole messages, one at least; and
    request_bytes: Positive = 2 * MIB  # as they are in Kafka: many servers take 4 MiB


class AgentSettings(WriterSettings):
    """What `[agents.<name>]` may say to the platform, beside the agent's own settings."""

    health_port: Port = 9310  # of the first worker of the first agent under one supervisor
    batch_records: Positive = 20_000
    batch_bytes: Positive = 4 * MIB
    record_within_s: Seconds = 30.0  # for one record; then it is dead-lettered
    memory_bytes: Positive = 512 * MIB  # of the process of the agent's function; over it, a new one is started


class RoutesSettings(Part):
    """The topics that writers store, for each signal; `pipeline agents check` holds them against the agents.

    Never a topic and another one that agents make of it: a store would get two forms of each event.
    """

    logs: tuple[str, ...] = ("logs_raw",)
    metrics: tuple[str, ...] = ("metrics_raw",)
    traces: tuple[str, ...] = ("traces_raw",)

    def of(self, signal: str) -> tuple[str, ...]:
        found: tuple[str, ...] = getattr(self, signal)
        return found


class LocalSettings(Part):
    """The stack on this machine; it listens where the other settings point."""

    home: pathlib.Path = ROOT / ".local"  # data, logs, pid files
    parts: pathlib.Path = ROOT / ".local" / "parts"  # what was fetched, shared by all homes
    mirror_maker_port: Port = 8083  # of a region that others are mirrored into


class _Environment(EnvSettingsSource):
    """What should be JSON and is none stays a text: one problem among others when all is checked."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class Settings(BaseSettings):
    """Everything that can be set. Immutable; pass the part that is needed, not the whole."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    implementation: Implementation = "auto"  # of the hot path: native where it was built, else python
    environment: Environment = "local"  # what topics must hold: topics/environments.yaml
    topics_directory: pathlib.Path = ROOT / "topics"  # a file for each topic
    region: Alias = "local"
    mirrored_regions: tuple[Alias, ...] = ()  # whose topics MirrorMaker brings into our Kafka and our writers store
    topology: pathlib.Path = ROOT / "topics" / "topology.yaml"  # all regions and what is mirrored where
    tenant: Alias = "default"
    kafka: KafkaSettings = KafkaSettings()
    postgres: PostgresSettings = PostgresSettings()
    retention: RetentionSettings = RetentionSettings()
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    registry: RegistrySettings = RegistrySettings()
    query: QuerySettings = QuerySettings()
    gateway: GatewaySettings = GatewaySettings()
    spool: SpoolSettings = SpoolSettings()
    pg_writer: WriterSettings = WriterSettings(health_port=9110, batch_bytes=16 * MIB)  # 40,000 points
    ch_writer: WriterSettings = WriterSettings(health_port=9210, batch_bytes=24 * MIB)  # 50,000 log records
    otlp_writer: OtlpWriterSettings = OtlpWriterSettings()
    replay: ReplaySettings = ReplaySettings()
    routes: RoutesSettings = RoutesSettings()
    agents: dict[str, dict[str, Any]] = {}  # by the agent's name: its own settings, and those of AgentSettings
    local: LocalSettings = LocalSettings()

    @model_validator(mode="after")
    def _a_sandbox_writes_to_itself(self) -> Self:
        sandbox = self.kafka.prefix.removesuffix("_")
        user = re.search(r"(?:^|\s)user=(\S+)", self.postgres.dsn.get_secret_value())
        if sandbox and not (self.clickhouse.database == sandbox and user is not None and user[1] == sandbox):
            raise ValueError(
                f"kafka.prefix is {sandbox}'s: clickhouse.database and the user of postgres.dsn must be too"
            )
        return self

    def here_and_mirrored(self, topic: str) -> tuple[str, ...]:
        """The topic of this region, then what MirrorMaker names those of the others."""
        return topic, *(f"{region}.{topic}" for region in self.mirrored_regions)

    def stored(self, signal: str) -> tuple[str, ...]:
        """Every topic that writers store of a signal."""
        return tuple(name for topic in self.routes.of(signal) for name in self.here_and_mirrored(topic))

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
        return (init_settings, _Environment(settings_cls), *toml)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches who listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def as_environment(settings: Settings) -> dict[str, str]:
    """The variables that make `load` give these settings, in another process."""
    variables = {}
    for name, part in settings:
        for key, value in part if isinstance(part, Part) else [(None, part)]:
            if value is not None:
                variables[PREFIX + (f"{name}__{key}" if key else name).upper()] = _as_text(value)
    return variables


def _as_text(value: object) -> str:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case tuple() | dict():
            return json.dumps(value)
        case _:
            return str(value)


def _names_something(variable: str) -> bool:
    """Whether there is such a setting, or a part that may have it: what is unknown in a part, its model tells."""
    name, _, below = variable.removeprefix(PREFIX).lower().partition("__")
    field = Settings.model_fields.get(name)
    if field is None:
        return False
    return not below or (isinstance(field.annotation, type) and issubclass(field.annotation, Part))


def _sentence(place: tuple[int | str, ...], kind: str, message: str) -> str:
    variable = PREFIX + "__".join(map(str, place)).upper()
    if kind in JSON and variable in map(str.upper, os.environ):
        return f"environment: {variable} must be JSON: {JSON[kind].format(variable)}."
    return f"settings: {'.'.join(map(str, place))}: {message}"


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
        problems += [_sentence(e["loc"], e["type"], e["msg"]) for e in error.errors(include_input=False)]
    except ValueError as error:  # TOML syntax
        problems.append(f"settings: {file}: {error}")
    if problems:
        raise Misconfigured(problems)
    return settings
