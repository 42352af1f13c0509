"""`pipeline migrate` as a script calls it."""

import json
import os
import subprocess
import sys

from pipeline import migrations
from pipeline.settings import Settings
from pipeline.timescale import connection


def run(settings: Settings, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "migrate", *arguments],
        env=os.environ
        | {
            "PIPELINE_POSTGRES__DSN": settings.postgres.dsn.get_secret_value(),
            "PIPELINE_CLICKHOUSE__URL": settings.clickhouse.url,
            "PIPELINE_CLICKHOUSE__DATABASE": settings.clickhouse.database,
        },
        input=answer, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_plan_then_up(settings: Settings) -> None:
    """Exit 1 while something is pending, nothing without a yes or in a dry run, exit 0 when all is applied."""
    plan = run(settings, "plan", "--json")
    assert plan.returncode == 1
    first = json.loads(plan.stdout)[0]
    assert (first["store"], first["name"], first["state"], first["done"]) == (
        "postgres", "0001_capabilities.sql", "pending", 0,
    )  # fmt: skip
    assert first["steps"][0] == "1. CREATE EXTENSION IF NOT EXISTS timescaledb [only with timescaledb]"
    assert len(first["steps"]) == first["statements"]
    assert run(settings, "up", answer="n\n").returncode == 130
    assert run(settings, "up", "--dry-run").returncode == 0
    assert run(settings, "up", "--store", "clickhouse", "--yes").returncode == 0
    assert run(settings, "status", "--store", "clickhouse").returncode == 0
    assert run(settings, "status").returncode == 1
    assert run(settings, "up", "--yes").returncode == 0
    done = run(settings, "status", "--json")
    assert done.returncode == 0
    assert {row["state"] for row in json.loads(done.stdout)} == {"applied"}
    again = run(settings, "plan")
    assert (again.returncode, again.stdout) == (0, "")


def test_verify(settings: Settings) -> None:
    """Exit 1 and each difference where a store is not as the files make it, exit 0 for the one that is."""
    migrations.up_all(settings)
    with connection.connect(settings.postgres) as connected:
        connected.execute("DROP INDEX metric_series_by_service")
    found = run(settings, "verify", "--json")
    assert found.returncode == 1
    assert run(settings, "verify", "--store", "clickhouse").returncode == 0
    [difference] = json.loads(found.stdout)
    assert (difference["store"], difference["name"]) == ("postgres", "metric_series")
    assert difference["problem"].startswith("index metric_series_by_service is missing: `CREATE INDEX")


def test_an_unknown_store_is_exit_2(settings: Settings) -> None:
    """The command line is checked before any store is asked."""
    assert run(settings, "plan", "--store", "mysql").returncode == 2
