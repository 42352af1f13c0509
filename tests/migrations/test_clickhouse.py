"""The ClickHouse schema, fed as the writer feeds it: Avro container files made by another library than ours."""

import datetime
import io
import json
import os
import re
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

import fastavro
import pytest
from clickhouse_connect.driver.client import Client

from pipeline import clickhouse
from pipeline.errors import Rejected
from pipeline.record import schema
from pipeline.settings import ROOT, ClickHouseSettings

DAY_NS = 86_400 * 10**9
NOW = 1_780_000_000_123_000_000
IN = {"logs": "logs_in", "traces": "spans_in", "metrics": "metrics_points_in"}
SHARED = {
    "region": "eu", "received_time": NOW, "tenant": "t", "service": "checkout", "host": "h1",
    "resource_attributes": {"r": "1"}, "resource_schema_url": "ru", "scope_name": "sn", "scope_version": "sv",
    "scope_attributes": {"s": "1"}, "scope_schema_url": "su", "ordinal": 0, "attributes": {"k": "v"},
}  # fmt: skip


def log(**fields: Any) -> dict[str, Any]:
    return SHARED | {
        "event_id": os.urandom(16), "time": NOW - 5, "observed_time": NOW - 3, "severity_number": 17,
        "severity_text": "ERROR", "event_name": "e", "body": "out of cheese", "dropped_attributes_count": 1,
        "trace_id": b"\xab" * 16, "span_id": b"\xcd" * 8, "flags": 1,
    } | fields  # fmt: skip


def span(**fields: Any) -> dict[str, Any]:
    return SHARED | {
        "event_id": os.urandom(16), "trace_id": b"\xab" * 16, "span_id": b"\xcd" * 8, "parent_span_id": b"",
        "trace_state": "x=1", "flags": 1, "name": "GET /", "kind": 2, "start_time": NOW - 1000, "end_time": NOW,
        "dropped_attributes_count": 0, "status_code": 2, "status_message": "boom", "dropped_events_count": 0,
        "events": [
            {"time": NOW - 7, "name": "exception", "attributes": {"t": "E"}, "dropped_attributes_count": 0},
            {"time": 0, "name": "again", "attributes": {}, "dropped_attributes_count": 2},
        ],
        "links": [
            {"trace_id": b"\x01" * 16, "span_id": b"\x02" * 8, "trace_state": "", "attributes": {"l": "1"},
             "dropped_attributes_count": 0, "flags": 1}
        ],
        "dropped_links_count": 0,
    } | fields  # fmt: skip


def point(**fields: Any) -> dict[str, Any]:
    return SHARED | {
        "event_id": os.urandom(16), "metric_name": "m", "description": "d", "unit": "s", "type": "gauge",
        "temporality": "unspecified", "monotonic": False, "series_id": -1, "start_time": 0, "time": NOW, "flags": 0,
        "value": 1.5, "int_value": None, "count": 0, "sum": None, "min": None, "max": None, "explicit_bounds": [],
        "bucket_counts": [], "scale": 0, "zero_count": 0, "zero_threshold": 0.0, "positive_offset": 0,
        "positive_counts": [], "negative_offset": 0, "negative_counts": [], "quantiles": [], "exemplars": [],
    } | fields  # fmt: skip


MAKE = {"logs": log, "traces": span, "metrics": point}


def container(signal: schema.Signal, records: list[dict[str, Any]]) -> bytes:
    name = schema.CURRENT[signal].replace("/", ".v")
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(json.loads((ROOT / "schemas" / f"{name}.avsc").read_text())), records)
    return out.getvalue()


def insert(store: Client, signal: schema.Signal, *records: dict[str, Any], **settings: Any) -> dict[str, int]:
    """Insert under a fresh token, or the one in `settings`; return the server's counts."""
    settings = {
        "insert_deduplication_token": uuid.uuid4().hex, "deduplicate_blocks_in_dependent_materialized_views": 1,
    } | settings  # fmt: skip
    with clickhouse.translated():
        summary = store.raw_insert(
            IN[signal], insert_block=container(signal, list(records)), fmt="Avro", settings=settings
        ).summary
    return {key: int(value) for key, value in summary.items() if key.endswith("_rows")}


