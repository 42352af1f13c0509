"""`pipeline query` as a process, over the real stores of two regions; one more is slow, and one is away."""

import contextlib
import json
import math
import os
import pathlib
import signal
import string
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from pipeline import clickhouse as clickhouse_door
from pipeline import migrations
from pipeline.gateway.tenants import new_key
from pipeline.regions.topology import Recovery, Region, Topology, write
from pipeline.settings import (
    ROOT,
    ClickHouseSettings,
    GatewaySettings,
    PostgresSettings,
    QuerySettings,
    Settings,
    as_environment,
)
from tests.conftest import free_ports
from tests.migrations.test_clickhouse import NOW, insert, log, span

TRACE = "ab" * 16
WITHIN_S = 6.0  # of a region; one that is called off is gone long before
MOST_ROWS = 20
SLOW_LOGS = """
    CREATE VIEW logs AS
    SELECT
        now64(9) AS timestamp, toString(number) AS event_id, '' AS region, 'shop' AS tenant, '' AS service, '' AS host,
        0 AS severity_number, '' AS severity_text, '' AS event_name, '' AS body, map() AS attributes,
        map() AS resource_attributes, '' AS trace_id, '' AS span_id, now64(9) AS received_time
    FROM numbers(600) WHERE sleepEachRow(0.1) = 0 SETTINGS max_block_size = 1
"""
SLOW_METRICS = """
    CREATE VIEW metrics AS
    SELECT
        now() AS time, ''::text AS event_id, ''::text AS region, 'shop'::text AS tenant, 'm'::text AS metric_name,
        ''::text AS service, ''::text AS host, ''::text AS type, ''::text AS unit, '{}'::jsonb AS labels,
        1.0::float8 AS value
    FROM pg_sleep(60)
"""


class Served:
    """`get` asks eu and us, or others, as a tenant; `regions` are the stores behind it."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, home: pathlib.Path) -> None:
        self.process, self.url, self.log, self.tenants = process, url, home / "log", home / "tenants.toml"
        self.keys: dict[str, str] = {}
        self.regions: dict[str, Settings] = {}

    def get(self, path: str, tenant: str = "shop", regions: str = "eu,us", **parameters: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"}
        asked = {"regions": regions, **parameters}
        return httpx.get(self.url + path, params=asked, headers=headers, timeout=30)

    def running(self, region: str) -> int:
        """Questions that the slow region's stores are at work on."""
        own = self.regions[region]
        with contextlib.closing(clickhouse_door.connect(own.clickhouse)) as client:
            where = "query LIKE '%FROM logs%' AND current_database = currentDatabase() AND query_id != queryID()"
            [[count]] = client.query(f"SELECT count() FROM system.processes WHERE {where}").result_rows
        with psycopg.connect(own.postgres.dsn.get_secret_value()) as connected:
            where = "datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%FROM metrics%'"
            [[more]] = connected.execute(
                f"SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND {where}".encode()
            ).fetchall()
        return int(count) + int(more)


@pytest.fixture(scope="module")
def regions(postgres: str, clickhouse: str) -> Iterator[dict[str, Settings]]:
    """Stores of eu and us, filled, and slow ones."""
    admin = clickhouse_door.connect(ClickHouseSettings(url=clickhouse))
    made = {}
    with psycopg.connect(postgres, autocommit=True) as connected:
        for alias in ("eu", "us", "slow"):
            name = f"test_{alias}_{uuid.uuid4().hex}"
            connected.execute(f"CREATE DATABASE {name}".encode())
            admin.command(f"CREATE DATABASE {name}")
            made[alias] = Settings(
                postgres=PostgresSettings(dsn=psycopg.conninfo.make_conninfo(postgres, dbname=name)),
                clickhouse=ClickHouseSettings(url=clickhouse, database=name),
            )
        for number, alias in enumerate(("eu", "us")):
            migrations.up_all(made[alias])
            _fill(made[alias], alias, number)
        with contextlib.closing(clickhouse_door.connect(made["slow"].clickhouse)) as client:
            client.command(SLOW_LOGS)
        with psycopg.connect(made["slow"].postgres.dsn.get_secret_value()) as slow:
            slow.execute(SLOW_METRICS)
        yield made
        for own in made.values():
            admin.command(f"DROP DATABASE {own.clickhouse.database} SYNC")
            connected.execute(f"DROP DATABASE {own.clickhouse.database} WITH (FORCE)".encode())
    admin.close()


