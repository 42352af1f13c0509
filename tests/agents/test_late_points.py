"""Late points into compressed chunks are stored, never dead-lettered."""

import asyncio

import psycopg
import pytest

from pipeline import migrations
from pipeline.agents.pg_writer import PostgresWriter
from pipeline.delivery import Delivery, Message
from pipeline.errors import Rejected
from pipeline.settings import PostgresSettings, Settings
from pipeline.timescale.connection import connect
from tests.contract.test_stores import gauges, new_service, one
from tests.otlp.requests import T0

LIMIT = "timescaledb.max_tuples_decompressed_per_dml_transaction"
# What TimescaleDB does, in a server that has none.
TRIGGER = f"""
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF current_setting('{LIMIT}', true) IS DISTINCT FROM '0' THEN
            RAISE 'tuple decompression limit exceeded by operation' USING ERRCODE = '53400';
        END IF;
        RETURN new;
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON metrics_points FOR EACH ROW EXECUTE FUNCTION refuse()
"""


class NoDeadLetters:
    async def put(self, message: Message, reason: Rejected) -> None:
        raise AssertionError(f"dead-lettered: {reason}")


def migrated(dsn: str) -> PostgresSettings:
    part = PostgresSettings(dsn=dsn)
    migrations.up_all(Settings(postgres=part), "postgres")
    return part


def points(service: str, count: int, value: float, *, received: int) -> list[Message]:
    request = gauges(service, *(("m", T0 + n * 10**9, value) for n in range(count)))
    return [one("metrics", request, received=received)]


def deliver(writer: PostgresWriter, batch: list[Message]) -> None:
    asyncio.run(Delivery(writer, NoDeadLetters()).deliver(batch))


def held(connection: psycopg.Connection, service: str) -> list[tuple[float, int]]:
    query = """SELECT value, count(*) FROM metrics_points JOIN metric_series USING (series_id)
               WHERE service = %s GROUP BY value ORDER BY value"""
    return [(value, count) for value, count in connection.execute(query, (service,))]


def test_a_batch_over_the_limit_is_stored_with_the_limit_lifted(postgres_settings: PostgresSettings) -> None:
    """By both roads, and the limit is back for what comes next."""
    part = migrated(postgres_settings.dsn.get_secret_value())
    with connect(part) as admin:
        admin.execute(TRIGGER.encode())
        writer, service = PostgresWriter(part, "metrics"), new_service()
        for value, received in ((1.0, T0), (2.0, T0 + 10**9)):
            deliver(writer, points(service, 5, value, received=received))
            assert held(admin, service) == [(value, 5)]
        assert writer._store.session.connection is not None
        assert writer._store.session.connection.execute(
            f"SELECT current_setting('{LIMIT}', true)".encode()
        ).fetchone() != ("0",)
        writer._store.session.close()


@pytest.fixture
def compressed(timescale: str) -> PostgresSettings:
    return migrated(timescale)


def test_late_points_land_in_a_compressed_chunk(compressed: PostgresSettings) -> None:
    """On TimescaleDB itself: new and replaced points of a compressed chunk, with a limit that they exceed."""
    service = new_service()
    writer = PostgresWriter(compressed, "metrics")
    writer._store.session.connection = connect(compressed)
    writer._store.session.connection.prepare_threshold = None  # this server loses some
    with connect(compressed) as admin:
        admin.prepare_threshold = None
        deliver(writer, points(service, 50, 1.0, received=T0))
        try:
            admin.execute(
                "ALTER TABLE metrics_points SET (timescaledb.compress, timescaledb.compress_segmentby = 'series_id')"
            )
            admin.execute("SELECT compress_chunk(chunk) FROM show_chunks('metrics_points') AS chunk")
        except psycopg.errors.FeatureNotSupported as error:
            pytest.skip(f"this TimescaleDB does not compress: {error}")
        writer._store.session.connection.execute(f"SET {LIMIT} = 10".encode())
        deliver(writer, points(service, 60, 2.0, received=T0 + 10**9))
        assert held(admin, service) == [(2.0, 60)]
        writer._store.session.close()
