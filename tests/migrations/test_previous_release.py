"""The writers of the release before this one, on the schema of this one: for a while both run."""

import base64
import json
import os
import pathlib
import subprocess
import sys
from contextlib import closing

import pytest

from pipeline import clickhouse, migrations
from pipeline.record.schema import SIGNALS
from pipeline.settings import ROOT, Settings, as_environment
from pipeline.timescale import connection
from tests.contract.test_stores import encoded, messages
from tests.otlp import requests

PREVIOUS = "0c79db6"  # the last release's tag; before the first release, the commit whose writers were looked at
WRITE = """
import base64, json, sys
from pipeline import settings
from pipeline.agents.ch_writer import ClickHouseWriter
from pipeline.agents.pg_writer import PostgresWriter
from pipeline.delivery import Message
loaded = settings.load()
assert str(settings.ROOT) == sys.argv[1], settings.ROOT
for signal, topic, headers, value in json.load(sys.stdin):
    headers = {key: text.encode() for key, text in headers.items()}
    batch = [Message(topic, 0, 0, headers, base64.b64decode(value))]
    written = [ClickHouseWriter(loaded.clickhouse, signal).write(batch)]
    if signal != "traces":
        written.append(PostgresWriter(loaded.postgres, signal).write(batch))
    print(signal, *written)
"""


@pytest.fixture
def previous(tmp_path: pathlib.Path) -> pathlib.Path:
    """The previous release's code and schemas."""
    archive = subprocess.run(
        ["git", "archive", PREVIOUS, "pipeline", "schemas"], cwd=ROOT, capture_output=True, check=False
    )
    if archive.returncode:
        why = f"git has no {PREVIOUS} here: fetch the whole history (git fetch --unshallow)."
        if os.environ.get("CI"):
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    subprocess.run(["tar", "-x"], cwd=tmp_path, input=archive.stdout, check=True)
    return tmp_path


def test_the_previous_releases_writers_run_on_the_new_schema(settings: Settings, previous: pathlib.Path) -> None:
    """They store every record of every signal where readers of this release look."""
    migrations.up_all(settings)
    requested = {"logs": requests.logs(), "metrics": requests.metrics(), "traces": requests.traces()}
    counts, batches = {}, []
    for signal in SIGNALS:
        what = encoded(signal, requested[signal])
        [message] = messages(signal, what)
        headers = {key: text.decode() for key, text in message.headers.items()}
        batches.append((signal, message.topic, headers, base64.b64encode(message.value).decode()))
        counts[signal] = what.accepted
    stores = ("PIPELINE_POSTGRES__", "PIPELINE_CLICKHOUSE__")  # other settings may be newer than that release
    variables = {name: text for name, text in as_environment(settings).items() if name.startswith(stores)}
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(previous)],
        env=os.environ | variables | {"PYTHONPATH": str(previous)},
        cwd=previous, input=json.dumps(batches), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [
        " ".join([signal, *[str(counts[signal])] * (1 if signal == "traces" else 2)]) for signal in SIGNALS
    ]
    with closing(clickhouse.connect(settings.clickhouse)) as client:
        for signal in SIGNALS:
            assert client.command(f"SELECT count() FROM {signal}") == counts[signal]
    with connection.connect(settings.postgres) as connected:
        for view in ("metrics", "events", "metrics_histograms", "metrics_exponential_histograms", "metrics_summaries"):
            found = connected.execute(f"SELECT count(*) FROM {view}".encode()).fetchone()
            assert found is not None
            assert found[0] > 0, view
