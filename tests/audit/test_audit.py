"""Differences made by hand in real topics and stores, and what the audit says of them."""

import datetime
import io
import json
import os
import subprocess
import sys
import time

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from rich.console import Console

from pipeline import maintain
from pipeline.audit import Signal, Window, audit
from pipeline.errors import Misconfigured, Unavailable
from pipeline.settings import ClickHouseSettings, KafkaSettings, RoutesSettings, Settings
from tests.audit.world import HOUR_AGO_NS, MINUTE_NS, World, file, record

COUNTS = (
    "expected",
    "rows",
    "missing",
    "extra",
    "duplicates",
    "timeless_twins",
    "superseded",
    "dead_lettered",
    "expired",
)


def command(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "PIPELINE_POSTGRES__DSN": settings.postgres.dsn.get_secret_value(),
        "PIPELINE_CLICKHOUSE__URL": settings.clickhouse.url,
        "PIPELINE_CLICKHOUSE__DATABASE": settings.clickhouse.database,
    }
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "audit", *arguments],
        env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_nothing_anywhere_is_clean(world: World) -> None:
    """Empty topics and stores: zeros, and exit 0."""
    report = world.audit("logs", "traces", "metrics")
    assert report.clean
    for signal in report.as_dict()["signals"].values():
        assert (signal["kafka"]["messages"], signal["kafka"]["records"], signal["kafka"]["distinct"]) == (0, 0, 0)
        assert all(store[count] == 0 for store in signal["stores"].values() for count in COUNTS)


def test_stored_and_redelivered_is_clean(world: World) -> None:
    """Every signal in its stores; the same message twice in Kafka is one record, also when it is stored twice."""
    for signal in ("logs", "traces", "metrics"):
        records = [
            record(signal, f"{signal}{n}", series_id=n) if signal == "metrics" else record(signal, n) for n in range(50)
        ]
        for partition in (1, 2):
            world.publish(signal, records, partition=partition)
            world.store(signal, records)
        if signal == "metrics":
            world.store_points(records)
    answer = command(world.settings, "--json")
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout)
    assert report["verdict"] == "clean"
    for signal, rows in {"logs": [50, 0], "traces": [50], "metrics": [50, 50]}.items():
        about = report["signals"][signal]
        assert [about["kafka"][count] for count in ("messages", "records", "distinct")] == [2, 100, 50]
        assert [store["rows"] for store in about["stores"].values()] == rows
        assert [store["expected"] for store in about["stores"].values()] == rows


def test_a_missing_and_an_alien_row_are_named(world: World) -> None:
    """One lost row and one from nowhere: exit 1, with id, place and receipt minute of each."""
    records = [record("logs", n) for n in range(20)]
    alien = record("logs", "alien", received_time=HOUR_AGO_NS + 7 * MINUTE_NS)
    world.publish("logs", records[:10], partition=2)
    offset = world.publish("logs", records[10:], partition=2)
    world.store("logs", [*records[:15], *records[16:], alien])
    found = world.found("logs")
    assert (found["verdict"], found["missing"], found["extra"], found["duplicates"]) == ("difference", 1, 1, 0)
    lost = records[15]["event_id"].hex()
    assert found["examples"]["missing"] == [{"event_id": lost, "topic": "logs_raw", "partition": 2, "offset": offset}]
    assert found["examples"]["extra"][0]["event_id"] == alien["event_id"].hex()
    assert [(minute["missing"], minute["extra"]) for minute in found["by_minute"]] == [(1, 0), (0, 1)]
    answer = command(world.settings, "--signal", "logs")
    assert answer.returncode == 1
    assert lost in answer.stdout
    assert "Difference in logs in clickhouse." in answer.stdout


def test_visible_duplicates_and_timeless_twins(world: World) -> None:
    """Two rows of an id are a failure, but for a record without a time that was received twice."""
    twice, retried = record("logs", "twice"), record("logs", "retried", time=0)
    again = retried | {"received_time": HOUR_AGO_NS + 10**9}
    world.publish("logs", [twice, retried])
    world.publish("logs", [again])
    world.store("logs", [twice, retried, again])
    found = world.found("logs")
    assert (found["verdict"], found["duplicates"], found["timeless_twins"], found["rows"]) == ("clean", 0, 1, 3)
    world.store("logs", [twice | {"service": "a writer with a fault"}])
    found = world.found("logs")
    assert (found["verdict"], found["duplicates"], found["timeless_twins"]) == ("difference", 1, 1)
    assert found["examples"]["duplicates"][0]["event_id"] == twice["event_id"].hex()
    assert found["by_minute"][0]["duplicates"] == 1


