"""What the bench reads from processes, and how it shows a row."""

import contextlib
import math
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from pipeline.local import Stack

Row = dict[str, Any]


def process(stack: Stack, name: str) -> psutil.Process:
    """The running process of the stack called `name`; of several workers, their supervisor."""
    row = next(row for row in stack.status()["processes"] if row["name"] == name)
    return psutil.Process(row["pid"])


def family(parent: psutil.Process) -> list[psutil.Process]:
    """The process and what it started."""
    return [parent, *parent.children(recursive=True)]


@contextlib.contextmanager
def cpu(parent: psutil.Process) -> Iterator[Callable[[], float]]:
    """CPU seconds that a process and its children used inside the block."""
    before = cpu_s(parent)
    result: list[float] = []
    yield lambda: result[0]
    result.append(cpu_s(parent) - before)


def cpu_s(*parents: psutil.Process) -> float:
    """CPU seconds that processes and their children have used, those included that have ended; each counts once."""
    times = []
    for one in {one for parent in parents for one in family(parent)}:
        with contextlib.suppress(psutil.NoSuchProcess):
            times.append(sum(one.cpu_times()[:4]))
    return sum(times)


@contextlib.contextmanager
def strangers(ours: Sequence[psutil.Process]) -> Iterator[Callable[[], float]]:
    """Share of the machine's CPU that processes other than `ours` and this one used inside the block."""

    def used() -> tuple[float, float]:
        times = psutil.cpu_times()
        idle = times.idle + times.iowait
        return sum(times[:8]) - idle - cpu_s(*ours, psutil.Process()), sum(times[:8])

    before = used()
    result: list[float] = []
    yield lambda: result[0]
    theirs, all_of_it = (after - first for first, after in zip(before, used(), strict=True))
    result.append(max(0.0, theirs / all_of_it))


def rss_mb(parent: psutil.Process) -> float:
    """Resident memory of a process and its children."""
    found = 0
    for one in family(parent):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += one.memory_info().rss
    return found / 1e6


def counted(url: str, name: str) -> float:
    """The sum of a metric's samples called `name`, over all labels; 0 where there is none."""
    return sum(sample.value for sample in _samples(url) if sample.name == name)


def quantile(url: str, name: str, q: float) -> float:
    """Of a histogram metric, over all labels, by linear interpolation within a bucket; 0 where it is empty."""
    counts: dict[float, float] = {}
    for sample in _samples(url):
        if sample.name == f"{name}_bucket":
            bound = float(sample.labels["le"])
            counts[bound] = counts.get(bound, 0.0) + sample.value
    lower, below = 0.0, 0.0
    wanted = q * counts.get(math.inf, 0.0)
    for bound, count in sorted(counts.items()):
        if count >= wanted and count > below:
            return lower if bound == math.inf else lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return 0.0


def _samples(url: str) -> Iterator[Any]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return (sample for one in text_string_to_metric_families(text) for sample in one.samples)


def show(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Print a table, as wide as it must be."""
    console = Console()
    table = Table(*columns)
    for row in rows:
        table.add_row(*(_shown(row.get(column)) for column in columns))
    if not console.is_terminal:
        console.width = 220
    console.print(table)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"
    return "" if value is None else str(value)


def wait_until(condition: Callable[[], bool], within_s: float, every_s: float = 0.1) -> bool:
    """Whether the condition held within the time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True
