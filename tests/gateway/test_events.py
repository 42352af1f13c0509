"""Rows of registered tables over HTTP: who is told what, and what reaches Kafka."""

import gzip
import json
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pipeline.settings import GatewaySettings, PostgresSettings, RegistrySettings
from tests.conftest import free_ports
from tests.gateway.served import JSON, Gateway, serving
from tests.registry import served as registry_served
from tests.registry.served import Registry, lines
from tests.tables import made

NDJSON = {"content-type": "application/x-ndjson"}
ADDED = {"name": "region_name", "type": "string", "default": ""}


def row(n: int = 0, **more: Any) -> dict[str, Any]:
    return {"service": f"s{n}", "version": "1", "deployed_at": "2026-11-20T10:00:00Z", **more}


@pytest.fixture
def gateway(registry: Registry, tmp_path: pathlib.Path) -> Iterator[Gateway]:
    """Its registry has `deployments`, its changes seen after half a minute, or at once where they are asked for."""
    registry.register(made.deployments())
    with serving(tmp_path, registry=registry.settings.model_copy(update={"refresh_s": 30.0})) as served:
        yield served


def post(gateway: Gateway, body: Any, headers: dict[str, str] = JSON, table: str = "deployments") -> httpx.Response:
    return httpx.post(f"{gateway.http}/v1/events/{table}", content=body, headers=headers, timeout=20)


def ids(gateway: Gateway) -> list[bytes]:
    return [record["event_id"] for message in gateway.publisher.published for record in message.records]


def test_rows_reach_the_shared_topic(gateway: Gateway) -> None:
    """Object, array and lines, packed or not, are one message each, whose headers say table, version and times."""
    bodies = [
        (json.dumps(row()).encode(), JSON),
        (json.dumps([row()]).encode(), JSON),
        (lines([row()]) + b"\n", NDJSON),
        (gzip.compress(lines([row()])), NDJSON | {"content-encoding": "gzip"}),
    ]
    for body, headers in bodies:
        answer = post(gateway, body, headers)
        assert (answer.status_code, answer.json()) == (200, {"accepted": 1, "rejected": 0, "problems": []})
    assert len(set(ids(gateway))) == 1
    message = gateway.publisher.published[0]
    at = b"1795168800000000000"
    assert (message.topic, message.headers) == (
        "events_raw",
        {"tenant": b"default", "region": b"local", "signal": b"events", "schema": b"deployments/1", "records": b"1",
         "min_time": at, "max_time": at},
    )  # fmt: skip


def test_bad_rows_are_named_and_their_neighbours_taken(gateway: Gateway) -> None:
    """1,000 rows of which 10 are bad: 990 published once, each bad one told; where all are bad the answer is 400."""
    given = [row(n, replicas="many") if n % 100 == 7 else row(n) for n in range(1000)]
    answer = post(gateway, lines(given), NDJSON)
    document = answer.json()
    assert (answer.status_code, document["accepted"], document["rejected"]) == (200, 990, 10)
    assert [problem["row"] for problem in document["problems"]] == list(range(7, 1000, 100))
    assert document["problems"][0] == {
        "row": 7, "path": "replicas", "expected": "an integer from -2147483648 to 2147483647", "got": '"many"'
    }  # fmt: skip
    assert len(set(ids(gateway))) == 990
    assert post(gateway, json.dumps(row(service=None))).status_code == 400


def test_a_large_body_is_read_aside(gateway: Gateway) -> None:
    """One that would keep the event loop waiting is as good as a small one."""
    answer = post(gateway, lines([row(n) for n in range(20_000)]), NDJSON)
    assert answer.json()["accepted"] == 20_000
    assert len(set(ids(gateway))) == 20_000


def test_what_is_refused_says_why(gateway: Gateway, registry: Registry) -> None:
    """Unknown table 404 with near names, retired 410, no JSON 400, another type 415, too large 413, GET 405."""
    answer = post(gateway, b"{}", table="deployment")
    assert (answer.status_code, "near it are deployments" in answer.json()["error"]) == (404, True)
    assert post(gateway, b"{}", table="a%22;drop%20table").status_code == 404
    answer = post(gateway, b"{")
    assert (answer.status_code, "not JSON" in answer.json()["error"]) == (400, True)
    assert post(gateway, b"{}", {"content-type": "text/plain"}).status_code == 415
    assert post(gateway, b"{}", JSON | {"content-encoding": "br"}).status_code == 415
    assert post(gateway, b" " * (GatewaySettings().max_body_bytes + 1)).status_code == 413
    assert httpx.get(f"{gateway.http}/v1/events/deployments").status_code == 405
    registry.register(made.audit_log())
    registry.retire("audit_log", 1)
    answer = post(gateway, b"{}", table="audit_log")
    assert (answer.status_code, "retired" in answer.json()["error"]) == (410, True)
    assert gateway.publisher.published == []