def test_a_superseded_point_is_not_missing_from_postgres(world: World) -> None:
    """A later receipt of the same series and time takes the row; an earlier one must not."""
    early, late = record("metrics", "early"), record("metrics", "late", received_time=HOUR_AGO_NS + 10**9)
    other = record("metrics", "other", type="histogram")
    world.publish("metrics", [early, late])
    world.store("metrics", [early, late])
    world.store_points([late])
    found = world.found("metrics", "postgres")
    assert (found["verdict"], found["superseded"], found["missing"], found["rows"]) == ("clean", 1, 0, 1)
    assert found["examples"]["superseded"][0]["event_id"] == early["event_id"].hex()
    world.postgres.execute("DELETE FROM metrics_points")
    world.store_points([early])
    world.publish("metrics", [other])  # the same series and time in another table supersedes nothing
    world.store("metrics", [other])
    found = world.found("metrics", "postgres")
    assert (found["verdict"], found["superseded"], found["missing"]) == ("difference", 0, 2)


def test_of_logs_postgres_keeps_errors_and_events(world: World) -> None:
    """They are missing where they are not in `events`; any other log record there is extra."""
    plain, error, event = (
        record("logs", 1, severity_number=16),
        record("logs", 2, severity_number=17),
        record("logs", 3, event_name="e"),
    )
    world.publish("logs", [plain, error, event])
    world.store("logs", [plain, error, event])
    world.store_events([error])
    found = world.found("logs", "postgres")
    assert (found["verdict"], found["expected"], found["rows"], found["missing"]) == ("difference", 2, 1, 1)
    assert [example["event_id"] for example in found["examples"]["missing"]] == [event["event_id"].hex()]
    world.store_events([event])
    found = world.found("logs", "postgres")
    assert (found["verdict"], found["expected"], found["rows"], found["kafka"]["distinct"]) == ("clean", 2, 2, 3)
    world.store_events([plain])
    found = world.found("logs", "postgres")
    assert (found["verdict"], found["missing"], found["extra"]) == ("difference", 0, 1)


def test_dead_letters_excuse_their_store(world: World) -> None:
    """A record in a dead-letter topic is dead_lettered; what one writer gave up the other must still have."""
    points = [record("metrics", n, series_id=n) for n in range(3)]
    world.publish("metrics", points)
    world.send("metrics_raw_dlq", file("metrics", points[:2]), {"dlq_writer": "pg_writer", "dlq_topic": "metrics_raw"})
    world.store_points(points[2:])
    world.store("metrics", points)
    found = world.found("metrics", "postgres")
    assert (found["verdict"], found["dead_lettered"], found["missing"]) == ("clean", 2, 0)
    assert found["kafka"]["dead_letters"] == 1
    logs = [record("logs", n) for n in range(3)]
    world.publish("logs", logs)
    world.send("logs_raw_dlq", file("logs", logs[:2]), {"dlq_writer": "pg_writer"})
    found = world.found("logs")
    assert (found["dead_lettered"], found["missing"]) == (0, 3)
    world.send("logs_raw_dlq", file("logs", logs[:2]), {})
    found = world.found("logs")
    assert (found["dead_lettered"], found["missing"]) == (2, 1)


