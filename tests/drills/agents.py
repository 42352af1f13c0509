"""Three agents in a row, killed at random under load, while the stores are routed from raw topics to what they make."""

import os
import pathlib
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil
import psycopg
from confluent_kafka import Producer

from pipeline import clickhouse, otlp
from pipeline.kafka.reader import Reader
from pipeline.local import Stack
from pipeline.record import schema
from pipeline.record.times import receipt_ns
from pipeline.settings import ROOT, RoutesSettings, Settings, as_environment
from tests.conftest import free_ports
from tests.drills import proof
from tests.drills.context import Context, Failed
from tests.otlp.requests import logs

SECONDS, SHORT_SECONDS = 600.0, 12.0
DEED_EVERY_S, SHORT_DEED_EVERY_S = 8.0, 2.5
SETTLED_WITHIN_S = 180.0
EVERY_S = 0.05  # a message
RECORDS = 10  # of each
CANARY = "canary-4111111111111111"
WRITERS = ["ch_writer", "pg_writer"]
TOPIC = """
name: {name}
signal: logs
description: Between two agents of a drill.
owner: drills
partitions: 4
retention_hours: 168
max_message_bytes: 1048576
"""
AGENTS = """
from pipeline.agents import LogRecord, agent, drop


@agent(reads="logs_raw", writes="logs_redacted", version=2)
def redact(record: LogRecord) -> LogRecord:
    return record.replace(body=record.body.replace("canary-", "").replace("4111111111111111", "****"))


@agent(reads="logs_redacted", writes="logs_sampled", version=1, batch=True)
def sample(records: list[LogRecord]) -> list:
    return [drop("sampled") if record.event_id[0] < 25 else record for record in records]


@agent(reads="logs_sampled", writes="logs_norm", version=1)
def enrich(record: LogRecord) -> LogRecord:
    return record.replace(attributes={**record.attributes, "team": "shop"})
"""
ROUTED = RoutesSettings(logs=("logs_norm",))


def drill(context: Context) -> str:
    """Ten minutes of random SIGKILLs of agents and Kafka: audit closed through all three, no duplicate, no secret."""
    folder = context.home / "agents"
    with context.whole_stack(lambda settings: with_topics(settings, folder)) as (stack, settings):
        routed = Stack(settings.model_copy(update={"routes": ROUTED}), context.tell)

        def switch() -> None:
            stack.stop(WRITERS)
            routed.start(WRITERS)

        return chained(context, settings, folder, switch, lambda: stack.restart(["kafka"]))


def with_topics(settings: Settings, folder: pathlib.Path) -> Settings:
    """With the topics that lie between the agents, which are written to `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "topics", folder / "topics")
    for name in ("logs_redacted", "logs_sampled"):
        (folder / "topics" / f"{name}.yaml").write_text(TOPIC.format(name=name))
        (folder / "topics" / f"{name}_dlq.yaml").write_text(TOPIC.format(name=f"{name}_dlq"))
    (folder / "chain.py").write_text(AGENTS)
    [port] = free_ports(1)
    own = {name: {"health_port": port} for name in ("redact", "sample", "enrich")}
    return settings.model_copy(update={"topics_directory": folder / "topics", "agents": own})


def chained(
    context: Context, settings: Settings, folder: pathlib.Path, switch: Callable[[], None], shake: Callable[[], None]
) -> str:
    """With all topics of `settings` empty and writers running at raw topics; `switch` starts them anew at ROUTED, and
    `shake` disturbs Kafka, in the long form alone."""
    rng = random.Random(context.seed)
    seconds, deed_every_s = (SHORT_SECONDS, SHORT_DEED_EVERY_S) if context.short else (SECONDS, DEED_EVERY_S)
    said = folder / "agents.log"
    with said.open("w") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "agents", "run", str(folder / "chain.py")],
            env={**os.environ, **as_environment(settings)}, stdout=log, stderr=log,
        )  # fmt: skip
    load = Load(settings, rng.randrange(1 << 30))
    load.start()
    kills = 0
    try:
        began, switched = time.monotonic(), False
        while (passed := time.monotonic() - began) < seconds:
            time.sleep(rng.uniform(0.5, 1.5) * deed_every_s)
            if not context.short and rng.random() < 0.1:
                context.tell(f"{passed:.0f} s: Kafka is restarted")
                shake()
            else:
                kills += _kill_one(running.pid, rng)
            if not switched and passed > seconds / 3:
                context.tell(f"{passed:.0f} s: the stores are routed to logs_norm")
                switch()
                switched = True
        load.finish()
        routed = settings.model_copy(update={"routes": ROUTED})
        proof.audited(routed, SETTLED_WITHIN_S)
        _read_once(routed, load.sent)
    finally:
        load.finish()
        running.terminate()
        running.wait(60)
    if CANARY in said.read_text():
        raise Failed("The agents' log tells a secret.")
    return f"{load.sent:,} records through three agents, {kills} killed: audit clean, no duplicate, no secret"


def _kill_one(supervisor: int, rng: random.Random) -> int:
    """SIGKILL to a worker, or to the process of an agent's function."""
    family = [each for each in psutil.Process(supervisor).children(recursive=True) if each.is_running()]
    if not family:
        return 0
    try:
        rng.choice(sorted(family, key=lambda each: each.pid)).kill()
    except psutil.NoSuchProcess:
        return 0
    return 1


