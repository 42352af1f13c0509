"""What ClickHouse's failures mean, raised by a real server."""

import pytest

from pipeline import clickhouse
from pipeline.errors import Misconfigured, PipelineError, Rejected, Unavailable
from pipeline.settings import ClickHouseSettings


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("SELECT toInt64('abc')", Rejected),
        ("SELECT toFixedString('abc', 2)", Rejected),
        ("SELECT toDateTime('yesterday')", Rejected),
        ("SELECT sleep(2) SETTINGS max_execution_time = 0.1", Unavailable),
        ("SELECT groupArray(number) FROM numbers(10000000) SETTINGS max_memory_usage = 1000000", Unavailable),
    ],
)
def test_the_worlds_and_the_datas_failures_are_told_apart(
    clickhouse_settings: ClickHouseSettings, query: str, kind: type[PipelineError]
) -> None:
    """What may pass later is Unavailable, what never will is Rejected."""
    client = clickhouse.connect(clickhouse_settings)
    with pytest.raises(kind, match=r"^ClickHouse: .*\.$"), clickhouse.translated():
        client.command(query)


def test_too_many_parts_means_slow_down(clickhouse_settings: ClickHouseSettings) -> None:
    """Error 252 is the world's: the same insert passes when merges have caught up."""
    client = clickhouse.connect(clickhouse_settings)
    client.command("CREATE TABLE t (x UInt8) ENGINE = MergeTree ORDER BY x SETTINGS parts_to_throw_insert = 1")
    client.command("SYSTEM STOP MERGES t")
    client.command("INSERT INTO t VALUES (1)")
    with pytest.raises(Unavailable, match="252"), clickhouse.translated():
        client.command("INSERT INTO t VALUES (2)")


@pytest.mark.parametrize("query", ["SELECT * FROM nothing", "SELEC 1"])
def test_ours_stay_what_they_are(clickhouse_settings: ClickHouseSettings, query: str) -> None:
    """A missing table and bad SQL are not translated."""
    client = clickhouse.connect(clickhouse_settings)
    with pytest.raises(clickhouse.Error), clickhouse.translated():
        client.command(query)


def test_who_cannot_get_in_is_told_why(clickhouse_settings: ClickHouseSettings) -> None:
    """No server is the world's; an unknown database or user is ours, and the password is in no sentence."""
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        clickhouse.connect(ClickHouseSettings(url="http://127.0.0.1:1"))
    with pytest.raises(Misconfigured, match="database nowhere"):
        clickhouse.connect(clickhouse_settings.model_copy(update={"database": "nowhere"}))
    with pytest.raises(Misconfigured, match="user nobody") as caught:
        clickhouse.connect(ClickHouseSettings(url=clickhouse_settings.url, user="nobody", password="sesame"))
    assert "sesame" not in str(caught.value)
