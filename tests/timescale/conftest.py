import uuid
from collections.abc import Iterator

import psycopg
import pytest

from pipeline import migrations
from pipeline.settings import PostgresSettings, Settings
from pipeline.timescale.connection import connect


def migrated(dsn: str) -> PostgresSettings:
    part = PostgresSettings(dsn=dsn)
    migrations.up_all(Settings(postgres=part), "postgres")
    return part


@pytest.fixture(scope="module")
def database(postgres: str) -> Iterator[psycopg.Connection]:
    """A migrated plain PostgreSQL of this module's own."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        with connect(migrated(psycopg.conninfo.make_conninfo(postgres, dbname=name))) as connection:
            yield connection
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
