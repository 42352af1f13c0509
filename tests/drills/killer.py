"""A random killer for ten minutes: three workers a writer, the stores, Kafka and the gateway, in any order.

The seed gives the order and the pauses; each deed is told with its time.
"""

import contextlib
import datetime
import random
import socket
import time

import psutil

from pipeline.local import Stack
from pipeline.settings import Settings
from tests.bench import measured
from tests.drills.context import Context
from tests.drills.exporters import Exporters
from tests.drills.proof import audited, counted, pipeline, read_once

SECONDS, SHORT_SECONDS = 600.0, 20.0
EVERY_S = (3.0, 9.0)  # between deeds
WORKER_SHARE, RESTART_SHARE = 0.6, 0.3  # of all deeds; of those done to servers
WORKERS = 3
WRITERS = ("ch_writer", "pg_writer")
SERVERS = ("clickhouse", "postgres", "kafka", "gateway")
STORED_WITHIN_S, SHORT_STORED_WITHIN_S = 300.0, 90.0
ANSWERED_WITHIN_S = 120.0


def drill(context: Context) -> str:
    """SIGKILL, and servers stopped in order now and then; what was answered OK is stored once, and the audit is clean."""
    rng = random.Random(context.seed)
    deeds: list[str] = []
    with context.whole_stack(with_workers) as (stack, settings):
        load = Exporters(settings)
        load.start()
        deadline = time.monotonic() + (SHORT_SECONDS if context.short else SECONDS)
        while time.monotonic() < deadline:
            time.sleep(rng.uniform(*EVERY_S))
            began = datetime.datetime.now(datetime.UTC)
            deeds.append(_deed(rng, stack, settings))
            context.tell(f"{began:%H:%M:%S.%f} {deeds[-1]}; {len(deeds)} of seed {context.seed}")
        load.finish(ANSWERED_WITHIN_S)
        audited(settings, SHORT_STORED_WITHIN_S if context.short else STORED_WITHIN_S)
        read_once(settings, load)
        answered = sum(len(numbers) for numbers in load.answered.values())
    return f"{answered:,} records answered OK and stored once; {len(deeds)} deeds: {counted(deeds)}; audit clean"


def _deed(rng: random.Random, stack: Stack, settings: Settings) -> str:
    """Kill or restart one process; say which. Who is meant depends on nothing but `rng`."""
    worker, restart, index = rng.random() < WORKER_SHARE, rng.random() < RESTART_SHARE, rng.randrange(WORKERS)
    name = rng.choice(WRITERS if worker else SERVERS)
    if worker:
        with contextlib.suppress(IndexError, psutil.NoSuchProcess):  # it died just now
            measured.process(stack, name).children()[index].kill()
        return f"killed a worker of {name}"
    if restart:
        pipeline(settings, "local", "stop", name)
    else:
        family = measured.family(measured.process(stack, name))
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family)
    pipeline(settings, "local", "start", name)
    return f"{'restarted' if restart else 'killed'} {name}"


def with_workers(settings: Settings) -> Settings:
    own = {name: getattr(settings, name) for name in WRITERS}
    return settings.model_copy(
        update={
            name: writer.model_copy(update={"workers": WORKERS, "health_port": free_ports_in_a_row(WORKERS)})
            for name, writer in own.items()
        }
    )


def free_ports_in_a_row(count: int) -> int:
    """The first of `count` ports that nobody listened on a moment ago."""
    while True:
        first = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
