"""A replay from plan to drop, over real servers."""

import datetime
import io
import json
import os
import pathlib
import shutil
import time
import uuid

import fastavro
import psutil
import psycopg
import pytest
from confluent_kafka import Producer
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from pipeline import clickhouse, delivery, maintain, otlp
from pipeline.agents.ch_writer import ClickHouseWriter
from pipeline.agents.pg_writer import PostgresWriter
from pipeline.kafka.admin import Cluster
from pipeline.kafka.connection import configuration
from pipeline.kafka.producer import Outbox, Outgoing
from pipeline.kafka.reader import Message, Reader
from pipeline.record import schema
from pipeline.replay import changed, copy, drop, into_live, outside, place, plan
from pipeline.replay.asked import Asked
from pipeline.replay.folder import Folder, Way
from pipeline.replay.names import Sandbox
from pipeline.replay.parts import LIVE, Side
from pipeline.replay.where import Where
from pipeline.settings import ClickHouseSettings
from tests.contract.test_stores import gauges, new_service
from tests.replay.world import DEBUG_OF, ERROR_OF, HOUR_NS, MAIL_OF, MESSAGES, PARTITIONS, RECORDS, World, iso

RULE = '''
import re
from pipeline.agents import LogRecord, agent, drop


@agent(reads="logs_raw", writes="logs_norm", version=1)
def rule(record: LogRecord) -> LogRecord | None:
    """Drops debug, masks addresses, and has a bug: it loses one in a thousand."""
    number = int(record.body.split()[1])
    if number % 1000 == 1:
        return None
    if record.severity_number < 9:
        return drop("debug")
    return record.replace(body=re.sub(r"[\\w.-]+@[\\w.-]+", "***", record.body))
'''


def messages(world: World, topic: str, sandbox: Sandbox | None = None) -> dict[int, list[Message]]:
    reader = Reader(world.live.kafka)
    name = sandbox.topic(topic) if sandbox else topic
    found: dict[int, list[Message]] = {}
    for message in reader.read(reader.retained([name])):
        found.setdefault(message.partition, []).append(message)
    return found


@pytest.mark.timeout(600)
def test_a_slice_replayed_unchanged_is_equal_to_live(world: World) -> None:
    """Killed in the middle and run again: copied byte for byte, each message once, equal to live, closure exact; what
    is in the sandbox may write nowhere else; dropped, nothing is left."""
    sandbox = Sandbox.called("same-1")
    world.plan(sandbox.name)
    running = world.begun(sandbox.name)
    running.kill()
    running.communicate()
    world.run(sandbox.name)

    for topic in ("logs_raw", "traces_raw"):
        before, after = messages(world, topic), messages(world, topic, sandbox)
        assert before.keys() == after.keys()
        for partition, sent in before.items():
            stamped = [(*one.pairs, (copy.HEADER, f"{topic}/{partition}@{one.offset}".encode())) for one in sent]
            assert [one.pairs for one in after[partition]] == stamped
            assert [(m.key, m.value, m.timestamp_ms) for m in after[partition]] == [
                (m.key, m.value, m.timestamp_ms) for m in sent
            ]

    code, found = world.compared(sandbox.name)
    assert (code, found["equal"], found["findings"]) == (0, True, [])
    expected = {signal: world.records[f"{signal}_raw"] for signal in ("logs", "traces", "metrics")} | {
        "postgres/events": world.records["logs_raw"] // ERROR_OF,
        "postgres/metrics_points": world.records["metrics_raw"] - 1,  # what was said again
        "postgres/readings": 2,
        "clickhouse/readings": 2,
    }
    closures = {part: judged["closure"] for part, judged in found["signals"].items()}
    assert {part: closure["in"] for part, closure in closures.items()} == expected
    assert all(closure["in"] == closure["a_rows"] == closure["b_rows"] for closure in closures.values())
    _what_differs_in_postgres_is_found(world, sandbox)
    _cannot_write_elsewhere(world, sandbox)

    assert world.replay("drop", sandbox.name, "--yes")[0] == 0
    assert place.left(sandbox, world.live) == []


