"""Storage policy and TTL of ClickHouse by the settings, on local disks and an S3-protocol one."""

import dataclasses
import datetime
import logging
import os
import pathlib
import shutil
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from moto.server import ThreadedMotoServer

from pipeline import clickhouse, maintain, migrations
from pipeline.audit.stores import ClickHouse
from pipeline.audit.window import Window
from pipeline.clickhouse import registered
from pipeline.errors import Misconfigured, Unavailable
from pipeline.local import servers
from pipeline.local.processes import Runner
from pipeline.settings import ROOT, ClickHouseSettings, LocalSettings, RetentionSettings, Settings
from tests.conftest import free_ports, part
from tests.contract.registered import declared, evolved
from tests.migrations.test_clickhouse import DAY_NS, insert, log, minutes, point, span

NOW = datetime.datetime.now(datetime.UTC)
NOW_NS = time.time_ns()
AGES = (1, 10, 40)  # days
VIEWS = ("logs", "traces", "trace_events", "trace_links", "metrics")
TABLES = ("logs_events", "spans", "span_events", "span_links", "metrics_points")
LONG = {"logs_days": 400, "traces_days": 400, "clickhouse_points_days": 400, "clickhouse_metrics_1m_days": 400}


@pytest.fixture(scope="module")
def s3() -> Iterator[ThreadedMotoServer]:
    """It keeps what it has while it is stopped."""
    [port] = free_ports(1)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it tells every request
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def bucket(s3: ThreadedMotoServer) -> str:
    """URL of an empty bucket."""
    url = f"http://127.0.0.1:{s3._port}/cold"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()
    return url


