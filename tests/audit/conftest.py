import time
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient

from pipeline import migrations, topics
from pipeline.settings import KafkaSettings, Settings
from tests.audit.world import World


def remove_topics(servers: str) -> None:
    """The broker is shared with other tests: what they left must not be counted, nor what is left here be found."""
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    names = [name for name in admin.list_topics(timeout=10).topics if not name.startswith("__")]
    for future in admin.delete_topics(names).values() if names else ():
        future.result()
    while any(not name.startswith("__") for name in admin.list_topics(timeout=10).topics):
        time.sleep(0.05)


@pytest.fixture
def world(kafka: str, settings: Settings) -> Iterator[World]:
    """All topics and tables, empty."""
    remove_topics(kafka)
    own = settings.model_copy(update={"kafka": KafkaSettings(bootstrap_servers=kafka)})
    topics.apply_all(own)
    migrations.up_all(own)
    made = World(own)
    yield made
    made.close()
    remove_topics(kafka)
