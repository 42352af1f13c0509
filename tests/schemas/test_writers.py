"""Two versions of a schema in one stream, through the real writers."""

import io
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import fastavro
import pytest

from pipeline import clickhouse, migrations, schemas
from pipeline.agents.batch import known
from pipeline.agents.ch_writer import ClickHouseWriter
from pipeline.agents.pg_writer import STORES, PostgresWriter, Stored
from pipeline.delivery import Message
from pipeline.record import container, schema
from pipeline.record.schema import SIGNALS, Signal
from pipeline.settings import PostgresSettings, Settings
from pipeline.timescale import connection
from tests.contract.test_stores import encoded, messages
from tests.otlp import requests
from tests.schemas.evolution import changed, directory, with_zone, written

REQUESTS: dict[Signal, Any] = {"logs": requests.logs, "metrics": requests.metrics, "traces": requests.traces}
TABLES: dict[Signal, tuple[str, str]] = {
    "logs": ("logs_in", "logs_events"), "metrics": ("metrics_points_in", "metrics_points"), "traces": ("spans_in", "spans"),
}  # fmt: skip
OTLP: dict[Signal, str] = {"logs": "logs", "metrics": "metrics", "traces": "spans"}
VERSIONS = ("1", "2")


@pytest.fixture
def two_versions(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every record has a lawful, locked version 2, which our gateway does not write yet."""
    records = [schema.CURRENT[signal].split("/")[0] for signal in SIGNALS]
    where = directory(tmp_path, **{f"{record}_v2": changed(record, with_zone) for record in records})
    schemas.lock(schemas.check(where), where)
    monkeypatch.setattr(schema, "DIRECTORY", where)
    schema.load.cache_clear()
    known.cache_clear()
    yield
    schema.load.cache_clear()
    known.cache_clear()


def stream(signal: Signal, stage: str) -> tuple[list[Message], dict[str, set[bytes]]]:
    """One message a version, each of a service of its own, and their event_ids by service."""
    batch, ids = [], {}
    for version in VERSIONS:
        one = schema.load(f"{schema.CURRENT[signal].split('/')[0]}/{version}")
        request = REQUESTS[signal]()
        service = f"{stage}-{version}"
        getattr(request, f"resource_{OTLP[signal]}")[0].resource.attributes[0].value.string_value = service
        [message] = messages(signal, encoded(signal, request))
        records: list[Any] = list(fastavro.reader(io.BytesIO(message.value)))
        value = container.value(one.head, [written(one.avro, record | {"zone": "z"}) for record in records])
        batch.append(message._replace(headers=message.headers | {"schema": one.name.encode()}, value=value))
        ids[service] = {record["event_id"] for record in records}
    return batch, ids


def by_service(rows: Iterable[Sequence[Any]]) -> dict[str, set[bytes]]:
    found: dict[str, set[bytes]] = defaultdict(set)
    for service, event_id in rows:
        found[service].add(event_id)
    return dict(found)


@pytest.mark.usefixtures("two_versions")
@pytest.mark.parametrize("signal", SIGNALS)
def test_clickhouse_takes_every_locked_version(settings: Settings, signal: Signal) -> None:
    """Both versions are kept whole, before a migration brings the new column and after it."""
    migrations.up_all(settings)
    writer = ClickHouseWriter(settings.clickhouse, signal)
    table_in, table = TABLES[signal]
    expected: dict[str, set[bytes]] = {}
    with closing(clickhouse.connect(settings.clickhouse)) as client:
        for stage in ("before", "after"):
            batch, ids = stream(signal, stage)
            assert writer.write(batch) == sum(map(len, ids.values()))
            expected |= ids
            assert by_service(client.query(f"SELECT service, event_id FROM {table}").result_rows) == expected
            client.command(f"ALTER TABLE {table_in} ADD COLUMN IF NOT EXISTS zone String DEFAULT 'old'")


@pytest.mark.usefixtures("two_versions")
@pytest.mark.parametrize("signal", STORES)
def test_postgres_takes_every_locked_version(postgres_settings: PostgresSettings, signal: Stored) -> None:
    """Both versions become the same rows."""
    settings = Settings(postgres=postgres_settings)
    migrations.up_all(settings, "postgres")
    batch, ids = stream(signal, "now")
    assert PostgresWriter(postgres_settings, signal).write(batch) == sum(map(len, ids.values()))
    query = {
        "logs": "SELECT service, count(*) FROM events GROUP BY 1 ORDER BY 1",
        "metrics": "SELECT service, count(*) FROM metrics GROUP BY 1 ORDER BY 1",
    }[signal]
    with connection.connect(postgres_settings) as connected:
        (one, rows), (two, same) = connected.execute(query.encode()).fetchall()
    assert ([one, two], rows) == (list(ids), same)