def _fill(own: Settings, alias: str, number: int) -> None:
    """A trace of which each region has a span, and both have one; logs and a metric of two tenants."""
    with contextlib.closing(clickhouse_door.connect(own.clickhouse)) as client:
        place: dict[str, Any] = {"region": alias, "received_time": NOW + number, "tenant": "shop"}
        both: dict[str, Any] = {"event_id": b"\2" * 16, "start_time": NOW + 5}
        insert(client, "traces", span(**place, start_time=NOW + number), span(**place, **both))
        for tenant in ("shop", "bank"):
            insert(client, "logs", *(log(**place | {"tenant": tenant}, time=NOW + number + 2 * n) for n in range(8)))
    with psycopg.connect(own.postgres.dsn.get_secret_value()) as connected:
        for series, tenant in enumerate(("shop", "bank")):
            connected.execute(
                "INSERT INTO metric_series VALUES (%s, %s, 'm', 's', 'h', '', '', 'gauge', '', false, %s)",
                (series, tenant, '{"zone": "a"}'),
            )
            connected.execute(
                "INSERT INTO metrics_points VALUES (to_timestamp(%s), %s, %s, %s, now(), %s)",
                (1_700_000_000 + 60 * number, series, uuid.uuid4(), alias, float(number)),
            )
        connected.execute(
            "INSERT INTO metric_series VALUES (2, 'shop', 'gaps', 's', 'h', '', '', 'gauge', '', false, '{}')"
        )
        for second, value in enumerate((None, math.nan, math.inf, 1.0)):
            connected.execute(
                "INSERT INTO metrics_points VALUES (to_timestamp(%s), 2, %s, %s, now(), %s)",
                (1_700_000_040 + 10 * second + number, uuid.uuid4(), alias, value),
            )


