"""A registry over an empty table_registry, for a module or a test."""

import uuid
from collections.abc import Iterator

import psycopg
import pytest

from pipeline import migrations
from pipeline.settings import PostgresSettings, Settings
from tests.registry.served import Registry, serving


@pytest.fixture(scope="module")
def database(postgres: str) -> Iterator[PostgresSettings]:
    """A plain PostgreSQL with our tables."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        settings = PostgresSettings(dsn=psycopg.conninfo.make_conninfo(postgres, dbname=name))
        migrations.up_all(Settings(postgres=settings), only="postgres")
        yield settings
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def registry(database: PostgresSettings) -> Iterator[Registry]:
    with psycopg.connect(database.dsn.get_secret_value(), autocommit=True) as connection:
        connection.execute("TRUNCATE table_registry")
    with serving(database) as served:
        yield served
