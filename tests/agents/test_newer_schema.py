"""A gateway of the next release writes before the writers are upgraded."""

import io
import pathlib
import shutil

import fastavro
import psycopg

from pipeline import clickhouse, schemas
from pipeline.delivery import Message
from pipeline.dlq import Letters
from pipeline.record import container, schema
from pipeline.settings import ROOT, Settings
from tests.agents.process import Process, send, until
from tests.contract.test_stores import gauges, new_service, one
from tests.otlp.requests import T0
from tests.schemas.evolution import Avro, changed, directory, with_zone, written

NEWER = changed("metric_point", with_zone)


def older(value: float) -> Message:
    return one("metrics", gauges(new_service(), ("m", T0, value)))._replace(partition=0)


def newer(value: float) -> Message:
    message = older(value)
    [record] = fastavro.reader(io.BytesIO(message.value))
    assert isinstance(record, dict)
    headers = {**message.headers, "schema": b"metric_point/2"}
    return message._replace(
        headers=headers, value=container.value(_head(NEWER), [written(NEWER, record | {"zone": "z"})])
    )


def _head(avro: Avro) -> bytes:
    head = io.BytesIO()
    parsed = fastavro.parse_schema(schema.without_docs(avro))
    fastavro.writer(head, parsed, [], codec="null", sync_marker=container.SYNC, metadata={})
    return head.getvalue()


def next_release(where: pathlib.Path) -> pathlib.Path:
    """Our code, beside schemas of which one has a version more."""
    shutil.copytree(ROOT / "pipeline", where / "pipeline")
    at = directory(where / "schemas", metric_point_v2=NEWER)
    schemas.lock(schemas.check(at), at)
    return where


def test_a_newer_schema_waits_in_the_dead_letters_for_the_upgrade(both: list[Process], tmp_path: pathlib.Path) -> None:
    """Both writers park it with that reason and store the older version beside it; after the upgrade `dlq replay` brings
    it into both stores, once, and both versions are taken."""
    world = both[0].settings
    client = clickhouse.connect(world.clickhouse)

    def stored(*values: float) -> bool:
        in_clickhouse = client.query("SELECT value FROM metrics ORDER BY value").result_rows
        return in_clickhouse == in_postgres(world) == [(value,) for value in values]

    send(world, older(1), newer(2), older(3))
    until(lambda: stored(1, 3), "the older version was not stored")
    until(lambda: len(list(Letters(world.kafka).pending())) == len(both), "the newer one was not dead-lettered by both")
    reasons = {each.reason for each in Letters(world.kafka).pending()}
    assert reasons == {
        "The header `schema` says 'metric_point/2'; this writer knows metric_point/1. Schema metric_point/2 is newer than "
        "this writer knows; replay after the upgrade."
    }
    for each in both:
        assert each.stop()[0] == 0

    release = next_release(tmp_path / "release")
    upgraded = [Process(each.name, world, code=release) for each in both]
    try:
        for each in upgraded:
            each.start()
        code, said = upgraded[0].run("dlq replay --topic metrics_raw --reason newer --yes")
        assert code == 0, said
        send(world, older(4), newer(5), older(6))
        until(lambda: stored(1, 2, 3, 4, 5, 6), "not everything was stored after the upgrade")
        assert list(Letters(world.kafka).pending()) == []
        for each in upgraded:
            assert each.stop()[0] == 0
    finally:
        for each in upgraded:
            each.close()


def in_postgres(settings: Settings) -> list[tuple[float]]:
    with psycopg.connect(settings.postgres.dsn.get_secret_value()) as connection:
        return connection.execute("SELECT value FROM metrics ORDER BY value").fetchall()
