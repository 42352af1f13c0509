"""The platform engineer's first five minutes, as the README has them."""

import os
import pathlib
import re
import subprocess
import sys
import time
import tomllib

import pytest

from pipeline import clickhouse, otlp
from pipeline.audit import audit
from pipeline.delivery import Message
from pipeline.record import schema
from pipeline.record.times import receipt_ns
from pipeline.settings import ROOT, Settings, as_environment
from tests.agents.agent_process import read
from tests.agents.process import Process, send, until
from tests.conftest import free_ports
from tests.otlp.requests import logs

README = (ROOT / "README.md").read_text()
[SECTION] = re.findall(r"### You change records on their way\n(.*?)\n### ", README, re.DOTALL)
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", SECTION, re.DOTALL)
COMMANDS = [line.split() for line in next(text for kind, text in BLOCKS if kind == "console").splitlines()]


def message() -> Message:
    """Three log records of now, the last of them a debug line."""
    now = time.time_ns()
    body = logs("paid by ann@example.com", "paid by nobody", "noise")
    for number, each in enumerate(body.resource_logs[0].scope_logs[0].log_records):
        each.severity_number, each.time_unix_nano, each.event_name = (9, 9, 5)[number], now, ""
    origin = otlp.Origin("default", "local", receipt_ns(now))
    [group] = otlp.encode("logs", body.SerializeToString(), origin, partitions=1).groups
    headers = {
        "tenant": b"default", "region": b"local", "signal": b"logs", "schema": schema.CURRENT["logs"].encode(),
        "records": b"3", "min_time": b"%d" % group.min_time, "max_time": b"%d" % group.max_time,
    }  # fmt: skip
    return Message("logs_raw", 0, 0, headers, group.value)


@pytest.mark.timeout(400)
def test_a_first_agent_from_an_empty_folder_to_clickhouse(world: Settings, tmp_path: pathlib.Path) -> None:
    """Every command as written: the new file is tried, which writes nothing, held to the laws, checked, drawn and run;
    what it makes is in ClickHouse, what it drops has its reason, and the audit is closed."""
    [code] = [text for kind, text in BLOCKS if kind == "python"]
    [written] = [text for kind, text in BLOCKS if kind == "toml"]
    said = Settings(**tomllib.loads(written))
    agents_port, writer_port = free_ports(2)
    settings = world.model_copy(
        update={
            "routes": said.routes,
            "agents": {"mask_emails": {**said.agents["mask_emails"], "health_port": agents_port}},
            "ch_writer": world.ch_writer.model_copy(update={"health_port": writer_port}),
        }
    )
    environment = {**os.environ, **as_environment(settings), "PYTHONPATH": str(ROOT)}
    verbs = {words[2]: [sys.executable, "-m", *words] for words in COMMANDS}
    assert list(verbs) == ["new", "try", "test", "check", "graph", "run", "list", "status"]

    def command(verb: str) -> str:
        done = subprocess.run(
            verbs[verb], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, f"{verb}: {done.stdout}{done.stderr}"
        return done.stdout

    assert "my_agents/mask_emails.py" in command("new")
    (tmp_path / "my_agents" / "mask_emails.py").write_text(code)
    send(settings, message())
    tried = command("try")
    assert "'paid by ann@example.com' → 'paid by ***'" in tried
    assert "nothing: debug" in tried
    assert read(settings, "logs_norm") == []
    command("test")
    command("check")
    assert "logs_raw → mask_emails → logs_norm → ch_writer" in command("graph")
    assert (tmp_path / "agents.svg").read_text().startswith("<svg")
    client = clickhouse.connect(settings.clickhouse)
    writer = Process("ch_writer", settings)
    running = subprocess.Popen(verbs["run"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        writer.start()
        until(lambda: client.command("SELECT count() FROM logs") == 2, "nothing was stored", 200)
        assert "mask_emails" in command("list")
        until(lambda: "nothing waits" in command("status"), "the agent committed nothing")
    finally:
        running.terminate()
        running.wait(60)
        writer.close()
    bodies = client.query("SELECT body FROM logs ORDER BY body").result_columns[0]
    assert list(bodies) == ["paid by ***", "paid by nobody"]
    report = audit(settings, signals=("logs",))
    [mask] = report.agents
    assert report.clean
    assert (mask.emitted, mask.changed, mask.dropped, mask.reasons) == (1, 1, 1, {"debug": 1})
