"""What the bench reads from processes, and how it shows a row."""

import contextlib
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

    def total() -> float:
        times = []
        for one in family(parent):
            with contextlib.suppress(psutil.NoSuchProcess):
                times.append(sum(one.cpu_times()[:2]))
        return sum(times)

    before = total()
    result: list[float] = []
    yield lambda: result[0]
    result.append(total() - before)


def rss_mb(parent: psutil.Process) -> float:
    """Resident memory of a process and its children."""
    found = 0
    for one in family(parent):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += one.memory_info().rss
    return found / 1e6


def counted(url: str, name: str) -> float:
    """The sum of a metric's samples called `name`, over all labels; 0 where there is none."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return sum(sample.value for one in families for sample in one.samples if sample.name == name)


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
