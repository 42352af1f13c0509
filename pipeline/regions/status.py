"""Where every link stands: what its source has, what its target has of it, and how old that is."""

import datetime
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from pipeline import topics
from pipeline.errors import PipelineError
from pipeline.kafka.admin import Cluster
from pipeline.kafka.groups import Committed, Groups
from pipeline.kafka.reader import Range, Reader
from pipeline.regions import links
from pipeline.regions.mirror_maker import HEARTBEAT_S
from pipeline.regions.topology import Link, Topology
from pipeline.settings import Settings
from pipeline.telemetry import metrics

GROUP = "pipeline_regions"  # its offsets at the target say how far the source was when it was last seen
BROKEN_AFTER_S = 6 * HEARTBEAT_S
STILL_AFTER_S = 60.0  # twice what MirrorMaker takes to see a new partition
MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class TopicStatus:
    """One topic of a link, named as at the source. What only the source knows is None while it is away.

    lag_messages   in the source, and not yet here
    lag_s          how old the oldest of those is; 0 where there are none
    newest_age_s   how old the newest message is that came here; None where none did
    per_s          messages of the last minute that came here, a second
    """

    topic: str
    lag_messages: int | None
    lag_s: float | None
    newest_age_s: float | None
    per_s: float


@dataclass(frozen=True, slots=True)
class Translated:
    """Of one group: partitions whose offset is translated, and when the last of them was."""

    group: str
    partitions: int
    last: str
    age_s: float


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """One link. `broken` says why nothing comes through, or not everything, and is empty where it works."""

    source: str
    target: str
    broken: str
    heartbeat_age_s: float | None
    topics: list[TopicStatus] = field(default_factory=list)
    groups: list[Translated] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def look(topology: Topology, settings: Settings) -> list[LinkStatus]:
    """Every link as it is now. Changes nothing; a region that does not answer is told, not raised."""
    declared = topics.load(settings.topics_directory, environment=settings.environment)
    with ThreadPoolExecutor(max(1, len(topology.links))) as pool:
        return list(
            pool.map(lambda link: _link(link, [topic.name for topic in link.of(declared)], topology), topology.links)
        )


def note(topology: Topology, settings: Settings) -> None:
    """Write down at each target how far its sources are now, so that a failover can count what did not come over.

    A region that does not answer keeps what was written last; so does one whose cluster was made anew, until it is
    failed back.
    """
    declared = topics.load(settings.topics_directory, environment=settings.environment)
    for link in topology.links:
        names = [topic.name for topic in link.of(declared)]
        try:
            if not made_anew(link, names, topology):
                write_down(link, names, topology)
        except (PipelineError, KeyError):  # away, or without its topics: there is nothing to note
            continue


def made_anew(link: Link, names: Sequence[str], topology: Topology) -> str:
    """Which cluster the source was when it was last seen, and which it is; empty where that is the same, or nobody
    watched. Raises Unavailable where a region is away."""
    seen = {each.cluster for each in noted(link, names, topology).values()}
    cluster = Cluster(topology.regions[link.source].kafka).id()
    return "" if seen <= {cluster} else f"it was cluster {', '.join(sorted(seen))}, and is {cluster}"


def write_down(link: Link, names: Sequence[str], topology: Topology) -> None:
    """Note how far the source of a link is now, and which cluster it is."""
    source = topology.regions[link.source].kafka
    said = f"{time.time_ns() // 10**6}/{Cluster(source).id()}"
    ends = Reader(source).retained(names)
    seen = {(f"{link.source}.{each.topic}", each.partition): Committed(each.end, said) for each in ends}
    Groups(topology.regions[link.target].kafka).move(GROUP, seen)


class Behind(NamedTuple):
    """What of a topic did not come over: messages, how old the oldest is, and for how long some of them have waited
    while nothing of their partition came; 0 where there are none."""

    messages: int
    lag_s: float
    still_s: float


class Seen(NamedTuple):
    """What a source held when it was last seen: the next offset of a partition, when, and in which cluster."""

    end: int
    time_ms: int
    cluster: str


def noted(link: Link, names: Sequence[str], topology: Topology) -> dict[links.Partition, Seen]:
    """By the source's names; empty where nobody watched. Raises Unavailable where the target is away."""
    kafka = topology.regions[link.target].kafka
    counts = Reader(kafka).topics()
    mirrored = [f"{link.source}.{name}" for name in names]
    places = [(name, partition) for name in mirrored for partition in range(counts.get(name, 0))]
    found = {}
    for (topic, partition), held in Groups(kafka).committed(GROUP, places).items():
        time_ms, _, cluster = held.metadata.partition("/")
        found[topic.removeprefix(f"{link.source}."), partition] = Seen(held.offset, int(time_ms or 0), cluster)
    return found


def show_metrics(found: Sequence[LinkStatus], topology: Topology) -> None:
    """Into the catalogue; what is not known now is not a number."""
    unknown = float("nan")
    for alias, region in topology.regions.items():
        metrics.RPO_SECONDS.labels(alias).set(region.recovery.rpo_s)
    for each in found:
        pair = each.source, each.target
        metrics.LINK_BROKEN.labels(*pair).set(bool(each.broken))
        metrics.HEARTBEAT_AGE_SECONDS.labels(*pair).set(_or(each.heartbeat_age_s, unknown))
        ages = [group.age_s for group in each.groups]
        metrics.CHECKPOINT_AGE_SECONDS.labels(*pair).set(min(ages) if ages else unknown)
        for topic in each.topics:
            metrics.MIRROR_LAG_MESSAGES.labels(*pair, topic.topic).set(_or(topic.lag_messages, unknown))
            metrics.MIRROR_LAG_SECONDS.labels(*pair, topic.topic).set(_or(topic.lag_s, unknown))
            metrics.MIRRORED_PER_SECOND.labels(*pair, topic.topic).set(topic.per_s)


