"""Two edges and a centre under load: all of them active, the link cut, MirrorMaker and brokers killed, a region lost for
good in the middle of it, and back.

What both edges answered OK is at the centre once, but for what the lost region had not mirrored: that is named by count
and time. Status tells the truth all along.
"""

import contextlib
import datetime
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import psutil
import tenacity

from pipeline import topics
from pipeline.errors import PipelineError
from pipeline.kafka.groups import Groups
from pipeline.kafka.reader import Reader
from pipeline.local import Regions
from pipeline.local.stack import MIRROR_MAKER
from pipeline.regions import Topology, status
from pipeline.regions.failover import Failback, Failover, Lost, carry_out
from pipeline.regions.topology import Link
from pipeline.settings import Settings
from tests.bench import measured
from tests.drills.context import Context, Failed
from tests.drills.proof import pipeline
from tests.regions import world
from tests.regions.world import BATCH, Load

EDGES = ("eu", "us")
PAIR = tuple(Link(source=one, target=other, topics=("*_raw",)) for one, other in (EDGES, EDGES[::-1]))
ACTIVE_S, SHORT_ACTIVE_S = 600, 20
CUT_S, SHORT_CUT_S = 600, 60
UNMIRRORED_S = 15  # of load that the lost region answers while nothing comes over
LOAD_S = 10
WITHIN_S = 240.0
APART = 10**7  # numbers of one stage's load
SAID_BROKEN_WITHIN_S = status.BROKEN_AFTER_S + 30.0  # a region that is away is waited for
ACCURATE_TO_S = 20.0


class World(NamedTuple):
    """`active` has links both ways between the edges, `regions` those of the shipped topology; the stacks are the same.
    `first` is the first number of a stage's load."""

    context: Context
    active: Regions
    regions: Regions
    settings: dict[str, Settings]
    first: int

    @property
    def central(self) -> Settings:
        return self.settings["central"]

    def load(self) -> Load:
        return Load({alias: self.settings[alias] for alias in EDGES}, self.first)

    def long(self, seconds: int, short: int) -> int:
        return short if self.context.short else seconds


def drill(context: Context) -> str:
    """Each stage begins with whole regions; those that ended are not run again after an interruption."""
    regions, settings = world.regions_on_free_ports(context.home / "regions")
    mirrored = (*regions.topology.links, *PAIR)
    active = Regions(regions.topology.model_copy(update={"links": mirrored}), settings, context.tell)
    active.wipe()
    said = context.at.setdefault("said", {})
    try:
        (regions if "active" in said else active).up()
        for number, (name, stage) in enumerate(STAGES.items()):
            if name not in said:
                said[name] = stage(World(context, active, regions, settings, number * APART))
                context.keep()
                context.tell(said[name])
        return "; ".join(said.values())
    except BaseException:
        for alias, each in settings.items():
            logs = context.home / "logs" / alias
            shutil.rmtree(logs, ignore_errors=True)
            if (each.local.home / "log").is_dir():
                shutil.copytree(each.local.home / "log", logs)
        raise
    finally:
        active.wipe()


class Look(NamedTuple):
    """What status said of one source between `start` and `end`."""

    source: str
    start: float
    end: float
    broken: str
    lag_s: float | None  # of what the load writes


class Fault(NamedTuple):
    """Links of `source` were cut from `start` to `end`, and work again since `works`."""

    source: str
    start: float
    end: float
    works: float


