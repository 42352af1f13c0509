"""The short form of each drill; `make drills` runs the long ones."""

import os
import pathlib

import pytest

from pipeline.errors import Misconfigured
from tests.drills import fuzz_encoders, fuzz_gateway, kafka_away, killer, soak, store_away
from tests.drills.__main__ import Drill
from tests.drills.context import Context
from tests.native.both import demand_built

SEED = 1


def short(drill: Drill, home: pathlib.Path) -> str:
    """What the drill says; without the programs that it needs it skips, and fails in CI."""
    try:
        return drill(Context("drill", home, SEED, short=True))
    except Misconfigured as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.mark.timeout(420)
def test_what_was_answered_while_kafka_was_away_is_stored_once(tmp_path: pathlib.Path) -> None:
    """Load on, Kafka stopped, the gateway killed twice meanwhile, Kafka back: nothing missing, nothing doubled."""
    assert "audit clean" in short(kafka_away.drill, tmp_path)


def test_both_encoders_make_the_same_of_any_request(tmp_path: pathlib.Path) -> None:
    """3,000 mutated requests under all kinds of rules: equal bytes, counts and sentences, and no memory left behind."""
    demand_built()
    assert "the same of both" in short(fuzz_encoders.drill, tmp_path)


def test_no_request_breaks_the_gateway(tmp_path: pathlib.Path) -> None:
    """5,000 mutated requests: only answers that the specification allows, flat memory, a valid request passes."""
    assert "a valid request passes" in short(fuzz_gateway.drill, tmp_path)


def test_full_load_leaves_memory_flat(tmp_path: pathlib.Path) -> None:
    """Twenty seconds of full load over both protocols: no failure, and the slope of RSS is stated."""
    assert "MB a minute" in short(soak.drill, tmp_path)


@pytest.mark.timeout(420)
def test_stores_may_be_away(tmp_path: pathlib.Path) -> None:
    """Each store away for longer than a consumer's session: nobody restarts or rebalances, all is stored once."""
    assert "audit clean" in short(store_away.drill, tmp_path)


@pytest.mark.timeout(420)
def test_whatever_is_killed_nothing_is_lost_or_doubled(tmp_path: pathlib.Path) -> None:
    """Twenty seconds of random SIGKILLs with three workers a writer."""
    assert "audit clean" in short(killer.drill, tmp_path)
