"""`make bench-gateway`: closed and open loops at the gateway, and the floors of design section 10.

Everything runs on one machine, so records/s is what load, gateway and Kafka reach together; the floors are held by
the gateway's own CPU a record. `make bench-peers` puts a Collector beside it: see tests/bench/peers.py.
"""

import contextlib
import dataclasses
import json
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import psutil

from pipeline import native, otlp, topics
from pipeline.local import Stack
from pipeline.record import schema
from pipeline.record.schema import Signal
from pipeline.settings import Settings
from tests.bench import measured, payload
from tests.bench.measured import Row

COLUMNS = (
    "load", "records/s", "us CPU a record", "us CPU a request", "p50 ms", "p99 ms", "p99.9 ms", "RSS MB",
    "records a message", "load CPU %", "Collector (design 10)", "floor", "verdict",
)  # fmt: skip
LOAD_IS_BUSY = 0.85  # of a core: then the load may be what is slow
BUSY_MACHINE = 0.5  # load average a core
CLOSED_RECORDS = (1, 100, 1000)
CLOSED_CONNECTIONS = (1, 16, 128)
RSS_FLOOR_MB = 300
US_A_RECORD_FLOOR = 1e6 / 40_000
ENCODE_FLOORS: dict[str, dict[Signal, int]] = {
    "native": {"logs": 1_000_000, "traces": 900_000, "metrics": 2_500_000},
    "python": {"logs": 60_000},
}
GOALS: dict[tuple[Signal, int], int] = {  # records of the extension's gateway a core-second, by those of a request
    ("logs", 1000): 350_000,
    ("traces", 1000): 350_000,
    ("metrics", 1000): 800_000,
    ("logs", 100): 200_000,
}
HALF_LOAD_P99_MS = 25
GOAL_CONNECTIONS = 8
ROUNDS = 3
OPEN_RATE, OPEN_P99_MS = 20_000, 50
MESSAGE_FLOOR, MESSAGE_AIM = 10, 200
COLLECTOR: dict[tuple[Signal, int], str] = {
    ("logs", 1000): "149-195,000/s",
    ("logs", 100): "107-112,000/s",
    ("traces", 1000): "162-191,000/s",
    ("metrics", 1000): "398-458,000/s",
}
COLLECTOR_NOTE = "Collector (design 10): a core-second; at full load p50 28-38 ms, p99 61-120 ms, 70-100 MB"


@dataclasses.dataclass(frozen=True)
class Case:
    """One load; `rate` in records a second makes it an open loop."""

    protocol: str
    signal: Signal
    records: int
    connections: int
    rate: float | None = None

    def __str__(self) -> str:
        loop = f"open at {self.rate:,.0f}/s" if self.rate else "closed"
        return f"{self.protocol} {self.signal}, {self.records:,} x {self.connections} conn., {loop}"


@dataclasses.dataclass(frozen=True)
class Target:
    """Who is measured: a process, where it listens, and how many (messages, records) it has put into Kafka so far."""

    name: str
    process: psutil.Process
    addresses: dict[str, str]
    messages: Callable[[], tuple[float, float]]


def run(stack: Stack, settings: Settings, *, short: bool, as_json: bool) -> int:
    """Measure, print, and return the exit code: 1 where a floor is missed."""
    busy = os.getloadavg()[0]
    rows = list(encoding(10 if short else 30))
    with started(stack, settings) as gateway:
        for case in _cases(short):
            rows.append(_judged(case, under(case, gateway, _seconds(case, short))))
            tell(rows[-1])
        rows.append(_memory(rows))
    missed = [row for row in rows if str(row.get("verdict", "")).startswith("MISSED")]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        measured.show(rows, COLUMNS)
        print(COLLECTOR_NOTE)
        print("floors: " + (f"{len(missed)} missed" if missed else "all held"))
        if any(row.get("load CPU %", 0) > LOAD_IS_BUSY * 100 for row in rows):
            print("* the load itself needed most of a core: records/s and latencies of that row may be its own")
        if busy > BUSY_MACHINE * (os.cpu_count() or 1):
            print(
                f"The machine was not idle before (load average {busy:.1f}): the latencies are not the gateway's alone"
            )
    return 1 if missed else 0