class Watch(threading.Thread):
    """What `pipeline regions status --watch` does, again and again; what it said is held against what was done."""

    def __init__(self, topology: Topology, settings: Settings) -> None:
        super().__init__(daemon=True)
        self._topology, self._settings = topology, settings
        self._stop_now = threading.Event()
        self.looks: list[Look] = []
        self._faults: list[Fault] = []
        self._failure: Exception | None = None

    def __enter__(self) -> "Watch":
        """Once MirrorMaker, which may just start, has connected all."""
        if not measured.wait_until(self._whole, WITHIN_S):
            raise Failed(f"{WITHIN_S:.0f} s after the start: {status.look(self._topology, self._settings)}")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_now.set()
        self.join()

    def run(self) -> None:
        try:
            while not self._stop_now.wait(1):
                status.note(self._topology, self._settings)
                start = time.monotonic()
                found = status.look(self._topology, self._settings)
                for link in found:
                    lag_s = next((topic.lag_s for topic in link.topics if topic.topic == "logs_raw"), None)
                    self.looks.append(Look(link.source, start, time.monotonic(), link.broken, lag_s))
        except Exception as failure:
            self._failure = failure

    @contextlib.contextmanager
    def fault(self, *sources: str) -> Iterator[float]:
        """The links of these are cut as long as this lasts; returns once status says that they work."""
        start = time.monotonic()
        yield start
        end = time.monotonic()
        if not measured.wait_until(lambda: not any(self._broken(source) for source in sources), WITHIN_S):
            raise Failed(f"{WITHIN_S:.0f} s after {', '.join(sources)} was whole again: {self.looks[-len(EDGES) :]}")
        self._faults += [Fault(source, start, end, time.monotonic()) for source in sources]

    def says_broken(self, *sources: str) -> None:
        """Wait until it does; raise Failed where it takes too long."""
        if not measured.wait_until(lambda: all(self._broken(source) for source in sources), SAID_BROKEN_WITHIN_S):
            raise Failed(f"{', '.join(sources)} is cut for {SAID_BROKEN_WITHIN_S:.0f} s, and status calls it whole.")

    def judged(self) -> int:
        """How many looks there were; raise Failed with one that was wrong."""
        if self._failure is not None:
            raise Failed(f"Status ended with {self._failure!r}.")
        for look in self.looks:
            faults = [each for each in self._faults if each.source == look.source]
            during = [each for each in faults if each.start + SAID_BROKEN_WITHIN_S < look.start and look.end < each.end]
            near = [each for each in faults if each.start < look.end and look.start < each.works]
            if during and not look.broken:
                raise Failed(
                    f"{look.source} was cut for {look.start - during[0].start:.0f} s, and status called it whole."
                )
            if look.broken and not near:
                raise Failed(f"Nothing was wrong with {look.source}, and status said: {look.broken}")
        return len(self.looks)

    def _whole(self) -> bool:
        status.note(self._topology, self._settings)
        return not any(link.broken for link in status.look(self._topology, self._settings))

    def _broken(self, source: str) -> bool:
        """As the last look found it."""
        own = [look for look in self.looks if look.source == source]
        return bool(own and own[-1].broken)


def _active(drilled: World) -> str:
    """While eu and us mirror each other and both take logs, nothing else grows, and each log comes over once."""
    active, settings, load = drilled.active, drilled.settings, drilled.load()
    active_s = drilled.long(ACTIVE_S, SHORT_ACTIVE_S)
    load.start()
    written = {*((alias, "logs_raw") for alias in EDGES), *_mirrors(active.topology)}
    time.sleep(LOAD_S)  # MirrorMaker makes topics of its own when it starts
    if not measured.wait_until(lambda: all(_count(settings[at], name) for at, name in written), WITHIN_S):
        raise Failed("Not everything that is written comes over.")
    before = {alias: _ends(each) for alias, each in settings.items()}
    time.sleep(active_s)
    load.finish()
    said = _once(load, settings, f"all active for {active_s:.0f} s")
    wrong: dict[str, str] = {}

    def equal() -> bool:
        wrong.clear()
        for at, name in _mirrors(active.topology):
            source, _, topic = name.partition(".")
            sent, came = _count(settings[source], topic), _count(settings[at], name)
            if sent != came:
                wrong[f"{name} at {at}"] = f"{sent} messages in {source}, {came} came over"
        return not wrong

    measured.wait_until(equal, WITHIN_S)
    for alias, each in settings.items():
        for (topic, partition), end in _ends(each).items():
            if (alias, topic) not in written and end != before[alias].get((topic, partition)):
                wrong[f"{topic} [{partition}] at {alias}"] = f"{before[alias].get((topic, partition))} became {end}"
    if wrong:
        raise Failed(f"Something grows that nobody writes: {wrong}")
    for alias in EDGES:
        active.stacks[alias].stop([MIRROR_MAKER])
    return f"{said}, and nothing grew that nobody writes"


def _mirrors(topology: Topology) -> list[tuple[str, str]]:
    """Region and name of every mirror of the logs."""
    return [(link.target, f"{link.source}.logs_raw") for link in topology.links]


def _ends(settings: Settings) -> dict[tuple[str, int], int]:
    """Of every topic but those in which Kafka and MirrorMaker keep account of themselves."""
    reader = Reader(settings.kafka)
    names = [
        name for name in reader.topics() if not name.startswith("__") and not name.endswith(("heartbeats", ".internal"))
    ]
    return {(each.topic, each.partition): each.end for each in reader.retained(names)}


def _count(settings: Settings, topic: str) -> int:
    """Messages, without the markers of transactions."""
    reader = Reader(settings.kafka)
    return sum(1 for _ in reader.read(reader.retained([topic])))