class Tiered:
    """A ClickHouse of three tiers, as deploy/ has them."""

    def __init__(self, home: pathlib.Path, bucket: str) -> None:
        [port] = free_ports(1)
        self.settings = Settings(clickhouse=ClickHouseSettings(url=f"http://127.0.0.1:{port}"))
        self._runner = Runner(home)
        process = servers.clickhouse(self.settings.clickhouse, LocalSettings(home=home))
        (home / "clickhouse" / "config.d").mkdir()
        shutil.copy(ROOT / "deploy" / "clickhouse" / "hot_warm_cold.xml", home / "clickhouse" / "config.d")
        environment = {
            "CLICKHOUSE_WARM_PATH": f"{home}/warm/", "CLICKHOUSE_COLD_ENDPOINT": f"{bucket}/clickhouse/",
            "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        self._process = dataclasses.replace(process, env=os.environ | environment)

    def start(self) -> None:
        self._runner.start(self._process)

    def stop(self) -> None:
        self._runner.stop("clickhouse")

    def kill(self) -> None:
        """SIGKILL, and start again."""
        found = self._runner.find("clickhouse")
        assert found is not None
        found.kill()
        self._runner.bury("clickhouse")
        self.start()

    def maintained(self, **retention: int) -> Settings:
        """Let it be kept so, and find nothing left to do."""
        settings = self.settings.model_copy(update={"retention": RetentionSettings(**{**LONG, **retention})})
        planned = maintain.plan(settings, NOW, "clickhouse")
        assert maintain.run(planned, settings, NOW) == planned
        assert maintain.plan(settings, NOW, "clickhouse") == []
        return settings


@pytest.fixture(scope="module")
def tiered(tmp_path_factory: pytest.TempPathFactory, bucket: str) -> Iterator[Tiered]:
    server = Tiered(tmp_path_factory.mktemp("tiered"), bucket)
    with part(server.start, server.stop):
        migrations.up_all(server.settings, "clickhouse")
        yield server


def disks(client: Client, table: str) -> dict[int, str]:
    """Where the rows of each age lie."""
    query = """
        SELECT dateDiff('day', toDate(partition), {today:Date}), arrayStringConcat(arraySort(groupUniqArray(disk_name)))
        FROM system.parts
        WHERE active AND rows > 0 AND database = currentDatabase() AND table = {table:String}
        GROUP BY 1
    """
    return dict(client.query(query, parameters={"today": NOW.date(), "table": table}).result_rows)


def awaited(client: Client, wanted: dict[int, str]) -> None:
    """Rows of each age come to lie where they should, in every table."""
    deadline = time.monotonic() + 60
    while (found := {table: disks(client, table) for table in TABLES}) != dict.fromkeys(TABLES, wanted):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def read(client: Client) -> dict[str, list[tuple[object, ...]]]:
    """What readers see of every row, oldest first."""
    return {
        view: list(client.query(f"SELECT * FROM {view} ORDER BY timestamp, event_id").result_rows) for view in VIEWS
    }


@pytest.mark.timeout(300)  # 25 s on an idle machine
def test_rows_walk_from_disk_to_disk_and_go(tiered: Tiered) -> None:
    """Hot, warm, on S3, gone: readers see each row whole at every stage, after SIGKILL too; the other
    rows stay, and `migrate verify` calls nothing of it a difference."""
    client = clickhouse.connect(tiered.settings.clickhouse)
    for age in AGES:
        at = NOW_NS - age * DAY_NS
        events = [{"time": at, "name": "e", "attributes": {}, "dropped_attributes_count": 0}]
        for _ in range(2):  # twins, of which one may be in a part that has moved
            one: dict[str, Any] = {"event_id": bytes([age] * 16), "received_time": at}
            insert(client, "logs", log(time=at, **one))
            insert(client, "traces", span(start_time=at, events=events, **one))
            insert(client, "metrics", point(time=at, series_id=age, **one))
    everything = read(client)
    assert {view: len(rows) for view, rows in everything.items()} == dict.fromkeys(VIEWS, 3)
    by_minute = minutes(client)

    awaited(client, dict.fromkeys(AGES, "default"))
    tiered.maintained(cold_after_days=60)
    awaited(client, {1: "default", 10: "warm", 40: "warm"})
    assert read(client) == everything
    tiered.maintained()
    awaited(client, {1: "default", 10: "warm", 40: "cold"})
    assert read(client) == everything
    tiered.kill()
    assert read(client) == everything
    tiered.maintained(logs_days=20, traces_days=20, clickhouse_points_days=20)
    awaited(client, {1: "default", 10: "warm"})
    assert read(client) == {view: rows[1:] for view, rows in everything.items()}

    insert(client, "metrics", point(time=NOW_NS - 40 * DAY_NS + 1, received_time=NOW_NS, series_id=40))
    assert minutes(client) == by_minute
    assert disks(client, "metrics_1m_computed") == {1: "default", 10: "default", 40: "cold"}
    client.close()
    with migrations.opened(tiered.settings, "clickhouse") as stores:
        assert migrations.verify(stores) == []


def test_no_insert_waits_for_another_disk(tiered: Tiered) -> None:
    """What comes late, of a time whose rows are on S3, lies hot until it is moved: S3 may be away."""
    client = clickhouse.connect(tiered.settings.clickhouse)
    tiered.maintained()
    client.command("SYSTEM STOP MOVES logs_events")
    insert(client, "logs", log(time=NOW_NS - 50 * DAY_NS, received_time=NOW_NS, event_id=bytes([50] * 16)))
    assert disks(client, "logs_events")[50] == "default"
    client.command("SYSTEM START MOVES logs_events")
    deadline = time.monotonic() + 60
    while (found := disks(client, "logs_events")[50]) != "cold":
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    client.close()


@pytest.mark.timeout(120)
def test_who_reads_cold_rows_while_s3_is_away_is_told(tiered: Tiered, s3: ThreadedMotoServer) -> None:
    """The audit hears of S3 within half a minute, and reads the rows once S3 is back."""
    client = clickhouse.connect(tiered.settings.clickhouse)
    tiered.maintained()
    insert(client, "logs", log(time=NOW_NS - 60 * DAY_NS, received_time=NOW_NS, event_id=bytes([60] * 16)))
    deadline = time.monotonic() + 60
    while disks(client, "logs_events")[60] != "cold":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    audited, everything = ClickHouse(tiered.settings, "logs", "logs_events"), Window(None, None)
    rows = sum(len(each.ids) for each in audited.rows(everything))
    client.command("SYSTEM DROP MARK CACHE")
    s3.stop()
    try:
        asked = time.monotonic()
        with pytest.raises(Unavailable, match="S3"):
            list(audited.rows(everything))
        assert time.monotonic() - asked < 30
    finally:
        s3.start()
    assert sum(len(each.ids) for each in audited.rows(everything)) == rows
    audited.close()
    client.close()


def test_registered_tables_walk_too(tiered: Tiered) -> None:
    """Under the same policy, as long as each says; a later version of a table undoes nothing of it."""
    client = clickhouse.connect(tiered.settings.clickhouse)
    table = declared("visits", {"page": "string"}, retention_days=400)
    registered.make(client, table)
    for age in AGES:
        at = NOW_NS - age * DAY_NS
        client.command(
            f"INSERT INTO visits__rows (event_id, received_time, time, page) VALUES ('{age:016}', {at}, {at}, 'p')"
        )
    settings = tiered.maintained()
    deadline = time.monotonic() + 60
    while (found := disks(client, "visits__rows")) != {1: "default", 10: "warm", 40: "cold"}:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    registered.make(client, evolved(table, {"name": "note", "type": "string", "default": "none"}, retention_days=300))
    assert maintain.plan(settings, NOW, "clickhouse") == []
    assert "toIntervalDay(300)" in str(client.command("SHOW CREATE TABLE visits__rows"))
    assert [tuple(row) for row in client.query("SELECT page, note FROM visits").result_rows] == [("p", "none")] * 3
    client.close()


def test_a_server_without_the_policy_keeps_rows_where_they_are(settings: Settings) -> None:
    """They are removed as late, and moved nowhere; what is set already is not set again."""
    migrations.up_all(settings, "clickhouse")
    planned = maintain.plan(settings, NOW, "clickhouse")
    assert [str(change) for change in planned] == [
        f"remove rows of {table} after {days} days."
        for table, days in {**dict.fromkeys(TABLES, 180), "metrics_1m_computed": 365}.items()
    ]
    assert maintain.run(planned[:1], settings, NOW) == planned[:1]
    assert maintain.plan(settings, NOW, "clickhouse") == planned[1:]
    assert maintain.run(planned, settings, NOW) == planned[1:]
    assert maintain.plan(settings, NOW, "clickhouse") == []
    with migrations.opened(settings, "clickhouse") as stores:
        assert migrations.verify(stores) == []


def test_tables_that_are_not_there_are_told(clickhouse_settings: ClickHouseSettings) -> None:
    """The way out is `migrate up`."""
    with pytest.raises(Misconfigured, match=r"logs_events.*pipeline migrate up"):
        maintain.plan(Settings(clickhouse=clickhouse_settings), NOW, "clickhouse")
