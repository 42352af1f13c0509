"""A region is gone, or back: who stores its records now, from where on, and what did not come over.

Every step is judged by the state of the world alone: a command that was cut off is run again, and goes on.
"""

import asyncio
import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

from pipeline import topics
from pipeline.agents import gaps
from pipeline.errors import Misconfigured, Unavailable
from pipeline.kafka.admin import Cluster
from pipeline.kafka.groups import Committed, Groups
from pipeline.kafka.producer import Publisher
from pipeline.kafka.reader import Range, Reader
from pipeline.regions import links, status
from pipeline.regions.mirror_maker import GROUPS
from pipeline.regions.topology import Link, Topology
from pipeline.settings import Settings

State = Literal["done", "to do", "yours", "refused"]
POLL_S = 2.0
WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Lost:
    """What a region had of one topic and did not mirror: messages received from `start` to `end`, ISO 8601.

    `messages` is None where nobody can tell. `end` is when the region was last seen: of what it took after that nobody
    knows.
    """

    topic: str
    messages: int | None
    start: str
    end: str

    def __str__(self) -> str:
        count = "an unknown number of" if self.messages is None else f"{self.messages}"
        return f"{self.topic}: {count} messages, received from {self.start} to {self.end}, did not come over"


@dataclass(frozen=True, slots=True)
class Step:
    """`done`; `to do`, by this command; `yours`, which only people can do; or `refused`, and why."""

    what: str
    state: State
    why: str = ""

    def __str__(self) -> str:
        return f"[{self.state}] {self.what}{': ' if self.why else ''}{self.why}"


@dataclass(slots=True)
class Course:
    """All steps as they stand now, in order, what is lost, and what `carry_out` is to write: offsets by group."""

    steps: list[Step] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    offsets: dict[str, dict[links.Partition, Committed]] = field(default_factory=dict)

    def add(self, what: str, state: State, why: str = "") -> None:
        self.steps.append(Step(what, state, why))

    def as_json(self) -> dict[str, Any]:
        return {"steps": [asdict(step) for step in self.steps], "lost": [asdict(lost) for lost in self.lost]}


class Move(Protocol):
    """A failover or a failback."""

    def look(self) -> Course:
        """All steps as they stand. Changes nothing; raises Unavailable where the region that must be there is away."""
        ...

    def act(self, course: Course) -> None:
        """Do what of `course` is to do; what has been done already is left alone."""
        ...


def carry_out(move: Move, tell: Callable[[Step], None], within_s: float) -> Course:
    """Go through all steps, and wait for those that take time; `tell` hears each change.

    Raises Misconfigured with what is refused, Unavailable with what is left after `within_s`: run it again then.
    """
    deadline = time.monotonic() + within_s
    told: dict[str, Step] = {}
    while True:
        course = move.look()
        for step in course.steps:
            if told.get(step.what) != step:
                tell(step)
                told[step.what] = step
        refused = [str(step) for step in course.steps if step.state == "refused"]
        if refused:
            raise Misconfigured(refused)
        left = [step for step in course.steps if step.state != "done"]
        if not left:
            return course
        if time.monotonic() > deadline:
            raise Unavailable(f"After {within_s:.0f} s this is left: {'; '.join(map(str, left))}. Run this again.")
        move.act(course)
        time.sleep(POLL_S)


class _Pair:
    """Both ends of the link from `source` to `target`."""

    def __init__(self, topology: Topology, settings: Settings, source: str, target: str) -> None:
        found = [link for link in topology.links if (link.source, link.target) == (source, target)]
        if not found:
            known = ", ".join(map(str, topology.links))
            raise Misconfigured(f"There is no link from {source} to {target}; there are {known}.")
        self.topology, self.settings = topology, settings
        self.link: Link = found[0]
        self.names = [
            topic.name
            for topic in self.link.of(topics.load(settings.topics_directory, environment=settings.environment))
        ]
        self.source_kafka, self.target_kafka = topology.regions[source].kafka, topology.regions[target].kafka
        self.source, self.target = Reader(self.source_kafka), Reader(self.target_kafka)
        self._mirrors = settings.model_copy(update={"mirrored_regions": (source,)})

    def away(self) -> str:
        """Why the source does not answer; empty where it does."""
        try:
            Cluster(self.source_kafka).id()
        except Unavailable as reason:
            return str(reason)
        return ""

    def positions(self) -> dict[links.Partition, links.Position]:
        counts = self.target.topics()
        mirrored = [(name, counts.get(f"{self.link.source}.{name}", 0)) for name in self.names]
        return links.positions(
            self.target, self.link.source, [(name, n) for name, count in mirrored for n in range(count)]
        )

    def mirrored(self, group: str) -> list[Range]:
        """What the target holds of what `group` reads of the source."""
        prefix, present = f"{self.link.source}.", self.target.topics()
        read = [name for name in gaps.topics(group, self._mirrors) if name.startswith(prefix) and name in present]
        return self.target.retained(read)

    def unread(self, group: str) -> int:
        """Mirrored messages that `group` has not committed at the target; markers of transactions are none."""
        held = self.mirrored(group)
        at = Groups(self.target_kafka).committed(group, [(each.topic, each.partition) for each in held])
        left = [replace(each, start=max(each.start, _offset(at, each))) for each in held]
        return sum(1 for _ in self.target.read(left))

    def reads_all(self, course: Course) -> None:
        """The last step of both: the target's writers have stored all that is mirrored."""
        if self.link.source not in self.topology.regions[self.link.target].writers:
            course.add(
                f"{self.link.target}'s writers read {self.link.source}", "yours",
                f"name {self.link.source} in regions.{self.link.target}.writers and in their `mirrored_regions`, "
                "restart them",
            )  # fmt: skip
            return
        for group in GROUPS:
            left = self.unread(group)
            why = f"{left} messages to go; start it, if it does not run" if left else ""
            course.add(
                f"{group} of {self.link.target} has stored all of {self.link.source}", "to do" if left else "done", why
            )


