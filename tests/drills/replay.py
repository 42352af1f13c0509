"""Replays: beside live load, killed again and again, hostile, and equal to live in the end."""

import contextlib
import datetime
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from deploy.demo.freshness import Probes
from pipeline.kafka.reader import Reader
from pipeline.replay import place
from pipeline.replay.folder import Folder
from pipeline.replay.names import Sandbox
from pipeline.settings import ROOT, Settings, as_environment
from tests.bench import topic
from tests.drills.context import Context, Failed
from tests.drills.proof import audited, pipeline, stored

RECORDS, SHORT_RECORDS = 5_000_000, 100_000
KILLS = 3
LOAD_S = 7200.0  # longer than any replay here
CALM_S, SHORT_CALM_S = 120.0, 10.0
TURN_S, SHORT_TURN_S = 60.0, 10.0  # of a replay, which then pauses for half as long
SETTLED_S = 5.0  # after a pause: what was copied is stored
FULL_S, SHORT_FULL_S = 30.0, 5.0  # of load without a limit, to see what all of live takes
REPLAYED_SHARE = 0.05  # of what live takes: the replay's rate
KILLED_WITHIN_S = 40  # a replay that is to be killed takes so long
REQUEST_RECORDS = 200
STORED_WITHIN_S = 1800.0
Window = tuple[datetime.datetime, datetime.datetime]
AUDITED = datetime.timedelta(seconds=30)  # of live, from the replay's start: all of it would take longer than the rest
HOSTILE_PART = datetime.timedelta(seconds=0.05)
SLOWER = 1.2  # live's freshness p99 beside a replay, as a share of that without one
HOSTILE = """
import os

import psycopg
from confluent_kafka import Producer

from pipeline.agents import LogRecord, agent

TOPIC = "logs_raw"


@agent(reads=TOPIC, writes="logs_norm", version=1)
def hostile(record: LogRecord) -> LogRecord:
    if record.event_id[0] == 0:
        with psycopg.connect(os.environ["PIPELINE_POSTGRES__DSN"], autocommit=True) as connection:
            connection.execute("DELETE FROM public.events")
    return record
"""


def drill(context: Context) -> str:
    """While live takes half of what it can, a slice of history is replayed, live's freshness p99 within a fifth. Another
    replay of it is killed three times and run again: equal to live and to the one that nobody killed. A hostile agent
    is refused and seen; dropped, nothing is left, and of live nothing is missing."""
    records = SHORT_RECORDS if context.short else RECORDS
    with context.whole_stack() as (_, settings):
        topic.fill(settings, "logs", records, time.time_ns() - 6 * 3600 * 10**9)
        audited(settings, STORED_WITHIN_S)
        window = _first(settings), datetime.datetime.now(datetime.UTC)
        capacity = _capacity(settings, SHORT_FULL_S if context.short else FULL_S)
        with _load(settings, LOAD_S, capacity / 2):
            context.tell(f"live takes {capacity:,.0f} records/s")
            rate = max(1000, int(capacity * REPLAYED_SHARE))
            started = datetime.datetime.now(datetime.UTC)
            calm, beside = _in_turns(context, settings, window, rate)
        stored(settings, STORED_WITHIN_S)
        _killed(context, settings, window, records)
        _equal_to_unkilled(context, settings, records)
        _hostile(context, settings, (window[0], window[0] + HOSTILE_PART))
        audited(settings, STORED_WITHIN_S, "--from", f"{started:%FT%T}", "--to", f"{started + AUDITED:%FT%T}")
        left = [line for name in ("drill", "whole", "hostile") for line in place.left(Sandbox.called(name), settings)]
    if left:
        raise Failed(f"After drop there are still {', '.join(left)}.")
    said = (
        f"{records:,} records; live's freshness p99 at half of {capacity:,.0f} records/s {calm:.2f} s, beside a replay of "
        f"{rate:,} {beside:.2f} s; killed {KILLS} times equal to live and to a replay without a kill; audit of live's "
        f"first {AUDITED.total_seconds():.0f} s beside it clean"
    )
    if not context.short and beside > calm * SLOWER:
        raise Failed(f"{said}; that freshness is more than {SLOWER:.1f} times the calm one.")
    return said


def _first(settings: Settings) -> datetime.datetime:
    """When the first log was received."""
    reader = Reader(settings.kafka)
    firsts = reader.earliest_ms(reader.retained(["logs_raw"]))
    return datetime.datetime.fromtimestamp(min(ms for ms in firsts if ms is not None) / 1000, datetime.UTC)


def _in_turns(context: Context, settings: Settings, window: Window, rate: int) -> tuple[float, float]:
    """Live's freshness p99 without and beside a replay that nobody kills. It pauses again and again, since the
    machine itself is a quarter slower in one minute than in another: both see the same minutes."""
    turn_s = SHORT_TURN_S if context.short else TURN_S
    _plan(settings, "whole", window)
    calm, beside = _ages(settings, lambda: time.sleep(SHORT_CALM_S if context.short else CALM_S)), []
    context.tell(f"freshness p99 before the replay {_p99(calm):.2f} s")
    folder, replay = Folder.of("whole", settings), _start(settings, "whole", "--rate", f"{rate}/s")
    deadline = time.monotonic() + 2 * STORED_WITHIN_S
    while replay.poll() is None and time.monotonic() < deadline:
        beside += _ages(settings, lambda: _ended(replay, turn_s))
        if replay.poll() is None:
            folder.pause()
            time.sleep(SETTLED_S)
            calm += _ages(settings, lambda: time.sleep(turn_s / 2))
            folder.unpause()
            context.tell(f"without a replay {_p99(calm):.2f} s, beside it {_p99(beside):.2f} s")
    if replay.poll() != 0:
        raise Failed("The replay that nobody killed did not end.")
    return _p99(calm), _p99(beside)


