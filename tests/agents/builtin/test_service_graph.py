"""service_graph into PostgreSQL: edges and the blast radius of a service."""

import io
import random
from collections.abc import Iterator

import fastavro
import psycopg
import pytest

from pipeline import migrations
from pipeline.agents import Span
from pipeline.settings import Settings
from pipeline.timescale.events import EventStore
from tests.agents.builtin.run import Here, of_records

NOW = 1_795_000_000 * 10**9
ALL = "interval '100 years'"
CALLS = [
    ("web", "shop"), ("web", "shop"), ("shop", "payments"), ("shop", "stock"), ("stock", "shop"), ("batch", "payments"),
]  # fmt: skip


@pytest.fixture
def database(settings: Settings) -> Iterator[psycopg.Connection]:
    migrations.up_all(settings)
    with psycopg.connect(settings.postgres.dsn.get_secret_value(), autocommit=True) as connection:
        yield connection


def ends(rng: random.Random, client: str, server: str) -> list[Span]:
    called = Span(
        service=client, kind=3, trace_id=rng.randbytes(16), span_id=rng.randbytes(8), start_time=NOW, end_time=NOW
    )
    answered = called.replace(service=server, kind=2, span_id=rng.randbytes(8), parent_span_id=called.span_id)
    return [called, answered.replace(status_code=2) if server == "payments" else answered]


def test_edges_count_every_call_once_and_tell_who_is_hit(database: psycopg.Connection, settings: Settings) -> None:
    """Ends that come apart, twice and in any order are one call; what calls in a circle is hit once."""
    rng = random.Random(3)
    spans = [end for client, server in CALLS for end in ends(rng, client, server)]
    spans.append(spans[0].replace(service="payments", span_id=b"d" * 8, attributes={"db.system": "postgresql"}))
    [output] = Here("service_graph").transform(of_records(*spans)).outputs
    assert output.records == len(list(fastavro.reader(io.BytesIO(output.value)))) == 13
    store = EventStore(settings.postgres)
    store.store(output.value)
    store.store(output.value)
    edges = database.execute(
        f"SELECT client, server, calls, failures FROM service_edges({ALL}) ORDER BY 1, 2".encode()
    ).fetchall()
    assert edges == [
        ("batch", "payments", 1, 1), ("payments", "postgresql", 1, 0), ("shop", "payments", 1, 1), ("shop", "stock", 1, 0),
        ("stock", "shop", 1, 0), ("web", "shop", 2, 0),
    ]  # fmt: skip
    hit = database.execute(
        f"SELECT service, distance FROM blast_radius('payments', {ALL}) ORDER BY 2, 1".encode()
    ).fetchall()
    assert hit == [("batch", 1), ("shop", 1), ("stock", 2), ("web", 2)]
    assert database.execute(f"SELECT * FROM blast_radius('web', {ALL})".encode()).fetchall() == []


def test_what_is_no_number_of_calls_fails_no_query(database: psycopg.Connection) -> None:
    """Anybody may send an event of that name: one that counts no calls is none, and numbers as the agent writes them
    are counted."""
    wrong = ["many", "", "NaN", "Infinity", "-1", "1e999", "9" * 400, "1e", "1.", "1\n", "\u0663", None]
    good = ["1", "2.5", "3.333333333", "1e+06", "7.205759404e+16"]
    for number, calls in enumerate([*wrong, *good]):
        database.execute(
            """
            INSERT INTO events VALUES (now(), gen_random_uuid(), '', '', %s, '', 0, '', 'service_graph.client', '',
                jsonb_strip_nulls(jsonb_build_object('peer', 'db', 'calls', %s::text)), '{}', %s, 'span', now())
            """,
            (f"client-{number - len(wrong)}", calls, f"{number:032x}"),
        )
    found = database.execute("SELECT client, calls FROM service_edges() ORDER BY 1").fetchall()
    assert found == [(f"client-{number}", float(calls)) for number, calls in enumerate(good)]
