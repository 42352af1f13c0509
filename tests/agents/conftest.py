from collections.abc import Iterator

import pytest

from pipeline import migrations, topics
from pipeline.settings import KafkaSettings, PostgresSettings, Settings, WriterSettings
from tests.agents.process import Process
from tests.audit.conftest import remove_topics
from tests.conftest import free_ports

BOTH = ("ch_writer", "pg_writer")


@pytest.fixture
def writer(kafka: str, postgres_settings: PostgresSettings) -> Iterator[Process]:
    """A pg_writer that does not run yet, at empty topics and tables."""
    remove_topics(kafka)
    [port] = free_ports(1)
    settings = Settings(
        kafka=KafkaSettings(bootstrap_servers=kafka),
        postgres=postgres_settings,
        pg_writer=WriterSettings(health_port=port, batch_bytes=1 << 20, dead_letters_burst=3, dead_letters_per_min=1),
    )
    topics.apply_all(settings)
    migrations.up_all(settings, "postgres")
    made = Process("pg_writer", settings)
    yield made
    made.close()
    remove_topics(kafka)


@pytest.fixture
def both(kafka: str, settings: Settings) -> Iterator[list[Process]]:
    """Both writers, running, at empty topics and tables."""
    remove_topics(kafka)
    own = {
        name: WriterSettings(health_port=port, batch_bytes=1 << 24)
        for name, port in zip(BOTH, free_ports(len(BOTH)), strict=True)
    }
    world = settings.model_copy(update={"kafka": KafkaSettings(bootstrap_servers=kafka), **own})
    topics.apply_all(world)
    migrations.up_all(world)
    made = [Process(name, world) for name in BOTH]
    for each in made:
        each.start()
    yield made
    for each in made:
        each.close()
    remove_topics(kafka)
