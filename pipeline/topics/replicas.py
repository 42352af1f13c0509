"""Other replicas than a topic has, as the file that Kafka's own kafka-reassign-partitions carries out.

Source: Apache Kafka documentation, "Expanding your cluster", "Increasing replication factor".
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.errors import Misconfigured
from pipeline.kafka.admin import Cluster
from pipeline.topics.declared import Topic

Replicas = Sequence[Sequence[int]]  # the brokers of each partition, the preferred leader first
HOW = """Where the topics have other replicas than declared, this file says where each partition's shall be:
  pipeline topics replicas > replicas.json
  kafka-reassign-partitions --bootstrap-server {servers} --reassignment-json-file replicas.json \\
      --execute --throttle 50000000
and the same with --verify instead of the last line, until it says that all is complete: it also lifts the throttle."""


def reassignment(topics: Iterable[Topic], cluster: Cluster) -> dict[str, Any]:
    """The partitions of topics whose replicas are not as many as declared, and where these shall be.

    Raise Misconfigured with every topic that declares more replicas than the cluster has brokers.
    """
    wanted = {topic.name: topic for topic in topics}
    declared = {name: topic.replication_factor for name, topic in wanted.items()}
    racks = cluster.racks()
    live = cluster.replicas(declared)
    problems = [
        f"{wanted[name].file}: replication_factor: {declared[name]} replicas need as many brokers, "
        f"the cluster has {len(racks)}."
        for name in live
        if declared[name] > len(racks)
    ]
    if problems:
        raise Misconfigured(problems)
    return document(live, {name: spread(found, declared[name], racks) for name, found in live.items()})


def document(live: Mapping[str, Replicas], wanted: Mapping[str, Replicas]) -> dict[str, Any]:
    """The file, of the partitions whose replicas are not as wanted."""
    return {
        "version": 1,
        "partitions": [
            {"topic": name, "partition": number, "replicas": replicas}
            for name in sorted(wanted)
            for number, replicas in enumerate(wanted[name])
            if replicas != live[name][number]
        ],
    }


def spread(partitions: Replicas, factor: int, racks: Mapping[int, str]) -> list[list[int]]:
    """`factor` replicas of each partition. The first ones stay, the preferred leader with them; more go to racks that
    the partition has not, then to brokers with the fewest."""
    load = Counter(broker for replicas in partitions for broker in replicas[:factor])
    result = []
    for replicas in partitions:
        chosen = list(replicas[:factor])
        while len(chosen) < factor:
            used = Counter(racks.get(broker) for broker in chosen)
            best = min(racks.keys() - set(chosen), key=lambda broker: (used[racks[broker]], load[broker], broker))
            load[best] += 1
            chosen.append(best)
        result.append(chosen)
    return result