def count(store: Client, table: str) -> int:
    return int(store.command(f"SELECT count() FROM {table}"))


def moment(ns: int) -> str:
    """As ClickHouse prints a DateTime64(9) in UTC."""
    return f"{datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC):%Y-%m-%d %H:%M:%S}.{ns % 10**9:09}"


@pytest.mark.parametrize("signal", schema.SIGNALS)
def test_the_in_tables_are_the_avro_records(store: Client, signal: schema.Signal) -> None:
    """Same columns in the same order: no field is dropped on the way in, and none is awaited in vain."""
    columns = store.query(f"DESCRIBE TABLE {IN[signal]}").result_rows
    assert [column[0] for column in columns] == [field["name"] for field in schema.of(signal).avro["fields"]]


def test_a_log_record_is_kept_whole(store: Client) -> None:
    """Every field of the record can be read back, ids as lower-case hex."""
    record = log()
    insert(store, "logs", record)
    [row] = store.query("SELECT * FROM logs_events").named_results()
    for name, value in record.items():
        if name in ("trace_id", "span_id"):
            assert row[name] == value.hex()
        elif name != "received_time":
            assert row[name] == value, name
    assert store.query("SELECT event_id, toString(timestamp), toString(received_time) FROM logs").result_rows == [
        (record["event_id"].hex(), moment(NOW - 5), moment(NOW))
    ]


def test_a_span_is_kept_whole(store: Client) -> None:
    """Kind, status and duration are readable, events and links are there, and each event is a row."""
    record = span()
    insert(store, "traces", record, span(start_time=0, parent_span_id=b"\x09" * 8, kind=0, status_code=0, events=[]))
    root, child = store.query("SELECT * FROM traces ORDER BY timestamp").named_results()
    assert (root["kind"], root["status"], root["duration_ns"]) == ("server", "error", 1000)
    assert (root["trace_id"], root["span_id"], root["parent_span_id"]) == ("ab" * 16, "cd" * 8, "")
    assert root["events"] == record["events"]
    assert root["links"] == [record["links"][0] | {"trace_id": "01" * 16, "span_id": "02" * 8}]
    assert (child["kind"], child["status"], child["duration_ns"]) == ("unspecified", "unset", 0)
    assert child["parent_span_id"] == "09" * 8
    events = store.query(
        "SELECT lower(hex(event_id)), event_index, span_name, name, toString(timestamp), attributes, trace_id "
        "FROM span_events ORDER BY event_index"
    ).result_rows
    assert events == [
        (record["event_id"].hex(), 0, "GET /", "exception", moment(NOW - 7), {"t": "E"}, "ab" * 16),
        (record["event_id"].hex(), 1, "GET /", "again", moment(NOW - 1000), {}, "ab" * 16),
    ]