def test_an_unreadable_message_is_named_unless_dead_lettered(world: World) -> None:
    """What the audit cannot decode may hide records: a difference, until a dead letter says it is there."""
    whole = file("traces", [record("traces", n) for n in range(3)])
    cut = world.send("traces_raw", whole[:-20], {"records": "3"}, partition=1)
    miscounted = world.send("traces_raw", whole, {"records": "4"}, partition=1)
    world.store("traces", [record("traces", n) for n in range(3)])
    found = world.found("traces")
    assert (found["verdict"], found["kafka"]["unreadable"], found["missing"]) == ("difference", 2, 0)
    assert [fault["offset"] for fault in found["kafka"]["unreadable_messages"]] == [cut, miscounted]
    assert "says '4', it holds 3" in found["kafka"]["unreadable_messages"][1]["reason"]
    for offset in (cut, miscounted):
        origin = {"dlq_topic": "traces_raw", "dlq_partition": "1", "dlq_offset": str(offset)}
        world.send("traces_raw_dlq", whole[:-20], origin)
    found = world.found("traces")
    assert (found["verdict"], found["kafka"]["unreadable"]) == ("clean", 0)
    assert found["kafka"]["unreadable_dead_lettered"] == found["kafka"]["undecodable_dead_letters"] == 2
    assert found["kafka"]["undecodable_dead_letter_origins"][0] == {
        "topic": "traces_raw", "partition": 1, "offset": cut
    }  # fmt: skip


def test_of_many_unreadable_messages_the_number_is_said(world: World) -> None:
    """Ten of them are named to people, and how many there are beside."""
    cut = file("traces", [record("traces", 1)])[:-20]
    for _ in range(12):
        offset = world.send("traces_raw", cut, {"records": "1"}, partition=2)
    origin = {"dlq_topic": "traces_raw", "dlq_partition": "2", "dlq_offset": str(offset)}
    world.send("traces_raw_dlq", cut, origin)
    said = io.StringIO()
    world.audit("traces").show(Console(file=said))
    assert "traces: 10 of 12 unreadable messages are named; 1 are dead-lettered." in said.getvalue()


def test_a_window_judges_its_own_receipts_only(world: World) -> None:
    """Neither neighbours, nor a message across its edge, nor a row of another receipt makes a false difference."""
    start, end = HOUR_AGO_NS, HOUR_AGO_NS + 10 * MINUTE_NS
    inside = [record("logs", n, received_time=start + n * MINUTE_NS) for n in range(10)]
    for one in inside:
        world.publish("logs", [one], time_ns=one["received_time"])
    late = record("logs", "late", received_time=end - 10**9)  # received inside, in Kafka just after
    much_later = record("logs", "much later", received_time=end - 10**9)  # … and out of all proportion
    world.publish("logs", [late], time_ns=end + 10**9)
    world.publish("logs", [much_later], time_ns=end + 20 * MINUTE_NS)
    retried = inside[3] | {"received_time": end + 15 * MINUTE_NS}  # the store keeps the later receipt
    before = record("logs", "before", received_time=start - 30 * MINUTE_NS)  # in Kafka, not stored: not our window
    world.publish("logs", [before], time_ns=before["received_time"])
    alien = record("logs", "alien", received_time=end + 5 * MINUTE_NS)
    world.store("logs", [*inside, late, much_later, retried, alien])
    found = world.found("logs", start_ns=start, end_ns=end)
    assert found["verdict"] == "clean"
    assert (found["kafka"]["messages"], found["kafka"]["distinct"], found["rows"]) == (10, 10, 11)
    everything = world.found("logs")
    assert (everything["missing"], everything["extra"]) == (1, 1)
    empty = world.found("logs", start_ns=end + 30 * MINUTE_NS)
    assert (empty["verdict"], empty["kafka"]["messages"], empty["rows"]) == ("clean", 0, 0)


def test_what_retention_removed_is_expired(world: World) -> None:
    """Rows from before the first message that is left are expired; a later alien is still extra."""
    old = [record("logs", n, received_time=HOUR_AGO_NS - 60 * MINUTE_NS) for n in range(5)]
    new = [record("logs", "new")]
    world.publish("logs", old, time_ns=old[0]["received_time"])
    first = world.publish("logs", new)
    world.store("logs", old + new)
    admin = AdminClient({"bootstrap.servers": world.settings.kafka.bootstrap_servers})
    for future in admin.delete_records([TopicPartition("logs_raw", 0, first)]).values():
        future.result()
    found = world.found("logs")
    assert (found["verdict"], found["expired"], found["rows"], found["extra"]) == ("clean", 5, 6, 0)
    world.store("logs", [record("logs", "alien", received_time=HOUR_AGO_NS + 10 * MINUTE_NS)])
    assert world.found("logs")["extra"] == 1


