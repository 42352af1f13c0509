"""Two edges and a centre for real, as small as they can be: three brokers, MirrorMaker, one ClickHouse, its writer."""

import asyncio
import datetime
import time
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient

from pipeline import topics
from pipeline.audit import audit
from pipeline.local import Regions
from pipeline.local.stack import MIRROR_MAKER
from pipeline.query.questions import Bounds, logs
from pipeline.query.regions import ask
from pipeline.regions import status
from pipeline.regions.failover import Failover
from pipeline.replay.plan import make
from pipeline.replay.where import Where
from pipeline.settings import Settings
from tests.conftest import part
from tests.regions import world
from tests.regions.world import Load

LOAD_S = 6.0
WITHIN_S = 120.0


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Regions, dict[str, Settings]]]:
    regions, settings = world.regions_on_free_ports(tmp_path_factory.mktemp("regions"))

    def up() -> None:
        for alias in ("eu", "us"):
            regions.stacks[alias].start(["kafka"])
            topics.apply_all(settings[alias])
            regions.stacks[alias].start(["gateway"])
        central = regions.stacks["central"]
        central.start(["kafka", "postgres", "clickhouse"])
        central.prepare()
        before = Regions(regions.topology, {alias: settings[alias] for alias in ("eu", "central")}, print)
        before.stacks["central"].start(["ch_writer", MIRROR_MAKER])
        central.mirror()

    with part(up, regions.wipe):
        yield regions, settings


@pytest.mark.timeout(420)
def test_what_two_regions_take_is_at_the_centre_once(several: tuple[Regions, dict[str, Settings]]) -> None:
    """us is added to eu and the centre, which run. Load on both edges, one request in twenty to both: the centre holds
    each record once and says of which region; MirrorMaker writes in transactions; the audit closes; a query names the
    region that did not answer; status says which link is broken, and a failover what is lost; what came over of a region
    that is away can be replayed.
    """
    regions, settings = several
    central = settings["central"]
    load, began = Load({alias: settings[alias] for alias in ("eu", "us")}), datetime.datetime.now(datetime.UTC)
    load.start()
    time.sleep(LOAD_S)
    load.finish()
    wanted = load.all_answered
    found = world.settled(wanted, central, WITHIN_S)
    assert load.answered["eu"].keys() & load.answered["us"].keys(), "nothing was sent to both"
    assert found == dict.fromkeys(wanted, 1)
    admin = AdminClient({"bootstrap.servers": central.kafka.bootstrap_servers})
    assert "__transaction_state" in admin.list_topics(timeout=10).topics, "exactly-once is not in force"
    answer = asyncio.run(
        ask(logs({"regions": "central,eu"}, Bounds(None, ("eu", "central"), 10)), regions.topology, 5.0)
    )
    assert answer.answered == ("central",)
    assert list(answer.failed) == ["eu"]  # its ClickHouse does not run here
    assert answer.as_json()["partial"]
    assert {row["region"] for row in answer.rows} <= {"eu", "us"}

    status.note(regions.topology, central)
    deadline = time.monotonic() + WITHIN_S
    while any(link.broken for link in status.look(regions.topology, central)):
        assert time.monotonic() < deadline, status.look(regions.topology, central)
    regions.stacks["eu"].stop(["kafka"])
    [eu, us] = status.look(regions.topology, central)
    assert "does not answer" in eu.broken
    assert not us.broken
    between = began, datetime.datetime.now(datetime.UTC)
    slices = make(central, "of-eu", topics=["eu.logs_raw"], between=between, where=Where(()), rate=1).slices
    assert sum(each.records for each in slices) == len(load.answered["eu"])
    course = Failover(regions.topology, central, ("eu", "central")).look()
    assert course.lost == []
    assert {step.state for step in course.steps if "ch_writer" in step.what} == {"done"}
    findings = audit(central, signals=["logs"]).as_dict()["signals"]["logs"]["stores"]["clickhouse"]
    assert (findings["expected"], findings["missing"], findings["extra"], findings["duplicates"]) == (
        len(wanted),
        0,
        0,
        0,
    )
