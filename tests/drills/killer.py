"""A random killer for ten minutes: three workers a writer, the stores, Kafka and the gateway, in any order.

Some workers are frozen instead, until others have their partitions, and wake up to finish what is no longer theirs.

The seed gives the order and the pauses; each deed is told with its time.
"""

import contextlib
import datetime
import random
import socket
import threading
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
FREEZE_SHARE = 0.3  # of those done to workers
FROZEN_S = 18.0  # longer than a worker's session with Kafka
WORKERS = 3
WRITERS = ("ch_writer", "pg_writer")
SERVERS = ("clickhouse", "postgres", "kafka", "gateway")
STORED_WITHIN_S, SHORT_STORED_WITHIN_S = 300.0, 90.0
ANSWERED_WITHIN_S = 120.0


def drill(context: Context) -> str:
    """SIGKILL, and servers stopped in order now and then; what was answered OK is stored once, and the audit is clean."""
    rng = random.Random(context.seed)
    deeds: list[str] = []
    frozen: list[threading.Timer] = []
    with context.whole_stack(with_workers) as (stack, settings):
        load = Exporters(settings)
        load.start()
        deadline = time.monotonic() + (SHORT_SECONDS if context.short else SECONDS)
        while time.monotonic() < deadline:
            time.sleep(rng.uniform(*EVERY_S))
            began = datetime.datetime.now(datetime.UTC)
            deeds.append(_deed(rng, stack, settings, frozen))
            context.tell(f"{began:%H:%M:%S.%f} {deeds[-1]}; {len(deeds)} of seed {context.seed}")
        for each in frozen:
            each.join()
        load.finish(ANSWERED_WITHIN_S)
        audited(settings, SHORT_STORED_WITHIN_S if context.short else STORED_WITHIN_S)
        read_once(settings, load)
        answered = sum(len(numbers) for numbers in load.answered.values())
    return f"{answered:,} records answered OK and stored once; {len(deeds)} deeds: {counted(deeds)}; audit clean"


def _deed(rng: random.Random, stack: Stack, settings: Settings, frozen: list[threading.Timer]) -> str:
    """Kill, freeze or restart one process; say which. Who is meant depends on nothing but `rng`."""
    worker, restart, index = rng.random() < WORKER_SHARE, rng.random() < RESTART_SHARE, rng.randrange(WORKERS)
    name, freeze = rng.choice(WRITERS if worker else SERVERS), rng.random() < FREEZE_SHARE
    if worker:
        with contextlib.suppress(IndexError, psutil.NoSuchProcess):  # it died just now
            victim = measured.process(stack, name).children()[index]
            if freeze:
                victim.suspend()
                frozen.append(threading.Timer(FROZEN_S, _wake, [victim]))
                frozen[-1].start()
            else:
                victim.kill()
        return f"{'froze' if freeze else 'killed'} a worker of {name}"
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


def _wake(victim: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it was killed meanwhile
        victim.resume()


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
