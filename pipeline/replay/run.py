"""A replay carried out: a sandbox made, a slice copied, the ordinary processes run on it until all is stored."""

import contextlib
import datetime
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from pipeline import topics
from pipeline.agents import gaps
from pipeline.errors import Misconfigured, PipelineError, Unavailable
from pipeline.kafka.groups import Groups
from pipeline.kafka.reader import Reader
from pipeline.replay import place, tables
from pipeline.replay.changed import Changed, changed, environment
from pipeline.replay.copy import Copier
from pipeline.replay.folder import Folder, Way
from pipeline.replay.plan import demand_cluster, demand_retained
from pipeline.settings import Settings
from pipeline.topics import Topic
from pipeline.workers import NUMBER_VARIABLE

POLL_S = 0.3
STOP_WITHIN_S = 25.0
LOG_TAIL_BYTES = 1500
TELLING_RECORDS = 100_000  # a smaller run is most of all the start of its processes
Tell = Callable[[str, int, int | None], None]  # what, done, of how many


class StoppedError(PipelineError):
    """A process of the sandbox ended; the message says why, as far as it said so itself."""


@dataclass
class _Running:
    """The processes of a sandbox: they end when this process does, however that ends."""

    folder: pathlib.Path
    nice: int
    children: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str], code: pathlib.Path) -> None:
        logs = self.folder / "log"
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.log").open("ab") as log:
            child = self.children[name] = subprocess.Popen(
                [sys.executable, "-m", "pipeline", *command], stdin=subprocess.PIPE, stdout=log, stderr=log, env=env,
                cwd=code, start_new_session=True,
            )  # fmt: skip
        _stand_back(child.pid, self.nice)

    def check(self) -> None:
        """Raise StoppedError where one has ended."""
        for name, child in self.children.items():
            if child.poll() is not None:
                log = self.folder / "log" / f"{name}.log"
                raise StoppedError(
                    f"{name} of the sandbox ended with {child.returncode}: {_last_words(log)} Whole log: {log}; run "
                    "this again when that is repaired."
                )

    def stop(self) -> None:
        for child in self.children.values():
            child.terminate()
        deadline = time.monotonic() + STOP_WITHIN_S
        for child in self.children.values():
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _stand_back(pid: int, nice: int) -> None:
    """Let the session that `pid` leads have little of a busy machine: where Linux shares CPU by session (autogroup),
    processes' own nice values count among those of one session alone."""
    with contextlib.suppress(OSError):
        for attempt in Retrying(
            retry=retry_if_exception_type(BlockingIOError), stop=stop_after_delay(2.0), wait=wait_fixed(0.1),
            reraise=True,
        ):  # fmt: skip
            with attempt:  # whoever is not root may say it ten times a second
                pathlib.Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def run(folder: Folder, live: Settings, way: Way, tell: Tell) -> None:
    """Return when all that the plan names is stored in the sandbox, or dead-lettered there. A run that was cut off at
    any moment goes on where it stood.

    Raises Misconfigured where it runs already, is half dropped, or may not be made; StoppedError; Unavailable.
    """
    plan = folder.plan
    if folder.state["state"] == "dropping":
        raise Misconfigured(f"{plan.name} is half dropped: `pipeline replay drop {plan.name}` does the rest.")
    if plan.expires <= datetime.datetime.now(datetime.UTC):
        raise Misconfigured(f"{plan.name} expired at {plan.expires:%Y-%m-%d %H:%M} UTC: drop it and plan again.")
    with folder.locked():
        demand_cluster(plan, live)
        made = changed(folder, live, way)
        folder.keep_way(way)
        folder.unpause()
        with contextlib.suppress(OSError):  # what we start inherits it
            os.setpriority(os.PRIO_PROCESS, 0, max(live.replay.nice, os.getpriority(os.PRIO_PROCESS, 0)))
        place.make(plan.sandbox, live, made.settings, _topics(live, plan.topics), made.migrations)
        tables.make(live.clickhouse.model_copy(update={"database": plan.sandbox.owner}))
        started = time.monotonic()
        with _processes(folder, made, live.replay.nice) as running:
            copied = _copy(folder, live, made, running, tell)
            _store(folder, made, running, tell)
        seconds = folder.state.get("seconds", 0.0) + time.monotonic() - started
        folder.note("done", seconds=round(seconds, 1))
        if copied == plan.records >= TELLING_RECORDS:
            _remember_rate(live, int(copied / max(seconds, 0.1)))


