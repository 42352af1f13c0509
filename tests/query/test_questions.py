"""What may be asked, and how several regions' answers become one."""

from typing import Any

import pytest

from pipeline.errors import Rejected
from pipeline.query.questions import Bounds, Row, logs, merged, metrics, trace

ANY = Bounds(None, ("eu", "us"), 100)


def row(event_id: str, time_ns: int, **more: Any) -> Row:
    return {"event_id": event_id, "time_ns": time_ns, "received_ns": 1, **more}


def test_an_event_of_two_regions_is_one_row_of_its_latest_receipt() -> None:
    """The order in which regions answer decides nothing."""
    eu, us = row("a", 5, region="eu"), row("a", 5, region="us", received_ns=2)
    for answers in ([[eu], [us]], [[us], [eu]]):
        assert merged(logs({}, ANY), answers) == ([us], False)


def test_nothing_is_shown_beyond_the_last_row_of_a_region_that_has_more() -> None:
    """With a limit of 2 a region that was cut at time 8 hides what another has before that, and `more` is said."""
    eu = [row("a", 9), row("b", 8), row("c", 7)]
    us = [row("d", 3)]
    assert merged(logs({"limit": "2"}, ANY), [eu, us]) == (eu[:2], True)


def test_traces_are_in_order_and_whole() -> None:
    """Spans of two regions stand in one row after the other by time."""
    found, more = merged(trace("0" * 32, {}, ANY), [[row("b", 2)], [row("a", 1)]])
    assert ([each["event_id"] for each in found], more) == (["a", "b"], False)


def test_metrics_are_aggregated_after_twins_are_gone() -> None:
    """A point that both regions hold counts once in the sum of its step."""
    told = {"tenant": "t", "metric_name": "m", "service": "s", "host": "h", "labels": {}}
    points = [row("a", 10, value=2.0, **told), row("b", 20, value=4.0, **told)]
    question = metrics({"name": "m", "step": "60", "aggregate": "sum"}, ANY)
    [bucket], _ = merged(question, [points, points[:1]])
    assert bucket["value"] == 6.0


def test_every_problem_of_a_question_is_told_at_once() -> None:
    """An unknown parameter, a bad number, time, severity and region are one answer of five sentences."""
    with pytest.raises(Rejected) as refused:
        logs({"lmit": "1", "limit": "0", "from": "soon", "severity": "loud", "regions": "mars"}, ANY)
    for word in ("'lmit'", "limit:", "from:", "severity:", "mars"):
        assert word in str(refused.value)


def test_a_tenant_is_bound_to_its_own_records_whatever_it_asks() -> None:
    """The tenant is a condition of the statement, and no parameter can name another."""
    bounds = ANY._replace(tenant="shop")
    for question in (logs({}, bounds), metrics({"name": "m"}, bounds), trace("0" * 32, {}, bounds)):
        assert "tenant = %(tenant)s" in question.statement
        assert question.values["tenant"] == "shop"
    with pytest.raises(Rejected):
        logs({"tenant": "other"}, bounds)
