"""`pipeline topics` as a script calls it."""

import json
import os
import subprocess
import sys

from pipeline import topics
from pipeline.kafka.admin import Cluster
from pipeline.settings import KafkaSettings, Settings


def run(servers: str, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "topics", *arguments],
        env=os.environ | {"PIPELINE_KAFKA__BOOTSTRAP_SERVERS": servers},
        input=answer, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_plan_then_apply(kafka: str) -> None:
    """Exit 1 while something differs, nothing without a yes, exit 0 and no word when all is as declared."""
    settings = KafkaSettings(bootstrap_servers=kafka)
    topics.apply_all(Settings(kafka=settings))
    Cluster(settings).configure("logs_raw", {"retention.ms": "1000"})
    plan = run(kafka, "plan")
    assert (plan.returncode, plan.stdout) == (1, "configure logs_raw: retention.ms 1000 → 604800000\n")
    as_json = run(kafka, "plan", "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout) == [
        {"action": "configure", "topic": "logs_raw",
         "before": {"retention.ms": "1000"}, "after": {"retention.ms": "604800000"}}
    ]  # fmt: skip
    assert run(kafka, "apply", answer="n\n").returncode == 1
    assert run(kafka, "plan").returncode == 1
    assert run(kafka, "apply", "--yes").returncode == 0
    again = run(kafka, "plan")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_no_cluster_is_exit_3() -> None:
    """One sentence on stderr, and no noise of the client library beside it."""
    away = run("127.0.0.1:1", "plan")
    assert away.returncode == 3
    assert away.stderr.startswith("Kafka at 127.0.0.1:1 could not read the topics")
    assert away.stderr.count("\n") == 1