@pytest.fixture(scope="module")
def served(regions: dict[str, Settings], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The process, ready."""
    home = tmp_path_factory.mktemp("query")
    port, away = free_ports(2)
    keys = {tenant: new_key() for tenant in ("shop", "bank")}
    tenants = home / "tenants.toml"
    tenants.write_text("".join(f'[tenants.{name}]\nkeys = ["{kept}"]\n' for name, (_, kept) in keys.items()))
    nowhere = Settings(
        postgres=PostgresSettings(dsn=f"host=127.0.0.1 port={away}"),
        clickhouse=ClickHouseSettings(url=f"http://127.0.0.1:{away}"),
    )
    known = {alias: _region(alias, own) for alias, own in {**regions, "away": nowhere}.items()}
    write(Topology(regions=known, query=tuple(known)), home / "topology.yaml")
    settings = Settings(
        topology=home / "topology.yaml",
        gateway=GatewaySettings(tenants_file=tenants),
        query=QuerySettings(port=port, within_s=WITHIN_S, max_rows=MOST_ROWS, max_questions=2),
    )
    with _process(settings, home) as made:
        made.keys, made.regions = {name: key for name, (key, _) in keys.items()}, regions
        yield made


def _region(alias: str, own: Settings) -> Region:
    return Region(
        role="edge",
        bootstrap_servers=f"{alias}.invalid:9092",  # nobody asks it
        replication_factor=1,
        clickhouse_url=own.clickhouse.url,
        clickhouse_database=own.clickhouse.database,
        postgres=own.postgres.dsn.get_secret_value(),
        writers=(alias,),
        recovery=Recovery(rpo_s=30, rto_s=60),
    )


@contextlib.contextmanager
def _process(settings: Settings, home: pathlib.Path) -> Iterator[Served]:
    url = f"http://127.0.0.1:{settings.query.port}"
    with (home / "log").open("w") as said:
        command = [sys.executable, "-m", "pipeline", "query"]
        process = subprocess.Popen(command, env={**os.environ, **as_environment(settings)}, stdout=said, stderr=said)
    try:

        def answers() -> bool:
            assert process.poll() is None, (home / "log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/livez").status_code == 200
            return False

        _until(answers, 30)
        yield Served(process, url, home)
    finally:
        process.terminate()
        assert process.wait(20) == 0


def _until(condition: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_trace_is_found_wherever_its_spans_landed(served: Served) -> None:
    """Spans of two regions are one answer in order of time; the one that both hold is there once, as received last."""
    answer = served.get(f"/v1/traces/{TRACE}").json()
    assert (answer["partial"], answer["more"]) == (False, False)
    assert answer["regions"] == {"eu": {"answered": True}, "us": {"answered": True}}
    assert [(row["region"], row["time_ns"] - NOW) for row in answer["rows"]] == [("eu", 0), ("us", 1), ("us", 5)]


def test_a_region_that_is_away_is_named(served: Served) -> None:
    """The rest is answered and marked as partial, for each store; where nobody answers it is 503, and says why."""
    for path, parameters in ((f"/v1/traces/{TRACE}", {}), ("/v1/logs", {}), ("/v1/metrics", {"name": "m"})):
        answer = served.get(path, regions="eu,away", **parameters)
        found = answer.json()
        assert (answer.status_code, found["partial"]) == (200, True)
        assert found["rows"]
        assert {row["region"] for row in found["rows"]} == {"eu"}
        assert found["regions"]["eu"] == {"answered": True}
        assert not found["regions"]["away"]["answered"]
        assert found["regions"]["away"]["reason"]
        assert served.get(path, regions="away", **parameters).status_code == 503


def test_metrics_are_of_both_regions_over_time(served: Served) -> None:
    """By label and by step."""
    found = served.get("/v1/metrics", name="m", step="60", **{"label.zone": "a"}).json()["rows"]
    assert [(row["time_ns"] // 10**9 - 1_700_000_000 // 60 * 60, row["value"]) for row in found] == [
        (0, 0.0),
        (60, 1.0),
    ]
    assert served.get("/v1/metrics", name="m", **{"label.zone": "b"}).json()["rows"] == []


def test_points_without_a_number_break_no_answer(served: Served) -> None:
    """No recorded value, NaN and infinity are null in strict JSON; a step is made of the others."""

    def values(**parameters: str) -> list[float | None]:
        text = served.get("/v1/metrics", name="gaps", **parameters).text
        return [row["value"] for row in json.loads(text, parse_constant=pytest.fail)["rows"]]

    assert values() == [1.0, 1.0, *[None] * 6]
    assert values(step="60", aggregate="min") == [1.0]
    assert values(step="60", aggregate="count") == [4]
    assert values(step="60", aggregate="max") == [None]


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        (b"/v1/logs?limit=" + b"9" * 5000, None, 400),
        (b"/v1/logs?from=9999-01-01", None, 400),
        (b"/v1/logs?to=0001-01-01", None, 400),
        (b"/v1/logs?service=a&service=b", None, 400),
        (b"/v1/logs?from=1900-01-01&to=2262-01-01", None, 200),
        (b"/v1/metrics?name=m&from=1900-01-01&to=2262-01-01", None, 200),
        (b"/v1/metrics?name=a%00b", None, 400),
        (b"/v1/metrics?name=m&label.a%00b=c", None, 400),
        (b"/v1/logs?text=a%00b", None, 200),
        (b"/v1/logs?text=a%ffb", None, 200),
        (b"/v1/logs", b"\xff", 401),
    ],
)
def test_a_strange_question_is_the_askers_fault(served: Served, path: bytes, key: bytes | None, status: int) -> None:
    """400 or 401, never a region that is said to be away."""
    headers = [(b"Authorization", b"Bearer " + (served.keys["shop"].encode() if key is None else key))]
    url = httpx.URL(served.url).copy_with(raw_path=path + (b"&" if b"?" in path else b"?") + b"regions=eu,us")
    answer = httpx.get(url, headers=headers, timeout=30)
    assert answer.status_code == status, answer.text
    assert not answer.json().get("partial")


def test_keys_change_while_it_runs(served: Served) -> None:
    """A replaced file is read within seconds, at SIGHUP at once, which ends nothing; one that does not read changes
    nothing."""
    known = served.tenants.read_text()
    key, kept = new_key()
    headers = {"Authorization": f"Bearer {key}"}

    def status() -> int:
        return httpx.get(f"{served.url}/v1/logs", params={"regions": "eu"}, headers=headers).status_code

    assert status() == 401
    served.tenants.write_text(f'{known}[tenants.new]\nkeys = ["{kept}"]\n')
    _until(lambda: status() == 200, 10)
    served.tenants.write_text("[tenants.shop")
    served.process.send_signal(signal.SIGHUP)
    _until(lambda: "do not read" in served.log.read_text(), 10)
    assert status() == 200
    served.tenants.write_text(known)
    served.process.send_signal(signal.SIGHUP)
    _until(lambda: status() == 401, 10)
    assert served.get("/v1/logs", regions="eu").status_code == 200


def test_a_key_shows_the_records_of_its_tenant(served: Served) -> None:
    """Nobody without a key, nobody with a wrong one; a tenant sees no log, span or point of another."""
    for headers in ({}, {"Authorization": "Bearer nobody's"}):
        assert httpx.get(f"{served.url}/v1/logs", headers=headers).status_code == 401
    for tenant in ("shop", "bank"):
        for path, parameters in (("/v1/logs", {}), ("/v1/metrics", {"name": "m"})):
            rows = served.get(path, tenant, **parameters).json()["rows"]
            assert {row["tenant"] for row in rows} == {tenant}
    assert served.get(f"/v1/traces/{TRACE}", "bank").json()["rows"] == []


def test_the_data_source_for_grafana_is_let_in(served: Served) -> None:
    """What deploy/ gives Grafana asks the entry with a tenant's key, and the plugin may ask that host."""
    text = string.Template((ROOT / "deploy" / "grafana" / "query.datasource.yaml").read_text()).substitute(
        PIPELINE_QUERY_URL=served.url, PIPELINE_QUERY_KEY=served.keys["bank"]
    )
    provisioned = yaml.safe_load(text)
    assert provisioned["apiVersion"] == 1
    [source] = provisioned["datasources"]
    assert (source["type"], source["jsonData"]["auth_method"]) == ("yesoreyeram-infinity-datasource", "bearerToken")
    assert source["jsonData"]["allowedHosts"] == [source["url"]]
    headers = {"Authorization": f"Bearer {source['secureJsonData']['bearerToken']}"}
    answer = httpx.get(f"{source['url']}/v1/logs", params={"regions": "eu"}, headers=headers)
    assert {row["tenant"] for row in answer.json()["rows"]} == {"bank"}


def test_an_id_is_one_in_capitals_too(served: Served) -> None:
    """As some tools write it: the stores have small letters."""
    [newest] = served.get("/v1/logs", limit="1").json()["rows"]
    assert served.get("/v1/logs", event_id=newest["event_id"].upper()).json()["rows"] == [newest]
    assert served.get(f"/v1/traces/{TRACE.upper()}").json()["rows"]


def test_an_answer_has_a_limit_and_says_so(served: Served) -> None:
    """The newest of all regions, and that there are more; what may not be asked is 400 with a sentence."""
    found = served.get("/v1/logs", limit="5").json()
    assert [row["time_ns"] - NOW for row in found["rows"]] == [15, 14, 13, 12, 11]
    assert found["more"]
    assert not served.get("/v1/logs", limit="16").json()["more"]
    refused = served.get("/v1/logs", limit=str(MOST_ROWS + 1))
    assert refused.status_code == 400
    assert f"from 1 to {MOST_ROWS}" in refused.json()["error"]


def test_a_slow_region_is_named_and_called_off(served: Served) -> None:
    """After the time the others' rows are answered, and the slow stores do not go on. While as many as may be are at
    work, more are told to come again."""
    with ThreadPoolExecutor(2) as pool:
        answers = [
            pool.submit(served.get, "/v1/logs", regions="eu,slow"),
            pool.submit(served.get, "/v1/metrics", regions="eu,slow", name="m"),
        ]
        _until(lambda: served.running("slow") == 2, 5)
        busy = served.get("/v1/logs")
        assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
        for each in answers:
            found = each.result().json()
            assert found["regions"]["slow"]["reason"] == f"It did not answer within {WITHIN_S:g} s."
            assert {row["region"] for row in found["rows"]} == {"eu"}
    _until(lambda: served.running("slow") == 0, 5)
    assert "Traceback" not in served.log.read_text()


@pytest.mark.parametrize("path", ["/v1/logs?regions=slow", "/v1/metrics?name=m&regions=slow"])
def test_who_leaves_is_asked_for_no_longer(served: Served, path: str) -> None:
    """A client that drops its question takes it out of the store too, long before its time is over."""
    with httpx.Client(headers={"Authorization": f"Bearer {served.keys['shop']}"}) as client:
        started = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            client.get(served.url + path, timeout=1.0)
    _until(lambda: served.running("slow") == 0, WITHIN_S - 2)
    assert time.monotonic() - started < WITHIN_S - 1
