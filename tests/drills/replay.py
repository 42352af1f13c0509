"""Replays beside live load: killed again and again, hostile, and equal to live in the end."""

import datetime
import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

from deploy.demo.freshness import Probes
from pipeline.replay import place
from pipeline.replay.folder import Folder
from pipeline.replay.names import Sandbox
from pipeline.settings import ROOT, Settings, as_environment
from tests.bench import topic
from tests.drills.context import Context, Failed
from tests.drills.exporters import Exporters
from tests.drills.proof import audited, pipeline

RECORDS, SHORT_RECORDS = 5_000_000, 100_000
KILLS = 3
CALM_S, SHORT_CALM_S = 60.0, 15.0
STORED_WITHIN_S = 1800.0
SLOWER = 1.2  # live's freshness p99 during a replay, as a share of that before
HOSTILE = """
import os

import psycopg
from confluent_kafka import Producer

from pipeline.agents import LogRecord, agent

TOPIC = "logs_raw"


@agent(reads=TOPIC, writes="logs_norm", version=1)
def hostile(record: LogRecord) -> LogRecord:
    with psycopg.connect(os.environ["PIPELINE_POSTGRES__DSN"], autocommit=True) as connection:
        connection.execute("DELETE FROM public.events")
    return record
"""


def drill(context: Context) -> str:
    """While live takes its load a slice of history is replayed, killed three times and run again: equal to live, live's
    freshness p99 within a fifth; a hostile agent is refused and seen; dropped, nothing is left."""
    records = SHORT_RECORDS if context.short else RECORDS
    with context.whole_stack() as (_, settings):
        began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1)
        topic.fill(settings, "logs", records, time.time_ns() - 6 * 3600 * 10**9)
        audited(settings, STORED_WITHIN_S)
        ended = datetime.datetime.now(datetime.UTC)
        exporters = Exporters(settings)
        exporters.start()
        try:
            calm = _freshness(settings, SHORT_CALM_S if context.short else CALM_S)
            said = _replayed(context, settings, (began, ended), calm, records)
        finally:
            exporters.finish(60.0)
        _hostile(context, settings, (began, ended))
        audited(settings, STORED_WITHIN_S)
        left = [line for name in ("drill", "hostile") for line in place.left(Sandbox.called(name), settings)]
    if left:
        raise Failed(f"After drop there are still {', '.join(left)}.")
    return f"{said}; audit clean"


def _replayed(
    context: Context, settings: Settings, window: tuple[datetime.datetime, datetime.datetime], calm: float, records: int
) -> str:
    _plan(settings, "drill", window)
    probes = Probes(settings)
    probes.start()
    rng = random.Random(context.seed)
    started = time.monotonic()
    for number in range(KILLS):
        running = _start(settings, "drill")
        share = records * (number + rng.random()) / (KILLS + 1)
        while running.poll() is None and _status(settings, "drill")["copied_records"] < share:
            time.sleep(0.2)
        running.send_signal(signal.SIGKILL)
        running.wait()
        context.tell(f"killed at {_status(settings, 'drill')['copied_records']:,} of {records:,} records")
    if _start(settings, "drill").wait(STORED_WITHIN_S):
        raise Failed("The replay did not end after its last kill.")
    seconds = time.monotonic() - started
    probes.stop(within_s=30.0)
    during = _p99(probes.ages_s["clickhouse"])
    found: dict[str, Any] = json.loads(pipeline(settings, "replay", "compare", "drill", "--json"))
    if found["signals"]["logs"]["closure"]["a_rows"] != records:
        raise Failed(f"The sandbox has {found['signals']['logs']['closure']['a_rows']:,} of {records:,} records.")
    pipeline(settings, "replay", "drop", "drill", "--yes")
    said = (
        f"{records:,} records in {seconds:.0f} s, {KILLS} kills; live's freshness p99 {calm:.2f} s, then {during:.2f} s"
    )
    if not context.short and during > calm * SLOWER:
        raise Failed(f"{said}, which is more than {SLOWER:.1f} times that before.")
    return said


def _hostile(context: Context, settings: Settings, window: tuple[datetime.datetime, datetime.datetime]) -> None:
    """An agent that would delete what is live is dead-lettered with the refusal, message by message."""
    file = context.home / "hostile.py"
    file.write_text(HOSTILE)
    _plan(settings, "hostile", (window[0], window[0] + (window[1] - window[0]) / 50))
    ended = _start(settings, "hostile", "--agents", str(file)).wait(STORED_WITHIN_S)
    log = (settings.replay.directory / "hostile" / "log" / "hostile.log").read_text()
    if "permission denied" not in log:
        raise Failed(f"The hostile agent was not refused by permission (exit {ended}): {log[-500:]}")
    pipeline(settings, "replay", "drop", "hostile", "--yes")


def _plan(settings: Settings, name: str, window: tuple[datetime.datetime, datetime.datetime]) -> None:
    start, end = (one.isoformat() for one in window)
    pipeline(settings, "replay", "plan", "--topics", "logs_raw", "--from", start, "--to", end, "--name", name)


def _start(settings: Settings, *words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "pipeline", "replay", "run", *words], cwd=ROOT,
                            env={**_plain_environment(), **as_environment(settings)})  # fmt: skip


def _plain_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PIPELINE_")}


def _status(settings: Settings, name: str) -> dict[str, Any]:
    return {"copied_records": 0, **Folder.of(name, settings).state}


def _freshness(settings: Settings, seconds: float) -> float:
    probes = Probes(settings)
    probes.start()
    time.sleep(seconds)
    probes.stop(within_s=30.0)
    return _p99(probes.ages_s["clickhouse"])


def _p99(ages: list[float]) -> float:
    if not ages:
        raise Failed("No probe was seen.")
    return sorted(ages)[min(len(ages) - 1, int(len(ages) * 0.99))]