def _cases(short: bool) -> Iterator[Case]:
    for protocol in ("http", "grpc"):
        if short:
            yield from (Case(protocol, "logs", records, 16) for records in (1, 1000))
        else:
            for records in CLOSED_RECORDS:
                yield from (Case(protocol, "logs", records, connections) for connections in CLOSED_CONNECTIONS)
            yield Case(protocol, "traces", 1000, 16)
            yield Case(protocol, "metrics", 1000, 16)
        yield Case(protocol, "logs", 10, 100)
        yield Case(protocol, "logs", 1000, 16, rate=OPEN_RATE)


def _seconds(case: Case, short: bool) -> float:
    """An open loop of few, large requests needs longer until its p99 means something."""
    return (2 if short else 4) * (3 if case.rate else 1)


def encoding(count: int) -> Iterator[Row]:
    """The pure function alone, in this process and one thread, on `count` requests of 1,000 records a round.

    By the extension, where it was built, and by the reference. The fastest of three rounds: what else runs on the
    machine only ever adds.
    """
    native.choose("auto")
    implementations: tuple[native.Implementation, ...] = ("native", "python") if native.chosen() else ("python",)
    for implementation in implementations:
        native.choose(implementation)
        yield from _encoding(implementation, count)
    native.choose("auto")


def _encoding(implementation: native.Implementation, count: int) -> Iterator[Row]:
    rng = random.Random(1)
    for signal in schema.SIGNALS:
        warm_up, *bodies = [payload.request(signal, 1000, time.time_ns(), rng) for _ in range(ROUNDS * count + 1)]
        origin = otlp.Origin("default", "bench", time.time_ns())
        for _ in range(5):
            otlp.encode(signal, warm_up, origin, partitions=4)
        rounds = []
        for n in range(ROUNDS):
            started, cpu = time.perf_counter(), time.process_time()
            for body in bodies[n::ROUNDS]:
                otlp.encode(signal, body, origin, partitions=4)
            rounds.append((time.process_time() - cpu, time.perf_counter() - started))
        cpu, seconds = min(rounds)
        row: Row = {
            "load": f"encode alone, {implementation}, {signal} of {len(bodies[0]) // 1000} bytes",
            "records/s": count * 1000 / seconds,
            "us CPU a record": cpu / count / 1000 * 1e6,
        }
        floor = ENCODE_FLOORS[implementation].get(signal)
        if floor:
            row["floor"] = f"{floor:,}/s a core"
            row["verdict"] = _verdict(count * 1000 / cpu >= floor, f"{count * 1000 / cpu:,.0f}/s a core")
        yield row


@contextlib.contextmanager
def started(stack: Stack, settings: Settings) -> Iterator[Target]:
    """Kafka, its topics and the gateway, on a stack of their own that is removed at the end."""
    stack.wipe()
    try:
        stack.start(["kafka"])
        topics.apply_all(settings)
        stack.start(["gateway"])
        yield target(stack, settings)
    finally:
        stack.wipe()


def goals(target: Target, seconds: float) -> Iterator[Row]:
    """The target beside GOALS, each protocol, and its p99 at half of the load that it reached."""
    for protocol in ("http", "grpc"):
        for (signal, records), goal in GOALS.items():
            row = under(Case(protocol, signal, records, GOAL_CONNECTIONS), target, seconds)
            found = a_core(row)
            yield {**row, "floor": f"{goal:,}/s a core", "verdict": _verdict(found >= goal, f"{found:,.0f}/s a core")}
            if records == 1000:
                case = Case(protocol, signal, records, GOAL_CONNECTIONS, rate=row["records/s"] / 2)
                half = under(case, target, seconds)
                held = half["p99 ms"] < HALF_LOAD_P99_MS
                yield {
                    **half,
                    "floor": f"p99 under {HALF_LOAD_P99_MS} ms",
                    "verdict": _verdict(held, f"{half['p99 ms']:.0f} ms"),
                }


def a_core(row: Row) -> float:
    """Records a core-second of a row."""
    return float(1e6 / row["us CPU a record"])


