"""Both writers as processes, and the registered tables that come while they run."""

import contextlib
import json
from collections.abc import Iterator

import psycopg
import pytest

from pipeline import clickhouse, migrations, topics
from pipeline.audit import audit
from pipeline.settings import KafkaSettings, RegistrySettings, Settings, WriterSettings
from pipeline.tables.model import Table
from tests.agents.conftest import BOTH
from tests.agents.process import Process, send, until
from tests.audit.conftest import remove_topics
from tests.conftest import free_ports
from tests.contract.registered import declared, evolved, message, record
from tests.registry.served import Registry, serving

ADDED = {"name": "added", "type": "string", "default": "-"}


@pytest.fixture
def writers(kafka: str, settings: Settings) -> Iterator[list[Process]]:
    """Both, running, at empty topics and tables; there is no registry yet."""
    remove_topics(kafka)
    *ports, registry = free_ports(3)
    own = {name: WriterSettings(health_port=port, batch_bytes=1 << 24) for name, port in zip(BOTH, ports, strict=True)}
    world = settings.model_copy(
        update={
            "kafka": KafkaSettings(bootstrap_servers=kafka),
            "registry": RegistrySettings(port=registry, refresh_s=0.5),
            **own,
        }
    )
    topics.apply_all(world)
    migrations.up_all(world)
    made = [Process(name, world) for name in BOTH]
    for each in made:
        each.start()
    yield made
    for each in made:
        each.close()
    remove_topics(kafka)


def register(registry: Registry, table: Table) -> None:
    document = table.as_json()
    registry.register({key: document[key] for key in ("name", "schema", "stores", "retention_days", "owner")})


Seen = list[tuple[object, ...]]


def seen(settings: Settings, table: str, columns: str = "n") -> tuple[Seen, Seen]:
    """What readers of PostgreSQL and of ClickHouse see; nothing where the table or a column is not there yet."""
    query = f"SELECT {columns} FROM {table} ORDER BY n"
    rows: Seen = []
    found: Seen = []
    client = clickhouse.connect(settings.clickhouse)
    with contextlib.suppress(psycopg.Error), psycopg.connect(settings.postgres.dsn.get_secret_value()) as connection:
        rows = connection.execute(query.encode()).fetchall()
    with contextlib.suppress(clickhouse.Error):
        found = [tuple(row) for row in client.query(query).result_rows]
    client.close()
    return rows, found


@pytest.mark.timeout(240)
def test_tables_and_versions_come_while_writers_run(writers: list[Process]) -> None:
    """Rows wait while nobody can say whether their table exists; then they are stored, later versions too, without a
    restart. A table that the registry does not know goes to the dead letters by that reason, and is stored once it is
    registered and replayed. The audit has every table, `tail` and `dlq show` read its rows."""
    settings = writers[0].settings
    table, unknown = declared("deployments", {"n": "long"}), declared("forgotten", {"n": "long"})
    send(settings, message(table, {"n": 1}, {"n": 2}))
    with serving(settings.postgres, settings.registry) as empty:
        register(empty, table)
    with serving(settings.postgres, settings.registry) as registry:
        until(lambda: seen(settings, "deployments") == ([(1,), (2,)],) * 2, "rows of the first version are stored")
        second = evolved(table, ADDED)
        registry.evolve(
            "deployments", 1, schema=record("deployments", {"n": "long"}) | {"fields": second.avro["fields"]}
        )
        send(settings, message(second, {"n": 3, "added": "yes"}), message(unknown, {"n": 7}), message(table, {"n": 4}))
        expected = [(1, "-"), (2, "-"), (3, "yes"), (4, "-")]
        until(lambda: seen(settings, "deployments", "n, added") == (expected,) * 2, "rows of both versions are stored")

        def letters() -> list[dict[str, object]]:
            found: list[dict[str, object]] = json.loads(writers[0].run("dlq list --json")[1])
            return found

        until(lambda: len(letters()) == 2, "both writers dead-lettered the unknown table")
        assert all("There is no table 'forgotten'" in str(letter["reason"]) for letter in letters())
        code, told = writers[0].run(f"dlq show {letters()[0]['example']} --json")
        assert (code, json.loads(told)["records"][0]["n"]) == (0, 7)
        code, told = writers[0].run("topics tail events_raw --last 1d --json")
        assert [json.loads(line)["record"]["n"] for line in told.splitlines()] == [1, 2, 3, 7, 4]
        register(registry, unknown)
        assert writers[0].run("dlq replay --topic events_raw --yes")[0] == 0
        until(lambda: seen(settings, "forgotten") == ([(7,)],) * 2, "the replayed row is stored")
        registry.retire("forgotten", 1)
        send(settings, message(unknown, {"n": 8}))
        until(lambda: seen(settings, "forgotten") == ([(7,), (8,)],) * 2, "what a retired table still has is stored")
    report = audit(settings, signals=["events"])
    assert report.clean, report.as_dict()
    assert {part: sorted(about.stores) for part, about in report.signals.items()} == {
        "events": [], "events/deployments": ["clickhouse", "postgres"], "events/forgotten": ["clickhouse", "postgres"],
    }  # fmt: skip
    for each in writers:
        each.child.terminate()
        assert each.ended()[0] == 0