def _or(value: float | None, unknown: float) -> float:
    return unknown if value is None else value


def _link(link: Link, names: list[str], topology: Topology) -> LinkStatus:
    source, target = Reader(topology.regions[link.source].kafka), Reader(topology.regions[link.target].kafka)
    try:
        age_s = links.heartbeat_age_s(target, link.source)
        groups = _translated(links.checkpoints(target, link.source))
        present = target.topics()
        here = target.retained(name for name in (f"{link.source}.{name}" for name in names) if name in present)
        newest_ms: dict[str, int] = {}
        for (topic, _), time_ms in newest(target, here).items():
            newest_ms[topic] = max(time_ms, newest_ms.get(topic, 0))
        minute = target.between(here, time.time_ns() // 10**6 - MINUTE_MS, None)
    except PipelineError as away:
        return LinkStatus(link.source, link.target, f"{link.target} does not answer: {away}", None)
    broken, lag = _broken(link, age_s), None
    try:
        lag = behind(link, names, source, target)
        anew = made_anew(link, names, topology)
        broken = _anew(link, anew) if anew else broken or _still(link, lag)
    except (PipelineError, KeyError) as away:
        broken = f"{link.source} does not answer, or has not its topics: {away}"
    now_ms = time.time_ns() // 10**6
    found = [
        TopicStatus(
            name,
            lag[name].messages if lag else None,
            lag[name].lag_s if lag else None,
            max(0.0, (now_ms - newest_ms[mirrored]) / 1000) if mirrored in newest_ms else None,
            sum(each.end - each.start for each in minute if each.topic == mirrored) * 1000 / MINUTE_MS,
        )
        for name, mirrored in ((name, f"{link.source}.{name}") for name in names)
    ]
    return LinkStatus(link.source, link.target, broken, age_s, found, groups)


def _broken(link: Link, age_s: float | None) -> str:
    if age_s is None:
        return f"no heartbeat of {link.source} ever came: MirrorMaker into {link.target} does not run, or just starts."
    if age_s > BROKEN_AFTER_S:
        return f"the last heartbeat that came is {age_s:.0f} s old: MirrorMaker is down, or cannot reach {link.source}."
    return ""


def _anew(link: Link, anew: str) -> str:
    return (
        f"Kafka of {link.source} was made anew ({anew}), and MirrorMaker may pass over what it takes: run `pipeline "
        f"regions failback --from {link.target} --to {link.source}`."
    )


def _still(link: Link, lag: Mapping[str, Behind]) -> str:
    name = max(lag, key=lambda name: lag[name].still_s)
    if lag[name].still_s < STILL_AFTER_S:
        return ""
    return (
        f"messages of {name} have waited for {lag[name].still_s:.0f} s, and heartbeats come: MirrorMaker into "
        f"{link.target} just starts, or a task of it is dead, as its log says. Restart it: nothing is lost or doubled."
    )


def behind(link: Link, names: Sequence[str], source: Reader, target: Reader) -> dict[str, Behind]:
    """By topic, what did not come over.

    Raises Unavailable where a region does not answer, KeyError where the source lacks a topic.
    """
    held = source.retained(names)
    at = links.positions(target, link.source, [(each.topic, each.partition) for each in held if each.end])
    begin = {place: position.offset for place, position in at.items()}
    left = [replace(each, start=max(each.start, begin.get((each.topic, each.partition), 0))) for each in held]
    left = [each for each in left if each.start < each.end]
    now_ms = time.time_ns() // 10**6
    lag_s, still_s = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for message in source.read(replace(each, end=each.start + 1) for each in left):
        waits_s = max(0.0, (now_ms - message.timestamp_ms) / 1000)
        position = at.get((message.topic, message.partition))
        stands_s = waits_s if position is None else (now_ms - position.time_ms) / 1000
        lag_s[message.topic] = max(lag_s[message.topic], waits_s)
        still_s[message.topic] = max(still_s[message.topic], min(waits_s, stands_s))
    count = {name: sum(each.end - each.start for each in left if each.topic == name) for name in names}
    return {name: Behind(count[name], lag_s[name], still_s[name]) for name in names}


def newest(reader: Reader, ranges: Sequence[Range]) -> dict[links.Partition, int]:
    """By partition, the latest timestamp among the last messages of `ranges`, ms; empty ones are left out."""
    last = [replace(each, start=max(each.start, each.end - 3)) for each in ranges]  # markers have offsets too
    found: dict[links.Partition, int] = {}
    for message in reader.read(last):
        place = message.topic, message.partition
        found[place] = max(message.timestamp_ms, found.get(place, 0))
    return found


def _translated(found: Sequence[links.Checkpoint]) -> list[Translated]:
    groups = []
    for group in sorted({each.group for each in found}):
        own = [each for each in found if each.group == group]
        last_ms = max(each.time_ms for each in own)
        last = datetime.datetime.fromtimestamp(last_ms / 1000, datetime.UTC).isoformat(timespec="seconds")
        groups.append(Translated(group, len(own), last, max(0.0, time.time() - last_ms / 1000)))
    return groups
