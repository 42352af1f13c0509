"""Databases in the real servers, plain PostgreSQL and TimescaleDB in turn."""

from collections.abc import Iterator

import psycopg
import pytest

from pipeline import migrations
from pipeline.settings import ClickHouseSettings, PostgresSettings, Settings
from pipeline.timescale import connection


@pytest.fixture(params=["postgres", "timescale"])
def metrics_database(
    request: pytest.FixtureRequest, clickhouse_settings: ClickHouseSettings
) -> Iterator[psycopg.Connection]:
    """A migrated PostgreSQL, plain and TimescaleDB in turn; the latter is shared, so tests use series of their own."""
    if request.param == "postgres":
        part = request.getfixturevalue("postgres_settings")
    else:
        part = PostgresSettings(dsn=request.getfixturevalue("timescale"))
    migrations.up_all(Settings(postgres=part, clickhouse=clickhouse_settings))
    with connection.connect(part) as connected:
        yield connected
