"""redact, sample, enrich and span_metrics in a row, killed at random under load, rewound, and the stores routed to them.

Every span holds secrets wherever it holds text, once the stores no longer read the raw topic.
"""

import contextlib
import os
import pathlib
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import psutil
import psycopg
from confluent_kafka import Producer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pipeline import clickhouse, otlp
from pipeline.audit import audit
from pipeline.kafka.groups import Committed, Groups
from pipeline.kafka.reader import Reader
from pipeline.local import Stack
from pipeline.record import container, framing, schema
from pipeline.record.times import receipt_ns
from pipeline.settings import ROOT, RoutesSettings, Settings, as_environment
from tests.agents.group import Group
from tests.bench import measured
from tests.drills.context import Context, Failed
from tests.drills.killer import free_ports_in_a_row

SECONDS, SHORT_SECONDS = 600.0, 7.0
DEED_EVERY_S, SHORT_DEED_EVERY_S = 8.0, 2.0
KAFKA_SHARE = 0.1  # of all deeds, in the long form
SWITCHED_AT = 1 / 3  # of the time
WITHIN_S, LOOK_S = 600.0, 0.5
EVERY_S = 0.1  # a message
RETRIED_EVERY = 20  # messages: the last two come again, in one
SPANS = 20  # of each
SECRETS = ("canary.ann@secret.example", "4111 1111 1111 1111")
WRITERS = ["ch_writer", "pg_writer"]
ROUTED = RoutesSettings(traces=("traces_norm",), metrics=("metrics_raw", "span_metrics"))
TOPIC = """
name: {name}
signal: traces
description: Between two agents of a drill.
owner: drills
partitions: 4
retention_hours: 168
max_message_bytes: 1048576
"""
AGENTS = """
from pipeline.agents.builtin.enrich import enrich_traces
from pipeline.agents.builtin.redact import redact_traces
from pipeline.agents.builtin.sample import sample as sample_traces
from pipeline.agents.builtin.span_metrics import span_metrics

redact = redact_traces.between("redact", reads="traces_raw", writes="traces_redacted")
sample = sample_traces.between("sample", reads="traces_redacted", writes="traces_sampled")
enrich = enrich_traces.between("enrich", reads="traces_sampled", writes="traces_norm")
measure = span_metrics.between("measure", reads="traces_norm", writes="span_metrics")
"""
READS = {
    "redact": ["traces_raw"], "sample": ["traces_redacted"], "enrich": ["traces_sampled"], "measure": ["traces_norm"],
    "ch_writer": ["logs_raw", "metrics_raw", "span_metrics", "traces_norm"],
    "pg_writer": ["logs_raw", "metrics_raw", "span_metrics"],
}  # fmt: skip
CHAIN = [name for name in READS if name not in WRITERS]
COUNTED = (
    "SELECT service, name, upper(status), count() FROM traces WHERE attributes['sampling.adjusted_count'] != '' GROUP BY ALL",
    "SELECT service, attributes['span.name'], substring(attributes['status.code'], 13), sum(int_value) FROM metrics "
    "WHERE metric_name = 'traces.span.metrics.calls' GROUP BY ALL",
    "SELECT service, attributes['span.name'], substring(attributes['status.code'], 13), sum(count) FROM metrics "
    "WHERE metric_name = 'traces.span.metrics.duration' AND arraySum(bucket_counts) = count GROUP BY ALL",
)


class World(NamedTuple):
    """Writers that `start` at the routes of some settings and `stop`; `shake` kills Kafka, `said` is what they logged."""

    start: Callable[[Settings], None]
    stop: Callable[[], None]
    shake: Callable[[], None]
    said: Callable[[], Iterable[str]]


def drill(context: Context) -> str:
    """Ten minutes of random SIGKILLs of agents and Kafka, all groups rewound once: audit closed through all agents, no
    duplicate, no secret anywhere, span_metrics are the count of spans."""
    folder = context.home / "agents"
    with context.whole_stack(lambda settings: with_topics(settings, folder)) as (stack, settings):
        stack.stop(WRITERS)

        def shake() -> None:
            family = measured.family(measured.process(stack, "kafka"))
            for each in family:
                each.kill()
            psutil.wait_procs(family)
            stack.start(["kafka"])

        logs = settings.local.home / "log"
        world = World(
            lambda at: Stack(at, context.tell).start(WRITERS), lambda: stack.stop(WRITERS), shake,
            lambda: (path.read_text(errors="replace") for path in logs.iterdir()),
        )  # fmt: skip
        return chained(context, settings, folder, world)


