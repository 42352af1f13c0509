"""What a request may cost, however it is made."""

import json
import subprocess
import sys

import pytest

from pipeline.record import schema
from tests.otlp.hostile import HOSTILE

signals = pytest.mark.parametrize("signal", schema.SIGNALS)


@signals
@pytest.mark.parametrize("name", HOSTILE)
def test_no_request_costs_much_more_than_its_bytes(signal: schema.Signal, name: str) -> None:
    """With either implementation, in a process of its own: 96 MB beside body and groups, and 2 s and 0.6 us a byte of both."""
    command = [sys.executable, "-m", "tests.otlp.hostile", signal, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    for costs in told:
        assert costs["peak_mb"] < 96 + costs["groups_mb"], costs
        assert costs["cpu_s"] < 2 + 0.6 * (costs["body_mb"] + costs["groups_mb"]), costs
    assert len({costs["outcome"] for costs in told}) == 1