class Failover(_Pair):
    """`source` is gone, or to be emptied: `target` stores its records from now on.

    `since_ms` is an earlier time to read from; `unknown_loss` goes on where nobody can tell what did not come over.
    """

    def __init__(
        self,
        topology: Topology,
        settings: Settings,
        pair: tuple[str, str],
        *,
        since_ms: int | None = None,
        unknown_loss: bool = False,
    ) -> None:
        super().__init__(topology, settings, *pair)
        self._since_ms, self._unknown_loss = since_ms, unknown_loss

    def look(self) -> Course:
        course, away = Course(), self.away()
        if away:
            course.add(f"Kafka of {self.link.source} is away", "done", away)
            course.lost = self.lost()
            self._count(course)
        else:
            self._answers(course)
        for group in GROUPS:
            offsets = self._to_begin(group)
            if offsets:
                course.offsets[group] = offsets
                course.add(
                    f"{group} of {self.link.target} has offsets for {self.link.source}", "to do",
                    f"of {len(offsets)} partitions, as translated, or the first message; stop it before",
                )  # fmt: skip
            else:
                course.add(f"{group} of {self.link.target} has offsets for {self.link.source}", "done")
        self.reads_all(course)
        return course

    def act(self, course: Course) -> None:
        for group, offsets in course.offsets.items():
            Groups(self.target_kafka).move(group, offsets)
        self._since_ms = None

    def lost(self) -> list[Lost]:
        """By topic, what the source was seen to have and the target lacks; empty where everything came over."""
        seen, at = status.noted(self.link, self.names, self.topology), self.positions()
        present = self.target.topics()
        held = self.target.retained(name for name in map(self._mirror, self.names) if name in present)
        newest_ms = status.newest(self.target, held)
        found = []
        for name in self.names:
            mirror = self._mirror(name)
            own = {partition: each for (topic, partition), each in seen.items() if topic == name}
            left = {n: each.end - (at[name, n].offset if (name, n) in at else 0) for n, each in own.items()}
            lacking = [n for n, count in left.items() if count > 0] if own else range(present.get(mirror, 0))
            start = _earliest([newest_ms.get((mirror, n)) for n in lacking])
            if not own:
                found.append(Lost(name, None, start, _time(time.time_ns() // 10**6)))
            elif lacking:
                end = _time(max(each.time_ms for each in own.values()))
                found.append(Lost(name, sum(left[n] for n in lacking), start, end))
        return found

    def _answers(self, course: Course) -> None:
        what = f"{self.link.source} answers, and all that it has is at {self.link.target}"
        if anew := status.made_anew(self.link, self.names, self.topology):
            course.add(f"what Kafka of {self.link.source} held is gone", "done", anew)
            course.lost = self.lost()
            self._count(course)
        elif missing := sorted(set(self.names) - self.source.topics().keys()):
            course.add(what, "refused", f"it has no {', '.join(missing)}: run `pipeline topics apply` there")
        else:
            left = status.behind(self.link, self.names, self.source, self.target)
            count = sum(each.messages for each in left.values())
            why = f"{count} messages have not come over: stop its gateways, wait, and run this again" if count else ""
            course.add(what, "refused" if count else "done", why)

    def _count(self, course: Course) -> None:
        what = f"what {self.link.source} had and {self.link.target} has not is counted"
        if any(lost.messages is None for lost in course.lost):
            why = "nobody watched (`pipeline regions status --watch`), so it cannot be"
            if self._unknown_loss:
                course.add(what, "done", f"{why}; going on")
            else:
                course.add(what, "refused", f"{why}; --unknown-loss goes on all the same")
            return
        seen = status.noted(self.link, self.names, self.topology).values()
        age_s = time.time() - max(each.time_ms for each in seen) / 1000
        count = sum(lost.messages or 0 for lost in course.lost)
        course.add(what, "done", f"{count} messages when it was last seen, {age_s:.0f} s ago")

    def _to_begin(self, group: str) -> dict[links.Partition, Committed]:
        """Where `group` is to begin, for partitions in which it stands nowhere, or later than asked for."""
        held = self.mirrored(group)
        at = Groups(self.target_kafka).committed(group, [(each.topic, each.partition) for each in held])
        translated = {
            (each.topic, each.partition): each.offset
            for each in links.checkpoints(self.target, self.link.source)
            if each.group == group
        }
        since = self.target.between(held, self._since_ms, None) if self._since_ms is not None else held
        begin = {}
        for each, asked in zip(held, since, strict=True):
            place = each.topic, each.partition
            stands = at[place].offset if place in at else min(max(each.start, translated.get(place, 0)), each.end)
            offset = min(stands, asked.start) if self._since_ms is not None else stands
            if place not in at or offset < stands:
                begin[place] = Committed(offset)
        return begin

    def _mirror(self, name: str) -> str:
        return f"{self.link.source}.{name}"


class Failback(_Pair):
    """`source`, which was gone, takes its records again; what it still had, or takes anew, comes to `target`."""

    def __init__(self, topology: Topology, settings: Settings, pair: tuple[str, str]) -> None:
        source, target = pair
        super().__init__(topology, settings, source, target)

    def look(self) -> Course:
        course = Course()
        Cluster(self.source_kafka).id()
        course.add(f"Kafka of {self.link.source} answers", "done")
        declared = topics.load(self.settings.topics_directory, environment=self.settings.environment)
        missing = topics.plan(declared, Cluster(self.source_kafka))
        if missing:
            course.add(f"{self.link.source} has its topics", "refused", "run `pipeline topics apply` there")
            return course
        course.add(f"{self.link.source} has its topics", "done")
        age_s = links.heartbeat_age_s(self.target, self.link.source)
        works = age_s is not None and age_s < status.BROKEN_AFTER_S
        anew, runs = self._made_anew(), Groups(self.target_kafka).busy(f"{self.link.source}-mm2")
        what = f"MirrorMaker's positions are of the cluster that {self.link.source} has now"
        if not anew:
            course.add(what, "done")
        elif runs:
            course.add(what, "yours", f"{anew}; stop MirrorMaker into {self.link.target}: then they are removed")
        else:
            course.add(what, "to do", f"{anew}; they are removed, then start MirrorMaker into {self.link.target}")
        course.add(f"the link {self.link} works", "done" if works else "yours", "" if works else "start MirrorMaker")
        left = status.behind(self.link, self.names, self.source, self.target)
        count = sum(each.messages for each in left.values())
        course.add(
            f"all that {self.link.source} has is at {self.link.target}", "to do" if count else "done",
            f"{count} messages to come" if count else "",
        )  # fmt: skip
        self.reads_all(course)
        return course

    def act(self, course: Course) -> None:
        if not self._made_anew() or Groups(self.target_kafka).busy(f"{self.link.source}-mm2"):
            return
        asyncio.run(self._forget())
        status.write_down(self.link, self.names, self.topology)

    def _made_anew(self) -> str:
        """Why what MirrorMaker remembers cannot be of the cluster that is there; empty where it is."""
        if anew := status.made_anew(self.link, self.names, self.topology):
            return anew
        ends = {(each.topic, each.partition): each.end for each in self.source.retained(self.names)}
        beyond = [place for place, position in self.positions().items() if position.offset > ends.get(place, 0)]
        return f"{len(beyond)} of them are behind the end of their partition" if beyond else ""

    async def _forget(self) -> None:
        """Remove the positions, so that MirrorMaker begins at the first message: it would skip, without a word, what a
        new cluster holds before them."""
        topic = links.offsets_topic(self.link.source)
        kept = links.keys(self.target, self.link.source, [*self.positions(), links.HEARTBEATS])
        publisher = Publisher(self.target_kafka, [topic], within_s=WITHIN_S)
        try:
            for partition, key in kept.values():
                failure = await publisher.remove(topic, partition, key)
                if failure is not None:
                    raise failure
        finally:
            await asyncio.to_thread(publisher.close, WITHIN_S)


def _offset(at: Mapping[links.Partition, Committed], held: Range) -> int:
    place = held.topic, held.partition
    return at[place].offset if place in at else 0


def _earliest(times_ms: Sequence[int | None]) -> str:
    """Of the newest mirrored messages of some partitions; one that has none lacks all from its first."""
    known = [ms for ms in times_ms if ms is not None]
    return _time(min(known)) if known and len(known) == len(times_ms) else "the first on"


def _time(ms: int) -> str:
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).isoformat(timespec="milliseconds")
