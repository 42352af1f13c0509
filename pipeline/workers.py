"""Processes of our commands, kept alive."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import structlog

log = structlog.get_logger()
NUMBER_VARIABLE = "WORKER_NUMBER"
RESTART_AFTER_S = 1.0
LOOK_S = 0.2
STOP_WITHIN_S = 25.0


class Group(NamedTuple):
    """Processes of one command: `python -m pipeline <command>`, so many of them."""

    name: str
    command: Sequence[str]
    workers: int


def supervise(groups: Sequence[Group]) -> int:
    """Run the processes of all groups until SIGTERM or SIGINT; start again those that die.

    Each finds its number, counted over all groups, in WORKER_NUMBER and ends when this process does, however that ends.
    A worker that ends with 2 (misconfigured) ends its group, since starting it again would not help. Return 2 when no
    group is left, 0 after an orderly stop.
    """
    stops: list[int] = []  # signals; an Event's lock may be held by what one interrupts
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, _: stops.append(number))
    with tempfile.TemporaryDirectory(prefix="pipeline-metrics-") as shared:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared
        from prometheus_client import multiprocess  # noqa: PLC0415

        from pipeline.telemetry import metrics  # noqa: PLC0415 - its counters look for the variable when they are made

        group_of = dict(enumerate(group for group in groups for _ in range(group.workers)))
        children = {n: _start(group, n) for n, group in group_of.items()}
        signal.signal(signal.SIGHUP, lambda *_: _tell_all(children.values(), signal.SIGHUP))
        while children and not stops:
            time.sleep(LOOK_S)
            for n, child in list(children.items()):
                if n not in children or child.poll() is None:
                    continue
                group = group_of[n]
                if child.returncode == 2:
                    log.error("misconfigured, not started again", process=group.name)
                    _stop(
                        [children.pop(other) for other, its in group_of.items() if its is group and other in children]
                    )
                    continue
                log.error("worker died", process=group.name, worker=n, pid=child.pid, code=child.returncode)
                time.sleep(RESTART_AFTER_S)
                multiprocess.mark_process_dead(child.pid)  # type: ignore[no-untyped-call]  # or its gauges count for ever
                children[n] = _start(group, n)
                metrics.WORKER_RESTARTS.labels(group.name).inc()
        _stop(list(children.values()))
    return 0 if children else 2


def number() -> int | None:
    """This process's number under a supervisor, or None where there is none."""
    value = os.environ.get(NUMBER_VARIABLE)
    if value is None:
        return None
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    return int(value)


def _start(group: Group, n: int) -> "subprocess.Popen[bytes]":
    ours = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited: it must not end a worker that is starting
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *group.command],
            stdin=subprocess.PIPE,
            env={**os.environ, NUMBER_VARIABLE: str(n)},
        )
    finally:
        signal.signal(signal.SIGHUP, ours)


def _tell_all(children: "Iterable[subprocess.Popen[bytes]]", what: signal.Signals) -> None:
    for child in children:
        child.send_signal(what)


def _end_with_parent() -> None:
    """The parent holds our standard input: its end is the parent's end, also after kill -9."""
    os.read(0, 1)
    os._exit(70)


def _stop(children: "list[subprocess.Popen[bytes]]") -> None:
    for child in children:
        child.terminate()
    deadline = time.monotonic() + STOP_WITHIN_S
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
