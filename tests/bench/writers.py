"""`make bench-writers`: both writers catch up with a prefilled topic, beside the floors of design section 10.

Records/s and CPU are taken after the first tenth: by then all processes have their partitions and their caches. CPU of
the writer and of the server are those of their processes; of ClickHouse's, the insert's part (system.query_log) and
the merges' (system.part_log) stand beside, since merges also go on after the last insert.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import psutil
import psycopg
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline import clickhouse, migrations, topics
from pipeline.agents.ch_writer import TABLES
from pipeline.local import Stack
from pipeline.record import container, schema
from pipeline.record.schema import Signal
from pipeline.settings import Settings
from pipeline.timescale import rows
from tests.bench import measured, topic
from tests.bench.measured import Row

COLUMNS = (
    "load", "records/s", "us CPU a record", "us CPU of the server", "of it insert + merges", "cost at 1x, 3x, 10x",
    "p50 ms", "p99 ms", "RSS MB", "others' CPU %", "floor", "verdict",
)  # fmt: skip
RECORDS: dict[Signal, int] = {"logs": 10_000_000, "metrics": 5_000_000, "traces": 5_000_000}
DAY_NS = 86_400 * 10**9
SHARES = (0.1, 0.3, 1.0)
SETTLED = SHARES[0]
BUSY_MACHINE = 0.1
STORED_WITHIN_S = 300
POLL_S = 0.25  # the writer's metrics, which costs it
LOGS_FLOOR, LOGS_US_FLOOR = 200_000, 6.5
BARE_SHARE_FLOOR = 0.85
BARE_ROWS = 40_000  # a batch: what 16 MiB of points hold
CLICKHOUSE_TABLES: dict[Signal, tuple[str, ...]] = {
    "logs": ("logs_events",),
    "metrics": ("metrics_points",),
    "traces": ("spans", "span_events"),
}
CLICKHOUSE_LOGS = """<clickhouse>
  <query_log><database>system</database><table>query_log</table></query_log>
  <part_log><database>system</database><table>part_log</table></part_log>
