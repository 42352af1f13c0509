"""MirrorMaker 2's configuration from the topology: one dedicated cluster of workers for each target region.

Sources: Kafka documentation, "Geo-Replication" and "MirrorMaker Configs"; KIP-710. A worker's own settings count only
below the alias of the target (`central.exactly.once.source.support`): at the top level MirrorMaker drops them without
a word, but for a few storage settings.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import yaml

from pipeline.regions.topology import Link, Region, Topology
from pipeline.topics import Topic

GROUPS = ("ch_writer", "pg_writer")
HEARTBEAT_S = 5
IMAGE = "apache/kafka:4.3.0"
REST_PORT = 8083
REBALANCE_DELAY_MS = 5000
TRANSACTION_TIMEOUT_MS = 15 * 60 * 1000
LARGEST_BYTES = 32 * 1024 * 1024  # unpacked; the producer's whole buffer


class Entry(NamedTuple):
    """One property, and why it is not left at its default; an empty reason: it has no default, or is like the last."""

    key: str
    value: object
    reason: str = ""


def properties(
    topology: Topology, declared: Sequence[Topic], target: str, listener: str = f"http://0.0.0.0:{REST_PORT}"
) -> str:
    """What `connect-mirror-maker.sh` of `target` reads; the same text for the same topology."""
    links = sorted(topology.links_to(target), key=str)
    entries = [
        *_general(topology, links, target, listener),
        *(entry for alias in _clusters(links, target) for entry in _cluster(alias, topology.regions[alias])),
        *_target(topology.regions[target], target),
        *(entry for link in links for entry in _link(link, topology, declared)),
        *_heartbeats(topology, links, target),
    ]
    lines = [
        f"# MirrorMaker 2 into {target}, by `pipeline regions render`: change topics/topology.yaml instead.",
        f"# Run it near {target}: it may fetch from afar, but should write close by.",
    ]
    for entry in entries:
        if entry.reason:
            lines += ["", f"# {entry.reason}"]
        lines.append(f"{entry.key} = {entry.value}")
    return "\n".join(lines) + "\n"


def kubernetes(topology: Topology, declared: Sequence[Topic], target: str) -> str:
    """A ConfigMap with the same properties, and a Deployment that runs them; secrets come from `kafka-<region>`."""
    name = f"mirror-maker-{target}"
    labels = {"app.kubernetes.io/name": "mirror-maker", "app.kubernetes.io/instance": name}
    secrets = [
        {"secretRef": {"name": f"kafka-{alias}"}}
        for alias in _clusters(topology.links_to(target), target)
        if topology.regions[alias].credentials
    ]
    container = {
        "name": "mirror-maker",
        "image": IMAGE,
        "command": ["/opt/kafka/bin/connect-mirror-maker.sh", "/etc/mirror-maker/mm2.properties"],
        "env": [{"name": "KAFKA_HEAP_OPTS", "value": "-Xmx1g"}],
        **({"envFrom": secrets} if secrets else {}),
        "ports": [{"containerPort": REST_PORT}],
        "resources": {"requests": {"cpu": "500m", "memory": "1536Mi"}, "limits": {"memory": "1536Mi"}},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/mirror-maker", "readOnly": True}],
    }
    documents = [
        {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels},
            "data": {"mm2.properties": properties(topology, declared, target)},
        },
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels},
            "spec": {
                "replicas": 1,
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "containers": [container],
                        "volumes": [{"name": "config", "configMap": {"name": name}}],
                    },
                },
            },
        },
    ]  # fmt: skip
    return "---\n".join(yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=120) for each in documents)


class _Dumper(yaml.SafeDumper):
    """Without anchors, and texts of several lines as blocks."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _clusters(links: Sequence[Link], target: str) -> list[str]:
    return [*sorted({link.source for link in links}), target]