def test_what_postgres_does_not_keep_as_long_is_expired(world: World) -> None:
    """A point and an event whose own time is beyond the retention are not missing where `maintain` has removed them;
    younger ones are."""
    too_old = HOUR_AGO_NS - 32 * 24 * 60 * MINUTE_NS
    points = [record("metrics", 1, series_id=1, time=too_old), record("metrics", 2, series_id=2)]
    events = [record("logs", 1, severity_number=17, time=too_old), record("logs", 2, severity_number=17)]
    world.publish("metrics", points)
    world.publish("logs", events)
    world.store_points(points)
    world.store_events(events)
    assert world.found("metrics", "postgres")["expired"] == 0
    maintain.run_all(world.settings, datetime.datetime.now(datetime.UTC))
    for signal, records in {"metrics": points, "logs": events}.items():
        found = world.found(signal, "postgres")
        assert (found["rows"], found["missing"], found["expired"]) == (1, 0, 1)
        assert [one["event_id"] for one in found["examples"]["expired"]] == [records[0]["event_id"].hex()]
    world.postgres.execute("DELETE FROM events")
    found = world.found("logs", "postgres")
    assert (found["missing"], found["expired"]) == (1, 1)


@pytest.mark.parametrize("signal", ["logs", "traces", "metrics"])
def test_what_a_ttl_may_have_removed_is_expired(world: World, signal: Signal) -> None:
    """A record that ClickHouse lacks is excused by the TTL that the table has, and by nothing else; one that it still
    has is there."""
    when = "start_time" if signal == "traces" else "time"
    oldest_ns = HOUR_AGO_NS - 180 * 24 * 60 * MINUTE_NS
    kept, old, young = (
        record(signal, n, **{when: oldest_ns + n * 120 * MINUTE_NS}) for n in (-2, -1, 1)
    )  # fmt: skip
    world.publish(signal, [kept, old, young])
    assert world.found(signal)["missing"] == 3
    maintain.run_all(world.settings, datetime.datetime.now(datetime.UTC), "clickhouse")
    table = {"logs": "logs_events", "traces": "spans", "metrics": "metrics_points"}[signal]
    world.clickhouse.command(f"SYSTEM STOP TTL MERGES {table}")
    world.store(signal, [kept])
    found = world.found(signal)
    assert (found["rows"], found["missing"], found["expired"]) == (1, 1, 1)
    assert [one["event_id"] for one in found["examples"]["expired"]] == [old["event_id"].hex()]
    assert [one["event_id"] for one in found["examples"]["missing"]] == [young["event_id"].hex()]


def test_an_emptied_partition_does_not_hide_an_alien(world: World) -> None:
    """Where retention emptied a partition, a row from within the retention time is extra, an older one expired."""
    gone = world.publish("logs", [record("logs", "gone")])
    admin = AdminClient({"bootstrap.servers": world.settings.kafka.bootstrap_servers})
    for future in admin.delete_records([TopicPartition("logs_raw", 0, gone + 1)]).values():
        future.result()
    eight_days_ns = 8 * 24 * 60 * MINUTE_NS
    world.store("logs", [record("logs", "old", received_time=HOUR_AGO_NS - eight_days_ns), record("logs", "alien")])
    found = world.found("logs")
    assert (found["expired"], found["extra"], found["verdict"]) == (1, 1, "difference")