def _once(load: Load, settings: dict[str, Settings], when: str) -> str:
    wanted = load.all_answered
    found = world.settled(wanted, settings["central"], WITHIN_S)
    missing, doubled = wanted - found.keys(), [number for number, count in found.items() if count > 1]
    if missing or doubled:
        raise Failed(f"{when}: of {len(wanted)} the centre lacks {len(missing)} and doubles {len(doubled)}.")
    both = len(load.answered["eu"].keys() & load.answered["us"].keys())
    return f"{when}: {len(wanted)} at the centre once, {both} of them sent to both"


def _cut(drilled: World) -> str:
    """MirrorMaker stands still: the regions run, and nothing comes over. Status says since when."""
    load = drilled.load()
    with Watch(drilled.regions.topology, drilled.central) as watch:
        load.start()
        with watch.fault(*EDGES) as start:
            process = _process(drilled.regions, "central", MIRROR_MAKER)
            process.suspend()
            try:
                time.sleep(drilled.long(CUT_S, SHORT_CUT_S))
                watch.says_broken(*EDGES)
            finally:
                process.resume()
                resumed = time.monotonic()
        took_s = _caught_up(watch, start, resumed)
        load.finish()
    once = _once(load, drilled.settings, f"cut for {resumed - start:.0f} s")
    return f"{once}, latency back after {took_s:.0f} s, {watch.judged()} looks of status told the truth"


def _caught_up(watch: Watch, start: float, resumed: float) -> float:
    """Wait until latency is as before, and return the time that it took; raise Failed where status said another lag
    while nothing came over."""
    for look in watch.looks:
        if start + ACCURATE_TO_S < look.start and look.end < resumed:
            least, most = look.start - start - ACCURATE_TO_S, look.end - start + ACCURATE_TO_S
            if look.lag_s is None or not least < look.lag_s < most:
                raise Failed(
                    f"{look.source} is cut for {look.end - start:.0f} s, status says behind by {look.lag_s} s."
                )

    def caught_up() -> bool:
        last = watch.looks[-len(EDGES) :]
        return all(look.start > resumed and look.lag_s is not None and look.lag_s < 5 for look in last)

    if not measured.wait_until(caught_up, WITHIN_S):
        raise Failed(f"{WITHIN_S:.0f} s after MirrorMaker went on a link is still behind: {watch.looks[-2:]}")
    return time.monotonic() - resumed


def _kills(drilled: World) -> str:
    """kill -9, and start again: MirrorMaker, a broker at either side. Status says who is away."""
    chance = random.Random(drilled.context.seed)
    edge = chance.choice(EDGES)
    victims: list[tuple[str, str, Sequence[str]]] = [
        ("central", MIRROR_MAKER, EDGES), ("central", "kafka", EDGES), (edge, "kafka", [edge]),
    ]  # fmt: skip
    chance.shuffle(victims)
    load, said = drilled.load(), []
    with Watch(drilled.regions.topology, drilled.central) as watch:
        load.start()
        for alias, name, cut in victims:
            with watch.fault(*cut):
                _kill(drilled.regions, alias, name)
                watch.says_broken(*cut)
                _started(drilled.regions, alias, name)
            said.append(_once(load, drilled.settings, f"{name} of {alias} killed"))
        load.finish()
    _closes(drilled.settings)
    return f"{'; '.join(said)}; every audit clean, {watch.judged()} looks of status told the truth"


def _lost_for_good(drilled: World) -> str:
    """eu is gone in the middle of load, with what did not come over: that is named; then it is back, empty."""
    regions, central, tell = drilled.regions, drilled.central, drilled.context.tell
    load = drilled.load()
    with Watch(regions.topology, central):
        load.start()
        time.sleep(LOAD_S)
        _once(load, drilled.settings, "before eu is lost")
        mirror = _process(regions, "central", MIRROR_MAKER)
        mirror.suspend()  # not killed: it does not start where one of its regions is away
        try:
            time.sleep(UNMIRRORED_S)
            for name in ("kafka", "gateway"):
                _kill(regions, "eu", name)
            gone = time.monotonic()
        finally:
            mirror.resume()
        time.sleep(LOAD_S)
        load.finish()
        move = Failover(regions.topology, central, ("eu", "central"))
        course = carry_out(move, lambda step: tell(f"  {step}"), WITHIN_S)
        took_s = time.monotonic() - gone
        held = world.settled(set(load.answered["us"]), central, WITHIN_S)
    if not load.answered["us"].keys() <= held.keys() or any(count > 1 for count in held.values()):
        raise Failed("With eu gone, records of us are lacking at the centre, or some are doubled.")
    said = _named(load, load.all_answered - held.keys(), course.lost)
    _replayed(central)
    _back(drilled, load.next)
    return f"failover in {took_s:.0f} s: {said}; its mirror replays the same; failback closes, every audit clean"


