"""`pipeline topics` as a script calls it."""

import json
import os
import pathlib
import subprocess
import sys
import uuid

from pipeline import topics
from pipeline.delivery import Message
from pipeline.kafka.admin import Cluster
from pipeline.kafka.groups import Committed, Groups
from pipeline.settings import KafkaSettings, Settings
from tests.agents.process import send
from tests.audit.world import container, file, record


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
    assert run(kafka, "apply", answer="n\n").returncode == 130
    assert run(kafka, "plan").returncode == 1
    assert run(kafka, "apply", "--yes").returncode == 0
    again = run(kafka, "plan")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_no_cluster_is_exit_3() -> None:
    """One sentence on stderr, and no noise of the client library beside it."""
    away = run("127.0.0.1:1", "plan")
    assert away.returncode == 3
    assert away.stderr.startswith("Kafka at 127.0.0.1:1 could not tell its id")
    assert away.stderr.count("\n") == 1


def test_a_plan_file_is_applied_to_its_cluster_only(kafka: str, tmp_path: pathlib.Path) -> None:
    """`plan -o` then `apply FILE`; for another cluster, a moved one, or a file that is none it is exit 2 and no change."""
    settings = KafkaSettings(bootstrap_servers=kafka)
    topics.apply_all(Settings(kafka=settings))
    Cluster(settings).configure("logs_raw", {"retention.ms": "1000"})
    file = tmp_path / "plan.json"
    assert run(kafka, "plan", "-o", str(file)).returncode == 1
    foreign = tmp_path / "foreign.json"
    foreign.write_text(file.read_text().replace(Cluster(settings).id(), "elsewhere"))
    refused = run(kafka, "apply", str(foreign), "--yes")
    assert (refused.returncode, "is a plan for cluster elsewhere" in refused.stderr) == (2, True)
    assert run(kafka, "apply", str(tmp_path / "none.json"), "--yes").returncode == 2
    done = run(kafka, "apply", str(file), "--yes")
    assert (done.returncode, done.stdout) == (0, "configure logs_raw: retention.ms 1000 → 604800000\n")
    again = run(kafka, "apply", str(file), "--yes")
    assert (again.returncode, "plan again" in again.stderr) == (2, True)


def test_a_strange_topic_is_imported_described_and_deleted(kafka: str) -> None:
    """From the cluster into a file that plans nothing; deleted only once no file declares it."""
    cluster, name = Cluster(KafkaSettings(bootstrap_servers=kafka)), f"stranger_{uuid.uuid4().hex[:8]}"
    cluster.create(name, partitions=3, replication_factor=1, config={"retention.ms": "100000000"})
    words = ("import", name, "--signal", "events", "--owner", "shop", "--description", "Orders.")
    file = topics.declared.DIRECTORY / f"{name}.yaml"
    try:
        assert run(kafka, *words).returncode == 0
        assert run(kafka, *words).returncode == 2
        assert run(kafka, "check").returncode == 0
        assert f"configure {name}: retention.ms 100000000 → 100800000" in run(kafka, "plan").stdout
        described = json.loads(run(kafka, "describe", name, "--json").stdout)
        assert described == [
            {"name": name, "declared": True, "partitions": 3, "replication_factor": 1, "in_sync": 1, "retained": 0,
             "lag": {}}
        ]  # fmt: skip
        kept = run(kafka, "delete", name, "--yes")
        assert (kept.returncode, "declares it" in kept.stderr) == (2, True)
    finally:
        file.unlink(missing_ok=True)
    assert run(kafka, "delete", name, answer="n\n").returncode == 130
    assert run(kafka, "delete", name, "--yes").returncode == 0
    assert run(kafka, "describe", name).returncode == 2


def test_a_group_that_is_behind_a_topic_made_anew_lags_by_nothing(kafka: str) -> None:
    """It committed further in the topic of before: what is left is no negative number, and takes from no other's."""
    settings = KafkaSettings(bootstrap_servers=kafka)
    topics.apply_all(Settings(kafka=settings))
    Groups(settings).move("pg_writer", {("service_calls", 0): Committed(1_000_000, "")})
    try:
        [described] = json.loads(run(kafka, "describe", "service_calls", "--json").stdout)
        assert described["lag"] == {"ch_writer": 0, "pg_writer": 0}
    finally:
        Groups(settings).move("pg_writer", {("service_calls", 0): Committed(0, "")})


def test_tail_shows_records_that_are_asked_for(kafka: str) -> None:
    """By service, trace, severity and time, the latest last, as lines and as JSON; strange bytes and others'
    records are told, not fatal."""
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=kafka))
    topics.apply_all(settings)
    trace = "0af7651916cd43dd8448eb211c80319c"
    said = [
        record("logs", "a", service="shop", body="cold\nbrew", severity_number=17, trace_id=bytes.fromhex(trace)),
        record("logs", "b", service="shop", body="quiet", severity_number=5),
        record("logs", "c", service="till", body="loud", severity_number=21),
    ]
    names = ("body", "span_id", "metric_name", "error", "time", "severity_number")
    fields = [{"name": name, "type": "string"} for name in names]
    foreign = [
        container({"type": "record", "name": "x", "fields": [one]}, [{one["name"]: "foreign"}]) for one in fields
    ]
    values = [b"strange", *foreign]
    send(
        settings,
        Message("logs_raw", 0, 0, {}, file("logs", said)),
        *(Message("logs_raw", 1, 0, {}, value) for value in values),
    )
    mine = ("tail", "logs_raw", "--last", "1m")

    def bodies(*words: str) -> list[str]:
        return [
            json.loads(line)["record"].get("body") for line in run(kafka, *mine, *words, "--json").stdout.splitlines()
        ]

    assert bodies("--service", "shop") == ["cold\nbrew", "quiet"]
    assert bodies("--trace", trace.upper()) == ["cold\nbrew"]
    assert bodies("--severity", "warn", "--service", "shop") == ["cold\nbrew"]
    assert bodies("--severity", "warn", "--service", "till") == ["loud"]
    assert "loud" in bodies("--severity", "warn")
    assert bodies("--service", "shop", "-n", "1") == ["quiet"]
    assert bodies("--from", "2026-01-01", "--to", "2026-01-02") == []
    lines = run(kafka, *mine).stdout
    assert "ERROR shop cold\\nbrew trace=0af7651916cd43dd8448eb211c80319c" in lines
    assert "7 bytes that are no container file" in lines
    assert lines.count("foreign") == len(names)
    wrong = run(kafka, "tail", "log_raw")
    assert (wrong.returncode, "there are logs_raw" in wrong.stderr) == (2, True)
    bad = run(kafka, *mine, "--trace", "x", "--severity", "loud")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 2)
