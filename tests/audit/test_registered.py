"""Registered tables: each is judged alone, against each store that it names; nothing of the registry's code is used."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import pytest

from tests.audit.test_audit import command
from tests.audit.world import HOUR_AGO_NS, World, container

DAY_NS = 86_400 * 10**9
SCHEMA = {
    "type": "record", "name": "", "fields": [
        {"name": "event_id", "type": {"type": "fixed", "name": "event_id", "size": 16}},
        {"name": "region", "type": "string"}, {"name": "received_time", "type": "long"},
        {"name": "tenant", "type": "string"}, {"name": "time", "type": "long"}, {"name": "n", "type": "long"},
        {"name": "ordinal", "type": "int"},
    ],
}  # fmt: skip


def register(world: World, table: str, *stores: str, kept_days: int = 30) -> None:
    world.postgres.execute(
        "INSERT INTO table_registry VALUES (%s, 1, 'active', %s::jsonb)",
        (table, json.dumps({"stores": stores, "retention_days": kept_days})),
    )


def make(world: World, table: str, kept_days: int = 30) -> None:
    """By hand, as readers see it."""
    world.postgres.execute(
        f"CREATE TABLE {table} (time timestamptz, event_id uuid, received_time timestamptz)".encode()
    )
    world.clickhouse.command(
        f"CREATE TABLE {table}__rows (event_id String, received_time Int64, timestamp DateTime DEFAULT now()) "
        f"ENGINE = MergeTree ORDER BY () TTL toDateTime(timestamp) + toIntervalDay({kept_days})"
    )
    world.clickhouse.command(
        f"CREATE VIEW {table} AS SELECT event_id, fromUnixTimestamp64Nano(r.received_time) AS received_time FROM {table}__rows AS r"
    )


def row(n: int, **fields: Any) -> dict[str, Any]:
    own = {"event_id": blake2b(b"%d" % n, digest_size=16).digest(), "received_time": HOUR_AGO_NS, "time": HOUR_AGO_NS}
    return {**own, "region": "", "tenant": "", "n": n, "ordinal": 0, **fields}


def publish(world: World, table: str, rows: Sequence[dict[str, Any]], to: str = "events_raw", **headers: str) -> int:
    said = {"schema": f"{table}/1", "records": str(len(rows)), **headers}
    return world.send(to, container({**SCHEMA, "name": table}, rows), said)


def store_clickhouse(world: World, table: str, rows: Sequence[dict[str, Any]]) -> None:
    world.clickhouse.insert(f"{table}__rows", [[one["event_id"].hex(), one["received_time"]] for one in rows],
                            column_names=["event_id", "received_time"])  # fmt: skip


def store_postgres(world: World, table: str, rows: Sequence[dict[str, Any]]) -> None:
    epoch = "timestamptz 'epoch' + %s * interval '1 microsecond'"
    for one in rows:
        world.postgres.execute(
            f"INSERT INTO {table} VALUES ({epoch}, %s, {epoch})".encode(),
            (one["time"] // 1000, one["event_id"].hex(), one["received_time"] // 1000),
        )


def test_each_table_is_judged_alone_in_each_of_its_stores(world: World) -> None:
    """What lacks, doubles or came from nowhere is told by table and store; equal ids of two tables stay apart, and a
    table that no store has made yet lacks all its rows."""
    for table, stores in (("shared", ["postgres", "clickhouse"]), ("one", ["clickhouse"]), ("unmade", ["postgres"])):
        register(world, table, *stores)
    make(world, "shared")
    make(world, "one")
    rows = [row(n) for n in range(10)]
    publish(world, "shared", rows)
    publish(world, "shared", rows[:5])
    publish(world, "one", rows)
    publish(world, "unmade", rows[:2])
    store_postgres(world, "shared", rows)
    store_clickhouse(world, "shared", [*rows[:9], row(99)])
    store_clickhouse(world, "one", [*rows, rows[3]])
    answer = command(world.settings, "--signal", "events", "--json")
    assert answer.returncode == 1, answer.stderr
    signals = json.loads(answer.stdout)["signals"]
    kafka = {
        part: [about["kafka"][count] for count in ("messages", "records", "distinct")]
        for part, about in signals.items()
    }
    assert kafka == {
        "events": [0, 0, 0],
        "events/shared": [2, 15, 10],
        "events/one": [1, 10, 10],
        "events/unmade": [1, 2, 2],
    }
    found = {
        (part, store): [findings[count] for count in ("expected", "rows", "missing", "extra", "duplicates")]
        for part, about in signals.items() for store, findings in about["stores"].items()
    }  # fmt: skip
    assert found == {
        ("events/shared", "postgres"): [10, 10, 0, 0, 0], ("events/shared", "clickhouse"): [10, 10, 1, 1, 0],
        ("events/one", "clickhouse"): [10, 11, 0, 0, 1], ("events/unmade", "postgres"): [2, 0, 2, 0, 0],
    }  # fmt: skip
    said = command(world.settings, "--signal", "events").stdout
    assert f"events/shared in clickhouse: missing: {rows[9]['event_id'].hex()} events_raw [0] @ 0" in said
    assert "Difference in events/one in clickhouse, events/shared in clickhouse, events/unmade in postgres." in said


def test_what_is_of_no_table_must_be_in_the_dead_letters(world: World) -> None:
    """A message that names no registered table is a difference, until its dead letter is there."""
    register(world, "known", "postgres")
    offset = publish(world, "stranger", [row(1)])
    found = world.audit("events").as_dict()["signals"]
    [named] = found["events"]["kafka"]["unreadable_messages"]
    assert (named["offset"], named["dead_lettered"], "stranger" in named["reason"]) == (offset, False, True)
    publish(
        world,
        "stranger",
        [row(1)],
        to="events_raw_dlq",
        dlq_topic="events_raw",
        dlq_partition="0",
        dlq_offset=str(offset),
    )
    report = world.audit("events")
    assert report.clean
    assert report.as_dict()["signals"]["events"]["kafka"]["unreadable_dead_lettered"] == 1


@pytest.mark.parametrize("store", ["postgres", "clickhouse"])
def test_dead_lettered_and_expired_rows_of_a_table_are_not_missing(world: World, store: str) -> None:
    """What its writer gave up counts for that table and store alone; a time before its retention is expired."""
    other = "clickhouse" if store == "postgres" else "postgres"
    for table in ("kept", "beside"):
        register(world, table, store, kept_days=5)
        make(world, table, kept_days=5)
    old = row(1, time=HOUR_AGO_NS - 6 * DAY_NS)
    given_up = row(2)
    for table in ("kept", "beside"):
        publish(world, table, [old, given_up])
    writer = {"postgres": "pg_writer", "clickhouse": "ch_writer"}
    for who in (store, other):
        publish(world, "kept", [given_up], to="events_raw_dlq", dlq_topic="events_raw", dlq_partition="0",
                dlq_offset="0", dlq_writer=writer[who])  # fmt: skip
    found = world.audit("events").as_dict()["signals"]
    kept, beside = (found[f"events/{table}"]["stores"][store] for table in ("kept", "beside"))
    assert [kept[count] for count in ("missing", "dead_lettered", "expired")] == [0, 1, 1]
    assert [beside[count] for count in ("missing", "dead_lettered", "expired")] == [1, 0, 1]
