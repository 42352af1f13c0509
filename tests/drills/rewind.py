"""Both writers rewound by an hour under load, while readers look all the time at what Grafana reads."""

import collections
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg
from confluent_kafka import Producer

from pipeline import clickhouse, otlp
from pipeline.agents import gaps
from pipeline.record import schema
from pipeline.record.schema import SIGNALS, Signal
from pipeline.settings import Settings
from tests.agents.kafka_tools import GROUPS, kafka_tool
from tests.bench import measured
from tests.drills.context import Context, Failed
from tests.drills.exporters import MAKE
from tests.drills.proof import audited, lag

WRITERS = list(gaps.STORE_WRITERS)
ROUNDS, SHORT_ROUNDS = 6, 1
HOUR_MESSAGES, SHORT_HOUR_MESSAGES = 3000, 100  # of each signal
BEFORE_MESSAGES = 20  # of each signal, older than the hour: they are not read again
RECORDS = 100  # of a message
HOUR_S = 3300.0  # a little less: what is at its very edge would be left to chance
SERVICES = 8
LIVE_EVERY_S = 0.1
LOOK_EVERY_S = 0.1
SETTLED_MESSAGES = 30  # behind the load, on the way
DRAINED_WITHIN_S, SHORT_DRAINED_WITHIN_S = 300.0, 120.0


class Look(NamedTuple):
    """A view and the query that gives its rows, how many of them differ, and how many records they stand for."""

    signal: Signal
    view: str
    query: str


CLICKHOUSE = [
    *(
        Look(signal, view, f"SELECT count(), uniqExact(event_id), count() FROM {view}")
        for signal, view in (("logs", "logs"), ("traces", "traces"), ("metrics", "metrics"))
    ),
    Look("metrics", "metrics_1m", "SELECT count(), uniqExact(series_id, minute), sum(count) FROM metrics_1m"),
]
POSTGRES = [
    Look("metrics", "metrics", "SELECT count(*), count(DISTINCT event_id), count(*) FROM metrics"),
    Look("logs", "events", "SELECT count(*), count(DISTINCT event_id), count(*) FROM events"),
    Look(
        "metrics",
        "metrics_1m",
        "SELECT count(*), count(DISTINCT (series_id, minute)), coalesce(sum(count), 0)::bigint FROM metrics_1m",
    ),
]


def drill(context: Context) -> str:
    """Rewound time after time; at no moment a duplicate, at the end the audit is clean and every record is read."""
    with context.whole_stack() as (stack, settings):
        return rewound(context, settings, lambda: stack.stop(WRITERS), lambda: stack.start(WRITERS))


def rewound(context: Context, settings: Settings, stop: Callable[[], None], start: Callable[[], None]) -> str:
    """With topics and stores of `settings` empty; `stop` and `start` are of all writers, which run."""
    rounds, messages, within_s = (
        (SHORT_ROUNDS, SHORT_HOUR_MESSAGES, SHORT_DRAINED_WITHIN_S)
        if context.short
        else (ROUNDS, HOUR_MESSAGES, DRAINED_WITHIN_S)
    )
    load = Load(settings, random.Random(context.seed))
    load.past(BEFORE_MESSAGES, from_s=2 * HOUR_S, to_s=1.2 * HOUR_S)
    load.past(messages, from_s=HOUR_S, to_s=0.0)
    readers = [Reader(_clickhouse(settings), CLICKHOUSE, load.sent), Reader(_postgres(settings), POSTGRES, load.sent)]
    for one in (load, *readers):
        one.start()
    try:
        _drained(settings, within_s)
        again = 0
        for number in range(1, rounds + 1):
            stop()
            # Kafka's own: 55 minutes of messages, and nothing older, lie in the last hour.
            groups = [option for name in WRITERS for option in ("--group", name)]
            kafka_tool(
                GROUPS, settings, *groups, "--all-topics", "--reset-offsets", "--by-duration", "PT1H", "--execute"
            )
            behind = sum(lag(settings, name) for name in WRITERS)
            if behind < messages * sum(len(gaps.topics(name, settings)) for name in WRITERS):
                raise Failed(f"The writers are only {behind:,} messages behind after they were rewound by an hour.")
            again += behind
            start()
            _drained(settings, within_s)
            context.tell(f"rewound {number} of {rounds} times, {behind:,} messages; {_said(readers)}")
        load.finish()
        _drained(settings, within_s, but=0)
        audited(settings, within_s)
    finally:
        for one in (load, *readers):
            one.finish()
    for one in readers:
        one.judge()
    return (
        f"{again:,} messages read again, {sum(load.sent.values()):,} records stored once; {_said(readers)}; audit clean"
    )