</clickhouse>
"""


def run(stack: Stack, settings: Settings, *, scale: float, as_json: bool) -> int:
    """Measure, print, and return the exit code: 1 where a floor is missed."""
    found = list(measure(stack, settings, scale))
    missed = [row for row in found if str(row.get("verdict", "")).startswith("MISSED")]
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        measured.show(found, COLUMNS)
        print("floors: " + (f"{len(missed)} missed" if missed else "all held"))
        if any(row["others' CPU %"] > BUSY_MACHINE * 100 for row in found):
            print("Other programs took part of the machine: records/s are not the writers' alone, CPU a record is.")
    return 1 if missed else 0


def measure(stack: Stack, settings: Settings, scale: float) -> Iterator[Row]:
    """All rows, on a stack of its own that is removed at the end."""
    stack.wipe()
    try:
        extra = settings.local.home / "clickhouse" / "config.d"
        extra.mkdir(parents=True)
        (extra / "logs.xml").write_text(CLICKHOUSE_LOGS)
        stack.start(["kafka", "postgres", "clickhouse"])
        topics.apply_all(settings)
        migrations.up_all(settings)
        records = {signal: _whole(count * scale) for signal, count in RECORDS.items()}
        start_ns = time.time_ns() // DAY_NS * DAY_NS - DAY_NS  # yesterday: of one day, whenever this runs
        for signal in schema.SIGNALS:
            topic.fill(settings, signal, records[signal], start_ns)
        bench = _Bench(stack, settings)
        for signal in schema.SIGNALS:
            for workers in (1, 2):
                yield bench.clickhouse(signal, records[signal], workers)
        yield from bench.postgres(records["metrics"], start_ns)
    finally:
        stack.wipe()


class _Sample(NamedTuple):
    """How far a writer has come, and what it has cost so far: CPU seconds of the writer, of the server."""

    stored: float
    at_s: float
    writer: float
    server: float


class _CatchUp:
    """What one catch-up cost, between any two shares of its records; what a rebalance redelivered counts again."""

    def __init__(self, samples: Sequence[_Sample]) -> None:
        self._records = samples[-1].stored
        working = sum(sample.stored < self._records for sample in samples) + 1
        self._samples = np.array(samples[:working])

    def rate(self) -> float:
        seconds, _, _ = self._between(SETTLED, 1.0)
        return self._records * (1 - SETTLED) / seconds

    def us(self, start: float = SETTLED, end: float = 1.0) -> tuple[float, float]:
        """CPU microseconds a record: writer, server."""
        _, *used = self._between(start, end)
        writer, server = (1e6 * cpu_s / (self._records * (end - start)) for cpu_s in used)
        return writer, server

    def _between(self, start: float, end: float) -> list[float]:
        """Seconds, and CPU seconds of writer and server."""
        stored, *costs = self._samples.T
        places = np.array([start, end]) * self._records
        return [float(np.ptp(np.interp(places, stored, cost))) for cost in costs]


class _Bench:
    def __init__(self, stack: Stack, settings: Settings) -> None:
        self._stack, self._settings = stack, settings

    def clickhouse(self, signal: Signal, records: int, workers: int) -> Row:
        client = clickhouse.connect(self._settings.clickhouse)
        for table in CLICKHOUSE_TABLES[signal]:
            client.command(f"TRUNCATE TABLE {table} SYNC")
        client.command("TRUNCATE TABLE IF EXISTS system.query_log")
        client.command("TRUNCATE TABLE IF EXISTS system.part_log")
        row, cost = self._catch_up("ch_writer", "clickhouse", signal, (records, workers))
        [[stored]] = client.query(f"SELECT count() FROM {CLICKHOUSE_TABLES[signal][0]} FINAL").result_rows
        _demand(stored, records)
        client.command("SYSTEM FLUSH LOGS")
        inserts = client.query(
            "SELECT read_rows, (ProfileEvents['UserTimeMicroseconds'] + ProfileEvents['SystemTimeMicroseconds'])"
            " FROM system.query_log WHERE type = 'QueryFinish' AND has(tables, currentDatabase() || {table:String})"
            " ORDER BY event_time_microseconds",
            parameters={"table": f".{TABLES[signal]}"},
        ).result_rows
        [[merges]] = client.query(
            "SELECT sum(ProfileEvents['UserTimeMicroseconds'] + ProfileEvents['SystemTimeMicroseconds'])"
            " FROM system.part_log WHERE event_type = 'MergeParts' AND table IN {tables:Array(String)}",
            parameters={"tables": list(CLICKHOUSE_TABLES[signal])},
        ).result_rows
        client.close()
        read, used = np.cumsum(np.array(inserts, dtype=float), axis=0).T

        def insert_us(start: float, end: float) -> float:
            return float(np.ptp(np.interp(np.array([start, end]) * read[-1], read, used))) / (records * (end - start))

        insert = insert_us(0.0, 1.0)
        row["of it insert + merges"] = f"{insert:.2f} + {merges / records:.2f}"
        row["cost at 1x, 3x, 10x"] = _growth(lambda start, end: cost.us(start, end)[0] + insert_us(start, end))
        if signal == "logs" and workers == 1:
            both = cost.us()[0] + insert
            row["floor"] = f"{LOGS_FLOOR:,}/s, under {LOGS_US_FLOOR} us with the insert"
            held = row["records/s"] >= LOGS_FLOOR and both < LOGS_US_FLOOR
            row["verdict"] = _verdict(held, f"{row['records/s']:,.0f}/s, {both:.2f} us")
        return row

    def postgres(self, points: int, start_ns: int) -> Iterator[Row]:
        """One process between two bare loops, then two processes, then everything once more: it is there already."""
        batches = list(self._ready_made(points, start_ns))
        before = self._bare(batches, points)
        self._truncate()
        row, cost = self._catch_up("pg_writer", "postgres", "metrics", (points, 1))
        self._demand_points(points)
        row["cost at 1x, 3x, 10x"] = _growth(lambda start, end: sum(cost.us(start, end)))
        repeats, _ = self._catch_up("pg_writer", "postgres", "metrics", (points, 1))
        self._demand_points(points)
        after = self._bare(batches, points)
        share = 2 * row["records/s"] / (before["records/s"] + after["records/s"])
        row["floor"] = f"{BARE_SHARE_FLOOR:.0%} of the bare loop"
        row["verdict"] = _verdict(share >= BARE_SHARE_FLOOR, f"{share:.0%}")
        yield from (before, row, {**repeats, "load": f"{repeats['load']}, all there already"}, after)
        self._truncate()
        both, _ = self._catch_up("pg_writer", "postgres", "metrics", (points, 2))
        self._demand_points(points)
        yield both

    def _ready_made(self, points: int, start_ns: int) -> Iterator[bytes]:
        """The same points as binary COPY rows, a transaction each."""
        head, size = schema.of("metrics").head, BARE_ROWS // topic.MESSAGE_RECORDS
        made = list(topic.messages("metrics", points, self._settings.local.home, start_ns))
        for n in range(0, len(made), size):
            frame = rows.points(container.join(head, made[n : n + size]))
            yield b"".join([rows.SIGNATURE, *rows.number_rows(frame), rows.END])

    def _bare(self, batches: Sequence[bytes], points: int) -> Row:
        self._truncate()
        columns = ", ".join((*rows.SHARED_COLUMNS, *rows.POINTS_TABLE[1]))
        store = measured.process(self._stack, "postgres")
        with self._connected() as connection, measured.strangers([store]) as others, measured.cpu(store) as server:
            started, cpu = time.perf_counter(), time.process_time()
            for batch in batches:
                with (
                    connection.transaction(),
                    connection.cursor() as cursor,
                    cursor.copy(f"COPY {rows.POINTS_TABLE[0]} ({columns}) FROM STDIN (FORMAT BINARY)") as copy,
                ):
                    copy.write(batch)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        self._demand_points(points)
        return {
            "load": "bare COPY loop, ready-made rows",
            "records/s": points / seconds,
            "us CPU a record": cpu / points * 1e6,
            "us CPU of the server": server() / points * 1e6,
            "others' CPU %": others() * 100,
        }

    def _truncate(self) -> None:
        with self._connected() as connection:
            connection.execute("TRUNCATE metrics_points, metric_series")
            connection.execute("CHECKPOINT")

    def _demand_points(self, points: int) -> None:
        with self._connected() as connection:
            row = connection.execute("SELECT count(*) FROM metrics_points").fetchone()
        _demand(row[0] if row else 0, points)

    def _connected(self) -> psycopg.Connection:
        return psycopg.connect(self._settings.postgres.dsn.get_secret_value(), autocommit=True)

    def _catch_up(self, name: str, server: str, signal: Signal, size: tuple[int, int]) -> tuple[Row, _CatchUp]:
        """`size`: records, and processes of the writer."""
        records, workers = size
        own = getattr(self._settings, name).model_copy(update={"workers": workers})
        stack = Stack(self._settings.model_copy(update={name: own}), lambda _: None)
        _rewind(self._settings, name, signal)
        url = f"http://127.0.0.1:{own.health_port}/metrics"
        starting = threading.Thread(target=stack.start, args=[[name]])  # it stores before it is ready
        starting.start()
        try:
            if not measured.wait_until(lambda: _runs(stack, name), 30):
                raise RuntimeError(f"{name} did not start: see its log.")
            ours = [measured.process(stack, one) for one in (name, server, "kafka")]
            with measured.strangers(ours) as others:
                samples, peak = self._samples(name, url, ours, records)
            p50, p99 = (measured.quantile(url, "pipeline_writer_store_seconds", q) * 1000 for q in (0.5, 0.99))
        finally:
            starting.join()
            stack.stop([name])
        cost = _CatchUp(samples)
        of_writer, of_server = cost.us()
        row: Row = {
            "load": f"{name}, {signal}, {workers} process{'es' * (workers > 1)}",
            "records/s": cost.rate(),
            "us CPU a record": of_writer,
            "us CPU of the server": of_server,
            "p50 ms": p50,
            "p99 ms": p99,
            "RSS MB": peak,
            "others' CPU %": others() * 100,
        }
        print(f"{row['load']}: {row['records/s']:,.0f} records/s", file=sys.stderr)
        return row, cost

    def _samples(
        self, name: str, url: str, processes: Sequence[psutil.Process], records: int
    ) -> tuple[list[_Sample], float]:
        """Until everything is stored and acknowledged; and the writer's largest resident memory, in MB."""
        writer, store, _ = processes
        samples, peak = list[_Sample](), 0.0
        deadline = time.monotonic() + STORED_WITHIN_S
        while not samples or samples[-1].stored < records or not _committed(self._settings, name):
            stored = _stored(url)
            samples.append(_Sample(stored, time.monotonic(), measured.cpu_s(writer), measured.cpu_s(store)))
            peak = max(peak, measured.rss_mb(writer))
            time.sleep(POLL_S)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} stored {stored:,.0f} of {records:,} in {STORED_WITHIN_S} s")
        return samples, peak


