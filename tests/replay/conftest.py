import pathlib
import time
import uuid
from collections.abc import Iterator

import psycopg
import pytest

from pipeline import migrations, topics
from pipeline.clickhouse import connect
from pipeline.settings import ClickHouseSettings, KafkaSettings, PostgresSettings, RegistrySettings, Settings
from tests.agents.test_registered import register
from tests.audit.conftest import remove_topics
from tests.conftest import free_ports
from tests.registry.served import serving
from tests.replay.world import World


@pytest.fixture(scope="module")
def world(
    kafka: str, postgres: str, clickhouse: str, session_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Live topics and stores of this module's own, with records of every signal in them."""
    name = f"world_{uuid.uuid4().hex}"
    remove_topics(kafka)
    home: pathlib.Path = tmp_path_factory.mktemp("replay")
    live = Settings(
        kafka=KafkaSettings(bootstrap_servers=kafka),
        postgres=PostgresSettings(dsn=psycopg.conninfo.make_conninfo(postgres, dbname=name)),
        clickhouse=ClickHouseSettings(url=clickhouse, database=name),
        registry=RegistrySettings(port=free_ports(1)[0]),
        # The machine is busy with other tests, and a sandbox that stands far back would wait for their end.
        replay=session_settings.replay.model_copy(update={"directory": home / "replay", "nice": 1}),
    )
    admin = connect(ClickHouseSettings(url=clickhouse))
    admin.command(f"CREATE DATABASE {name}")
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        topics.apply_all(live)
        migrations.up_all(live)
        made = World(live, home)
        made.fill(time.time_ns())
        with serving(live.postgres, live.registry) as registry:
            register(registry, made.table)
            yield made
        made.close()
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    admin.command(f"DROP DATABASE {name} SYNC")
    admin.close()
    remove_topics(kafka)