def _killed(context: Context, settings: Settings, window: Window, records: int) -> None:
    """Kill a replay again and again, and let it end."""
    _plan(settings, "drill", window)
    rng = random.Random(context.seed)
    for number in range(KILLS):
        running = _start(settings, "drill", "--rate", f"{records // KILLED_WITHIN_S}/s")
        share = records * (number + rng.random()) / (KILLS + 1)
        while running.poll() is None and _status(settings, "drill")["copied_records"] < share:
            time.sleep(0.2)
        running.send_signal(signal.SIGKILL)
        if running.wait() != -signal.SIGKILL:
            raise Failed("The replay ended before it could be killed: the drill drilled nothing.")
        context.tell(f"killed at {_status(settings, 'drill')['copied_records']:,} of {records:,} records")
    if _start(settings, "drill").wait(STORED_WITHIN_S):
        raise Failed("The replay did not end after its last kill.")


def _equal_to_unkilled(context: Context, settings: Settings, records: int) -> None:
    """Equal to live, and to a replay of the same slice that ran through."""
    for other in ("live", "whole"):
        found: dict[str, Any] = json.loads(pipeline(settings, "replay", "compare", "drill", "--with", other, "--json"))
        rows = found["signals"]["logs"]["closure"]["a_rows"]
        if rows != records:
            raise Failed(f"The sandbox has {rows:,} of {records:,} records.")
        context.tell(f"equal to {other}")
    for name in ("drill", "whole"):
        pipeline(settings, "replay", "drop", name, "--yes")


def _capacity(settings: Settings, seconds: float) -> float:
    """Records a second from clients into the stores, without a limit."""
    started = time.monotonic()
    with _load(settings, seconds, None) as load:
        said = json.loads(load.stdout.readline())  # type: ignore[union-attr]
    stored(settings, STORED_WITHIN_S)
    return float(said["records"] / (time.monotonic() - started))


@contextlib.contextmanager
def _load(settings: Settings, seconds: float, rate: float | None) -> "Iterator[subprocess.Popen[str]]":
    """Clients that send logs, at `rate` records a second or as fast as they are answered."""
    options = {
        "--protocol": "http", "--signal": "logs", "--address": f"127.0.0.1:{settings.gateway.http_port}",
        "--seconds": f"{seconds}", "--records": f"{REQUEST_RECORDS}", **({"--rate": f"{rate}"} if rate else {}),
    }  # fmt: skip
    load = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.load", *itertools.chain(*options.items())],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert load.stdin
    assert load.stdout
    try:
        load.stdout.readline()  # it is warm
        load.stdin.write("\n")
        load.stdin.flush()
        yield load
    finally:
        load.terminate()
        load.communicate()


def _hostile(context: Context, settings: Settings, window: Window) -> None:
    """An agent that would delete what is live: records that it does that for are dead-lettered with the refusal."""
    file = context.home / "hostile.py"
    file.write_text(HOSTILE)
    _plan(settings, "hostile", window)
    ended = _start(settings, "hostile", "--agents", str(file)).wait(STORED_WITHIN_S)
    log = (settings.replay.directory / "hostile" / "log" / "hostile.log").read_text()
    if "permission denied" not in log:
        raise Failed(f"The hostile agent was not refused by permission (exit {ended}): {log[-500:]}")
    pipeline(settings, "replay", "drop", "hostile", "--yes")


def _plan(settings: Settings, name: str, window: Window) -> None:
    start, end = (one.isoformat() for one in window)
    pipeline(settings, "replay", "plan", "--topics", "logs_raw", "--from", start, "--to", end, "--name", name)


def _start(settings: Settings, *words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "pipeline", "replay", "run", *words], cwd=ROOT,
                            env={**_plain_environment(), **as_environment(settings)})  # fmt: skip


def _plain_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PIPELINE_")}


def _status(settings: Settings, name: str) -> dict[str, Any]:
    return {"copied_records": 0, **Folder.of(name, settings).state}


def _ended(replay: "subprocess.Popen[bytes]", within_s: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        replay.wait(within_s)


def _ages(settings: Settings, while_doing: Callable[[], None]) -> list[float]:
    """How old, in seconds, live's probes sent meanwhile were when a reader of ClickHouse saw them: all of them."""
    probes = Probes(settings)
    probes.start()
    while_doing()
    probes.stop(within_s=30.0)
    if unseen := probes.unseen()["clickhouse"] + probes.failed["logs"]:
        raise Failed(f"{unseen} probes of live's freshness were never seen.")
    return probes.ages_s["clickhouse"]


def _p99(ages: list[float]) -> float:
    if not ages:
        raise Failed("No probe was seen.")
    return sorted(ages)[min(len(ages) - 1, int(len(ages) * 0.99))]