def _general(topology: Topology, links: Sequence[Link], target: str, listener: str) -> Iterator[Entry]:
    clusters = _clusters(links, target)
    yield Entry("clusters", ", ".join(clusters))
    if any(topology.regions[alias].credentials for alias in clusters):
        yield Entry("config.providers", "env", "Secrets are read from the environment, and stand in no file.")
        yield Entry("config.providers.env.class", "org.apache.kafka.common.config.provider.EnvVarConfigProvider")
    yield Entry(
        "dedicated.mode.enable.internal.rest", "true",
        "Workers of one target tell each other of changed tasks; exactly-once needs it for that of zombies.",
    )  # fmt: skip
    yield Entry("listeners", listener)
    yield Entry(
        "replication.policy.class", "org.apache.kafka.connect.mirror.DefaultReplicationPolicy",
        "The default, held on to: the prefix <region>. is the only guard against loops; the identity policy has none.",
    )  # fmt: skip
    yield Entry(
        "sync.topic.configs.enabled",
        "false",
        "Topics have one owner: `pipeline regions apply` makes mirrored topics and keeps their configuration.",
    )
    yield Entry("sync.topic.acls.enabled", "false", "Rights at the target are the target's.")
    yield Entry(
        "refresh.topics.interval.seconds", 30,
        "Partitions that a topic has grown by are mirrored after half a minute, not ten.",
    )  # fmt: skip
    yield Entry(
        "refresh.groups.interval.seconds",
        30,
        "The same for writers that commit to such a partition for the first time.",
    )
    yield Entry(
        "emit.checkpoints.interval.seconds", 10,
        "A failover starts from the last checkpoint: what is older than that is read twice.",
    )  # fmt: skip
    yield Entry("sync.group.offsets.interval.seconds", 10)
    yield Entry(
        "emit.heartbeats.interval.seconds", HEARTBEAT_S,
        "Said, since the alert on a broken link counts in it; the default is 1.",
    )  # fmt: skip


def _cluster(alias: str, region: Region) -> Iterator[Entry]:
    yield Entry(f"{alias}.bootstrap.servers", region.bootstrap_servers, f"The cluster of {alias}.")
    if region.security_protocol != "PLAINTEXT":
        yield Entry(f"{alias}.security.protocol", region.security_protocol)
    if region.security_protocol.startswith("SASL"):
        module = "plain.PlainLoginModule" if region.sasl_mechanism == "PLAIN" else "scram.ScramLoginModule"
        user, password = (f'"${{env:{region.credentials}_KAFKA_{name}}}"' for name in ("USERNAME", "PASSWORD"))
        yield Entry(f"{alias}.sasl.mechanism", region.sasl_mechanism)
        yield Entry(
            f"{alias}.sasl.jaas.config",
            f"org.apache.kafka.common.security.{module} required username={user} password={password};",
        )
    if region.ca_file:
        yield Entry(f"{alias}.ssl.truststore.type", "PEM")
        yield Entry(f"{alias}.ssl.truststore.location", region.ca_file)


def _target(region: Region, target: str) -> Iterator[Entry]:
    yield Entry(
        f"{target}.exactly.once.source.support", "enabled",
        "Records and the position that they were read up to are one transaction: no double after a crash.",
    )  # fmt: skip
    yield Entry(
        f"{target}.producer.compression.type",
        "zstd",
        "MirrorMaker unpacks what it reads: without this it would write, and keep, five times the bytes.",
    )
    yield Entry(
        f"{target}.producer.max.request.size",
        LARGEST_BYTES,
        "Counted unpacked: at its default of 1 MiB one message that packs well would stop the link for good.",
    )
    yield Entry(
        f"{target}.producer.transaction.timeout.ms", TRANSACTION_TIMEOUT_MS,
        "A task that stands still for longer, in a frozen machine or behind a cut wire, dies and stays dead: the "
        "default is a minute, this the most that a broker allows by its own.",
    )  # fmt: skip
    yield Entry(
        f"{target}.scheduled.rebalance.max.delay.ms", REBALANCE_DELAY_MS,
        "The tasks of a worker that was killed wait five minutes by default, for it to come back.",
    )  # fmt: skip
    for number, topic in enumerate(("offset.storage", "config.storage", "status.storage")):
        reason = f"MirrorMaker's own topics have as many copies as {target} keeps." if not number else ""
        yield Entry(f"{target}.{topic}.replication.factor", region.replication_factor, reason)