def test_links_of_spans_are_rows_of_their_own(store: Client) -> None:
    """None of a span without, each with its place in the list of a span with many; once, however often it comes."""
    link = {"trace_state": "x=1", "dropped_attributes_count": 3, "flags": 1}
    links = [
        link | {"trace_id": bytes([n]) * 16, "span_id": b"\x02" * 8, "attributes": {"n": str(n)}} for n in range(50)
    ]
    many, none = span(links=links), span(links=[])
    for n in range(3):
        insert(store, "traces", many | {"region": f"r{n}", "received_time": NOW + n}, none)
    rows = store.query("SELECT * FROM trace_links ORDER BY link_index").named_results()
    expected = {
        "event_id": many["event_id"].hex(), "region": "r2", "trace_id": "ab" * 16, "span_id": "cd" * 8,
        "span_name": "GET /", "service": "checkout", "trace_state": "x=1", "dropped_attributes_count": 3, "flags": 1,
    }  # fmt: skip
    for n, row in enumerate(rows):
        own = {
            "link_index": n,
            "linked_trace_id": f"{n:02x}" * 16,
            "linked_span_id": "02" * 8,
            "attributes": {"n": str(n)},
        }
        assert row == row | expected | own
    assert n == len(links) - 1
    assert store.command("SELECT toString(max(timestamp)) FROM trace_links") == moment(NOW - 1000)
    events = "SELECT count(), uniqExact(event_id, event_index), groupUniqArray(region) FROM trace_events"
    [(count_, distinct, regions)] = store.query(f"{events} WHERE event_id = '{many['event_id'].hex()}'").result_rows
    assert (count_, distinct, regions) == (2, 2, ["r2"])


def test_a_point_of_any_type_is_kept_whole(store: Client) -> None:
    """Numbers, arrays, nulls, quantiles and exemplars arrive as they were."""
    exemplar = {"time": 5, "value": 2.5, "trace_id": b"\x01" * 16, "span_id": b"", "attributes": {"f": "1"}}
    record = point(
        type="histogram", temporality="delta", monotonic=True, value=None, int_value=1 << 62, count=3, sum=4.5, min=1.0,
        max=2.0, explicit_bounds=[1.0, 2.0], bucket_counts=[1, 2, 0], scale=-3, positive_counts=[1, 1 << 40],
        quantiles=[{"quantile": 0.5, "value": 2.0}], exemplars=[exemplar],
    )  # fmt: skip
    insert(store, "metrics", record)
    [row] = store.query("SELECT * FROM metrics_points").named_results()
    for name, value in record.items():
        if name not in ("received_time", "exemplars"):
            assert row[name] == value, name
    assert row["exemplars"] == [exemplar | {"trace_id": "01" * 16, "span_id": ""}]


@pytest.mark.parametrize(
    ("sent", "observed", "stored"),
    [
        (NOW - DAY_NS, 0, NOW - DAY_NS),
        (0, NOW - 9, NOW - 9),
        (0, 0, NOW),
        (1, NOW - 9, NOW),  # 1970 is absurd, and absurd is not missing: observed_time is not asked
        (946_684_800 * 10**9, 0, 946_684_800 * 10**9),
        (946_684_800 * 10**9 - 1, 0, NOW),
        (NOW + DAY_NS, 0, NOW + DAY_NS),
        (NOW + DAY_NS + 1, 0, NOW),
        (0, NOW + 2 * DAY_NS, NOW),
        (-1, NOW - 9, NOW),  # 2^64 - 1 as sent
    ],
)
def test_the_timestamp_is_the_first_sane_time(store: Client, sent: int, observed: int, stored: int) -> None:
    """time, else observed_time; where neither is there or it is absurd, receipt; both are kept as sent."""
    insert(store, "logs", log(time=sent, observed_time=observed))
    assert store.query("SELECT toString(timestamp), time, observed_time FROM logs").result_rows == [
        (moment(stored), sent, observed)
    ]
    if observed == 0:
        insert(store, "traces", span(start_time=sent))
        insert(store, "metrics", point(time=sent))
        for table in ("spans", "metrics_points"):
            assert store.command(f"SELECT toString(timestamp) FROM {table}") == moment(stored)


def test_a_record_without_a_time_stands_at_its_receipt_in_every_version(store: Client) -> None:
    """The microseconds that an agent adds to the receipt say which form is newer, not where it stands."""
    for added_us in (0, 2):
        insert(store, "logs", log(time=0, observed_time=0, received_time=NOW + added_us * 1000, event_id=b"1" * 16))
    assert store.query("SELECT toString(timestamp), toUnixTimestamp64Nano(received_time) FROM logs").result_rows == [
        (moment(NOW), NOW + 2000)
    ]


