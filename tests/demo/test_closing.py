"""The demo's verdict: only records that are everywhere, once, are a success."""

import importlib
import pathlib
from typing import Any

import pytest

DEMO = pathlib.Path(__file__).parents[2] / "deploy/demo"
SENT = {"logs": 7, "traces": 8, "metrics": 9}
NONE = dict.fromkeys(SENT, 0)


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DEMO))
    return importlib.import_module("closing")


@pytest.fixture
def freshness(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DEMO))
    return importlib.import_module("freshness")


def audited(**found: int) -> dict[str, Any]:
    """An audit that found every record, and in ClickHouse's logs what is `found` besides."""
    signals: dict[str, Any] = {
        name: {"kafka": {"distinct": count}, "stores": {"clickhouse": {"rows": count}}} for name, count in SENT.items()
    }
    signals["metrics"]["stores"]["postgres"] = {"rows": 9}
    signals["logs"]["stores"]["clickhouse"].update(found)
    return signals


def differences(closing: Any, table: dict[str, Any], verdict: str = "clean") -> list[str]:
    report = closing.Report(table, verdict, freshness_s={}, records_per_s=1.0, seconds=1.0, examples=[])
    return list(report.differences())


def test_all_equal_is_clean(closing: Any) -> None:
    """Sent, accepted, in Kafka and in the stores: nothing to say."""
    assert differences(closing, closing.rows(SENT, NONE, SENT, audited())) == []


@pytest.mark.parametrize("kind", ["missing", "duplicates", "extra", "dead_lettered"])
def test_each_kind_of_loss_is_a_difference(closing: Any, kind: str) -> None:
    """One record that is missing, doubled, from nowhere or dead-lettered is told with its signal."""
    [sentence] = differences(closing, closing.rows(SENT, NONE, SENT, audited(**{kind: 1})))
    assert sentence.startswith("logs: 1 ")


def test_superseded_points_are_no_difference(closing: Any) -> None:
    """A later value of the same series and time has replaced them: that is promised, and shown."""
    table = closing.rows(SENT, NONE, SENT, audited(superseded=2))
    assert table["logs"].superseded == 2
    assert differences(closing, table) == []


def test_what_was_sent_must_be_what_was_accepted(closing: Any) -> None:
    """A gateway that counts one more or one less than the SDK is a difference."""
    table = closing.rows(SENT, NONE, {**SENT, "traces": 7}, audited())
    assert differences(closing, table) == ["traces: 8 were sent, 7 accepted."]


def test_what_the_sdk_gave_up_is_told(closing: Any) -> None:
    """Records that were never sent are not hidden by sums that agree."""
    table = closing.rows(SENT, {**NONE, "metrics": 3}, SENT, audited())
    assert differences(closing, table) == ["metrics: 3 records were given up or dropped by the SDK."]


def test_a_signal_that_nobody_audited_is_a_difference(closing: Any) -> None:
    """No proof is not a clean one; nor is the audit's own word overruled."""
    signals = audited()
    del signals["traces"]
    assert "traces: nobody looked into Kafka." in differences(closing, closing.rows(SENT, NONE, SENT, signals))
    assert differences(closing, closing.rows(SENT, NONE, SENT, audited()), "difference")


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 99, None), ([3.0], 50, 3.0), ([4.0, 1.0, 3.0, 2.0], 50, 2.0), ([float(n) for n in range(1, 201)], 99, 198.0)],
)
def test_percentiles_are_values_that_were_measured(
    freshness: Any, values: list[float], percent: int, expected: float | None
) -> None:
    """The nearest rank, None of none."""
    assert freshness.percentile(values, percent) == expected