def _read_once(settings: Settings, sent: int) -> None:
    client = clickhouse.connect(settings.clickhouse)
    rows, distinct, secret, enriched = client.query(
        "SELECT count(), uniqExact(event_id), countIf(position(body, 'canary') > 0), countIf(attributes['team'] = 'shop')"
        " FROM logs"
    ).result_rows[0]
    if rows != distinct:
        raise Failed(f"ClickHouse shows {rows - distinct} duplicates of {distinct}.")
    found = client.query(f"SELECT count() FROM logs WHERE body LIKE '%{CANARY}%'").result_rows[0][0]
    stale = client.query(
        "SELECT count() FROM logs WHERE attributes['team'] = '' AND reinterpretAsUInt8(substring(unhex(event_id), 1, 1)) >= 25"
    ).result_rows[0][0]
    if stale:
        raise Failed(f"{stale} of {rows} rows are not of the newest form.")
    kept = client.query(
        "SELECT count() FROM logs WHERE reinterpretAsUInt8(substring(unhex(event_id), 1, 1)) >= 25"
    ).result_rows[0][0]
    if secret != rows - enriched or found != secret or kept != enriched:
        raise Failed(f"{secret} rows hold a secret, {found} are found by it; {enriched} of {kept} are enriched.")
    with psycopg.connect(settings.postgres.dsn.get_secret_value()) as connection:
        doubled, old = connection.execute(
            "SELECT count(*) - count(DISTINCT event_id),"
            " count(*) FILTER (WHERE NOT attributes ? 'team' AND get_byte(uuid_send(event_id), 0) >= 25) FROM events"
        ).fetchone() or (-1, -1)
    if doubled or old:
        raise Failed(f"PostgreSQL shows {doubled} duplicates and {old} rows that are not of the newest form.")
    reader = Reader(settings.kafka)
    for topic in ("logs_redacted", "logs_sampled", "logs_norm", "agent_drops"):
        if any(CANARY.encode() in message.value for message in reader.read(reader.retained([topic]))):
            raise Failed(f"{topic} holds a secret.")


class Load(threading.Thread):
    """Log messages with a secret in each record, half of them errors."""

    def __init__(self, settings: Settings, seed: int) -> None:
        super().__init__(name="load", daemon=True)
        self._producer = Producer(
            {"bootstrap.servers": settings.kafka.bootstrap_servers, "acks": "all", "log_level": 0}
        )
        self._seed = seed
        self._ending = threading.Event()
        self.sent = 0

    def run(self) -> None:
        number = 0
        while not self._ending.wait(EVERY_S):
            body = logs(*(f"{self._seed} {number}.{n} paid with {CANARY}" for n in range(RECORDS)))
            for each in body.resource_logs[0].scope_logs[0].log_records:
                each.severity_number = 17 if number % 2 else 9
                each.time_unix_nano = time.time_ns()
            origin = otlp.Origin("default", "local", receipt_ns(time.time_ns()))
            [group] = otlp.encode("logs", body.SerializeToString(), origin, partitions=1).groups
            headers: list[tuple[str, str | bytes | None]] = [
                ("tenant", b"default"), ("region", b"local"), ("signal", b"logs"),
                ("schema", schema.CURRENT["logs"].encode()), ("records", b"%d" % group.records),
                ("min_time", b"%d" % group.min_time), ("max_time", b"%d" % group.max_time),
            ]  # fmt: skip
            self._producer.produce("logs_raw", group.value, partition=number % 4, headers=headers)
            self.sent += group.records
            number += 1

    def finish(self) -> None:
        """Return when Kafka has everything."""
        self._ending.set()
        self.join(10)
        if self._producer.flush(60):
            raise Failed("Kafka did not take the load.")