def _rewind(settings: Settings, group: str, signal: Signal) -> None:
    """The group stands at the start of this signal's topic and at the end of all others."""
    admin = _admin(settings)
    starts, ends = _offsets(admin, OffsetSpec.earliest()), _offsets(admin, OffsetSpec.latest())
    topic_read = schema.topic(signal)
    places = [
        TopicPartition(name, number, (starts if name == topic_read else ends)[name, number]) for name, number in ends
    ]

    def stands_there() -> bool:  # a coordinator that has just started refuses, partition by partition
        admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, places)])[group].result(10)
        stands = {(place.topic, place.partition): place.offset for place in places}
        return stands.items() <= _acknowledged(admin, group).items()

    if not measured.wait_until(stands_there, 30):
        raise RuntimeError(f"Kafka does not take the offsets of {group}.")


def _runs(stack: Stack, name: str) -> bool:
    return any(row["pid"] for row in stack.status()["processes"] if row["name"] == name)


def _stored(url: str) -> float:
    with contextlib.suppress(OSError):  # it does not serve yet
        return measured.counted(url, "pipeline_writer_batch_records_sum")
    return 0.0


def _committed(settings: Settings, group: str) -> bool:
    """Whether the group has acknowledged everything of the raw topics."""
    admin = _admin(settings)
    return _offsets(admin, OffsetSpec.latest()).items() <= _acknowledged(admin, group).items()


