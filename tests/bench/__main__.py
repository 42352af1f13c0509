"""`make bench`: gateway, ch_writer and pg_writer on a stack of their own, beside the numbers of design section 10.

`make bench-gateway` (`python -m tests.bench gateway`) looks at the gateway alone, closely: see tests/bench/gateway.py.
"""

import argparse
import asyncio
import json
import pathlib
import random
import sys
import time
from collections.abc import Callable, Iterator

import psycopg

from pipeline import clickhouse, otlp
from pipeline.kafka.producer import Publisher
from pipeline.local import Stack
from pipeline.record import container, schema
from pipeline.record.schema import Signal
from pipeline.settings import ROOT, Settings
from pipeline.timescale import rows
from tests.bench import gateway, measured, payload
from tests.bench.measured import Row
from tests.conftest import settings_on_free_ports

MESSAGE_RECORDS = 500  # 250 KB of logs: what a busy gateway makes
COLUMNS = ("path", "records/s", "us CPU a record", "p50 ms", "p99 ms", "RSS MB", "hold (design 10)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["all", "gateway"], default="all")
    parser.add_argument("--short", action="store_true", help="gateway: a minute instead of five")
    parser.add_argument("--records", type=int, default=300_000, help="of each signal, for the writers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    settings = settings_on_free_ports(ROOT / ".local" / "bench")
    stack = Stack(settings, lambda line: print(line, file=sys.stderr))
    if options.what == "gateway":
        sys.exit(gateway.run(stack, settings, short=options.short, as_json=options.json))
    stack.wipe()
    try:
        found = list(measure(stack, settings, options.records))
    finally:
        stack.wipe()
    if options.json:
        print(json.dumps(found, indent=2))
        return
    measured.show(found, COLUMNS)


def measure(stack: Stack, settings: Settings, records: int) -> Iterator[Row]:
    for row in gateway.encoding(30):
        yield {"path": row["load"], **row, "hold (design 10)": row.get("floor")}
    stack.up()
    stack.stop(["pg_writer", "ch_writer"])
    ours = gateway.target(stack, settings)
    for protocol in ("http", "grpc"):
        for signal in schema.SIGNALS:
            row = gateway.under(gateway.Case(protocol, signal, 1000, 8), ours, 6)
            yield {"path": row["load"], **row, "hold (design 10)": "40,000/s a core"}
    stack.wipe()
    stack.up()
    stack.stop(["gateway", "pg_writer", "ch_writer"])
    print("filling topics", file=sys.stderr)
    for signal in schema.SIGNALS:
        asyncio.run(fill(settings, signal, records))
    yield ch_writer(stack, settings, records)
    yield from pg_writer(stack, settings, records)


async def fill(settings: Settings, signal: Signal, records: int) -> None:
    """Put distinct records into the raw topic, as a busy gateway would."""
    publisher = Publisher(settings.kafka, [schema.topic(signal)], within_s=60)
    while publisher.unready():
        await asyncio.sleep(0.1)
    rng = random.Random(7)
    known = schema.of(signal)
    acknowledged = []
    for n in range(records // MESSAGE_RECORDS):
        start = time.time_ns() - 7200 * 10**9 + n * 10**9
        body = payload.request(signal, MESSAGE_RECORDS, start, rng)
        origin = otlp.Origin("default", settings.region, time.time_ns())
        encoded = otlp.encode(signal, body, origin, partitions=1)
        value = container.join(known.head, [group.value for group in encoded.groups])
        headers = [("schema", known.name.encode()), ("records", b"%d" % MESSAGE_RECORDS)]
        acknowledged.append(publisher.publish(schema.topic(signal), n % 4, value, headers))
        await asyncio.sleep(0)
    if any(await asyncio.gather(*acknowledged)):
        raise RuntimeError("Kafka did not take the records of the bench")
    publisher.close(10)


def ch_writer(stack: Stack, settings: Settings, records: int) -> Row:
    """Catch-up of logs, spans and points together, from the first row to the last."""
    client = clickhouse.connect(settings.clickhouse)

    def count() -> int:
        tables = ("logs_events", "spans", "metrics_points")
        return sum(int(client.command(f"SELECT count() FROM {table}")) for table in tables)  # type: ignore[arg-type]

    return _catch_up(
        stack, "ch_writer", "clickhouse", (count, 3 * records, "200,000/s of logs, 6.5 us with the server")
    )


def pg_writer(stack: Stack, settings: Settings, records: int) -> Iterator[Row]:
    """Catch-up of points, after a bare loop that copies ready-made rows of the same kind into a table of the same key."""
    dsn = settings.postgres.dsn.get_secret_value()
    bare = bare_copy(dsn, records)
    with psycopg.connect(dsn, autocommit=True) as connection:

        def count() -> int:
            row = connection.execute("SELECT count(*) FROM metrics_points").fetchone()
            return int(row[0]) if row else 0

        row = _catch_up(stack, "pg_writer", "postgres", (count, records, "70 % of the bare loop"))
    row["hold (design 10)"] += f": {row['records/s'] / bare:.0%}"
    yield {"path": "bare COPY loop, ready-made rows", "records/s": bare}
    yield row


def bare_copy(dsn: str, records: int) -> float:
    """Rows a second of COPY alone, sorted batches of 20,000, one transaction each."""
    rng, head = random.Random(9), schema.of("metrics").head
    batches = []
    for n in range(records // 20_000):
        origin = otlp.Origin("default", "bench", time.time_ns())
        start = time.time_ns() - 7200 * 10**9 + n * 40 * 10**9
        groups = [
            group
            for m in range(40)
            for group in otlp.encode(
                "metrics", payload.request("metrics", MESSAGE_RECORDS, start + m * 10**9, rng), origin, partitions=1
            ).groups
        ]
        points = rows.points(container.join(head, [group.value for group in groups]))
        batches.append(b"".join([rows.SIGNATURE, *rows.number_rows(points), rows.END]))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE bare (LIKE metrics_points INCLUDING ALL)")
        started = time.perf_counter()
        for batch in batches:
            with (
                connection.transaction(),
                connection.cursor() as cursor,
                cursor.copy("COPY bare FROM STDIN (FORMAT BINARY)") as copy,
            ):
                copy.write(batch)
        seconds = time.perf_counter() - started
        connection.execute("DROP TABLE bare")
    return len(batches) * 20_000 / seconds


def _catch_up(stack: Stack, name: str, server: str, goal: tuple[Callable[[], int], int, str]) -> Row:
    count, records, hold = goal
    with measured.cpu(measured.process(stack, server)) as server_used:
        stack.start([name])
        while not (first := count()):
            time.sleep(0.01)
        started = time.perf_counter()
        with measured.cpu(measured.process(stack, name)) as used:
            peak = 0.0
            while (stored := count()) < records:
                peak = max(peak, measured.rss_mb(measured.process(stack, name)))
                time.sleep(0.05)
                if time.perf_counter() - started > 300:
                    raise RuntimeError(f"{name} stored {stored} of {records} in 300 s")
            seconds = time.perf_counter() - started
    stack.stop([name])
    each, of_server = used() / (records - first) * 1e6, server_used() / records * 1e6
    return {
        "path": f"{name}, one process, catch-up",
        "records/s": (records - first) / seconds,
        "us CPU a record": f"{each:.1f} + {of_server:.1f} in {server}",
        "RSS MB": peak,
        "hold (design 10)": hold,
    }


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path.cwd()))
    main()
