"""What a topology may say, and what MirrorMaker 2 is told."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from pipeline import regions, topics
from pipeline.errors import Misconfigured
from pipeline.regions import check, topology
from pipeline.settings import ROOT, Settings
from pipeline.telemetry import metrics  # noqa: F401 - fills the registry

GOLDEN = pathlib.Path(__file__).parent / "golden"
Change = Callable[[Any], None]


def settings_with(path: pathlib.Path, document: Any) -> Settings:
    path.write_text(yaml.safe_dump(document))
    return Settings(topology=path)


def test_the_shipped_topology_is_sound_and_rendered() -> None:
    """`pipeline regions check` finds nothing, and deploy/mirrormaker2 is what `render` writes."""
    own = Settings()
    files = regions.render(regions.load(own), own)
    assert files == {path.name: path.read_text() for path in (ROOT / "deploy" / "mirrormaker2").iterdir()}
    assert (ROOT / "topics" / "topology.schema.json").read_text() == topology.json_schema()


def test_rendering_is_golden_and_the_same_each_time() -> None:
    """Two renderings of one topology are equal, and equal to the reviewed files."""
    own = Settings(topology=GOLDEN / "topology.yaml", environment="production")
    files = regions.render(regions.load(own), own)
    assert files == regions.render(regions.load(own), own)
    assert files == {path.name: path.read_text() for path in GOLDEN.iterdir() if path.name != "topology.yaml"}


def test_every_rendered_key_that_is_no_address_carries_its_reason() -> None:
    """A property stands below a comment, its own or that of the block it belongs to."""
    for path in GOLDEN.glob("*.properties"):
        for block in path.read_text().split("\n\n"):
            assert block.startswith("# "), block


def test_kubernetes_holds_the_same_properties_and_no_secret() -> None:
    """The ConfigMap's file is the properties file; secrets are references to the environment."""
    for name in ("central", "eu"):
        config, deployment = yaml.safe_load_all((GOLDEN / f"{name}.kubernetes.yaml").read_text())
        text = config["data"]["mm2.properties"]
        assert text == (GOLDEN / f"{name}.properties").read_text()
        assert 'password="${env:EU_KAFKA_PASSWORD}"' in text
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "kafka-eu"}}]


def region(document: Any, alias: str, **changes: Any) -> None:
    document["regions"][alias].update(changes)


def link(document: Any, source: str, target: str, *names: str, **more: Any) -> None:
    document["links"].append({"from": source, "to": target, "topics": list(names) or ["*_raw"], **more})


def renamed(document: Any, alias: str, name: str) -> None:
    document["regions"][name] = document["regions"].pop(alias)