def _acknowledged(admin: AdminClient, group: str) -> dict[tuple[str, int], int]:
    told = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(10)
    return {(place.topic, place.partition): place.offset for place in told.topic_partitions}


def _offsets(admin: AdminClient, which: OffsetSpec) -> dict[tuple[str, int], int]:
    """Of every partition of the raw topics."""
    found = admin.list_topics(timeout=10).topics
    asked = {
        TopicPartition(name, number): which
        for name in map(schema.topic, schema.SIGNALS)
        for number in found[name].partitions
    }
    told = admin.list_offsets(asked).items()
    return {(place.topic, place.partition): result.result(10).offset for place, result in told}


def _admin(settings: Settings) -> AdminClient:
    return AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers, "log_level": 0})


def _growth(us: Callable[[float, float], float]) -> str:
    """Of the first tenth of all records, of the next fifth, and of the rest."""
    return " / ".join(f"{us(start, end):.2f}" for start, end in zip((0.0, *SHARES), SHARES, strict=False))


def _demand(stored: int, records: int) -> None:
    if stored != records:
        raise RuntimeError(f"The store holds {stored:,} records of {records:,}: nothing of this bench is true.")


def _whole(records: float) -> int:
    """Of whole messages, a partition at least."""
    return max(4, round(records / topic.MESSAGE_RECORDS)) * topic.MESSAGE_RECORDS


def _verdict(held: bool, found: str) -> str:
    return f"{'held' if held else 'MISSED'}: {found}"
