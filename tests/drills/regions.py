"""Two edges and a centre under load: the link cut, MirrorMaker and brokers killed, a region lost for good and back.

What both edges answered OK is at the centre once; status tells the truth all along; what was lost with a region is
named by count and time.
"""

import contextlib
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator

import psutil

from pipeline import topics
from pipeline.local import Regions
from pipeline.local.stack import MIRROR_MAKER
from pipeline.regions import Topology, status
from pipeline.regions.failover import Failback, Failover, Lost, carry_out
from pipeline.settings import Settings
from tests.drills.context import Context, Failed
from tests.drills.proof import pipeline
from tests.regions import world
from tests.regions.world import Load

LOAD_S, SHORT_LOAD_S = 60, 10
CUT_S, SHORT_CUT_S = 600, 40
WITHIN_S = 180.0


def drill(context: Context) -> str:
    regions, settings = world.regions_on_free_ports(context.home / "regions")
    regions.wipe()
    try:
        regions.up()
        return "; ".join(_course(context, regions, settings))
    except BaseException:
        for alias, each in settings.items():
            logs = context.home / "logs" / alias
            shutil.rmtree(logs, ignore_errors=True)
            if (each.local.home / "log").is_dir():
                shutil.copytree(each.local.home / "log", logs)
        raise
    finally:
        regions.wipe()


def _course(context: Context, regions: Regions, settings: dict[str, Settings]) -> Iterator[str]:
    topology, edges = regions.topology, {alias: settings[alias] for alias in ("eu", "us")}
    load_s = SHORT_LOAD_S if context.short else LOAD_S
    load = Load(edges)
    with _watching(topology, settings["central"]):
        load.start()
        time.sleep(load_s)
        yield _once(load, settings, "under load")
        yield _cut(context, regions, settings, SHORT_CUT_S if context.short else CUT_S)
        yield _once(load, settings, "after the cut")
        for what in _kills(context, regions):
            yield _once(load, settings, what)
        load.finish()
        _closes(settings)
        yield "every audit clean"
    yield failed_over(context, regions, settings, load.next)


def _once(load: Load, settings: dict[str, Settings], when: str) -> str:
    wanted = load.all_answered
    found = world.settled(wanted, settings["central"], WITHIN_S)
    missing, doubled = wanted - found.keys(), [number for number, count in found.items() if count > 1]
    if missing or doubled:
        raise Failed(f"{when}: of {len(wanted)} the centre lacks {len(missing)} and doubles {len(doubled)}.")
    both = len(load.answered["eu"].keys() & load.answered["us"].keys())
    return f"{when}: {len(wanted)} at the centre once, {both} of them sent to both"


def _cut(context: Context, regions: Regions, settings: dict[str, Settings], cut_s: float) -> str:
    """MirrorMaker stands still: the regions run, and nothing comes over."""
    process = _process(regions, "central", MIRROR_MAKER)
    process.suspend()
    try:
        time.sleep(cut_s)
        told = [link for link in status.look(regions.topology, settings["central"]) if link.broken]
        if len(told) != 2:
            raise Failed(f"{cut_s} s after MirrorMaker stood still {len(told)} of 2 links are called broken.")
        behind = sum(topic.lag_messages or 0 for link in told for topic in link.topics)
        if not behind:
            raise Failed("The load goes on, and nothing is called behind.")
    finally:
        process.resume()
    resumed = time.monotonic()
    while any(
        link.broken or any(topic.lag_s is None or topic.lag_s > 5 for topic in link.topics)
        for link in status.look(regions.topology, settings["central"])
    ):
        if time.monotonic() - resumed > WITHIN_S:
            raise Failed(f"{WITHIN_S:.0f} s after MirrorMaker went on a link is still broken or behind.")
    return f"cut for {cut_s:.0f} s, {behind} messages behind, latency back after {time.monotonic() - resumed:.0f} s"