def _drained(settings: Settings, within_s: float, but: int = SETTLED_MESSAGES) -> None:
    for name in WRITERS:
        if not measured.wait_until(lambda name=name: lag(settings, name) <= but, within_s):
            raise Failed(f"{name} lags {lag(settings, name):,} messages after {within_s:.0f} s.")


def _said(readers: "Sequence[Reader]") -> str:
    return f"{sum(one.looks for one in readers):,} looks at {sum(len(one.seen) for one in readers)} views"


class Load:
    """Messages into Kafka: of the past at once, then a few a second. `sent` counts records before they go."""

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self.sent: collections.Counter[Signal] = collections.Counter()
        self._rng = rng
        self._number = 0
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka.bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                "log_level": 0,
            }
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def past(self, messages: int, *, from_s: float, to_s: float) -> None:
        """So many of each signal, received from so long to so long ago."""
        for n in range(messages):
            received_s = time.time() - from_s + (from_s - to_s) * n / messages
            self._send(received_s)
        self._producer.flush(60)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Send no more; what was sent is in Kafka."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._producer.flush(60):
            raise Failed("Kafka did not take the load.")

    def _run(self) -> None:
        while not self._stop.wait(LIVE_EVERY_S):
            self._send(time.time())

    def _send(self, received_s: float) -> None:
        """A message of each signal; the Kafka timestamp is the receipt, as the gateway's is."""
        for signal in SIGNALS:
            numbers = range(self._number, self._number + RECORDS)
            self._number += RECORDS
            self.sent[signal] += RECORDS
            body = MAKE[signal](f"rewind-{self._rng.randrange(SERVICES)}", numbers)
            origin = otlp.Origin("default", "local", int(received_s * 1e9))
            for group in otlp.encode(signal, body, origin, partitions=4).groups:
                self._producer.produce(
                    schema.topic(signal), group.value, partition=group.partition, timestamp=int(received_s * 1000),
                    headers=[("schema", schema.of(signal).name), ("records", str(group.records))],
                )  # fmt: skip
        self._producer.poll(0)


class Reader:
    """Looks at views from `start` to `finish`; what must not be seen is kept for `judge`."""

    def __init__(
        self, ask: Callable[[str], Sequence[Any]], looks: Sequence[Look], sent: "collections.Counter[Signal]"
    ) -> None:
        self.seen = {look.view: 0 for look in looks}
        self.looks = 0
        self._ask, self._looks, self._sent = ask, looks, sent
        self._faults: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def judge(self) -> None:
        """Raise Failed where a look found a row twice, more records than were sent, or fewer than the one before."""
        for look in self._looks:  # the last look is at what is there when all is stored
            self._look(look)
            if look.view != "metrics_1m" and self.seen[look.view] != self._sent[look.signal]:
                self._faults.append(f"{look.view}: {self.seen[look.view]} records of {self._sent[look.signal]}")
        if self._faults:
            raise Failed(f"{len(self._faults)} looks of {self.looks} found what must not be: {self._faults[:5]}")

    def _run(self) -> None:
        try:
            while not self._stop.wait(LOOK_EVERY_S):
                for look in self._looks:
                    self._look(look)
        except Exception as error:
            self._faults.append(f"the reader died: {error!r}")

    def _look(self, look: Look) -> None:
        rows, distinct, records = map(int, self._ask(look.query))
        sent, before = self._sent[look.signal], self.seen[look.view]
        if rows != distinct:
            self._faults.append(f"{look.view}: {rows} rows, {distinct} distinct")
        if not before <= records <= sent:
            self._faults.append(f"{look.view}: {records} records after {before}, of {sent} that were sent")
        self.seen[look.view] = records
        self.looks += 1


def _clickhouse(settings: Settings) -> Callable[[str], Sequence[Any]]:
    client = clickhouse.connect(settings.clickhouse)
    return lambda query: client.query(query).result_rows[0]


def _postgres(settings: Settings) -> Callable[[str], Sequence[Any]]:
    connection = psycopg.connect(settings.postgres.dsn.get_secret_value(), autocommit=True)
    return lambda query: connection.execute(query.encode()).fetchone() or ()
