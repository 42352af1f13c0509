"""What ClickHouse's failures mean and what an insert promises, on a real server."""

import asyncio
import http.server
import re
import socket
import threading
import time
import urllib.parse
import uuid
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from pipeline import clickhouse, otlp
from pipeline.agents.ch_writer import TABLES, ClickHouseWriter
from pipeline.clickhouse.body import body
from pipeline.clickhouse.inserts import INSERT_SETTINGS, Inserts
from pipeline.delivery import Delivery, Message
from pipeline.errors import Misconfigured, PipelineError, Rejected, Unavailable
from pipeline.record import schema
from pipeline.settings import ClickHouseSettings, Settings
from tests.conftest import free_ports
from tests.otlp import requests

REPLACED = "CREATE TABLE {name} (x Int64{more}) ENGINE = MergeTree ORDER BY x SETTINGS {settings}"
PLAIN = "index_granularity = 8192"


def test_every_code_has_the_servers_name(clickhouse_settings: ClickHouseSettings) -> None:
    """No code is in both tables, and each is called what the server calls it."""
    assert not clickhouse.WORLD.keys() & clickhouse.DATA.keys()
    named = clickhouse.WORLD | clickhouse.DATA
    client = clickhouse.connect(clickhouse_settings)
    found = client.query("SELECT arrayJoin({codes:Array(Int32)}) AS code, errorCodeToName(code)", {"codes": [*named]})
    assert dict(found.result_rows) == named


@pytest.mark.parametrize(
    ("name", "table", "insert", "kind"),
    [
        ("TIMEOUT_EXCEEDED", {}, "SELECT sleep(2) SETTINGS max_execution_time = 0.1", Unavailable),
        (
            "MEMORY_LIMIT_EXCEEDED",
            {},
            "SELECT length(groupArray(number)) FROM numbers(10000000) SETTINGS max_memory_usage = 1000000",
            Unavailable,
        ),
        ("NOT_ENOUGH_SPACE", {"settings": "min_free_disk_bytes_to_perform_insert = '1000T'"}, "SELECT 1", Unavailable),
        ("CANNOT_PARSE_TEXT", {}, "SELECT toInt64('abc')", Rejected),
        ("TOO_LARGE_STRING_SIZE", {}, "SELECT length(toFixedString('abc', 2))", Rejected),
        ("CANNOT_PARSE_DATETIME", {}, "SELECT toUnixTimestamp(toDateTime('yesterday'))", Rejected),
        ("ILLEGAL_DIVISION", {}, "SELECT intDiv(1, materialize(0))", Rejected),
        ("VIOLATED_CONSTRAINT", {"more": ", CONSTRAINT positive CHECK x > 0"}, "SELECT -1", Rejected),
        ("TABLE_IS_PERMANENTLY_READ_ONLY", {"settings": "table_readonly = 1"}, "SELECT 1", None),
        ("TOO_MANY_ROWS", {}, "SELECT number FROM numbers(1000) SETTINGS max_rows_to_read = 10", None),
        ("READONLY", {}, "SELECT 1 SETTINGS readonly = 1", None),
        ("SYNTAX_ERROR", {}, "SELEC 1", None),
    ],
)
def test_a_refused_insert_is_somebodys_fault(
    clickhouse_settings: ClickHouseSettings,
    name: str,
    table: dict[str, str],
    insert: str,
    kind: type[PipelineError] | None,
) -> None:
    """What may pass later is Unavailable, what never will is Rejected, and what is ours passes as it is."""
    client = clickhouse.connect(clickhouse_settings)
    client.command(REPLACED.format(**{"name": "t", "more": "", "settings": PLAIN} | table))
    with pytest.raises(kind or clickhouse.Error, match=name), clickhouse.translated():
        client.raw_query(f"INSERT INTO t {insert}")


