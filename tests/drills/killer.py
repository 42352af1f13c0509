"""A random killer for ten minutes: three workers a writer, the stores, Kafka and the gateway, in any order."""

import contextlib
import random
import socket
import time

import psutil

from pipeline.local import Stack
from pipeline.settings import Settings
from tests.drills.context import Context
from tests.drills.exporters import Exporters
from tests.drills.proof import audited, counted, pipeline, read_once

SECONDS, SHORT_SECONDS = 600.0, 20.0
EVERY_S = (3.0, 9.0)  # between kills
WORKERS = 3
WRITERS = ("ch_writer", "pg_writer")
SERVERS = ("clickhouse", "postgres", "kafka", "gateway")
STORED_WITHIN_S, SHORT_STORED_WITHIN_S = 300.0, 90.0
ANSWERED_WITHIN_S = 120.0


def drill(context: Context) -> str:
    """SIGKILL only; what was answered OK is stored once, and the audit is clean."""
    rng = random.Random(context.seed)
    kills: list[str] = []
    with context.whole_stack(_with_workers) as (stack, settings):
        load = Exporters(settings)
        load.start()
        deadline = time.monotonic() + (SHORT_SECONDS if context.short else SECONDS)
        while time.monotonic() < deadline:
            time.sleep(rng.uniform(*EVERY_S))
            kills.append(_kill(rng, stack, settings))
            context.tell(f"killed {kills[-1]}; {len(kills)} kills of seed {context.seed}")
        load.finish(ANSWERED_WITHIN_S)
        audited(settings, SHORT_STORED_WITHIN_S if context.short else STORED_WITHIN_S)
        read_once(settings, load)
        answered = sum(len(numbers) for numbers in load.answered.values())
    return f"{answered:,} records answered OK and stored once; {len(kills)} kills: {counted(kills)}; audit clean"


def _kill(rng: random.Random, stack: Stack, settings: Settings) -> str:
    """Kill one process; start it again where no supervisor does."""
    if rng.random() < 0.6:
        name = rng.choice(WRITERS)
        [supervisor] = [row["pid"] for row in stack.status()["processes"] if row["name"] == name][:1]
        workers = psutil.Process(supervisor).children()
        if workers:
            rng.choice(workers).kill()
        return f"a worker of {name}"
    name = rng.choice(SERVERS)
    [pid] = [row["pid"] for row in stack.status()["processes"] if row["name"] == name][:1]
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            one.kill()
        process.wait()
    pipeline(settings, "local", "start", name)
    return name


def _with_workers(settings: Settings) -> Settings:
    own = {name: getattr(settings, name) for name in WRITERS}
    return settings.model_copy(
        update={
            name: writer.model_copy(update={"workers": WORKERS, "health_port": _free_ports_in_a_row(WORKERS)})
            for name, writer in own.items()
        }
    )


def _free_ports_in_a_row(count: int) -> int:
    """The first of `count` ports that nobody listened on a moment ago."""
    while True:
        first = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