@pytest.mark.parametrize("signal", schema.SIGNALS)
def test_the_same_insert_with_the_same_token_adds_nothing(store: Client, signal: schema.Signal) -> None:
    """A retried insert leaves every table of the chain as it was, in one block or in many."""
    tables = {"logs": ["logs_events"], "traces": ["spans", "span_events", "span_links"], "metrics": ["metrics_points"]}[
        signal
    ]
    for settings in ({}, {"max_insert_block_size": 100, "min_insert_block_size_rows": 100}):
        records, token = [MAKE[signal](ordinal=n) for n in range(500)], uuid.uuid4().hex
        before = [count(store, table) for table in tables]
        insert(store, signal, *records, insert_deduplication_token=token, **settings)
        once = [count(store, table) for table in tables]
        assert all(a < b for a, b in zip(before, once, strict=True))
        insert(store, signal, *records, insert_deduplication_token=token, **settings)
        assert [count(store, table) for table in tables] == once


def test_an_insert_that_failed_half_way_is_completed_by_its_retry(store: Client) -> None:
    """Where one view has written and another has not, the same token fills in only what is missing."""
    store.command("CREATE TABLE gate (open UInt8) ENGINE = MergeTree ORDER BY open")
    store.command(
        "CREATE MATERIALIZED VIEW guard TO span_events AS SELECT event_id FROM spans_in "
        "WHERE throwIf((SELECT count() FROM gate) = 0)"
    )
    records, token = [span(ordinal=n) for n in range(20)], uuid.uuid4().hex
    with pytest.raises(clickhouse.Error):
        insert(store, "traces", *records, insert_deduplication_token=token)
    store.command("INSERT INTO gate VALUES (1)")
    insert(store, "traces", *records, insert_deduplication_token=token)
    assert (count(store, "spans"), count(store, "span_events FINAL WHERE name != ''")) == (20, 40)


@pytest.mark.parametrize("signal", schema.SIGNALS)
def test_readers_never_see_a_redelivered_record_twice(store: Client, signal: schema.Signal) -> None:
    """The same record under other tokens, from another region and later, is one row in the view, merged or not."""
    view = {"logs": "logs", "traces": "traces", "metrics": "metrics"}[signal]
    record = MAKE[signal]()
    for n in range(3):
        insert(store, signal, record | {"region": f"r{n}", "received_time": NOW + n}, record | {"region": "eu"})
        assert store.query(f"SELECT event_id FROM {view}").result_rows == [(record["event_id"].hex(),)]
    assert store.command(f"SELECT region FROM {view}") == "r2"


def test_what_the_server_counts_as_read_tells_records(store: Client) -> None:
    """read_rows is the records times one more than the views behind the table; written_rows adds every row written."""
    logs, spans = [log(ordinal=n) for n in range(300)], [span(ordinal=n) for n in range(300)]
    small = {"max_insert_block_size": 100, "min_insert_block_size_rows": 100}
    for settings in ({}, small):
        of_logs, of_spans = insert(store, "logs", *logs, **settings), insert(store, "traces", *spans, **settings)
        assert (of_logs["read_rows"], of_logs["written_rows"]) == (600, 600)
        assert (of_spans["read_rows"], of_spans["written_rows"]) == (1200, 300 + 300 + 600 + 300)
    assert store.query(
        "SELECT name, length(dependencies_table) FROM system.tables WHERE database = currentDatabase() "
        "AND name LIKE '%\\_in' AND engine = 'Null' ORDER BY name"
    ).result_rows == [("logs_in", 1), ("metrics_points_in", 1), ("spans_in", 3)]


def test_an_insert_may_touch_any_number_of_days(store: Client) -> None:
    """A client that sends what it kept for a year is not refused, now or ever."""
    insert(store, "logs", *[log(time=NOW - n * DAY_NS) for n in range(365)])
    assert count(store, "logs") == 365


