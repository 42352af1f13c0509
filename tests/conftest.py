"""Real parts for tests: Kafka, PostgreSQL, ClickHouse and TimescaleDB on free ports, and the whole stack.

With CI set a part that cannot start fails its tests; elsewhere they skip and say what brings it.
"""

import itertools
import os
import pathlib
import random
import signal
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from clickhouse_connect.driver.client import Client

from pipeline import clickhouse as clickhouse_door
from pipeline import migrations
from pipeline.errors import PipelineError
from pipeline.local import Stack
from pipeline.settings import (
    ClickHouseSettings,
    GatewaySettings,
    KafkaSettings,
    LocalSettings,
    PostgresSettings,
    RegistrySettings,
    ReplaySettings,
    Settings,
    SpoolSettings,
)
from tests.parts import timescale as timescale_part

# Below those that the kernel gives to clients; no two of the workers that share the tests have one in common.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = range(20_000 + 2 * WORKER, 32_000, 2 * WORKERS)
SHUFFLED = itertools.cycle(random.SystemRandom().sample(PORTS, len(PORTS)))


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: what was started is stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take longest comes first, by files: the last ones to be given out are short."""
    allowed: dict[pathlib.Path, float] = {}
    for item in items:
        timeout = item.get_closest_marker("timeout")
        allowed[item.path] = max(allowed.get(item.path, 0.0), timeout.args[0] if timeout else 0.0)
    items.sort(key=lambda item: -allowed[item.path])


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago, each followed by a free one; no client is given one of them, and
    nobody here the same again while there are others: what is to listen on it may not have begun, or be away."""
    found: list[int] = []
    for port in itertools.islice(SHUFFLED, len(PORTS)):
        with socket.socket() as probe, socket.socket() as next_probe:
            try:
                probe.bind(("127.0.0.1", port))
                next_probe.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            break
    return found


def settings_on_free_ports(home: pathlib.Path) -> Settings:
    """Settings of a stack of its own below `home`; what was fetched is shared."""
    kafka, sandboxes, postgres, clickhouse, http, grpc, registry, pg_health, ch_health = free_ports(9)
    defaults = Settings()
    return Settings(
        kafka=KafkaSettings(bootstrap_servers=f"127.0.0.1:{kafka}"),
        postgres=PostgresSettings(dsn=f"host=127.0.0.1 port={postgres} user=pipeline dbname=pipeline"),
        clickhouse=ClickHouseSettings(url=f"http://127.0.0.1:{clickhouse}"),
        registry=RegistrySettings(port=registry),
        replay=ReplaySettings(directory=home / "replay", kafka_servers=f"127.0.0.1:{sandboxes}"),
        gateway=GatewaySettings(http_port=http, grpc_port=grpc),
        spool=SpoolSettings(directory=home / "spool", min_free_bytes=0),
        pg_writer=defaults.pg_writer.model_copy(update={"health_port": pg_health}),
        ch_writer=defaults.ch_writer.model_copy(update={"health_port": ch_health}),
        local=LocalSettings(home=home),
    )


@contextmanager
def part(start: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """Start, and stop in any case; a part that cannot start fails in CI and skips elsewhere."""
    try:
        try:
            start()
        except PipelineError as error:
            if os.environ.get("CI"):
                pytest.fail(str(error), pytrace=False)
            pytest.skip(str(error))
        yield
    finally:
        stop()


@pytest.fixture(scope="session")
def session_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_on_free_ports(tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="session")
def stack(session_settings: Settings) -> Iterator[Stack]:
    """A stack of which nothing runs yet; everything is stopped and removed at the end."""
    own = Stack(session_settings, print)
    yield own
    own.wipe()


@pytest.fixture(scope="session")
def kafka(stack: Stack, session_settings: Settings) -> Iterator[str]:
    """Bootstrap servers of a real broker, without topics."""
    with part(lambda: stack.start(["kafka"]), lambda: None):
        yield session_settings.kafka.bootstrap_servers


@pytest.fixture(scope="session")
def postgres(stack: Stack, session_settings: Settings) -> Iterator[str]:
    """DSN of a real PostgreSQL's own database; use `postgres_settings` for an empty one."""
    with part(lambda: stack.start(["postgres"]), lambda: None):
        yield session_settings.postgres.dsn.get_secret_value()


@pytest.fixture(scope="session")
def clickhouse(stack: Stack, session_settings: Settings) -> Iterator[str]:
    """URL of a real ClickHouse; use `clickhouse_settings` for an empty database."""
    with part(lambda: stack.start(["clickhouse"]), lambda: None):
        yield session_settings.clickhouse.url


@pytest.fixture(scope="module")
def timescale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """DSN of a real TimescaleDB with one backend; the tests of a module share it, so they use series of their own."""
    [port] = free_ports(1)
    server = timescale_part.Server(tmp_path_factory.mktemp("timescale"), port)
    with part(server.start, server.stop):
        yield server.dsn


@pytest.fixture
def postgres_settings(postgres: str) -> Iterator[PostgresSettings]:
    """An empty database of a plain PostgreSQL."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield PostgresSettings(dsn=psycopg.conninfo.make_conninfo(postgres, dbname=name))
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def clickhouse_settings(clickhouse: str) -> Iterator[ClickHouseSettings]:
    """An empty database of a ClickHouse server."""
    name = f"test_{uuid.uuid4().hex}"
    admin = clickhouse_door.connect(ClickHouseSettings(url=clickhouse))
    admin.command(f"CREATE DATABASE {name}")
    yield ClickHouseSettings(url=clickhouse, database=name)
    admin.command(f"DROP DATABASE {name} SYNC")
    admin.close()


@pytest.fixture
def settings(postgres_settings: PostgresSettings, clickhouse_settings: ClickHouseSettings) -> Settings:
    """Two empty stores, PostgreSQL the plain one."""
    return Settings(postgres=postgres_settings, clickhouse=clickhouse_settings)


@pytest.fixture
def store(settings: Settings) -> Iterator[Client]:
    """A migrated ClickHouse."""
    migrations.up_all(settings)
    client = clickhouse_door.connect(settings.clickhouse)
    yield client
    client.close()