def target(stack: Stack, settings: Settings) -> Target:
    """Our running gateway."""
    gateway = settings.gateway
    url = f"http://127.0.0.1:{gateway.http_port}/metrics"
    name = "pipeline_gateway_message_records"
    return Target(
        "gateway",
        measured.process(stack, "gateway"),
        {"http": f"127.0.0.1:{gateway.http_port}", "grpc": f"127.0.0.1:{gateway.grpc_port}"},
        lambda: (measured.counted(url, f"{name}_count"), measured.counted(url, f"{name}_sum")),
    )


def under(case: Case, target: Target, seconds: float) -> Row:
    """The target under one load, after a warm-up of a quarter of the time; raise RuntimeError where it met failures."""
    load = subprocess.Popen(
        [
            sys.executable, "-m", "tests.bench.load", "--protocol", case.protocol, "--signal", case.signal,
            "--address", target.addresses[case.protocol], "--records", str(case.records),
            "--connections", str(case.connections), "--seconds", str(seconds),
            "--warm-s", str(seconds / 4), *(["--rate", str(case.rate)] if case.rate else []),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert load.stdin is not None
    assert load.stdout is not None
    peak = 0.0
    try:
        if not load.stdout.readline():
            raise RuntimeError(f"{target.name}, {case}: the load process did not start")
        messages = target.messages()
        with measured.cpu(target.process) as used:
            load.stdin.write("\n")
            load.stdin.flush()
            while not select.select([load.stdout], [], [], 0.2)[0]:
                peak = max(peak, measured.rss_mb(target.process))
            line = load.stdout.readline()
        sent = [after - before for before, after in zip(messages, target.messages(), strict=True)]
    finally:
        load.terminate()
        load.communicate()
    done = json.loads(line or '{"failures": ["the load process died"]}')
    if done["failures"]:
        raise RuntimeError(f"{target.name}, {case}: the load met failures: {done['failures']}")
    share = done["load_cpu"] * 100
    return {
        "load": f"{target.name}: {case}" + "*" * (done["load_cpu"] > LOAD_IS_BUSY),
        "records/s": done["records"] / done["seconds"],
        "us CPU a record": used() / done["records"] * 1e6,
        "us CPU a request": used() / done["requests"] * 1e6,
        "p50 ms": done["p50_ms"],
        "p99 ms": done["p99_ms"],
        "p99.9 ms": done["p99.9_ms"],
        "RSS MB": max(peak, measured.rss_mb(target.process)),
        "records a message": sent[1] / sent[0] if sent[0] else None,
        "load CPU %": share,
    }


def _judged(case: Case, row: Row) -> Row:
    """The row beside the Collector's numbers, with its floor where it has one."""
    row["Collector (design 10)"] = COLLECTOR.get((case.signal, case.records))
    if case.rate:
        kept = row["records/s"] > 0.95 * case.rate
        row["floor"] = f"p99 under {OPEN_P99_MS} ms"
        row["verdict"] = _verdict(kept and row["p99 ms"] < OPEN_P99_MS, f"{row['p99 ms']:.0f} ms")
    elif case.records == 1000:
        row["floor"] = "40,000/s a core"
        row["verdict"] = _verdict(row["us CPU a record"] <= US_A_RECORD_FLOOR, f"{a_core(row):,.0f}/s a core")
    elif case.connections == 100:
        found = row["records a message"] or 0.0
        row["floor"] = f"over {MESSAGE_FLOOR} records a message, aim {MESSAGE_AIM}"
        row["verdict"] = _verdict(found > MESSAGE_FLOOR, f"{found:.0f} a message")
    return row


def _memory(rows: Sequence[Row]) -> Row:
    peak = max(row.get("RSS MB", 0.0) for row in rows)
    return {
        "load": "gateway: memory over all of the above",
        "RSS MB": peak,
        "floor": f"under {RSS_FLOOR_MB} MB",
        "verdict": _verdict(peak < RSS_FLOOR_MB, f"{peak:.0f} MB"),
    }


def _verdict(held: bool, found: str) -> str:
    return f"{'held' if held else 'MISSED'}: {found}"


def tell(row: Row) -> None:
    line = f"{row['load']}: {row['records/s']:,.0f} records/s, p99 {row['p99 ms']:.1f} ms"
    print(line, row.get("verdict", ""), file=sys.stderr)
