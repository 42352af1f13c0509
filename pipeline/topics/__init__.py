"""Topics as code: what `topics/*.yaml` declare against what a cluster has.

    load(environment) → plan(topics, cluster) → apply(changes, cluster)

A plan creates, configures and grows. It never shrinks and never deletes: what would need that is a problem that the
plan names and refuses. `apply` carries out the plan that was read, not a newer one.
"""

from pipeline.errors import Misconfigured
from pipeline.kafka.admin import Cluster
from pipeline.settings import Settings
from pipeline.topics.declared import Topic, load
from pipeline.topics.plan import Change, Plan, apply, plan

__all__ = ["Change", "Plan", "Topic", "apply", "apply_all", "cluster_of", "load", "plan"]


def cluster_of(settings: Settings) -> Cluster:
    """The cluster of the settings, once it is sure that it is the one they mean; raises Misconfigured where not."""
    cluster, kafka = Cluster(settings.kafka), settings.kafka
    found = cluster.id()
    if kafka.cluster_id is None and settings.environment == "production":
        raise Misconfigured(
            f"The cluster at {kafka.bootstrap_servers} is {found}: set kafka.cluster_id to that if it is the one you "
            "mean; in production nothing is changed without it."
        )
    if kafka.cluster_id not in (None, found):
        raise Misconfigured(
            f"The cluster at {kafka.bootstrap_servers} is {found}, kafka.cluster_id says {kafka.cluster_id}: correct "
            "kafka.bootstrap_servers or kafka.cluster_id."
        )
    return cluster


def apply_all(settings: Settings) -> list[Change]:
    """Plan and apply at once, for a stack that is nobody else's; return what was changed."""
    cluster = cluster_of(settings)
    changes = plan(load(settings.topics_directory, environment=settings.environment), cluster)
    apply(changes, cluster)
    return changes