def _what_differs_in_postgres_is_found(world: World, sandbox: Sandbox) -> None:
    """A point and a row of a registered table that say something else, and an event that is gone: these and no more."""
    with psycopg.connect(world.live.postgres.dsn.get_secret_value(), autocommit=True) as admin:
        admin.execute(f"SET search_path = {sandbox.owner}".encode())
        [gone] = admin.execute(
            "DELETE FROM events WHERE event_id = (SELECT min(event_id::text)::uuid FROM events) RETURNING event_id"
        ).fetchall()
        admin.execute("UPDATE metrics_points SET value = -2 WHERE value = -1")
        admin.execute(b"UPDATE readings SET f_string = 'other', f_long = 7 WHERE f_boolean")
    code, found = world.compared(sandbox.name)
    assert (code, found["findings"]) == (
        1,
        [
            "postgres/events: 1 records of A are neither stored, dead-lettered nor dropped.",
            "postgres/events: 1 records are in B alone.",
            "postgres/metrics_points: 1 records differ in a field.",
            "postgres/readings: 1 records differ in a field.",
        ],
    )
    parts = found["signals"]
    assert [row["event_id"] for row in parts["postgres/events"]["ids"]["a_missing"]] == [gone[0].hex]
    [value] = parts["postgres/metrics_points"]["columns"]
    assert (value["column"], value["examples"][0]["a"], value["examples"][0]["b"]) == ("value", "-2", "-1")
    columns = {each["column"]: each["examples"][0] for each in parts["postgres/readings"]["columns"]}
    assert {name: (said["a"], said["b"]) for name, said in columns.items()} == {
        "f_string": ("other", "it's"), "f_long": ("7", str(1 << 40)),
    }  # fmt: skip


