"""Regions as code: what `topics/topology.yaml` declares, MirrorMaker 2 configured from it, and what it does.

    load(settings) → render(…) | plan(…) → apply(…)

Mirrored topics are made with the declared configuration before mirroring starts, so that they have one owner.
"""

import pathlib

from pipeline import topics
from pipeline.errors import Misconfigured
from pipeline.kafka.admin import Cluster
from pipeline.kafka.dead_letters import SUFFIX
from pipeline.regions import check, mirror_maker
from pipeline.regions.topology import Topology, parse
from pipeline.settings import Settings
from pipeline.topics import Change, Topic
from pipeline.topics.declared import least_replicas

__all__ = ["Topology", "apply", "load", "mirrored", "plan", "render", "write"]


def load(settings: Settings) -> Topology:
    """The topology of the settings; raises Misconfigured with every reason why it would not do what it says."""
    topology = parse(settings.topology)
    found = check.problems(
        topology,
        topics.load(settings.topics_directory, environment=settings.environment),
        least_replicas(settings.environment),
    )
    if found:
        raise Misconfigured([f"{settings.topology.parent.name}/{settings.topology.name}: {each}" for each in found])
    return topology


def render(topology: Topology, settings: Settings) -> dict[str, str]:
    """File names and texts of MirrorMaker 2's configuration, two for each region that something is mirrored into."""
    declared = topics.load(settings.topics_directory, environment=settings.environment)
    files = {}
    for target in sorted({link.target for link in topology.links}):
        files[f"{target}.properties"] = mirror_maker.properties(topology, declared, target)
        files[f"{target}.kubernetes.yaml"] = mirror_maker.kubernetes(topology, declared, target)
    return files


def write(files: dict[str, str], directory: pathlib.Path) -> list[pathlib.Path]:
    """Write what `render` gave; return the files that changed."""
    directory.mkdir(parents=True, exist_ok=True)
    changed = []
    for name, text in files.items():
        path = directory / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
            changed.append(path)
    return changed


def mirrored(topology: Topology, settings: Settings, target: str) -> list[Topic]:
    """The topics that `target` has of other regions, and the dead letters of those that its writers read."""
    declared = topics.load(settings.topics_directory, environment=settings.environment)
    region = topology.regions[target]
    found: dict[str, Topic] = {}
    for link in topology.links_to(target):
        brought = link.of(declared)
        if link.source in region.writers:
            names = {f"{topic.name}{SUFFIX}" for topic in brought}
            brought = [*brought, *(topic for topic in declared if topic.name in names)]
        for topic in brought:
            replicas = region.replication_factor or topic.replication_factor
            changes = {
                "name": f"{link.source}.{topic.name}",
                "replication_factor": replicas,
                "min_insync_replicas": min(topic.min_insync_replicas, replicas),
                "retention_hours": link.retention_hours or topic.retention_hours,
            }
            found[f"{link.source}.{topic.name}"] = topic.model_copy(update=changes)
    return [found[name] for name in sorted(found)]


def plan(topology: Topology, settings: Settings) -> dict[str, list[Change]]:
    """What would make each target hold its mirrored topics as declared, by region; empty lists where all is well.

    Raises Misconfigured with every difference that no plan may remove, Unavailable where a region is away.
    """
    return {
        target: topics.plan(mirrored(topology, settings, target), Cluster(topology.regions[target].kafka))
        for target in sorted({link.target for link in topology.links})
    }


def apply(changes: dict[str, list[Change]], topology: Topology) -> None:
    """Carry out a plan; nothing in a region that has moved since."""
    for target, steps in changes.items():
        topics.apply(steps, Cluster(topology.regions[target].kafka))