@pytest.mark.parametrize("damage", [b"", b"garbage" * 9, None])
def test_what_cannot_be_read_is_the_datas_fault(store: Client, damage: bytes | None) -> None:
    """An empty, a foreign and a cut file are Rejected, and nothing of them is kept."""
    body = container("logs", [log()])[:-40] if damage is None else damage
    with pytest.raises(Rejected), clickhouse.translated():
        store.raw_insert("logs_in", insert_block=body, fmt="Avro")
    assert count(store, "logs_events") == 0


@pytest.mark.parametrize(
    "predicate",
    [
        "tenant = 't' AND service = 's3'",
        f"trace_id = '{'77' * 16}'",
        f"timestamp < fromUnixTimestamp64Nano({NOW - 5 * DAY_NS})",
        f"service = 's3' AND timestamp < fromUnixTimestamp64Nano({NOW - 50_000})",
    ],
)
def test_the_views_use_the_indexes(store: Client, predicate: str) -> None:
    """A predicate on service, trace or time through a view reads a small part of the table."""
    records = [log(ordinal=n, service=f"s{n % 7}", time=NOW - n, trace_id=os.urandom(16)) for n in range(60_000)]
    insert(store, "logs", *records, log(body="a needle there", trace_id=b"\x77" * 16, time=NOW - 9 * DAY_NS))
    store.command("OPTIMIZE TABLE logs_events FINAL")
    plan = store.query(f"EXPLAIN indexes = 1 SELECT * FROM logs WHERE {predicate}").result_rows
    selected = [re.search(r"Granules: (\d+)/(\d+)", line) for (line,) in plan]
    read, total = min(int(found[1]) for found in selected if found), max(int(found[2]) for found in selected if found)
    assert total >= 8
    assert read <= 3, plan


@pytest.mark.parametrize("predicate", [f"trace_id = '{'77' * 16}'", "hasToken(body, 'needle')", "service = 'twin'"])
def test_an_index_hides_no_later_version(store: Client, predicate: str) -> None:
    """Of twins in parts of different sizes a predicate on an indexed column finds one row, the later receipt's."""
    record = log(service="twin", body="a needle there", trace_id=b"\x77" * 16)
    store.command("SYSTEM STOP MERGES logs_events")
    for n, around in enumerate([20_000, 0, 9_000]):
        others = [log(ordinal=m, service=f"s{m % 3}", time=NOW - m, trace_id=os.urandom(16)) for m in range(around)]
        insert(store, "logs", *others, record | {"region": f"r{n}", "received_time": NOW + 10 - n})
    assert store.query(f"SELECT event_id, region FROM logs WHERE {predicate}").result_rows == [
        (record["event_id"].hex(), "r0")
    ]


def test_metrics_1m_recomputes_whole_minutes(store: Client) -> None:
    """Redeliveries, late points and later values of one time are counted as the deduplicated points are."""
    minute = NOW - NOW % (60 * 10**9)
    first = [point(time=minute + n * 10**9, value=float(n), series_id=n % 2) for n in range(10)]
    insert(store, "metrics", *first, point(value=None, series_id=9), point(type="histogram", value=None, series_id=8))
    insert(store, "metrics", *first)
    assert minutes(store) == [(0, 5, 20.0, 0.0, 8.0, 8.0), (1, 5, 25.0, 1.0, 9.0, 9.0)]
    late = point(time=minute + 30 * 10**9, value=100.0, series_id=0)
    later_value = point(time=first[1]["time"], value=-7.0, series_id=1, received_time=NOW + 1)
    insert(store, "metrics", late, later_value, first[0])
    assert minutes(store) == [(0, 6, 120.0, 0.0, 100.0, 100.0), (1, 5, 17.0, -7.0, 9.0, 9.0)]


