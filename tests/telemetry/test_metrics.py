"""The catalogue of metrics, and what several processes make of it."""

import os
import pathlib
import subprocess
import sys

import pytest
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from pipeline.telemetry import metrics

CATALOGUE = {name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)}
WORKER = """
from pipeline.telemetry import metrics
metrics.ACCEPTED.labels("logs", "acme").inc({amount})
metrics.REQUEST_SECONDS.labels("logs").observe(0.02)
metrics.IN_FLIGHT.labels("http").set({amount})
"""
READER = "from pipeline.telemetry import metrics; print(metrics.exposition()[0].decode())"


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=list(CATALOGUE))
def test_every_metric_says_whose_it_is_and_what(metric: MetricWrapperBase) -> None:
    """Its name starts with pipeline_, its help is a sentence, and it names what it counts or its unit."""
    [family] = metric.describe()
    assert family.name.startswith("pipeline_")
    assert family.documentation.endswith(".")
    assert len(family.documentation) > 10
    assert isinstance(metric, Counter | Gauge | Histogram)


def test_the_catalogue_is_all_there_is() -> None:
    """Names are there once, and nothing else of ours is exposed."""
    names = [metric.describe()[0].name for metric in CATALOGUE.values()]
    assert len(names) == len(set(names)) > 15
    body, content_type = metrics.exposition()
    exposed = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {name for name in exposed if name.startswith("pipeline_")} == set(names)
    assert content_type.startswith("text/plain")


def python(code: str, shared: pathlib.Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(shared)},
        capture_output=True, text=True, check=True, timeout=30,
    ).stdout  # fmt: skip


def test_what_workers_counted_is_summed(tmp_path: pathlib.Path) -> None:
    """Any process that shares the directory exposes the sum over all, those that ended included."""
    for amount in (3, 4):
        python(WORKER.format(amount=amount), tmp_path)
    families = {f.name: f for f in text_string_to_metric_families(python(READER, tmp_path))}
    [accepted] = families["pipeline_gateway_accepted_records"].samples
    assert (accepted.value, accepted.labels) == (7, {"signal": "logs", "tenant": "acme"})
    [count] = [s for s in families["pipeline_gateway_request_seconds"].samples if s.name.endswith("_count")]
    assert count.value == 2
    assert families["pipeline_gateway_request_seconds"].documentation == "From body read to answer."
