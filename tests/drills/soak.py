"""Full load for ten minutes: memory stays flat, and nobody hears a failure."""

import json
import subprocess
import sys
import time

from tests.bench import measured
from tests.drills.context import Context, Failed

SECONDS, SHORT_SECONDS = 600, 20
WARM_UP = 0.25  # of the time: caches and the allocator fill
GROWTH_MB = 20  # over the rest; a leak of one record's bytes a thousand would be hundreds
PEAK_MB = 300


def drill(context: Context) -> str:
    """Closed loops over both protocols, 1,000 records a request; the slope of RSS by least squares."""
    seconds = SHORT_SECONDS if context.short else SECONDS
    with context.gateway_and_kafka() as (stack, settings):
        gateway = measured.process(stack, "gateway")
        ports = {"http": settings.gateway.http_port, "grpc": settings.gateway.grpc_port}
        loads = [_load(protocol, port, seconds) for protocol, port in ports.items()]
        try:
            for load in loads:
                _line(load)
            for load in loads:
                assert load.stdin is not None
                load.stdin.write("\n")
                load.stdin.flush()
            started, samples = time.monotonic(), []
            while (age := time.monotonic() - started) < seconds:
                samples.append((age, measured.rss_mb(gateway)))
                context.tell_now_and_then(lambda: f"{samples[-1][0]:.0f} of {seconds} s, {samples[-1][1]:.0f} MB")
                time.sleep(min(1.0, seconds / 60))
            done = [json.loads(_line(load)) for load in loads]
        finally:
            for load in loads:
                load.terminate()
                load.communicate()
        if not gateway.is_running():
            raise Failed("The gateway is not the process that it was.")
    failures = [failure for one in done for failure in one["failures"]]
    if failures:
        raise Failed(f"{sum(one['failed'] for one in done)} requests failed: {failures}")
    records, peak = sum(one["records"] for one in done), max(rss for _, rss in samples)
    settled = [(age, rss) for age, rss in samples if age > seconds * WARM_UP]
    slope = least_squares(settled)
    grown = slope * seconds * (1 - WARM_UP)
    said = (
        f"{records:,} records in {seconds} s, {records / seconds:,.0f}/s; RSS {settled[0][1]:.0f} to "
        f"{settled[-1][1]:.0f} MB, peak {peak:.0f}, slope {slope * 60:+.2f} MB a minute"
    )
    if grown > GROWTH_MB or peak > PEAK_MB:
        raise Failed(f"{said}; allowed are {GROWTH_MB} MB of growth and a peak of {PEAK_MB}")
    return said


def least_squares(points: list[tuple[float, float]]) -> float:
    """The slope of the line nearest to the points."""
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def _load(protocol: str, port: int, seconds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            sys.executable, "-m", "tests.bench.load", "--protocol", protocol, "--signal", "logs",
            "--address", f"127.0.0.1:{port}", "--seconds", str(seconds), "--connections", "8",
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _line(load: "subprocess.Popen[str]") -> str:
    assert load.stdout is not None
    line = load.stdout.readline()
    if not line:
        raise Failed("The load process died.")
    return line