def test_metrics_1m_forgets_a_value_that_was_taken_back(store: Client) -> None:
    """Of two points of one series and time the later receipt counts, also where it says that nothing was recorded: a
    minute that has no value left is not shown, and is again when it has one."""
    minute = NOW - NOW % (60 * 10**9)
    insert(store, "metrics", *[point(time=minute + n, value=float(n), series_id=n % 2) for n in range(3)])
    assert minutes(store) == [(0, 2, 2.0, 0.0, 2.0, 2.0), (1, 1, 1.0, 1.0, 1.0, 1.0)]
    later = {"flags": 1, "value": None, "received_time": NOW + 1}
    insert(store, "metrics", *[point(time=minute + n, series_id=n % 2, **later) for n in (1, 2)])
    assert minutes(store) == [(0, 1, 0.0, 0.0, 0.0, 0.0)]
    other_type = {"type": "histogram", "value": None, "received_time": NOW + 2}
    insert(store, "metrics", point(time=minute, series_id=0, **other_type), point(time=minute + 5, series_id=1))
    assert minutes(store) == [(0, 1, 0.0, 0.0, 0.0, 0.0), (1, 1, 1.5, 1.5, 1.5, 1.5)]


def test_metrics_1m_counts_points_of_any_age(store: Client) -> None:
    """A point that comes an hour or a month after its minute was computed is in it."""
    ages_s = (0, 3600, 40 * 86_400)
    insert(store, "metrics", *[point(time=NOW - age * 10**9, value=1.0, series_id=age) for age in ages_s])
    assert minutes(store) == [(age, 1, 1.0, 1.0, 1.0, 1.0) for age in ages_s]
    insert(store, "metrics", *[point(time=NOW + 1 - age * 10**9, value=2.0, series_id=age) for age in ages_s])
    assert minutes(store) == [(age, 2, 3.0, 1.0, 2.0, 2.0) for age in ages_s]


def test_metrics_1m_misses_no_insert_however_slow(store: Client, clickhouse_settings: ClickHouseSettings) -> None:
    """Points of an insert that ends refreshes after it began, and after the inserts of others, are in their minutes."""
    ended = threading.Event()

    def values() -> Iterator[bytes]:
        yield b"1.5\n" * 1000  # more than max_query_size, for which the server waits before it begins
        ended.wait(60)

    query = (
        "INSERT INTO metrics_points (timestamp, inserted_time, metric_name, series_id, value) "
        "SELECT now64(9), now64(3), 'm', 7, max(value) FROM input('value Float64') FORMAT TSV"
    )
    options = {"query": query, "database": clickhouse_settings.database, "max_query_size": 1000}
    slow = urllib.request.Request(f"{clickhouse_settings.url}/?{urlencode(options)}", values(), method="POST")
    with ThreadPoolExecutor(1) as pool:
        insertion = pool.submit(lambda: urllib.request.urlopen(slow, timeout=60).close())
        try:
            running = "system.processes WHERE query LIKE 'INSERT INTO metrics_points (%'"
            while not count(store, running) and not insertion.done():
                time.sleep(0.01)
            for n in range(3):
                insert(store, "metrics", point(series_id=n))
                assert len(minutes(store)) == n + 1
        finally:
            ended.set()
        insertion.result()
    assert [row[:2] for row in minutes(store)] == [(0, 1), (1, 1), (2, 1), (7, 1)]


def minutes(store: Client) -> list[tuple[Any, ...]]:
    """metrics_1m after the next refresh."""
    store.command("SYSTEM REFRESH VIEW metrics_1m_refresh")
    store.command("SYSTEM WAIT VIEW metrics_1m_refresh")
    return [
        tuple(row)
        for row in store.query("SELECT series_id, count, sum, min, max, last FROM metrics_1m ORDER BY 1").result_rows
    ]


def test_metrics_1m_refreshes_by_itself(store: Client) -> None:
    """Nobody has to ask: a point is in its minute within two periods."""
    insert(store, "metrics", point())
    deadline = time.monotonic() + 25
    while not count(store, "metrics_1m"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