@pytest.mark.parametrize(
    ("name", "settings", "end"),
    [
        ("TOO_MANY_SIMULTANEOUS_QUERIES", {"max_concurrent_queries_for_user": 1}, None),
        ("QUERY_WAS_CANCELLED", {}, "KILL QUERY WHERE query_id = {query:String} SYNC"),
    ],
)
def test_what_others_do_to_an_insert_is_the_worlds_fault(
    clickhouse_settings: ClickHouseSettings, name: str, settings: dict[str, Any], end: str | None
) -> None:
    """Too many queries at once, and an insert that an operator kills."""
    client, other = clickhouse.connect(clickhouse_settings), clickhouse.connect(clickhouse_settings)
    client.command(REPLACED.format(name="t", more="", settings=PLAIN))
    query = uuid.uuid4().hex
    slow = "INSERT INTO t SELECT sleepEachRow(0.1) FROM numbers(30) SETTINGS max_block_size = 1"
    raised: list[BaseException] = []

    def insert() -> None:
        try:
            with clickhouse.translated():
                other.raw_query(slow, settings={"query_id": query})
        except PipelineError as error:
            raised.append(error)

    thread = threading.Thread(target=insert)
    thread.start()
    running = "SELECT count() FROM system.processes WHERE query_id = {query:String}"
    while not client.query(running, {"query": query}).result_rows[0][0]:
        time.sleep(0.02)
    try:
        if end is None:
            with pytest.raises(Unavailable, match=name), clickhouse.translated():
                client.raw_query("INSERT INTO t SELECT 1", settings=settings)
        else:
            client.command(end, {"query": query})
    finally:
        client.command("KILL QUERY WHERE query_id = {query:String} SYNC", {"query": query})
        thread.join()
    [error] = raised
    assert isinstance(error, Unavailable)
    assert "QUERY_WAS_CANCELLED" in str(error)


class Hangs(http.server.BaseHTTPRequestHandler):
    """Ends every connection without an answer."""

    def do_POST(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)


