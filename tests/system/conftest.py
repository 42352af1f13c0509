"""A whole stack on free ports, and the shop as its client."""

import json
import pathlib
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
import psycopg
import pytest

from pipeline import migrations, topics
from pipeline.audit import audit
from pipeline.clickhouse import connect as connect_clickhouse
from pipeline.local import Stack
from pipeline.record.schema import SIGNALS
from pipeline.settings import ROOT, ClickHouseSettings, KafkaSettings, PostgresSettings, Settings
from tests.audit.conftest import remove_topics
from tests.conftest import part, settings_on_free_ports


class Running:
    """A stack that is up, its settings, and what a test does with it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stack = Stack(settings, print)

    def pid(self, name: str) -> int:
        return int(self._row(name)["pid"])

    def state(self, name: str) -> str:
        return str(self._row(name)["state"])

    def _row(self, name: str) -> dict[str, Any]:
        [row] = [row for row in self.stack.status()["processes"] if row["name"] == name]
        return dict(row)

    def kill(self, name: str) -> None:
        """SIGKILL, and wait until it has taken effect: until then `start` finds the process running."""
        process = psutil.Process(self.pid(name))
        process.kill()
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)

    def shop(self, records: int, out: pathlib.Path) -> "subprocess.Popen[str]":
        """The demo's shop at this stack; it prints what it sent as JSON."""
        gateway = self.settings.gateway
        return subprocess.Popen(
            [
                sys.executable, ROOT / "deploy/demo/shop/run.py", "--json", "--records", str(records), "--out", out,
                "--otlp-http", f"http://127.0.0.1:{gateway.http_port}", "--otlp-grpc", f"127.0.0.1:{gateway.grpc_port}",
            ],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def clean_audit(self, within_s: float = 60) -> dict[str, Any]:
        """The first clean audit; after `within_s` the last one, clean or not."""
        deadline = time.monotonic() + within_s
        while True:
            report = audit(self.settings, signals=SIGNALS)
            if report.clean or time.monotonic() > deadline:
                return json.loads(json.dumps(report.as_dict(), default=str))
            time.sleep(1)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A fresh stack, up; nothing of it is left afterwards."""
    own = Running(settings_on_free_ports(tmp_path_factory.mktemp("system")))
    with part(own.stack.up, own.stack.wipe):
        yield own


@pytest.fixture(scope="module")
def world(kafka: str, postgres: str, clickhouse: str) -> Iterator[Settings]:
    """Empty topics and stores of this module's own."""
    name = f"world_{uuid.uuid4().hex}"
    remove_topics(kafka)
    settings = Settings(
        kafka=KafkaSettings(bootstrap_servers=kafka),
        postgres=PostgresSettings(dsn=psycopg.conninfo.make_conninfo(postgres, dbname=name)),
        clickhouse=ClickHouseSettings(url=clickhouse, database=name),
    )
    admin = connect_clickhouse(ClickHouseSettings(url=clickhouse))
    admin.command(f"CREATE DATABASE {name}")
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        topics.apply_all(settings)
        migrations.up_all(settings)
        yield settings
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    admin.command(f"DROP DATABASE {name} SYNC")
    remove_topics(kafka)