def test_what_is_new_is_taken_at_once(gateway: Gateway, registry: Registry) -> None:
    """A table registered a moment ago, and a field that a version added, need no restart and no waiting."""
    registry.register(made.audit_log())
    entry = {"entry": 1, "actor": "ann", "allowed": True, "time": "2026-11-20T10:00:00Z"}
    assert post(gateway, json.dumps(entry), table="audit_log").status_code == 200
    before = post(gateway, json.dumps(row(region_name="eu")))
    assert before.json()["problems"][0]["path"] == "region_name"
    registry.evolve("deployments", 1, schema=made.with_fields(made.deployments(), ADDED))
    answer = post(gateway, json.dumps([row(), row(region_name="eu")]))
    assert answer.json() == {"accepted": 2, "rejected": 0, "problems": []}
    assert [message.headers["schema"] for message in gateway.publisher.published] == [b"audit_log/1", b"deployments/2"]
    assert post(gateway, json.dumps(row())).status_code == 200
    first, second, third = ids(gateway)[1:]
    assert first == third != second


def test_ok_only_when_safe(gateway: Gateway) -> None:
    """While Kafka holds the acknowledgement there is no answer; while it is away rows go to the spool, and then on."""
    gateway.publisher.hold = True
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(post(gateway, json.dumps(row()))))
    waiting.start()
    deadline = time.monotonic() + 10
    while not gateway.publisher.published and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert answers == []
    gateway.publisher.hold = False
    gateway.publisher.release()
    waiting.join(10)
    assert answers[0].status_code == 200
    gateway.publisher.away = "Kafka is away"
    assert post(gateway, json.dumps(row(1))).status_code == 200
    assert gateway.spool.level().messages == 1
    gateway.publisher.away = None
    while gateway.spool.level().messages and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gateway.publisher.published[-1].headers["schema"] == b"deployments/1"


def test_who_sends_is_asked(registry: Registry, tmp_path: pathlib.Path) -> None:
    """Rows need a tenant's key, and events among its signals."""
    registry.register(made.deployments())
    key = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
    file = tmp_path / "tenants.toml"
    file.write_text(f'[tenants.shop]\nkeys = ["{key}"]\n')
    with serving(tmp_path, GatewaySettings(tenants_file=file), registry=registry.settings) as gateway:
        assert post(gateway, json.dumps(row())).status_code == 401
        assert post(gateway, json.dumps(row()), JSON | {"authorization": "Bearer foo"}).status_code == 200
        assert gateway.publisher.published[0].records[0]["tenant"] == "shop"
        file.write_text(f'[tenants.shop]\nkeys = ["{key}"]\nsignals = ["logs"]\n')
        gateway.tenants.reload()
        assert post(gateway, json.dumps(row()), JSON | {"authorization": "Bearer foo"}).status_code == 403


def test_while_the_registry_is_away_known_tables_go_on(database: PostgresSettings, tmp_path: pathlib.Path) -> None:
    """A gateway that never saw it says 503 and when to come again; one that did takes rows, after a restart too."""
    own = RegistrySettings(port=free_ports(1)[0])
    with serving(tmp_path / "other", registry=own) as gateway:
        answer = post(gateway, json.dumps(row()), table="orders")
        assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (503, True)
        assert "registry" in answer.json()["error"]
    with serving(tmp_path, registry=own) as gateway:
        with registry_served.serving(database, own) as registry:
            registry.register(
                made.deployments() | {"name": "orders", "schema": {**made.deployments()["schema"], "name": "orders"}}
            )
            assert post(gateway, json.dumps(row()), table="orders").status_code == 200
        assert post(gateway, json.dumps(row(1)), table="orders").status_code == 200
        assert post(gateway, json.dumps(row(1, colour="red")), table="orders").status_code == 400
        assert post(gateway, b"{}", table="unknown").status_code == 503
    with serving(tmp_path, registry=own) as gateway:
        assert post(gateway, json.dumps(row(2)), table="orders").status_code == 200