def _kills(context: Context, regions: Regions) -> Iterator[str]:
    """kill -9, and start again: MirrorMaker, a broker at either side."""
    chance = random.Random(context.seed)
    victims = [("central", MIRROR_MAKER), ("central", "kafka"), (chance.choice(("eu", "us")), "kafka")]
    chance.shuffle(victims)
    for alias, name in victims:
        process = _process(regions, alias, name)
        process.send_signal(signal.SIGKILL)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.wait(10)
        regions.stacks[alias].start([name])
        yield f"{name} of {alias} killed"


def failed_over(context: Context, regions: Regions, settings: dict[str, Settings], first: int) -> str:
    """eu is gone for good under load: what it lost is named, what came over is there once; then it is back, empty."""
    topology, central = regions.topology, settings["central"]
    load = Load({"eu": settings["eu"]}, first)
    with _watching(topology, central):
        load.start()
        time.sleep(SHORT_LOAD_S)
        for name in ("kafka", "gateway"):
            _process(regions, "eu", name).kill()
        gone = time.monotonic()
        load.finish()
    move = Failover(topology, central, ("eu", "central"))
    named = carry_out(move, lambda step: context.tell(f"  {step}"), WITHIN_S).lost
    took_s = time.monotonic() - gone
    held = world.in_clickhouse(central)
    lost = load.all_answered - held.keys()
    if any(count > 1 for count in held.values()):
        raise Failed("The failover doubled records.")
    said = _judge(load, lost, named)
    _back(context, regions, settings, load.next)
    return f"failover in {took_s:.0f} s: {said}; failback closes"


def _judge(load: Load, lost: set[int], named: list[Lost]) -> str:
    """The window named holds every answer that was lost before eu was last seen, and the count is not less."""
    times = load.answered["eu"]
    count = sum(each.messages or 0 for each in named)
    if lost and not named:
        oldest = max(times.values()) - min(times[number] for number in lost)
        if oldest > 10:
            raise Failed(f"{len(lost)} records of the last {oldest:.0f} s are lost, and none is named.")
    seconds = max(times.values()) - min((times[number] for number in lost), default=max(times.values()))
    return f"{len(lost)} records of the last {seconds:.1f} s lost (RPO), {count} messages named: {' '.join(map(str, named))}"


def _back(context: Context, regions: Regions, settings: dict[str, Settings], first: int) -> None:
    """A new, empty Kafka at eu's address; the centre holds everything that it takes from now on."""
    eu, central = regions.stacks["eu"], regions.stacks["central"]
    eu.stop(["pg_writer", "ch_writer"])
    shutil.rmtree(settings["eu"].local.home / "kafka")
    eu.start(["kafka"])
    topics.apply_all(settings["eu"])
    eu.start(["gateway", "pg_writer", "ch_writer"])
    load = Load({"eu": settings["eu"]}, first)
    load.start()
    central.stop([MIRROR_MAKER])
    move = Failback(regions.topology, settings["central"], ("eu", "central"))
    move.act(move.look())
    central.start([MIRROR_MAKER])
    time.sleep(SHORT_LOAD_S)
    load.finish()
    carry_out(move, lambda step: context.tell(f"  {step}"), WITHIN_S)
    found = world.settled(load.all_answered, settings["central"], WITHIN_S)
    missing = load.all_answered - found.keys()
    if missing or not load.all_answered or any(count > 1 for count in found.values()):
        raise Failed(f"After the failback {len(missing)} of {len(load.all_answered)} records are not at the centre.")


def _closes(settings: dict[str, Settings]) -> None:
    """Each region's own stores, and the centre's for each edge."""
    deadline = time.monotonic() + WITHIN_S
    for words in (["--region", "eu"], ["--region", "us"], ["--region", "central"],
                  ["--region", "eu", "--at", "central"], ["--region", "us", "--at", "central"]):  # fmt: skip
        while True:
            try:
                pipeline(settings["central"], "audit", *words)
                break
            except Failed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)


def _process(regions: Regions, alias: str, name: str) -> psutil.Process:
    rows = regions.stacks[alias].status()["processes"]
    return psutil.Process(next(row["pid"] for row in rows if row["name"] == name))


@contextlib.contextmanager
def _watching(topology: Topology, settings: Settings) -> Iterator[None]:
    """What `pipeline regions status --watch` notes."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1):
            status.note(topology, settings)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