def _link(link: Link, topology: Topology, declared: Sequence[Topic]) -> Iterator[Entry]:
    source, target = topology.regions[link.source], topology.regions[link.target]
    topics = ", ".join(sorted(topic.name for topic in link.of(declared)))
    yield Entry(f"{link}.enabled", "true", f"{link.source} to {link.target}; a link is off unless it is on.")
    yield Entry(f"{link}.topics", topics, "Names, no patterns: what is mirrored already can never match.")
    yield Entry(f"{link}.groups", ", ".join(GROUPS), "Whose offsets a failover needs; the default is all groups.")
    tasks = max(topic.partitions for topic in link.of(declared))
    yield Entry(f"{link}.tasks.max", tasks, "The default of 1 would read all partitions one after the other.")
    if link.source in target.writers:
        yield Entry(
            f"{link}.sync.group.offsets.enabled", "false",
            f"The writers of {link.target} read this mirror under the same names of groups: while they are stopped "
            "the sync would move them past what they have not stored. Checkpoints are emitted all the same.",
        )  # fmt: skip
    else:
        yield Entry(
            f"{link}.sync.group.offsets.enabled", "true",
            f"Nobody at {link.target} reads this mirror: there its groups stand where {link.source}'s do, off by "
            "default.",
        )  # fmt: skip
    yield Entry(
        f"{link}.replication.factor", target.replication_factor, "Should MirrorMaker ever be first to make a topic."
    )
    yield Entry(f"{link}.checkpoints.topic.replication.factor", target.replication_factor)
    yield Entry(f"{link}.heartbeats.topic.replication.factor", target.replication_factor)
    yield Entry(f"{link}.offset-syncs.topic.replication.factor", source.replication_factor)
    if not any((other.source, other.target) == (link.target, link.source) for other in topology.links):
        yield Entry(
            f"{link}.emit.heartbeats.enabled", "false",
            f"It would write heartbeats into {link.target}, for a link from there, and there is none.",
        )  # fmt: skip


def _heartbeats(topology: Topology, links: Sequence[Link], target: str) -> Iterator[Entry]:
    """Heartbeats of a link are emitted into its source, by the pair in the other direction; other pairs have none.

    Where that pair is a link too, the workers of its own target emit them: two configurations of one pair would
    overwrite each other.
    """
    linked = {(link.source, link.target) for link in links}
    anywhere = {(link.source, link.target) for link in topology.links}
    back = sorted({(link.target, link.source) for link in links} - anywhere)
    for here, there in back:
        replicas = topology.regions[there].replication_factor
        yield Entry(
            f"{here}->{there}.heartbeats.topic.replication.factor", replicas,
            f"Mirrors nothing: it writes the heartbeats of {there}->{here} into {there}.",
        )  # fmt: skip
        # a worker of its own, whose topics lie in the source
        for topic in ("offset.storage", "config.storage", "status.storage"):
            yield Entry(f"{there}.{topic}.replication.factor", replicas)
        yield Entry(f"{there}.scheduled.rebalance.max.delay.ms", REBALANCE_DELAY_MS)
    clusters = _clusters(links, target)
    pairs = [(one, other) for one in clusters for other in clusters if one != other]
    idle = [pair for pair in pairs if pair not in linked and pair not in back]
    for number, (one, other) in enumerate(idle):
        reason = "Without this every other pair would have a worker here too, idle or in the way." if not number else ""
        yield Entry(f"{one}->{other}.emit.heartbeats.enabled", "false", reason)