def with_topics(settings: Settings, folder: pathlib.Path) -> Settings:
    """With the topics that lie between the agents, which are written to `folder`, and what the agents are told."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "topics", folder / "topics")
    for name in ("traces_redacted", "traces_sampled"):
        (folder / "topics" / f"{name}.yaml").write_text(TOPIC.format(name=name))
        (folder / "topics" / f"{name}_dlq.yaml").write_text(TOPIC.format(name=f"{name}_dlq"))
    (folder / "chain.py").write_text(AGENTS)
    (folder / "table.csv").write_text("service,team\nservice-0,payments\nservice-1,stock\n")
    own: dict[str, dict[str, Any]] = {name: {"health_port": 0} for name in CHAIN}
    port = free_ports_in_a_row(len(CHAIN))
    for each in own.values():
        each["health_port"] = port
    own["sample"] |= {"ratio": 0.5}
    own["enrich"] |= {"table": str(folder / "table.csv")}
    return settings.model_copy(update={"topics_directory": folder / "topics", "agents": own})


def chained(context: Context, settings: Settings, folder: pathlib.Path, world: World) -> str:
    """With topics and stores of `settings` empty, and nobody at work."""
    rng = random.Random(context.seed)
    seconds, deed_every_s = (SHORT_SECONDS, SHORT_DEED_EVERY_S) if context.short else (SECONDS, DEED_EVERY_S)
    routed = settings.model_copy(update={"routes": ROUTED})
    running = Agents(settings, folder)
    load = Load(settings, context.seed)
    deeds: list[str] = []
    try:
        world.start(settings)
        running.start()
        load.start()
        _until(lambda: _reached(settings, "span_metrics"), "no agent made metrics")
        _until(lambda: _stored(settings), "nothing raw was stored")
        began, switched = time.monotonic(), False
        while (passed := time.monotonic() - began) < seconds:
            time.sleep(rng.uniform(0.5, 1.5) * deed_every_s)
            if not context.short and rng.random() < KAFKA_SHARE:
                deeds.append("kafka")
                world.shake()
            else:
                deeds.append(running.kill_one(rng, at_once=context.short))
            context.tell(f"{passed:.0f} s: killed {deeds[-1]}")
            if not switched and passed > seconds * SWITCHED_AT:
                context.tell(f"{passed:.0f} s: everybody is rewound, the stores are routed to traces_norm")
                running.stop()
                world.stop()
                _rewind(settings)
                load.secret = True
                world.start(routed)
                running.start()
                switched = True
        load.finish()
        _until(lambda: not _lag(settings), "not everything was read", lambda: str(_lag(settings)))
        _until(running.metrics, "the agents tell no metrics")
        exposed = running.metrics()
        world.stop()
        running.stop()
        _demand_no_secret(settings, [*world.said(), *running.said(), exposed])
        return f"{_demand_all_once(routed, load)}; killed {', '.join(sorted(deeds))}"
    finally:
        load.finish()
        running.stop()


class Agents:
    """`pipeline agents run` over the chain."""

    def __init__(self, settings: Settings, folder: pathlib.Path) -> None:
        self._settings, self._folder = settings, folder
        self._environment = {**os.environ, **as_environment(settings)}
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "pipeline", "agents", "run", str(self._folder / "chain.py")]
        with (self._folder / "agents.log").open("a") as log:
            self._child = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def stop(self) -> None:
        if self._child is not None:
            self._child.terminate()
            self._child.wait(60)

    def said(self) -> list[str]:
        return [(self._folder / "agents.log").read_text(errors="replace")]

    def metrics(self) -> str:
        """Of all agents, for they share what they count; nothing while the first worker starts."""
        port = self._settings.agents["redact"]["health_port"]
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return str(answer.read().decode())
        return ""

    def kill_one(self, rng: random.Random, *, at_once: bool) -> str:
        """SIGKILL to a worker, or to the process of an agent's function; say which.

        `at_once`: the group's coordinator hears of it now, not at the end of the worker's session of 15 s.
        """
        assert self._child is not None
        family = sorted(psutil.Process(self._child.pid).children(recursive=True), key=lambda each: each.pid)
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):  # it died just now
            one = rng.choice(family)
            command = one.cmdline()
            if "worker" not in command:
                one.kill()
                return "a function"
            group = Group(self._settings.kafka.bootstrap_servers, command[-1])
            members = group.members() if at_once else set()
            one.kill()
            group.leave(members)
            return command[-1]
        return "nobody"


def _until(true: Callable[[], object], what: str, more: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not true():
        if time.monotonic() > deadline:
            raise Failed(f"After {WITHIN_S:.0f} s: {what} {more()}")
        time.sleep(LOOK_S)


def _reached(settings: Settings, topic: str) -> bool:
    return any(each.end for each in Reader(settings.kafka).retained([topic]))


def _stored(settings: Settings) -> bool:
    return bool(clickhouse.connect(settings.clickhouse).command("SELECT count() FROM traces"))


def _rewind(settings: Settings) -> None:
    """Every group to the first message of its topics."""
    groups, reader = Groups(settings.kafka), Reader(settings.kafka)
    for group, topics in READS.items():
        places = [(each.topic, each.partition) for each in reader.retained(topics)]
        groups.move(group, dict.fromkeys(places, Committed(0)))


def _lag(settings: Settings) -> dict[str, int]:
    """How many messages each group still has to read, where there are some."""
    groups, reader = Groups(settings.kafka), Reader(settings.kafka)
    found = {}
    for group, topics in READS.items():
        ends = {(each.topic, each.partition): each.end for each in reader.retained(topics)}
        committed = groups.committed(group, list(ends))
        found[group] = sum(end - (committed[place].offset if place in committed else 0) for place, end in ends.items())
    return {group: lag for group, lag in found.items() if lag}


def _demand_all_once(routed: Settings, load: "Load") -> str:
    """Raise Failed where something is missing, doubled, or counted otherwise; else say what there is."""
    report = audit(routed, signals=("traces", "metrics"))
    if not report.clean:
        raise Failed(f"The audit is not clean: {report.as_dict()}")
    agents = {each.agent: each for each in report.agents}
    if sorted(agents) != sorted(CHAIN) or any(each.dead_lettered for each in agents.values()):
        raise Failed(f"Of the agents {CHAIN} the audit finds {[each.as_dict() for each in agents.values()]}.")
    client = clickhouse.connect(routed.clickhouse)
    spans, calls, durations = (sorted(client.query(query).result_rows) for query in COUNTED)
    if not spans == calls == durations:
        raise Failed(f"Spans are {spans}, calls {calls}, durations {durations}.")
    [(rows, distinct, estimated, owned, kept)] = client.query(
        "SELECT count(), uniqExact(event_id), sum(toFloat64OrZero(attributes['sampling.adjusted_count'])), "
        "countIf(resource_attributes['team'] != ''), countIf(attributes['sampling.adjusted_count'] != '') FROM traces"
    ).result_rows
    if rows != distinct or estimated != load.sent or not 0 < owned < kept < load.sent:
        raise Failed(
            f"Of {load.sent} spans ClickHouse shows {rows}, {distinct} of them different; {kept} were kept, which stand "
            f"for {estimated:.0f}, and {owned} are enriched."
        )
    return f"{load.sent:,} spans through four agents, {kept:,} kept: audit clean, no duplicate, no secret, all counted"


def _demand_no_secret(settings: Settings, said: Iterable[str]) -> None:
    """Raise Failed where a store, a topic but traces_raw, or one of the texts holds one."""
    found = [text[:200] for text in said if any(secret in text for secret in SECRETS)]
    client = clickhouse.connect(settings.clickhouse)
    tables = "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
    anywhere = " OR ".join(f"position(row, '{secret}') > 0" for secret in SECRETS)
    for (table,) in client.query(tables).result_rows:
        rows = f"SELECT formatRow('JSONEachRow', *) AS row FROM `{table}`"
        found += [table] * bool(client.command(f"SELECT count() FROM ({rows}) WHERE {anywhere}"))
    with psycopg.connect(settings.postgres.dsn.get_secret_value()) as connection:
        for (table,) in connection.execute("SELECT relid::regclass::text FROM pg_stat_user_tables").fetchall():
            rows = f"SELECT count(*) FROM {table} AS row WHERE row::text LIKE ANY (%s)"
            patterns = [f"%{secret}%" for secret in SECRETS]
            found += [table] * bool((connection.execute(rows.encode(), (patterns,)).fetchone() or (0,))[0])
    reader = Reader(settings.kafka)
    for topic in sorted(reader.topics().keys() - {"traces_raw"}):
        values = (message.value for message in reader.read(reader.retained([topic])))
        found += [topic] * any(secret.encode() in value for value in values for secret in SECRETS)
    if found:
        raise Failed(f"Secrets are in {found}.")


class Load(threading.Thread):
    """Requests of spans, some of them sent twice; from when `secret` is set on with secrets wherever a span has text."""

    def __init__(self, settings: Settings, seed: int) -> None:
        super().__init__(name="load", daemon=True)
        self._producer = Producer(
            {"bootstrap.servers": settings.kafka.bootstrap_servers, "acks": "all", "log_level": 0}
        )
        self._first = seed % (1 << 20) << 40
        self._ending = threading.Event()
        self.secret = False
        self.sent = 0

    def run(self) -> None:
        number = 0
        groups: list[framing.Group] = []
        while not self._ending.wait(EVERY_S):
            origin = otlp.Origin("default", "local", receipt_ns(time.time_ns()))
            body = request(self._first + number * SPANS, secrets=SECRETS if self.secret else ("nobody",))
            groups += otlp.encode("traces", body.SerializeToString(), origin, partitions=1).groups
            self._send(groups[-1:], number % 4)
            self.sent += SPANS
            if len(groups) == RETRIED_EVERY:
                self._send(groups[-2:], number % 4)
                groups.clear()
            number += 1

    def _send(self, groups: Sequence[framing.Group], partition: int) -> None:
        value = container.join(schema.of("traces").head, [each.value for each in groups])
        headers: list[tuple[str, str | bytes | None]] = [
            ("tenant", b"default"), ("region", b"local"), ("signal", b"traces"),
            ("schema", schema.CURRENT["traces"].encode()), ("records", b"%d" % sum(each.records for each in groups)),
            ("min_time", b"%d" % min(each.min_time for each in groups)),
            ("max_time", b"%d" % max(each.max_time for each in groups)),
        ]  # fmt: skip
        self._producer.produce("traces_raw", value, partition=partition, headers=headers)
        self._producer.poll(0)

    def finish(self) -> None:
        """Return when Kafka has everything."""
        self._ending.set()
        self.join(10)
        if self._producer.flush(60):
            raise Failed("Kafka did not take the load.")


def request(first: int, *, secrets: Iterable[str]) -> ExportTraceServiceRequest:
    """Spans of that many traces whose randomness is spread evenly, a fifth of them errors; one of three services."""
    text = " and ".join(secrets)
    made = ExportTraceServiceRequest()
    over = made.resource_spans.add()
    for key, value in (("service.name", f"service-{first // SPANS % 3}"), ("owner", text)):
        over.resource.attributes.add(key=key).value.string_value = value
    scope = over.scope_spans.add()
    now = time.time_ns()
    for n in range(SPANS):
        span = scope.spans.add(
            trace_id=(first + n + 1).to_bytes(9, "big") + (n * (1 << 56) // SPANS).to_bytes(7, "big"),
            span_id=(n + 1).to_bytes(8, "big"), name=f"operation {n % 4} for {text}",
            start_time_unix_nano=now - 10**6 * (n + 1), end_time_unix_nano=now,
        )  # fmt: skip
        span.attributes.add(key="mail").value.string_value = f"to {text}"
        span.attributes.add(key=text).value.string_value = "key"
        span.status.code, span.status.message = (2, text) if n % 5 == 0 else (0, "")
        span.events.add(name=text).attributes.add(key="who").value.string_value = text
    return made