def test_a_server_that_does_not_answer_is_told_in_a_sentence() -> None:
    """Its address and the cause, whatever stands there, and nothing of how the client asked."""
    [port] = free_ports(1)
    said = {
        f"http://127.0.0.1:{port + 1}": "Connection refused",
        f"https://127.0.0.1:{port}": r"\[SSL: \S+\] .*",
        f"http://127.0.0.1:{port}": "Remote end closed connection without response",
        "http://nowhere.invalid:8123": r".*[Nn]ame.*",
    }
    with http.server.HTTPServer(("127.0.0.1", port), Hangs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for url, cause in said.items():
            with pytest.raises(Unavailable) as raised:
                clickhouse.connect(ClickHouseSettings(url=url))
            assert re.fullmatch(rf"ClickHouse: {re.escape(url)} does not answer: {cause}\.", str(raised.value))
        server.shutdown()


def test_who_cannot_get_in_is_told_why(clickhouse_settings: ClickHouseSettings) -> None:
    """No server is the world's; an unknown database or user is ours, and the password is in no sentence."""
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        clickhouse.connect(ClickHouseSettings(url="http://127.0.0.1:1"))
    with pytest.raises(Misconfigured, match="database nowhere"):
        clickhouse.connect(clickhouse_settings.model_copy(update={"database": "nowhere"}))
    with pytest.raises(Misconfigured, match="user nobody") as caught:
        clickhouse.connect(ClickHouseSettings(url=clickhouse_settings.url, user="nobody", password="sesame"))
    assert "sesame" not in str(caught.value)


def test_a_right_that_is_missing_is_told(clickhouse_settings: ClickHouseSettings) -> None:
    """Who may not do something hears what to grant."""
    admin = clickhouse.connect(clickhouse_settings)
    admin.command(REPLACED.format(name="t", more="", settings=PLAIN))
    poor = clickhouse.connect(ClickHouseSettings(url=clickhouse_settings.url, user="sandbox"))
    with pytest.raises(Misconfigured, match="have the grant INSERT"), clickhouse.translated():
        poor.command(f"INSERT INTO {clickhouse_settings.database}.t VALUES (1)")


def test_a_proxy_without_a_server_is_the_worlds_fault() -> None:
    """An answer of 502 that no ClickHouse has written is Unavailable."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(502)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    [port] = free_ports(1)
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Unavailable, match="502"):
            clickhouse.connect(ClickHouseSettings(url=f"http://127.0.0.1:{port}"))
        server.shutdown()


def container(signal: schema.Signal) -> tuple[bytes, int]:
    """A full request as one container file, and its records."""
    body = requests.ONE_OF_EVERYTHING[signal].SerializeToString()
    encoded = otlp.encode(signal, body, otlp.Origin("acme", "eu", requests.T0 + 10**9), partitions=1)
    [group] = encoded.groups
    return group.value, group.records


def message(signal: schema.Signal) -> Message:
    value, records = container(signal)
    headers = {"schema": schema.of(signal).name.encode(), "records": b"%d" % records}
    return Message(f"{signal}_raw", 0, 7, headers, value)


@pytest.mark.parametrize(
    ("setting", "value", "name"),
    [
        ("parts_to_throw_insert", "1", "TOO_MANY_PARTS"),
        ("min_free_disk_bytes_to_perform_insert", "'1000T'", "NOT_ENOUGH_SPACE"),
    ],
)
def test_what_slows_down_is_retried_until_it_passes(
    store: Client, settings: Settings, setting: str, value: str, name: str
) -> None:
    """The same batch is tried again, the metrics say so meanwhile, nothing is dead-lettered, and each record is stored."""
    store.command("SYSTEM STOP MERGES logs_events")
    store.command("INSERT INTO logs_events (tenant, timestamp) VALUES ('other', '2026-01-01')")
    store.command(f"ALTER TABLE logs_events MODIFY SETTING {setting} = {value}")

    def metric(what: str) -> float:
        return REGISTRY.get_sample_value(f"pipeline_writer_{what}", {"writer": "ch_writer"}) or 0.0

    retried, seen = metric("retries_total"), []

    async def sleep(_: float) -> None:
        seen.append((metric("store_away"), metric("retries_total") - retried))
        if len(seen) == 3:
            store.command(f"ALTER TABLE logs_events RESET SETTING {setting}")

    class Nowhere:
        async def put(self, message: Message, reason: Rejected) -> None:
            raise AssertionError(reason)

    batch = [message("logs")]
    writer = ClickHouseWriter(settings.clickhouse, "logs")
    with capture_logs() as logged:
        asyncio.run(Delivery(writer, Nowhere(), sleep=sleep).deliver(batch))
    assert seen == [(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]
    assert metric("store_away") == 0.0
    assert [name in line["reason"] for line in logged] == [True] * 3
    stored = store.query("SELECT count() FROM logs WHERE tenant = 'acme'").result_rows[0][0]
    assert stored == int(batch[0].headers["records"])


def test_a_table_that_is_dropped_stops_the_writer_with_a_sentence(store: Client, settings: Settings) -> None:
    """A missing table is nobody's poison: Misconfigured names it and the way out."""
    inserts = Inserts(settings.clickhouse, "logs_in")
    value, records = container("logs")
    inserts.insert(schema.of("logs"), [value], records=records, token="a")
    store.command("DROP TABLE logs_events SYNC")
    with pytest.raises(Misconfigured, match=r"into logs_in: .*UNKNOWN_TABLE.* `pipeline migrate status`"):
        inserts.insert(schema.of("logs"), [value], records=records, token="b")


def test_views_may_come_and_go_while_a_writer_runs(store: Client, settings: Settings) -> None:
    """A view of the table, a view of a view's table, and their end: the same batch stays good, a short one is refused."""
    inserts = Inserts(settings.clickhouse, "logs_in")
    value, records = container("logs")

    def insert(promised: int = records) -> None:
        inserts.insert(schema.of("logs"), [value], records=promised, token=uuid.uuid4().hex)

    insert()
    store.command("CREATE TABLE bodies (body String) ENGINE = MergeTree ORDER BY body")
    store.command("CREATE MATERIALIZED VIEW far TO bodies AS SELECT body FROM logs_events")
    insert()
    store.command("CREATE MATERIALIZED VIEW near TO bodies AS SELECT body FROM logs_in")
    insert()
    Inserts(settings.clickhouse, "logs_in").insert(schema.of("logs"), [value], records=records, token=uuid.uuid4().hex)
    store.command("DROP VIEW far SYNC")
    store.command("DROP VIEW near SYNC")
    insert()
    with pytest.raises(Rejected, match=f"read {records} records where {records + 1} were promised"):
        insert(records + 1)


def test_the_same_insert_twice_changes_no_table(store: Client, settings: Settings) -> None:
    """One token, two inserts of each signal: every row of every table, and the minutes made of them, stay as they were."""
    store.command("SYSTEM STOP MERGES")
    seen = []
    try:
        for _ in range(2):
            for signal, table in TABLES.items():
                value, records = container(signal)
                Inserts(settings.clickhouse, table).insert(
                    schema.of(signal), [value], records=records, token=f"once {signal}"
                )
            store.command("SYSTEM REFRESH VIEW metrics_1m_refresh")
            store.command("SYSTEM WAIT VIEW metrics_1m_refresh")
            seen.append(contents(store))
    finally:
        store.command("SYSTEM START MERGES")
    assert seen[0] == seen[1]
    assert all(rows for rows in seen[0].values()), seen[0]


def contents(store: Client) -> dict[str, list[Any]]:
    """Rows of every table that keeps some; of what is computed anew, the view that readers see."""
    [*tables] = store.query(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
        " AND name NOT IN ('schema_migrations', 'metrics_1m_computed', 'metrics_1m_refreshes')"
    ).result_rows
    names = ["metrics_1m", *(name for (name,) in tables)]
    return {name: store.query(f"SELECT cityHash64(*) AS row FROM {name} ORDER BY row").result_rows for name in names}


def test_an_insert_cut_between_two_parts_stores_nothing(store: Client, settings: Settings) -> None:
    """A writer that dies while it sends leaves no row and no token: the same batch is stored whole by the next one."""
    known, (value, records) = schema.of("logs"), container("logs")
    form, parts = body(known, [value] * 10_000)
    assert len(parts) > 2
    token = uuid.uuid4().hex
    asked = {**INSERT_SETTINGS, "insert_deduplication_token": token, "query": f"INSERT INTO logs_in FORMAT {form}"}
    asked |= {"database": settings.clickhouse.database, "query_id": token}
    url = urllib.parse.urlsplit(settings.clickhouse.url)
    who = f"X-ClickHouse-User: {settings.clickhouse.user}\r\nX-ClickHouse-Key: {settings.clickhouse.password.get_secret_value()}"
    with socket.create_connection((url.hostname or "", url.port or 0)) as dying:
        head = (
            f"POST /?{urllib.parse.urlencode(asked)} HTTP/1.1\r\nHost: x\r\n{who}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        dying.sendall(head.encode())
        for part in parts[:-1]:
            dying.sendall(b"%x\r\n%s\r\n" % (len(part), bytes(part)))
        started = "SELECT count() FROM system.processes WHERE query_id = {id:String}"
        while not store.query(started, parameters={"id": token}).first_row[0]:
            time.sleep(0.02)
    while store.query(started, parameters={"id": token}).first_row[0]:
        time.sleep(0.02)
    assert store.command("SELECT count() FROM logs_events") == 0
    Inserts(settings.clickhouse, "logs_in").insert(known, [value] * 10_000, records=records * 10_000, token=token)
    assert store.command("SELECT uniqExact(event_id) FROM logs_events") == records


def test_every_table_behind_a_writer_remembers_tokens(store: Client) -> None:
    """Whatever a view of an *_in table writes to has the deduplication window that a retried insert needs."""
    targets = store.query(
        "SELECT name, engine_full FROM system.tables WHERE database = currentDatabase() AND name IN ("
        " SELECT extract(create_table_query, ' TO (?:\\\\w+\\\\.)?(\\\\w+)') FROM system.tables"
        " WHERE database = currentDatabase() AND engine = 'MaterializedView' AND name LIKE '%\\\\_from\\\\_in')"
    ).result_rows
    assert {name for name, _ in targets} == {"logs_events", "spans", "span_events", "span_links", "metrics_points"}
    for name, engine in targets:
        assert "non_replicated_deduplication_window = 1000" in engine, name