def _named(load: Load, lost: set[int], named: Sequence[Lost]) -> str:
    """What is said to be lost is what is: between its times, and not fewer or more messages than there can be."""
    if not lost or [each.topic for each in named] != ["logs_raw"] or named[0].messages is None:
        raise Failed(f"{len(lost)} records are lost, and named is {named}.")
    times = load.answered["eu"]
    start, end = (datetime.datetime.fromisoformat(text).timestamp() for text in (named[0].start, named[0].end))
    before = [number for number in lost if times[number] < start]
    if before:
        raise Failed(f"{len(before)} records are lost that were answered before {named[0].start}, the start named.")
    least = len({number // BATCH for number in lost if times[number] < end})
    most = len({number // BATCH for number in times if times[number] >= start})
    if not least <= named[0].messages <= most:
        raise Failed(f"{named[0].messages} messages are named as lost; {least} to {most} can be.")
    seconds = max(times.values()) - min(times[number] for number in lost)
    return f"{len(lost)} records of the last {seconds:.1f} s lost (RPO), named: {named[0]}"


def _replayed(central: Settings) -> None:
    """What the centre holds of eu goes through the writers once more, and comes out as it did."""
    now = datetime.datetime.now(datetime.UTC)
    window = ("--from", (now - datetime.timedelta(hours=2)).isoformat(), "--to", now.isoformat())
    pipeline(central, "replay", "plan", "--topics", "eu.logs_raw", *window, "--name", "of-eu")
    pipeline(central, "replay", "run", "of-eu")
    pipeline(central, "replay", "compare", "of-eu", "--with", "live")
    pipeline(central, "replay", "drop", "of-eu", "--yes")


def _back(drilled: World, first: int) -> None:
    """A new, empty Kafka at eu's address; the centre holds everything that it takes from now on."""
    regions, settings = drilled.regions, drilled.settings
    eu, central = regions.stacks["eu"], regions.stacks["central"]
    eu.stop(["pg_writer", "ch_writer"])
    shutil.rmtree(settings["eu"].local.home / "kafka")
    _started(regions, "eu", "kafka")
    topics.apply_all(settings["eu"])
    since = datetime.datetime.now(datetime.UTC).isoformat()
    for name in ("gateway", "pg_writer", "ch_writer"):
        _started(regions, "eu", name)
    load = Load({"eu": settings["eu"]}, first)
    load.start()
    central.stop([MIRROR_MAKER])
    if not measured.wait_until(lambda: not Groups(drilled.central.kafka).busy("eu-mm2"), WITHIN_S):
        raise Failed("MirrorMaker is stopped, and its group is still busy.")
    move = Failback(regions.topology, drilled.central, ("eu", "central"))
    move.act(move.look())
    _started(regions, "central", MIRROR_MAKER)
    time.sleep(LOAD_S)
    load.finish()
    carry_out(move, lambda step: drilled.context.tell(f"  {step}"), WITHIN_S)
    found = world.settled(load.all_answered, drilled.central, WITHIN_S)
    missing = load.all_answered - found.keys()
    if missing or not load.all_answered or any(count > 1 for count in found.values()):
        raise Failed(f"After the failback {len(missing)} of {len(load.all_answered)} records are not at the centre.")
    _closes(settings, ("--from", since))  # eu's stores have what its Kafka has lost


def _closes(settings: dict[str, Settings], window_of_eu: tuple[str, ...] = ()) -> None:
    """Each region's own stores, and the centre's for each edge."""
    deadline = time.monotonic() + WITHIN_S
    for words in (["--region", "eu", *window_of_eu], ["--region", "us"], ["--region", "central"],
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


def _kill(regions: Regions, alias: str, name: str) -> None:
    process = _process(regions, alias, name)
    process.send_signal(signal.SIGKILL)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.wait(10)


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(PipelineError), stop=tenacity.stop_after_attempt(3), reraise=True
)
def _started(regions: Regions, alias: str, name: str) -> None:
    """On a machine where much else runs a server may not be ready in time."""
    regions.stacks[alias].start([name])


STAGES: dict[str, Callable[[World], str]] = {
    "active": _active, "cut": _cut, "kills": _kills, "lost": _lost_for_good,
}  # fmt: skip