def measured_rate(live: Settings) -> int | None:
    """Records a second of the last whole run of TELLING_RECORDS on this machine."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        return int(json.loads((live.replay.directory / ".rate.json").read_text())["records_per_s"])
    return None


def _remember_rate(live: Settings, rate: int) -> None:
    (live.replay.directory / ".rate.json").write_text(json.dumps({"records_per_s": max(1, rate)}))


def _topics(live: Settings, replayed: Sequence[str]) -> list[Topic]:
    """All that are declared, with as many partitions as the cluster has: agents and writers want them all."""
    counts = Reader(live.kafka).topics()
    declared = topics.load(live.topics_directory, environment=live.environment)
    unknown = set(replayed) - {topic.name for topic in declared}
    if unknown:
        raise Misconfigured(f"No file declares {', '.join(sorted(unknown))}: write topics/<name>.yaml for it first.")
    found = []
    for topic in declared:
        here = [count for name, count in counts.items() if name.rpartition(".")[2] == topic.name]
        found.append(topic.model_copy(update={"partitions": max([topic.partitions, *here])}))
    return found


@contextlib.contextmanager
def _processes(folder: Folder, made: Changed, nice: int) -> Iterator[_Running]:
    running = _Running(folder.path, nice)
    env = {**environment(made.settings, made.code), NUMBER_VARIABLE: "0"}
    try:
        for agent in made.agents.values():
            running.start(agent.name, ["agents", "worker", str(agent.file), agent.name], env, made.code)
        for writer in gaps.STORE_WRITERS:
            running.start(writer, [writer], env, made.code)
        yield running
    finally:
        running.stop()


def _copy(folder: Folder, live: Settings, made: Changed, running: _Running, tell: Tell) -> int:
    """Return how many records passed."""
    plan, way = folder.plan, folder.way
    assert way is not None
    copier = Copier(plan, live, made.settings)
    left = copier.left()
    demand_retained(plan, left, live)
    before = sum(each.records for each in plan.slices) if not left else 0
    done = max(before, int(folder.state.get("copied_records", 0)))
    passed = 0
    folder.note("copying", copied_records=done)

    def progress(records: int) -> None:
        nonlocal done, passed
        done, passed = done + records, passed + records
        folder.note("copying", copied_records=done)
        tell("copied", done, plan.records)

    def hold() -> None:
        running.check()
        while folder.paused:
            tell("paused", done, plan.records)
            time.sleep(POLL_S)
            running.check()

    copier.copy(left, min(way.records_per_s, live.replay.max_records_per_s), progress, hold)
    return passed


def _store(folder: Folder, made: Changed, running: _Running, tell: Tell) -> None:
    """Wait until every group has committed all that its topics hold; agents before what they write is read."""
    folder.note("storing")
    reader, groups = Reader(made.settings.kafka), Groups(made.settings.kafka)
    named = made.settings.kafka.named
    consumers: list[tuple[str, Sequence[str]]] = [(agent.name, (agent.reads,)) for agent in made.agents.values()]
    consumers += [(writer, gaps.topics(writer, made.settings)) for writer in gaps.STORE_WRITERS]
    settled: int | None = None  # how much there was when all of it was committed
    while True:
        running.check()
        left = total = 0
        for group, read in consumers:
            ranges = reader.retained(map(named, read))
            committed = groups.committed(named(group), [(each.topic, each.partition) for each in ranges])
            total += sum(each.end for each in ranges)
            left += sum(
                each.end - (committed[at].offset if (at := (each.topic, each.partition)) in committed else 0)
                for each in ranges
            )
        tell("stored", total - left, total)
        if left == 0 and total == settled:  # so between both looks nothing was under way
            return
        settled = total if left == 0 else None
        time.sleep(POLL_S)


def _last_words(log: pathlib.Path) -> str:
    with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
        for line in reversed(lines):
            with contextlib.suppress(ValueError, AttributeError):
                said = json.loads(line)
                return str(said.get("reason") or said.get("event"))
        return lines[-1] if lines else "it said nothing."
    raise Unavailable(f"{log} is gone.")
