"""Why a topology would not do what it seems to say: every reason, before MirrorMaker finds it out in silence."""

import re
from collections.abc import Iterator, Sequence

from pipeline.record import schema
from pipeline.regions.topology import Link, Topology
from pipeline.topics import Topic

ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}")
LEAST_RPO_S = 10  # two heartbeats: what is less cannot be seen


def problems(topology: Topology, declared: Sequence[Topic], least_replicas: int) -> list[str]:
    """A sentence for each; none where the topology is sound. `declared` are the topics of every region."""
    return [
        *_of_regions(topology, declared, least_replicas),
        *_of_links(topology, declared),
        *_of_rings(topology),
        *_of_writers(topology, declared),
        *_of_queries(topology),
    ]


def _of_regions(topology: Topology, declared: Sequence[Topic], least_replicas: int) -> Iterator[str]:
    owners: dict[str, str] = {}  # a broker's address, and whose it is
    for alias, region in topology.regions.items():
        where = f"regions.{alias}"
        for server in (each.strip().lower() for each in region.bootstrap_servers.split(",")):
            if server and owners.setdefault(server, alias) != alias:
                yield (
                    f"{where}.bootstrap_servers: {server} is the Kafka of {owners[server]} too, and what is there "
                    "would be mirrored as both's: each region has a cluster of its own."
                )
        if not ALIAS.fullmatch(alias):
            yield (
                f"{where}: an alias is a lower-case letter, then letters, digits and -: a dot would be taken for the "
                "end of a region's name in <region>.<topic>, an underscore makes two names one in Kafka's metrics."
            )
        for topic in declared:
            if topic.name.startswith(f"{alias}_"):
                yield (
                    f"{where}: the topic {topic.name} begins with this alias, and Kafka refuses {topic.name} and the "
                    f"mirrored {alias}.{topic.name.removeprefix(f'{alias}_')} in one cluster: name one of them "
                    "otherwise."
                )
        if region.replication_factor is None:
            yield (
                f"{where}.replication_factor: is missing: MirrorMaker would make mirrored and internal topics with "
                "defaults of its own. Say how many copies this region keeps."
            )
        elif region.replication_factor < least_replicas:
            yield f"{where}.replication_factor: {region.replication_factor}, the environment demands {least_replicas}."
        if region.security_protocol.startswith("SASL") and not region.credentials:
            yield f"{where}.credentials: is missing, {region.security_protocol} needs it."
        if re.search(r"\bpassword\s*=", region.postgres):
            yield f"{where}.postgres: holds a password: name `credentials` and put it into the environment."
        if region.recovery.rpo_s < LEAST_RPO_S:
            yield f"{where}.recovery.rpo_s: less than {LEAST_RPO_S} s cannot be seen by heartbeats of 5 s."


def _of_links(topology: Topology, declared: Sequence[Topic]) -> Iterator[str]:
    seen: set[str] = set()
    for number, link in enumerate(topology.links):
        where = f"links.{number} ({link})"
        unknown = [alias for alias in (link.source, link.target) if alias not in topology.regions]
        if unknown:
            yield f"{where}: there is no region {' or '.join(unknown)}."
        if link.source == link.target:
            yield f"{where}: a cycle: the region would mirror itself, and then its own mirror. Remove the link."
        if str(link) in seen:
            yield f"{where}: there are two such links: put all topics into one."
        seen.add(str(link))
        yield from (f"{where}: {problem}" for problem in _of_topics(link, topology, declared))


def _of_topics(link: Link, topology: Topology, declared: Sequence[Topic]) -> Iterator[str]:
    for name in link.topics:
        prefix, dot, rest = name.partition(".")
        if prefix == link.target and dot:
            yield (
                f"topics: {name}: a cycle: {rest} would come back to {link.target}, whence it came. MirrorMaker "
                "drops that in silence; remove it."
            )
        elif prefix in topology.regions and dot:
            yield (
                f"topics: {name}: {link.source} would hand on its mirror of {prefix} (hub-and-spoke re-mirroring), as "
                f"{link.source}.{name}, which no writer knows: link {prefix} to {link.target} itself."
            )
        elif dot:
            yield f"topics: {name}: has a dot; MirrorMaker takes what is before it for a region. No topic has one."
        elif not any(link.model_copy(update={"topics": (name,)}).of([topic]) for topic in declared):
            yield f"topics: {name}: no file in topics/ declares such a topic."
    for topic in link.of(declared):
        if link.retention_hours is not None and link.retention_hours < topic.retention_hours:
            yield (
                f"retention_hours: {link.retention_hours} at {link.target} is less than the {topic.retention_hours} of "
                f"{topic.name} at {link.source}: a replay from the mirror would be short. Leave it out, or raise it."
            )


def _of_rings(topology: Topology) -> Iterator[str]:
    """Three or more regions in a ring of one-way links: pairs that mirror each other are fine."""
    one_way = {(link.source, link.target) for link in topology.links if link.source != link.target}
    one_way = {(source, target) for source, target in one_way if (target, source) not in one_way}

    def rings(path: list[str]) -> Iterator[list[str]]:
        for source, target in sorted(one_way):
            if source == path[-1]:
                if target == path[0]:
                    yield path
                elif target not in path and target > path[0]:
                    yield from rings([*path, target])

    for start in sorted(topology.regions):
        for ring in rings([start]):
            yield (
                f"links: a cycle: {' -> '.join([*ring, ring[0]])}. What is mirrored is not mirrored on, so no region "
                "would have all: link every two of them both ways, or each to a centre."
            )


def _of_writers(topology: Topology, declared: Sequence[Topic]) -> Iterator[str]:
    raw = {schema.topic(signal) for signal in schema.SIGNALS}
    for alias, region in topology.regions.items():
        where = f"regions.{alias}.writers"
        for source in region.writers:
            if source not in topology.regions:
                yield f"{where}: there is no region {source}."
            elif source == alias:
                continue
            elif region.role == "edge":
                yield f"{where}: {source}: an edge stores only what is its own; make {alias} central, or remove it."
            else:
                links = [link for link in topology.links if (link.source, link.target) == (source, alias)]
                lacking = raw - {topic.name for link in links for topic in link.of(declared)}
                if lacking:
                    yield f"{where}: {source}: no link brings {', '.join(sorted(lacking))} from there."
        if not any(alias in other.writers for other in topology.regions.values()):
            yield f"{where}: no region's writers store what {alias} accepts: name it in its own, or in a central's."


def _of_queries(topology: Topology) -> Iterator[str]:
    for alias in topology.query:
        if alias not in topology.regions:
            yield f"query: there is no region {alias}."
    asked = {alias: topology.regions[alias] for alias in topology.query if alias in topology.regions}
    for source in topology.regions:
        stores = [alias for alias, region in asked.items() if source in region.writers]
        if asked and not stores:
            yield f"query: none of {', '.join(asked)} stores the records of {source}: every answer would be short."
        if len(stores) > 1:
            yield (
                f"query: the records of {source} are stored in {' and '.join(stores)}, and one query joins them: each "
                "would be read twice. Join only one of these, or let only one store them."
            )