REFUSED: dict[str, tuple[Change, str]] = {
    "a region that mirrors itself": (lambda d: link(d, "eu", "eu"), "a cycle: the region would mirror itself"),
    "a ring": (
        lambda d: (d["links"].clear(), link(d, "eu", "us"), link(d, "us", "central"), link(d, "central", "eu")),  # type: ignore[dict-item,return-value]
        "a cycle: central -> eu -> us -> central",
    ),
    "a way back": (lambda d: link(d, "central", "eu", "eu.logs_raw"), "would come back to eu"),
    "hub and spoke": (lambda d: link(d, "central", "us", "eu.logs_raw"), "hub-and-spoke re-mirroring"),
    "a dot": (lambda d: link(d, "central", "us", "logs.raw"), "has a dot"),
    "no such topic": (lambda d: link(d, "central", "us", "lags_raw"), "no file in topics/ declares"),
    "a bad alias": (lambda d: renamed(d, "us", "us.east"), "regions.us.east: an alias is"),
    "an alias in a topic's name": (lambda d: renamed(d, "us", "logs"), "logs.raw in one cluster"),
    "two regions at one Kafka": (
        lambda d: region(d, "us", bootstrap_servers="us-kafka:9092, " + d["regions"]["eu"]["bootstrap_servers"]),
        "regions.us.bootstrap_servers: 127.0.0.1:10092 is the Kafka of eu too",
    ),
    "no replication factor": (lambda d: d["regions"]["eu"].pop("replication_factor"), "replication_factor: is missing"),
    "short retention": (
        lambda d: d["links"][0].update(retention_hours=24),
        "retention_hours: 24 at central is less than the 168 of",
    ),
    "stored twice": (lambda d: d.update(query=["eu", "central"]), "the records of eu are stored in eu and central"),
    "never asked": (lambda d: d.update(query=["eu"]), "none of eu stores the records of us"),
    "an edge that stores others'": (lambda d: region(d, "eu", writers=["eu", "us"]), "an edge stores only"),
    "no link for a writer": (lambda d: d["links"].pop(), "us: no link brings logs_raw"),
    "stored nowhere": (
        lambda d: (region(d, "eu", writers=[]), region(d, "central", writers=["central", "us"])),  # type: ignore[dict-item,return-value]
        "no region's writers store what eu accepts",
    ),
    "an unknown region": (lambda d: link(d, "eu", "mars"), "there is no region mars"),
    "the same link twice": (lambda d: link(d, "eu", "central"), "there are two such links"),
    "a password in the file": (lambda d: region(d, "eu", postgres="host=x password=y"), "holds a password"),
    "a password in an address": (
        lambda d: region(d, "eu", clickhouse_url="http://u:y@h"),
        "eu.clickhouse_url: Value error, is shown",
    ),
    "an address that is none": (
        lambda d: region(d, "eu", clickhouse_url="h:8123"),
        "eu.clickhouse_url: Value error, must",
    ),
    "no credentials": (lambda d: region(d, "eu", security_protocol="SASL_SSL"), "credentials: is missing"),
    "a goal that nobody can see": (
        lambda d: region(d, "eu", recovery={"rpo_s": 1, "rto_s": 1}),
        "cannot be seen by heartbeats",
    ),
    "an unknown key": (lambda d: region(d, "eu", wirters=[]), "regions.eu.wirters: Extra inputs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_bite_in_silence_is_refused_with_its_reason(tmp_path: pathlib.Path, name: str) -> None:
    """Each trap of MirrorMaker 2 in a topology that is otherwise sound is told by `check`."""
    change, reason = REFUSED[name]
    document = yaml.safe_load((ROOT / "topics" / "topology.yaml").read_text())
    change(document)
    with pytest.raises(Misconfigured) as caught:
        regions.load(settings_with(tmp_path / "topology.yaml", document))
    assert any(reason in problem for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize("value", [None, ""])
def test_a_secret_that_the_environment_has_not_is_named(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """One that is empty too, as a template leaves it."""
    monkeypatch.delenv("EU_KAFKA_USERNAME", raising=False)
    if value is not None:
        monkeypatch.setenv("EU_KAFKA_USERNAME", value)
    eu = topology.parse(ROOT / "topics" / "topology.yaml").regions["eu"]
    with pytest.raises(Misconfigured, match="EU_KAFKA_USERNAME"):
        _ = eu.model_copy(update={"security_protocol": "SASL_SSL", "credentials": "EU"}).kafka


def test_all_reasons_are_told_at_once(tmp_path: pathlib.Path) -> None:
    """Three traps in one file are three sentences."""
    document = yaml.safe_load((ROOT / "topics" / "topology.yaml").read_text())
    link(document, "eu", "eu")
    link(document, "central", "us", "eu.logs_raw")
    document["regions"]["eu"].pop("replication_factor")
    with pytest.raises(Misconfigured) as caught:
        regions.load(settings_with(tmp_path / "topology.yaml", document))
    assert len(caught.value.problems) == 3


def test_two_regions_may_mirror_each_other() -> None:
    """Active/active is no cycle: what is mirrored is never mirrored on."""
    both = topology.parse(GOLDEN / "topology.yaml")
    assert check.problems(both, topics.load(environment="production"), 3) == []


def test_mirrored_topics_are_declared_like_their_origin_with_the_targets_copies() -> None:
    """The centre's eu.logs_raw has eu's partitions and retention; dead letters exist where its writers read it."""
    own = Settings()
    shipped = regions.load(own)
    found = {topic.name: topic for topic in regions.mirrored(shipped, own, "central")}
    declared = {topic.name: topic for topic in topics.load()}
    assert found["eu.logs_raw"].config == declared["logs_raw"].config
    assert found["eu.logs_raw"].partitions == declared["logs_raw"].partitions
    assert {"eu.logs_raw_dlq", "us.metrics_raw_dlq"} <= found.keys()
    assert not any(name.startswith("central.") for name in found)


def test_alerts_ask_for_metrics_that_there_are() -> None:
    """Every metric in the rules for Prometheus is in the catalogue."""
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "regions.rules.yaml").read_text())["groups"]
    asked = {name for group in groups for rule in group["rules"] for name in re.findall(r"pipeline_\w+", rule["expr"])}
    assert len(asked) >= 4
    assert asked <= {metric.name for metric in REGISTRY.collect()}