def _cannot_write_elsewhere(world: World, sandbox: Sandbox) -> None:
    folder = Folder.of(sandbox.name, world.live)
    own = changed.changed(folder, world.live, Way(records_per_s=1)).settings
    refused = []
    producer = Producer({**configuration(own.kafka), "log_level": 0, "message.timeout.ms": 20_000})
    for topic in ("logs_raw", "sandbox_other_logs_raw", sandbox.topic("logs_raw_dlq")):
        producer.produce(topic, b"x", on_delivery=lambda error, sent: refused.append((sent.topic(), bool(error))))
    producer.flush(30)
    assert sorted(refused)[:1] == [("logs_raw", True)]
    assert (sandbox.topic("logs_raw_dlq"), False) in refused
    with psycopg.connect(own.postgres.dsn.get_secret_value(), autocommit=True) as connection:
        for statement in ("DELETE FROM public.events", "CREATE TABLE public.x (y int)", "CREATE SCHEMA x"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
    client = clickhouse.connect(own.clickhouse)
    for statement in ("INSERT INTO {}.logs_in (body) VALUES ('x')", "DROP TABLE {}.logs_events", "CREATE DATABASE x"):
        with pytest.raises(clickhouse.Error, match="privileges"):
            client.command(statement.format(world.live.clickhouse.database))
    client.close()


@pytest.mark.timeout(600)
def test_a_rule_makes_exactly_its_differences(world: World, tmp_path: pathlib.Path) -> None:
    """With an agent from its file: what it drops, masks and loses is found by id and by field, counted as SQL over live
    counts it; and the report opens in a browser, without errors, with the same numbers."""
    (tmp_path / "rule.py").write_text(RULE)
    world.plan("rule-1", "logs_raw")
    world.run("rule-1", "--agents", str(tmp_path / "rule.py"))
    report = tmp_path / "report.html"
    code, found = world.compared("rule-1", "--html", str(report))
    logs = found["signals"]["logs"]
    lost = "toUInt32(splitByChar(' ', body)[2]) % 1000 = 1"
    debug = world.count(f"SELECT count() FROM logs WHERE severity_number < 9 AND NOT {lost}")
    masked = world.count(f"SELECT count() FROM logs WHERE body LIKE '%@%' AND severity_number >= 9 AND NOT {lost}")
    gone = {row[0] for row in world.store.query(f"SELECT event_id FROM logs WHERE {lost}").result_rows}
    assert debug == MESSAGES * RECORDS // DEBUG_OF
    assert masked > MESSAGES * RECORDS // MAIL_OF // 2
    assert (code, found["equal"]) == (1, False)
    assert logs["closure"]["a_missing"] == 0
    assert logs["closure"]["only_b"] == logs["closure"]["a_dropped"] == debug + len(gone)
    dropped = {row[0] for row in world.store.query("SELECT event_id FROM logs WHERE severity_number < 9").result_rows}
    assert len(gone) == MESSAGES * RECORDS // 1000
    assert {row["event_id"] for row in logs["ids"]["only_b"]} == gone | dropped
    assert sorted(row["records"] for row in logs["drops"]) == sorted([debug, len(gone)])
    assert [(column["column"], column["records"]) for column in logs["columns"]] == [("body", masked)]
    assert all("***" in example["a"] and "@" in example["b"] for example in logs["columns"][0]["examples"])
    assert world.replay("drop", "rule-1", "--yes")[0] == 0
    _opens(report, found)


def _opens(report: pathlib.Path, found: dict[str, object]) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("Chromium is missing: install it to open the report.")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
        page.goto(report.as_uri())
        assert found["verdict"] in page.inner_text("#verdict")
        assert json.loads(page.evaluate("JSON.stringify(found)")) == found
        cells = page.locator("#logs table").first.locator("tbody td").all_inner_texts()
        closure = found["signals"]["logs"]["closure"]  # type: ignore[index]
        assert cells[1:4] == [f"{closure[key]:,}" for key in ("in", "a_rows", "a_dead")]
        browser.close()
        assert said == []


@pytest.mark.timeout(300)
def test_a_part_of_the_records_with_other_settings(world: World, tmp_path: pathlib.Path) -> None:
    """`--where` takes the records of one service and no others; `--settings` are the sandbox's alone: its writers read
    what the file says, so these records are missing in A, and in B they are not."""
    (tmp_path / "new.toml").write_text('[routes]\nlogs = ["logs_norm"]\n[ch_writer]\nbatch_within_s = 0.5\n')
    world.plan("part-1", "logs_raw", "--where", "service=service-1", "--where", "severity_number=9")
    world.run("part-1", "--settings", str(tmp_path / "new.toml"))
    folder = Folder.of("part-1", world.live)
    assert folder.way
    own = changed.changed(folder, world.live, folder.way).settings
    assert (own.ch_writer.batch_within_s, own.pg_writer.batch_within_s) == (0.5, changed.WITHIN_S)
    wanted = world.count("SELECT count() FROM logs WHERE service = 'service-1' AND severity_number = 9")
    code, found = world.compared("part-1")
    closure = found["signals"]["logs"]["closure"]
    assert (code, closure["in"], closure["a_missing"], closure["b_missing"]) == (1, wanted, wanted, 0)
    assert world.replay("drop", "part-1", "--yes")[0] == 0


def _nice(pid: int) -> tuple[int, int]:
    """What Linux shares CPU by: a process's own, and that of its session where sessions are groups."""
    own = psutil.Process(pid).nice()
    try:
        return own, int(pathlib.Path(f"/proc/{pid}/autogroup").read_text().split()[-1])
    except FileNotFoundError:
        return own, own


@pytest.mark.timeout(300)
def test_two_sandboxes_at_once_do_not_meet(world: World) -> None:
    """While one is paused another runs, by the code of a revision, to its end; resumed, the first comes to the same.
    Their processes stand back behind everybody else's."""
    for name in ("twice-1", "twice-2"):
        world.plan(name, "logs_raw")
    first = world.begun("twice-1", "--rate", "300/s")
    assert world.replay("pause", "twice-1")[0] == 0
    world.run("twice-2", "--against", "git:HEAD")
    states = {row["name"]: row for row in json.loads(world.replay("list", "--json")[1])}
    assert first.poll() is None
    assert {_nice(child.pid) for child in psutil.Process(first.pid).children()} == {(world.live.replay.nice,) * 2}
    assert states["twice-1"]["copied_records"] < states["twice-2"]["copied_records"] == world.records["logs_raw"]
    assert world.replay("resume", "twice-1")[0] == 0
    said, _ = first.communicate(timeout=200)
    assert first.returncode == 0, said
    code, found = world.compared("twice-1", "--with", "twice-2")
    assert (code, found["signals"]["logs"]["closure"]["a_rows"]) == (0, world.records["logs_raw"])
    for name in ("twice-1", "twice-2"):
        assert world.replay("drop", name, "--yes")[0] == 0
        assert place.left(Sandbox.called(name), world.live) == []


@pytest.mark.timeout(300)
def test_a_store_is_repaired_from_kafka(world: World) -> None:
    """Rows that ClickHouse lost come back, once, after the name was typed and not before; what is there stays."""
    world.plan("fill-1", "logs_raw")
    before = world.count("SELECT count() FROM logs")
    world.store.command("DELETE FROM logs_events WHERE cityHash64(event_id) % 3 = 0")
    assert world.count("SELECT count() FROM logs") < before
    code, said = world.replay("into-live", "fill-1", "--approve", "fill")
    assert (code, "nothing was written" in said) == (2, True)
    assert world.replay("into-live", "fill-1", "--approve", "fill-1")[0] == 0
    assert world.count("SELECT count() FROM logs") == before
    folder = Folder.of("fill-1", world.live)
    assert into_live.group(folder.plan).startswith("backfill_")
    drop.drop(folder, world.live)


def test_a_back_fills_dead_letters_are_where_the_writers_put_theirs(world: World) -> None:
    """Those of a mirrored topic in that one's: from another's the audit cannot tell what became of the message."""
    live = world.live.model_copy(update={"mirrored_regions": ("eu",)})
    cluster, now = Cluster(live.kafka), datetime.datetime.now(datetime.UTC)
    names = ("eu.logs_raw", "eu.logs_raw_dlq")
    for name in names:
        cluster.create(name, partitions=1, replication_factor=1, config={})
    try:
        sent = Outgoing("eu.logs_raw", 0, int(now.timestamp() * 1000), [("schema", b"log_record/1")], b"poison")
        Outbox(live.kafka).publish([sent])
        hour = datetime.timedelta(hours=1)
        made = plan.make(
            live, "poison-1", topics=["eu.logs_raw"], between=(now - hour, now + hour), where=Where(), rate=1
        )
        into_live.fill(made, live, 100, lambda records: None)
        reader = Reader(live.kafka)
        letters = [message.value for message in reader.read(reader.retained(["eu.logs_raw_dlq"]))]
        assert letters == [b"poison", b"poison"]  # of both stores' writers
    finally:
        for name in names:
            cluster.delete(name)


def test_what_strangers_wrote_ends_no_comparison(world: World) -> None:
    """A dead letter whose ids are none of ours, and a drop that does not decode, are counted and excuse nothing."""
    cluster, now = Cluster(world.live.kafka), datetime.datetime.now(datetime.UTC)
    cluster.create("odd_raw_dlq", partitions=1, replication_factor=1, config={})
    foreign = io.BytesIO()
    of = {"type": "record", "name": "order", "fields": [{"name": "event_id", "type": "string"}]}
    fastavro.writer(foreign, of, [{"event_id": str(uuid.uuid4())}])
    headers = [("dlq_reason", b"odd"), ("dlq_topic", b"odd_raw"), ("dlq_partition", b"0"), ("dlq_offset", b"0")]
    now_ms = int(now.timestamp() * 1000)
    slices = plan.Slice(topic="odd_raw", partition=0, start=0, end=1, records=1, bytes=1, exact=True)
    made = plan.Plan(
        name="odd-1", created=now, expires=now, start=now - datetime.timedelta(hours=1), end=now, slices=(slices,)
    )
    asked = Asked(world.store, 100_000_000)
    try:
        Outbox(world.live.kafka).publish(
            [
                Outgoing("odd_raw_dlq", 0, now_ms, headers, foreign.getvalue()),
                Outgoing("agent_drops", 0, now_ms, [], b"damaged"),
            ]
        )
        side = Side(LIVE, world.live.clickhouse.database, world.live.postgres, world.live.kafka)
        [letter] = outside.read(asked, made, [side])
        assert (letter["topic"], letter["messages"], letter["records"]) == ("odd_raw", 1, 0)
        assert asked.rows("SELECT count() AS rows FROM replay_outside") == [{"rows": 0}]
    finally:
        cluster.delete("odd_raw_dlq")
        asked.command("DROP TABLE IF EXISTS replay_outside")


def test_no_batch_is_empty(world: World) -> None:
    """Where the last message fills a batch there is none behind it: of nothing there is no place to commit."""
    world.plan("full-1", "logs_raw")
    plan = Folder.of("full-1", world.live).plan
    read = [*copy.batches(Reader(world.live.kafka), [each.range for each in plan.slices], rate=1)]
    assert [len(batch) for batch in read] == [1] * plan.messages
    drop.drop(Folder.of("full-1", world.live), world.live)


def test_a_forgotten_sandbox_is_dropped_when_its_time_is_over(world: World) -> None:
    """`maintain` plans it after its lifetime, not before; dropped half, it is dropped whole."""
    world.plan("old-1", "logs_raw")
    folder = Folder.of("old-1", world.live)
    now = folder.plan.created
    assert drop.expired(world.live, now) == []
    [late] = drop.expired(world.live, now + datetime.timedelta(hours=world.live.replay.lifetime_hours))
    assert "old-1" in str(late)
    folder.note("dropping")
    code, said = world.replay("run", "old-1")
    assert (code, "half dropped" in said) == (2, True)
    [half] = drop.expired(world.live, now)
    half.carry_out()
    assert place.left(Sandbox.called("old-1"), world.live) == []


def test_clickhouse_puts_a_sandbox_and_merges_behind(world: World) -> None:
    """The threads of a sandbox's user have the last nice value, live's none, those of merges one between."""
    live = world.live.clickhouse
    sandbox = live.model_copy(update={"user": world.live.replay.clickhouse_user, "database": "default"})

    def value(settings: ClickHouseSettings, table: str, name: str) -> int:
        query = f"SELECT value FROM system.{table} WHERE name = '{name}'"
        return int(clickhouse.connect(settings).query(query).first_row[0])

    assert value(sandbox, "settings", "os_thread_priority") == 19
    assert value(live, "settings", "os_thread_priority") == 0
    assert value(live, "server_settings", "os_threads_nice_value_merge_mutate") == 10


def test_two_names_are_never_one_sandbox(world: World) -> None:
    """A name in use is refused with the way out, also where it differs in a dash alone."""
    world.plan("twin-1", "logs_raw")
    code, said = world.replay("plan", "--topics", "logs_raw", "--name", "twin1", *world.window)
    assert (code, "in use" in said, "pipeline replay drop twin-1" in said) == (2, True, True)
    drop.drop(Folder.of("twin-1", world.live), world.live)


@pytest.mark.timeout(600)
def test_what_retention_removed_from_live_has_expired(world: World) -> None:
    """It is counted and is no difference, in both stores; what is lost of a time that live keeps is missing as ever."""
    service = new_service()
    begun_ns = time.time_ns()
    for at_ns in (begun_ns - HOUR_NS, begun_ns - 200 * 24 * HOUR_NS):
        errors = ExportLogsServiceRequest()
        record = errors.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=at_ns, severity_number=17)
        record.body.string_value = service
        points = gauges(service, ("m", at_ns, 1.0))
        messages = {
            of: received(world, of, request.SerializeToString())
            for of, request in (("logs", errors), ("metrics", points))
        }
        if at_ns > begun_ns - 2 * HOUR_NS:
            for of, message in messages.items():
                ClickHouseWriter(world.live.clickhouse, of).write([message])
                PostgresWriter(world.live.postgres, of).write([message])
    maintain.run_all(world.live, datetime.datetime.now(datetime.UTC), "clickhouse")
    window = ("--from", iso(begun_ns), "--to", iso(time.time_ns()))
    code, said = world.replay("plan", "--topics", "logs_raw,metrics_raw", "--name", "old-1", *window)
    assert code == 0, said
    world.run("old-1")

    code, found = world.compared("old-1")
    closures = {part: judged["closure"] for part, judged in found["signals"].items()}
    assert (code, found["findings"]) == (0, [])
    assert closures.keys() == {"logs", "metrics", "postgres/events", "postgres/metrics_points"}
    for one in closures.values():
        assert (one["in"], one["a_rows"], one["b_rows"], one["a_expired"], one["b_expired"]) == (2, 2, 1, 0, 1)
    assert found["expired"] == [
        f"{part}: 1 records of B have expired: their time is before what its retention keeps." for part in closures
    ]

    world.store.command(f"ALTER TABLE logs_events DELETE WHERE body = '{service}' SETTINGS mutations_sync = 1")
    code, found = world.compared("old-1")
    assert (code, found["findings"]) == (
        1,
        [
            "logs: 1 records of B are neither stored, dead-lettered nor dropped.",
            "logs: 1 records are in A alone.",
        ],
    )


def received(world: World, of: schema.Signal, body: bytes) -> delivery.Message:
    """What a gateway makes of one record now, in Kafka."""
    now_ns = time.time_ns()
    [group] = otlp.encode(of, body, otlp.Origin("default", "local", now_ns), partitions=PARTITIONS).groups
    pairs = (("schema", schema.of(of).name.encode()), ("records", b"%d" % group.records))
    message = delivery.Message(schema.topic(of), group.partition, now_ns, dict(pairs), group.value, pairs)
    producer = Producer({"bootstrap.servers": world.live.kafka.bootstrap_servers, "log_level": 0})
    producer.produce(
        message.topic, message.value, partition=message.partition, timestamp=now_ns // 10**6, headers=list(pairs)
    )
    assert producer.flush(30) == 0
    return message
