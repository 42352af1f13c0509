import uuid
from collections.abc import Iterator

import psycopg
import pytest

from pipeline.settings import PostgresSettings
from pipeline.timescale.connection import connect
from tests.timescale.conftest import migrated


@pytest.fixture(scope="module")
def plain(postgres: str) -> Iterator[PostgresSettings]:
    """A migrated plain PostgreSQL of this module's own."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        yield migrated(psycopg.conninfo.make_conninfo(postgres, dbname=name))
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="module")
def plain_database(plain: PostgresSettings) -> Iterator[psycopg.Connection]:
    with connect(plain) as connection:
        yield connection


@pytest.fixture(scope="module")
def timescale_database(timescale: str) -> Iterator[psycopg.Connection]:
    """A migrated TimescaleDB of this module's own."""
    with connect(migrated(timescale)) as connection:
        connection.prepare_threshold = None
        yield connection
