"""What may be asked, and how several regions' answers become one."""

import json
import math
from typing import Any

import pytest
from multidict import MultiDict

from pipeline.errors import Rejected
from pipeline.query.questions import Bounds, Row, logs, merged, metrics, trace
from pipeline.query.regions import Answer

ANY = Bounds(None, ("eu", "us"), 100)
POINT = {"tenant": "t", "metric_name": "m", "service": "s", "host": "h", "labels": {}}


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
    points = [row("a", 10, value=2.0, **POINT), row("b", 20, value=4.0, **POINT)]
    question = metrics({"name": "m", "step": "60", "aggregate": "sum"}, ANY)
    [bucket], _ = merged(question, [points, points[:1]])
    assert bucket["value"] == 6.0


@pytest.mark.parametrize("value", [None, math.nan])
@pytest.mark.parametrize("aggregate", ["avg", "sum", "min", "max", "count"])
def test_a_point_without_a_value_breaks_no_panel(aggregate: str, value: float | None) -> None:
    """A step is made of the points that have a number, wherever the others stand; one that has none is no row."""
    question = metrics({"name": "m", "step": "60", "aggregate": aggregate}, ANY)
    numbers = {"b": 1.0, "d": 1.0}
    points = [row(each, at, value=numbers.get(each, value), **POINT) for at, each in enumerate("abcde")]
    found, _ = merged(question, [[*points, row("f", 60 * 10**9, value=value, **POINT)]])
    assert [(each["time_ns"], each["value"]) for each in found] == [(0, 2 if aggregate in ("sum", "count") else 1)]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_no_step_is_made_of_part_of_its_points(limit: int) -> None:
    """Points over the limit are another page's, and a step that may have some of them is left out: `more` says so."""
    points = [row(each, at * 10**9, value=1.0, **POINT) for each, at in zip("abcd", (125, 61, 60, 10), strict=True)]
    question = metrics({"name": "m", "step": "60", "aggregate": "count", "limit": str(limit)}, ANY)
    found, more = merged(question, [points[: limit + 1]])
    counted = {each["time_ns"] // 10**9: each["value"] for each in found}
    assert (counted, more) == (
        [{}, {120: 1}, {120: 1}, {0: 1, 60: 2, 120: 1}, {0: 1, 60: 2, 120: 1}][limit - 1],
        limit < 4,
    )


def test_what_is_no_number_in_json_is_null() -> None:
    """NaN and infinity are words that no reader of JSON takes."""
    rows = [row("a", 1, value=value) for value in (math.nan, math.inf, -math.inf, None, 1.5)]
    document = json.dumps(Answer(rows, ("eu",), {}, more=False).as_json(), allow_nan=False)
    assert [each["value"] for each in json.loads(document)["rows"]] == [None, None, None, None, 1.5]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"limit": "9" * 5000}, "limit: '99999999999999999999' is no number from 1 to 100."),
        ({"step": "²"}, "step: '²' is no number"),
        ({"from": "9999-01-01"}, "from: '9999-01-01' is a time that no store has"),
        ({"to": "0001-01-01"}, "to: '0001-01-01' is a time that no store has"),
        ({"name": "a\0b"}, "'name' holds NUL"),
        ({"label.a\0b": "c"}, "'label.a\\x00b' holds NUL"),
    ],
)
def test_what_no_store_could_be_asked_is_refused(given: dict[str, str], said: str) -> None:
    """It is told to who asks: as a failure of a store it would look like a region that is away."""
    with pytest.raises(Rejected) as refused:
        metrics({"name": "m", **given}, ANY)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("name", ["service", "regions", "limit", "label.zone"])
def test_what_is_asked_twice_is_refused(name: str) -> None:
    """One of the two would be answered, as if it were both."""
    given = MultiDict([("name", "m"), (name, "1"), (name, "2")])
    with pytest.raises(Rejected, match=f"'{name}' is given twice"):
        metrics(given, ANY)
    with pytest.raises(Rejected, match="'limit' is given twice"):
        trace("0" * 32, MultiDict([("limit", "1"), ("limit", "2")]), ANY)


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