def test_mirrored_topics_count_and_transactions_do_not_hang(world: World) -> None:
    """`<region>.logs_raw` is part of the signal; aborted records and markers are passed over, an open end is no end. What
    is mirrored from a region whose records are stored elsewhere is awaited nowhere here."""
    servers = world.settings.kafka.bootstrap_servers
    admin = AdminClient({"bootstrap.servers": servers})
    for future in admin.create_topics([NewTopic("eu.logs_raw", 1, 1)]).values():
        future.result()
    mirror = Producer({"bootstrap.servers": servers, "transactional.id": "audit-test"})
    mirror.init_transactions(30)
    for name, end in {"aborted": mirror.abort_transaction, "kept": mirror.commit_transaction}.items():
        mirror.begin_transaction()
        mirror.produce("eu.logs_raw", file("logs", [record("logs", name)]), headers={"records": b"1"})
        mirror.flush(10)
        end(30)
    mirror.begin_transaction()
    mirror.produce("eu.logs_raw", file("logs", [record("logs", "open")]), headers={"records": b"1"})
    mirror.flush(10)
    assert world.found("logs")["kafka"]["topics"] == ["logs_raw"]
    world.settings = world.settings.model_copy(update={"mirrored_regions": ("eu",)})
    world.store("logs", [record("logs", "kept")])
    started = time.monotonic()
    found = world.found("logs")
    assert time.monotonic() - started < 20
    assert (found["verdict"], found["kafka"]["records"]) == ("clean", 1)
    assert found["kafka"]["topics"] == ["logs_raw", "eu.logs_raw"]
    mirror.abort_transaction(30)


def test_what_another_region_dead_lettered_is_not_missing_there(world: World) -> None:
    """Records of this Kafka in the stores of another region: its own writers' dead letters excuse, ours do not."""
    admin = AdminClient({"bootstrap.servers": world.settings.kafka.bootstrap_servers})
    for future in admin.create_topics([NewTopic(name, 1, 1) for name in ("eu.logs_norm", "eu.logs_norm_dlq")]).values():
        future.result()
    records = [record("logs", name) for name in ("stored", "given up there", "given up here")]
    world.publish("logs", records)
    world.store("logs", records[:1])
    for dead_letters, given_up in (("eu.logs_norm_dlq", records[1]), ("logs_raw_dlq", records[2])):
        world.send(dead_letters, file("logs", [given_up]), {"dlq_topic": dead_letters[:-4], "dlq_writer": "ch_writer"})
    stored = {"mirrored_regions": ("eu",), "routes": RoutesSettings(logs=("logs_norm",))}
    there = world.settings.model_copy(update=stored)
    report = audit(world.settings, signals=["logs"], stores_of=there).as_dict()
    found = report["signals"]["logs"]["stores"]["clickhouse"]
    assert (found["dead_lettered"], found["missing"]) == (1, 1)


def test_nothing_is_committed_or_joined(world: World) -> None:
    """An audit leaves no consumer group behind."""
    world.publish("logs", [record("logs", 1)])
    world.store("logs", [record("logs", 1)])
    assert world.audit("logs").clean
    admin = AdminClient({"bootstrap.servers": world.settings.kafka.bootstrap_servers})
    assert "pipeline-audit" not in {group.group_id for group in admin.list_consumer_groups().result().valid}


def test_what_is_not_there_is_said(world: World) -> None:
    """A missing topic or table names the command that brings it (exit 2); a store that is away is exit 3."""
    away = world.settings.model_copy(update={"clickhouse": ClickHouseSettings(url="http://127.0.0.1:1")})
    with pytest.raises(Unavailable, match="ClickHouse"):
        audit(away, signals=("logs",))
    answer = command(away, "--signal", "logs")
    assert answer.returncode == 3, answer.stderr
    world.clickhouse.command("DROP VIEW logs")
    with pytest.raises(Misconfigured, match="pipeline migrate up"):
        world.audit("logs")
    admin = AdminClient({"bootstrap.servers": world.settings.kafka.bootstrap_servers})
    admin.delete_topics(["traces_raw"])["traces_raw"].result()
    answer = command(world.settings)
    assert answer.returncode == 2
    assert "Kafka has no topic traces_raw: run `pipeline topics apply`" in answer.stderr
    with pytest.raises(Unavailable, match="Kafka at"):
        audit(Settings(kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1")))


def test_a_window_that_cannot_be_is_refused_at_once() -> None:
    """Every problem of the two bounds in one go; no zone means UTC."""
    with pytest.raises(Misconfigured) as refused:
        Window.parse("yesterday", "2026-13-01")
    assert [problem.split(":")[0] for problem in refused.value.problems] == ["--from", "--to"]
    with pytest.raises(Misconfigured, match="is not before"):
        Window.parse("2026-01-02", "2026-01-01")
    assert Window.parse("2026-01-01T01:00", None) == Window.parse("2026-01-01T02:00+01:00", None)
