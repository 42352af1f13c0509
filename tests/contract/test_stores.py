"""What every store promises, held against real servers: exact numbers, each event once, failures told apart."""

import asyncio
import itertools
import math
import multiprocessing
import random
import re
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pipeline import clickhouse as clickhouse_door
from pipeline import migrations, otlp
from pipeline.agents.ch_writer import ClickHouseWriter
from pipeline.agents.pg_writer import PostgresWriter
from pipeline.delivery import Delivery, Message
from pipeline.errors import Rejected, Unavailable
from pipeline.record import schema
from pipeline.record.avro import long
from pipeline.record.schema import SIGNALS, Signal
from pipeline.settings import ROOT, ClickHouseSettings, PostgresSettings, Settings
from pipeline.telemetry import metrics
from pipeline.timescale.connection import connect
from tests.otlp import requests
from tests.otlp.decode import records
from tests.otlp.requests import T0, attributes

DAY_NS = 86_400 * 10**9
YEAR_2000_NS = 946_684_800 * 10**9
RECEIVED = T0 + 10**9 + 987
RECEIPT = T0 + 10**9  # its millisecond
NO_RECORDED_VALUE = 1  # DataPointFlags
README = (ROOT / "README.md").read_text()
TABLES = {
    "metrics_points": ("value",),
    "metrics_histograms": ("count", "sum", "min", "max", "explicit_bounds", "bucket_counts"),
    "metrics_exponential_histograms": (
        "count", "sum", "min", "max", "scale", "zero_count", "zero_threshold",
        "positive_offset", "positive_counts", "negative_offset", "negative_counts",
    ),
    "metrics_summaries": ("count", "sum", "quantiles", "quantile_values"),
}  # fmt: skip
TABLE_OF = {
    "gauge": "metrics_points",
    "sum": "metrics_points",
    "histogram": "metrics_histograms",
    "exponential_histogram": "metrics_exponential_histograms",
    "summary": "metrics_summaries",
}
_offsets = itertools.count()


def encoded(signal: Signal, request: Any, *, received: int = RECEIVED, region: str = "eu") -> otlp.Encoded:
    return otlp.encode(signal, request.SerializeToString(), otlp.Origin("acme", region, received), partitions=1)


def messages(signal: Signal, what: otlp.Encoded) -> list[Message]:
    """What the gateway would have put into Kafka."""
    return [
        Message(f"{signal}_raw", group.partition, next(_offsets), headers(signal, group.records), group.value)
        for group in what.groups
    ]


def headers(signal: Signal, count: int) -> dict[str, bytes]:
    return {"schema": schema.of(signal).name.encode(), "records": b"%d" % count}


def one(signal: Signal, request: Any, **origin: Any) -> Message:
    [message] = messages(signal, encoded(signal, request, **origin))
    return message


def damaged(message: Message) -> Message:
    """Whole in its framing; the first string of its records claims to be longer than all of it."""
    place = len(schema.of("metrics").head) + 3 + 16  # a block's count and length, event_id
    value = bytearray(message.value)
    assert value[place : place + 3] == b"\4eu"
    value[place : place + 2] = b"\xfe\x7f"
    return message._replace(value=bytes(value))


def new_service() -> str:
    return f"service-{uuid.uuid4().hex}"


def everything(service: str) -> ExportMetricsServiceRequest:
    """One point of every kind and, for every number, the values that are hard to keep."""
    request = requests.metrics()
    [resource_metrics] = request.resource_metrics
    resource_metrics.resource.attributes[0].value.string_value = service
    metrics = resource_metrics.scope_metrics.add().metrics
    gauge = metrics.add(name="hard.gauge").gauge
    hard = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 0.1]
    for n, number in enumerate(hard):
        gauge.data_points.add(time_unix_nano=T0 + n * 1000, as_double=number)
    for n, integer in enumerate([(1 << 53) + 1, (1 << 63) - 1, -(1 << 63)]):
        gauge.data_points.add(time_unix_nano=T0 + 10**6 + n * 1000, as_int=integer)
    gauge.data_points.add(time_unix_nano=T0 + 2 * 10**6)
    most = (1 << 63) - 1
    histogram = metrics.add(name="hard.histogram").histogram
    histogram.data_points.add(
        time_unix_nano=T0, count=most, sum=math.nan, min=-math.inf, max=math.inf,
        explicit_bounds=[-0.0, math.inf], bucket_counts=[most, 0, most],
    )  # fmt: skip
    histogram.data_points.add(time_unix_nano=T0 + 1000)
    exponential = metrics.add(name="hard.exponential").exponential_histogram
    point = exponential.data_points.add(
        time_unix_nano=T0, count=most, scale=-(1 << 31), zero_count=most, zero_threshold=5e-324
    )
    point.positive.offset, point.negative.offset = (1 << 31) - 1, -(1 << 31)
    point.positive.bucket_counts.extend([most, 0])
    exponential.data_points.add(time_unix_nano=T0 + 1000)
    summary = metrics.add(name="hard.summary").summary
    point = summary.data_points.add(time_unix_nano=T0, count=most, sum=math.inf)
    point.quantile_values.add(quantile=math.nan, value=-math.inf)
    summary.data_points.add(time_unix_nano=T0 + 1000)
    return request


def gauges(service: str, *points: tuple[str, int, float]) -> ExportMetricsServiceRequest:
    """Name, time in ns and value of each point."""
    request = ExportMetricsServiceRequest()
    resource_metrics = request.resource_metrics.add()
    resource_metrics.resource.attributes.extend(attributes({"service.name": service}))
    metrics = resource_metrics.scope_metrics.add().metrics
    for name, time, value in points:
        metrics.add(name=name).gauge.data_points.add(time_unix_nano=time, as_double=value)
    return request


def effective(time: int, received: int) -> int:
    """The time that a store files a record under: its own, or its receipt's millisecond."""
    receipt = received // 10**6 * 10**6
    return time if YEAR_2000_NS <= time <= receipt + DAY_NS else receipt


Rows = dict[str, list[tuple[Any, ...]]]


def expected(points: list[dict[str, Any]]) -> Rows:
    """Rows of the four tables by what fastavro reads, the later receipt where two share series and time."""
    held: dict[tuple[str, int, int], tuple[Any, ...]] = {}
    for point in sorted(points, key=lambda p: (p["received_time"] // 1000, p["event_id"])):
        table = TABLE_OF[point["type"]]
        time = effective(point["time"], point["received_time"]) // 1000
        pairs = point["quantiles"]
        numbers = point | {
            "quantiles": [pair["quantile"] for pair in pairs],
            "quantile_values": [pair["value"] for pair in pairs],
        }
        if point["flags"] & NO_RECORDED_VALUE:
            numbers |= dict.fromkeys(("count", "sum", "min", "max"))
        held[table, point["series_id"], time] = (
            time, point["series_id"], point["event_id"].hex(), point["region"], point["received_time"] // 1000,
            *(repr(numbers[column]) for column in TABLES[table]),
        )  # fmt: skip
    rows = defaultdict(list)
    for (table, _, _), row in held.items():
        rows[table].append(row)
    return {table: sorted(rows[table]) for table in TABLES}


class Metrics:
    """A migrated PostgreSQL of either kind, its writer, and what one service has in it."""

    def __init__(self, settings: PostgresSettings, *, one_backend: bool = False) -> None:
        self.settings = settings
        self.one_backend = one_backend
        self.writer = PostgresWriter(settings, "metrics")
        self._reader = connect(settings)
        self._reader.prepare_threshold = None

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self._reader.execute(statement.encode(), parameters).fetchall()

    def rows(self, service: str) -> Rows:
        """As `expected` gives them; repr tells NaN, -0.0 and null apart."""
        found = {}
        for table, columns in TABLES.items():
            rows = self.query(
                f"SELECT (extract(epoch FROM time) * 1000000)::bigint, series_id, event_id, region,"
                f" (extract(epoch FROM received_time) * 1000000)::bigint, {', '.join(columns)} FROM {table}"
                f" WHERE series_id IN (SELECT series_id FROM metric_series WHERE service = %s)",
                service,
            )
            found[table] = sorted((*row[:2], row[2].hex, *row[3:5], *map(repr, row[5:])) for row in rows)
        return found

    def another_writer(self) -> PostgresWriter:
        """One that prepares no statement where the server is the TimescaleDB for tests, which loses some."""
        writer = PostgresWriter(self.settings, "metrics")
        if self.one_backend:
            writer._store.session.connection = connect(self.settings)
            writer._store.session.connection.prepare_threshold = None
        return writer

    def close(self) -> None:
        self._reader.close()
        self.writer._store.session.close()


@pytest.fixture(scope="module", params=["postgres", "timescale"])
def migrated(request: pytest.FixtureRequest) -> PostgresSettings:
    """Shared by the tests of this module, so each uses a service of its own."""
    dsn = request.getfixturevalue(request.param)
    if request.param == "postgres":
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}".encode())
        dsn = psycopg.conninfo.make_conninfo(dsn, dbname=name)
    part = PostgresSettings(dsn=dsn)
    migrations.up_all(Settings(postgres=part), "postgres")
    return part


@pytest.fixture
def metrics_store(migrated: PostgresSettings) -> Iterator[Metrics]:
    """With a writer that has just started."""
    store = Metrics(migrated, one_backend="user=postgres" in migrated.dsn.get_secret_value())
    yield store
    store.close()


def test_every_kind_lands_in_its_table_with_its_exact_numbers(metrics_store: Metrics) -> None:
    """NaN, infinities, -0.0, nulls, empty arrays, extremes of int64 and 2^53 + 1 as double read back as sent."""
    service = new_service()
    sent = encoded("metrics", everything(service))
    assert metrics_store.writer.write(messages("metrics", sent)) == sent.accepted
    rows = metrics_store.rows(service)
    assert rows == expected(records(sent))
    assert [len(rows[table]) for table in TABLES] == [14, 4, 3, 3]
    assert repr(float((1 << 53) + 1)) in [row[-1] for row in rows["metrics_points"]]


def test_the_same_batch_again_changes_nothing(metrics_store: Metrics) -> None:
    """A redelivery leaves rows and series as they were, also to a writer that has just started."""
    service = new_service()
    sent = messages("metrics", encoded("metrics", everything(service)))
    metrics_store.writer.write(sent)
    once = metrics_store.rows(service)
    assert (
        metrics_store.writer.write(sent) == PostgresWriter(metrics_store.settings, "metrics").write([*sent, *sent]) / 2
    )
    assert metrics_store.rows(service) == once
    assert metrics_store.query("SELECT count(*) FROM metric_series WHERE service = %s", service) == [(11,)]


def test_what_was_not_recorded_is_no_observation(metrics_store: Metrics) -> None:
    """Such a point of a histogram or summary has no count, sum, min or max; the README's query passes over it, and does
    not count once more what came before."""
    service = new_service()
    request = gauges(service)
    metrics = request.resource_metrics[0].scope_metrics[0].metrics
    histogram = metrics.add(name=service).histogram
    exponential, summary = metrics.add(name="e").exponential_histogram, metrics.add(name="s").summary
    histogram.aggregation_temporality = exponential.aggregation_temporality = 2
    for n, observed in enumerate([100, None, 103]):
        for data in (histogram, exponential, summary):
            point = data.data_points.add(time_unix_nano=T0 + n * 10**9)
            if observed is None:
                point.flags = NO_RECORDED_VALUE
            else:
                point.count, point.sum = observed, 1.0
        counted = [0, observed or 0, 0]
        histogram.data_points[n].explicit_bounds.extend([1.0, 2.0])
        histogram.data_points[n].bucket_counts.extend(counted)
    sent = encoded("metrics", request)
    metrics_store.writer.write(messages("metrics", sent))
    rows = metrics_store.rows(service)
    assert rows == expected(records(sent))
    for table in list(TABLES)[1:]:
        assert [row[5:7] for row in rows[table]] == [("100", "1.0"), ("None", "None"), ("103", "1.0")]
    [query] = re.findall(r"```sql\n(SELECT [^`]*histogram_delta[^`]*)```", README)
    query = query.replace("histogram_quantile(0.99, histogram_sum(buckets))", "(histogram_sum(buckets)).counts")
    query = query.replace("http.server.request.duration", service)
    assert [found for _, found in metrics_store.query(query)] == [[0, 3, 0]]


def counts(table: str) -> tuple[float, ...]:
    """Rows inserted, updated, unchanged and superseded, so far."""
    return tuple(
        counter.labels(table)._value.get()
        for counter in (metrics.INSERTED, metrics.UPDATED, metrics.UNCHANGED, metrics.SUPERSEDED)
    )


def steps(counted: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """What each step added."""
    return [tuple(b - a for a, b in zip(before, after, strict=True)) for before, after in itertools.pairwise(counted)]


Arrival = tuple[int, int, int, int]  # name, time, value, receipt: few of each, so that they meet


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(*(st.integers(0, 2) for _ in range(4))), min_size=2, max_size=5),
    st.randoms(use_true_random=False),
    st.integers(1, 4),
)
@example([(0, 0, 0, 2), (0, 0, 0, 0), (0, 0, 1, 1)], random.Random(0), 2)  # the event that is held, beaten beside it
def test_the_later_receipt_wins_in_any_order_of_arrival(
    metrics_store: Metrics, arrivals: list[Arrival], chance: Any, at_once: int
) -> None:
    """Whatever the order and the cut into batches, two writers end with the latest receipts."""
    service = new_service()
    sent = [
        encoded(
            "metrics", gauges(service, (f"m{name}", T0 + time * 1000, float(value))),
            received=RECEIVED + receipt * 1_000_000, region=f"r{receipt}",
        )
        for name, time, value, receipt in arrivals
    ]  # fmt: skip
    final = expected([point for part in sent for point in records(part)])
    writers = [metrics_store.another_writer() for _ in range(2)]
    turns = itertools.cycle(writers)
    held: Held = {}
    for _ in range(2):  # the second time is a replay in another order
        chance.shuffle(sent)
        for start in range(0, len(sent), at_once):
            batch = sent[start : start + at_once]
            before = counts("metrics_points")
            next(turns).write([message for part in batch for message in messages("metrics", part)])
            points = [point for part in batch for point in records(part)]
            assert steps([before, counts("metrics_points")]) == [told_apart(points, held)]
    for writer in writers:
        writer._store.session.close()
    assert metrics_store.rows(service) == final


Held = dict[tuple[int, int], tuple[int, bytes]]  # receipt and event of each series and time


def told_apart(points: list[dict[str, Any]], held: Held) -> tuple[int, ...]:
    """Rows of one batch inserted, updated, unchanged and superseded; `held` becomes what they leave.

    An event that another of its batch beat, or the one that is held, is superseded; what else changes nothing is
    unchanged.
    """
    inserted = updated = superseded = 0
    places = defaultdict(set)
    for point in points:
        places[point["series_id"], point["time"]].add((point["received_time"] // 1000, point["event_id"]))
    for place, arrived in places.items():
        before = held.get(place)
        held[place] = max(arrived | ({before} if before else set()))
        inserted += before is None
        updated += before is not None and held[place] > before
        events, best = {event for _, event in arrived}, max(arrived)[1]
        superseded += len(events) - 1 + (best != held[place][1])
    return inserted, updated, len(points) - inserted - updated - superseded, superseded


def test_a_later_receipt_replaces_points_of_every_kind(metrics_store: Metrics) -> None:
    """Histograms and summaries are replaced whole, and the earlier receipt coming last changes nothing."""
    service = new_service()
    first, second = everything(service), everything(service)
    for scope in second.resource_metrics[0].scope_metrics:
        for metric in scope.metrics:
            for point in getattr(metric, metric.WhichOneof("data")).data_points:
                if hasattr(point, "count"):
                    point.count = 77
                else:
                    point.as_double = 77.0
                    point.flags = 0
    early = encoded("metrics", first)
    late = encoded("metrics", second, received=RECEIVED + 1000, region="us")
    for part in (early, late, early):
        metrics_store.writer.write(messages("metrics", part))
    assert metrics_store.rows(service) == expected(records(late))


def test_twins_inside_one_batch_are_one_row(metrics_store: Metrics) -> None:
    """The same message twice, and two values for one series and time, in one transaction into an empty store."""
    service = new_service()
    low = encoded("metrics", gauges(service, ("m", T0, 1.0)))
    high = encoded("metrics", gauges(service, ("m", T0, 2.0)), received=RECEIVED + 1000)
    batch = messages("metrics", high) + messages("metrics", low) * 2
    assert metrics_store.writer.write(batch) == 3
    assert metrics_store.rows(service) == expected(records(high))


def test_series_keep_their_words(metrics_store: Metrics) -> None:
    """Names and labels read back as sent, whatever is in them; NUL, which PostgreSQL cannot hold, as U+FFFD."""
    service = new_service()
    odd = {"quote": "'\"\\", "emoji": "😀\u0301", "nul\0key": "a\0b", "": "\x01\x1f", "{}": "null", "end": "\ud7ff\n\t"}
    request = gauges(service, ("na'me\0 ü", T0, 1.0))
    [scope_metrics] = request.resource_metrics[0].scope_metrics
    scope_metrics.scope.name, scope_metrics.scope.version = "sco\0pe", "v'1"
    scope_metrics.scope.attributes.extend(attributes({"po\0ol": "a'b", "name": "hidden"}))
    metric = scope_metrics.metrics[0]
    metric.description, metric.unit = 'de\0sc "', "µ\\s"
    metric.gauge.data_points[0].attributes.extend(attributes(odd))
    request.resource_metrics[0].resource.attributes.extend(
        attributes({"host.name": "h\0ost", "end": "of the resource"})
    )
    metrics_store.writer.write([one("metrics", request)])
    odd_stored = {key.replace("\0", "\ufffd"): value.replace("\0", "\ufffd") for key, value in odd.items()}
    assert metrics_store.query(
        "SELECT tenant, metric_name, host, description, unit, type, temporality, monotonic, labels"
        " FROM metric_series WHERE service = %s",
        service,
    ) == [
        ("acme", "na'me\ufffd ü", "h\ufffdost", "de\ufffdsc \"", "µ\\s", "gauge", "unspecified", False, {
            "service.name": service, "host.name": "h\ufffdost",
            "otel.scope.name": "sco\ufffdpe", "otel.scope.version": "v'1", "otel.scope.po\ufffdol": "a'b", **odd_stored,
        })
    ]  # fmt: skip


def test_series_say_what_kind_they_are(metrics_store: Metrics) -> None:
    """Type, temporality and monotonicity of each kind."""
    service = new_service()
    metrics_store.writer.write(messages("metrics", encoded("metrics", everything(service))))
    assert metrics_store.query(
        "SELECT metric_name, type, temporality, monotonic FROM metric_series"
        " WHERE service = %s AND metric_name NOT LIKE 'hard.%%' AND labels ? 'region' ORDER BY 1",
        service,
    ) == [
        ("duration", "histogram", "delta", False),
        ("latency", "summary", "unspecified", False),
        ("orders", "sum", "cumulative", True),
        ("queue.length", "gauge", "unspecified", False),
        ("size", "exponential_histogram", "cumulative", False),
    ]


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (0, RECEIVED),
        (YEAR_2000_NS - 1, RECEIVED),
        (YEAR_2000_NS, YEAR_2000_NS),
        (RECEIPT + DAY_NS, RECEIPT + DAY_NS),
        (RECEIPT + DAY_NS + 1, RECEIVED),
        ((1 << 63) - 1, RECEIVED),
        (1 << 63, RECEIVED),
        ((1 << 64) - 1, RECEIVED),
        (T0 + 999, T0),
        (T0 + 1999, T0 + 1000),
    ],
)
def test_a_time_is_kept_to_the_microsecond_or_is_the_receipt(metrics_store: Metrics, sent: int, stored: int) -> None:
    """Unset and absurd times become the receipt's; nanoseconds are cut off, never rounded."""
    service = new_service()
    metrics_store.writer.write([one("metrics", gauges(service, ("m", sent, 1.0)))])
    [row] = metrics_store.rows(service)["metrics_points"]
    assert row[0] == stored // 1000
    assert row[4] == RECEIVED // 1000


def test_regions_of_any_length_meet_in_one_batch(metrics_store: Metrics) -> None:
    """An empty region, a long one and one with umlauts, of numbers and of histograms."""
    service = new_service()
    sent = []
    for n, region in enumerate(["", "münchen", "r" * 32]):
        sent.append(encoded("metrics", gauges(service, ("m", T0 + n * 1000, 1.0)), region=region))
        histogram = ExportMetricsServiceRequest()
        histogram.CopyFrom(gauges(service))
        metric = histogram.resource_metrics[0].scope_metrics[0].metrics.add(name="h")
        metric.histogram.data_points.add(time_unix_nano=T0 + n * 1000, count=1)
        sent.append(encoded("metrics", histogram, region=region))
    metrics_store.writer.write([message for part in sent for message in messages("metrics", part)])
    rows = metrics_store.rows(service)
    assert rows == expected([point for part in sent for point in records(part)])
    assert {row[3] for table in rows.values() for row in table} == {"", "münchen", "r" * 32}


@pytest.mark.parametrize(
    "spoil",
    [damaged, lambda m: m._replace(value=m.value[:-1]), lambda m: m._replace(headers=m.headers | {"records": b"2"})],
    ids=["inside", "cut short", "count"],
)
def test_a_batch_with_a_damaged_message_stores_nothing(
    metrics_store: Metrics, spoil: Callable[[Message], Message]
) -> None:
    """Rejected, no row and no series; the good messages alone are stored afterwards."""
    service = new_service()
    good = [one("metrics", gauges(service, ("m", T0 + n * 1000, float(n)))) for n in range(3)]
    with pytest.raises(Rejected):
        metrics_store.writer.write([good[0], spoil(good[1]), good[2]])
    assert not any(metrics_store.rows(service).values())
    assert metrics_store.query("SELECT count(*) FROM metric_series WHERE service = %s", service) == [(0,)]
    metrics_store.writer.write(good)
    assert len(metrics_store.rows(service)["metrics_points"]) == 3


def test_a_long_name_is_stored_or_refused(metrics_store: Metrics) -> None:
    """A name that no index entry can hold must not stop a writer: it is kept, or Rejected."""
    service = new_service()
    name = "".join(uuid.uuid4().hex for _ in range(300))
    try:
        metrics_store.writer.write([one("metrics", gauges(service, (name, T0, 1.0)))])
    except Rejected:
        assert not any(metrics_store.rows(service).values())
    else:
        assert metrics_store.query("SELECT metric_name FROM metric_series WHERE service = %s", service) == [(name,)]


def test_damage_that_makes_counts_huge_is_rejected_in_time() -> None:
    """A record whose fields are shifted by one byte is damage like any other: decoding it is given up."""
    good = one("metrics", requests.metrics(), region="eu")
    code = (
        "import sys; from pipeline.timescale import rows; from pipeline.errors import Rejected\n"
        "try: rows.points(sys.stdin.buffer.read())\nexcept Rejected: print('rejected')"
    )
    value = bytearray(good.value)
    time = long(T0)
    value[value.rindex(time) + len(time) - 1] = 0xC1  # the time goes on into what follows it
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reading:
        try:
            assert reading.communicate(bytes(value), timeout=30)[0] == b"rejected\n"
        finally:
            reading.kill()


def test_damage_that_decoding_does_not_end_on_takes_no_neighbour_with_it(postgres_settings: PostgresSettings) -> None:
    """Delivered in one batch, the damaged message is dead-lettered alone and its neighbours are stored."""
    migrations.up_all(Settings(postgres=postgres_settings), "postgres")
    service = new_service()
    batch = [one("metrics", gauges(service, (f"m{n}", T0, 1.0)))._replace(offset=n) for n in range(5)]
    bad = one("metrics", requests.metrics(), region="eu")
    value, time = bytearray(bad.value), long(T0)
    value[value.rindex(time) + len(time) - 1] = 0xC1  # the time goes on into what follows it
    batch[3] = bad._replace(value=bytes(value), offset=3)
    # In a process of its own: the thread that decodes without end keeps a core busy until it is killed.
    context = multiprocessing.get_context("spawn")
    buried = context.SimpleQueue()
    child = context.Process(target=_deliver, args=(postgres_settings, batch, buried))
    child.start()
    try:
        assert buried.get() == [3]
    finally:
        child.kill()
        child.join()
    assert [len(found) for found in Metrics(postgres_settings).rows(service).values() if found] == [4]


def _deliver(postgres: PostgresSettings, batch: list[Message], answer: Any) -> None:
    """Deliver, and answer the offsets of what was dead-lettered."""
    buried: list[int] = []

    class Dead:
        async def put(self, message: Message, reason: Rejected) -> None:
            buried.append(message.offset)

    asyncio.run(Delivery(PostgresWriter(postgres, "metrics"), Dead()).deliver(batch))
    answer.put(buried)


def test_a_connection_that_died_is_made_anew(postgres_settings: PostgresSettings) -> None:
    """A backend killed between two batches is one Unavailable; the same batch then goes in."""
    migrations.up_all(Settings(postgres=postgres_settings), "postgres")
    store = Metrics(postgres_settings)
    service = new_service()
    batch = [one("metrics", gauges(service, ("m", T0, 1.0)))]
    store.writer.write([one("metrics", gauges(service, ("other", T0, 1.0)))])
    killed = store.query(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'pipeline' AND pid <> pg_backend_pid()"
    )
    assert killed == [(True,)]
    with pytest.raises(Unavailable, match=r"^PostgreSQL: "):
        store.writer.write(batch)
    assert store.writer.write(batch) == 1
    assert len(store.rows(service)["metrics_points"]) == 2
    store.close()


# PostgreSQL: errors and events among logs

EVENT_COLUMNS = (
    "tenant", "region", "service", "host", "severity_number", "severity_text", "event_name", "body", "attributes",
    "resource_attributes", "trace_id", "span_id",
)  # fmt: skip


def kept(record: dict[str, Any]) -> bool:
    return record["severity_number"] >= 17 or record["event_name"] != ""


def as_event(record: dict[str, Any]) -> tuple[Any, ...]:
    """The row that a record which fastavro decoded must be."""
    time = effective(record["time"] or record["observed_time"], record["received_time"])
    columns = [without_nul(record[column]) for column in EVENT_COLUMNS]
    return time // 1000, record["event_id"].hex(), record["received_time"] // 1000, *columns


def without_nul(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {without_nul(key): without_nul(text) for key, text in value.items()}
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def stored_events(store: Metrics, service: str) -> list[tuple[Any, ...]]:
    """As `as_event` gives them, sorted."""
    found = store.query(
        "SELECT (extract(epoch FROM time) * 1000000)::bigint, event_id,"
        f" (extract(epoch FROM received_time) * 1000000)::bigint, {', '.join(EVENT_COLUMNS)}"
        " FROM events WHERE service = %s",
        service,
    )
    return sorted(((time, event_id.hex, *rest) for time, event_id, *rest in found), key=lambda row: row[:2])


def hard_logs(service: str) -> Any:
    """Records on either side of what is kept, and of each field the values that are hard to keep."""
    request = requests.logs(
        "x", None, 7, -0.5, True, b"\0\xff", [1, ["a", None]], {"k": {"z": "\0"}}, "a\0b", "ü😀" * 99_999
    )
    [resource_logs] = request.resource_logs
    resource_logs.resource.attributes[0].value.string_value = service
    resource_logs.resource.attributes[1].value.string_value = "h\0ost"
    added = resource_logs.scope_logs.add().log_records
    for severity in (0, 1, 16, 17, 18, 24, 25):
        added.add(time_unix_nano=T0 + severity, severity_number=severity, severity_text=f"s{severity}\0")
    for severity in (0, 9):
        added.add(time_unix_nano=T0, severity_number=severity, event_name="order.\0placed")
    for time, observed in [
        (0, 0),
        (0, T0 + 7),
        (1, T0 + 7),
        (YEAR_2000_NS, 0),
        (RECEIVED + DAY_NS + 1, 0),
        ((1 << 64) - 1, 0),
    ]:
        added.add(time_unix_nano=time, observed_time_unix_nano=observed, severity_number=17)
    odd = {"quote": "'\"\\", "nul\0key": "a\0b", "": "\x01\x1f", "{}": "null", "end": "\ud7ff\n\t"}
    added.add(time_unix_nano=T0 + 1, severity_number=17, attributes=attributes(odd), trace_id=requests.TRACE_ID)
    return request


@pytest.fixture
def events_writer(migrated: PostgresSettings) -> Iterator[PostgresWriter]:
    writer = PostgresWriter(migrated, "logs")
    yield writer
    writer._store.session.close()


def test_errors_and_events_are_kept_as_they_were_sent(metrics_store: Metrics, events_writer: PostgresWriter) -> None:
    """Every column of every error and event reads back, NUL as U+FFFD; other log records are not there."""
    service = new_service()
    sent = encoded("logs", hard_logs(service))
    assert events_writer.write(messages("logs", sent)) == sent.accepted
    wanted = sorted((as_event(record) for record in records(sent) if kept(record)), key=lambda row: row[:2])
    assert stored_events(metrics_store, service) == wanted
    assert len(wanted) == sent.accepted - 3


def test_an_event_that_comes_again_is_one_row(metrics_store: Metrics, events_writer: PostgresWriter) -> None:
    """Redelivered in another cut, twice in one batch, by a new writer and with another region's copy: one row an id, of
    the latest receipt."""
    service = new_service()
    request = requests.logs(*range(5))
    request.resource_logs[0].resource.attributes[0].value.string_value = service
    first = messages("logs", encoded("logs", request))
    copies = messages("logs", encoded("logs", request, received=RECEIVED + 5000, region="us"))
    more = requests.logs("new")
    more.resource_logs[0].resource.attributes[0].value.string_value = service
    counted = [counts("events")]
    for writer, batch in [
        (events_writer, first),
        (events_writer, [*copies, one("logs", more), *first]),
        (PostgresWriter(metrics_store.settings, "logs"), [*first, *copies]),
    ]:
        assert writer.write(batch) == sum(int(message.headers["records"]) for message in batch)
        counted.append(counts("events"))
        writer._store.session.close()
    assert steps(counted) == [(5, 0, 0, 0), (1, 5, 5, 0), (0, 0, 10, 0)]
    found = stored_events(metrics_store, service)
    assert len({row[1] for row in found}) == len(found) == 6
    assert sorted(row[2] for row in found)[-5:] == [(RECEIVED + 5000) // 1000] * 5


def test_logs_without_errors_and_events_need_no_database() -> None:
    """The database is asked for what it keeps, and for nothing else."""
    writer = PostgresWriter(PostgresSettings(dsn="host=127.0.0.1 port=1 user=u dbname=d"), "logs")
    request = requests.logs("fine")
    [record] = request.resource_logs[0].scope_logs[0].log_records
    record.severity_number, record.event_name = 16, ""
    assert writer.write([one("logs", request)] * 3) == 3
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        writer.write([one("logs", requests.logs("not fine"))])


# ClickHouse

READERS: dict[Signal, tuple[str, str]] = {
    "logs": ("logs", "logs_events"),
    "traces": ("traces", "spans"),
    "metrics": ("metrics", "metrics_points"),
}
KINDS = ["unspecified", "internal", "server", "client", "producer", "consumer"]


class Events:
    """A migrated ClickHouse database."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        self.settings = settings
        self.client: Client = clickhouse_door.connect(settings)

    def read(self, signal: Signal) -> list[dict[str, Any]]:
        """Every row of the signal's view by column name, times in ns, sorted by event_id."""
        view, _ = READERS[signal]
        columns = [row[0] for row in self.client.query(f"DESCRIBE TABLE {view}").result_rows]
        asked = [
            f"toUnixTimestamp64Nano({column})" if column in ("timestamp", "received_time") else column
            for column in columns
        ]
        found = self.client.query(f"SELECT {', '.join(asked)} FROM {view} ORDER BY event_id").result_rows
        return [exact(dict(zip(columns, row, strict=True))) for row in found]

    def raw_count(self, signal: Signal) -> int:
        """Rows of the table below the view, twins and all."""
        return int(self.client.query(f"SELECT count() FROM {READERS[signal][1]}").result_rows[0][0])


@pytest.fixture(scope="module")
def events_database(clickhouse: str, postgres: str) -> Iterator[Events]:
    """One migrated database for this module."""
    name = f"test_{uuid.uuid4().hex}"
    admin = clickhouse_door.connect(ClickHouseSettings(url=clickhouse))
    admin.command(f"CREATE DATABASE {name}")
    settings = ClickHouseSettings(url=clickhouse, database=name)
    both = Settings(clickhouse=settings, postgres=PostgresSettings(dsn=postgres))  # which holds the lock
    migrations.up_all(both, "clickhouse")
    database = Events(settings)
    yield database
    database.client.close()
    admin.command(f"DROP DATABASE {name} SYNC")
    admin.close()


@pytest.fixture
def events_store(events_database: Events) -> Iterator[Events]:
    """The same, empty."""
    for table in ("logs_events", "spans", "span_events", "span_links", "metrics_points"):
        events_database.client.command(f"TRUNCATE TABLE {table} SYNC")
    return events_database


def exact(value: Any) -> Any:
    """Floats by repr, so that NaN equals NaN and -0.0 is not 0.0; named tuples as the dicts that fastavro gives."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item) for item in value]
    return value


def as_read(signal: Signal, record: dict[str, Any]) -> dict[str, Any]:
    """What the signal's view must say of a record that fastavro decoded."""
    row = {key: value.hex() if isinstance(value, bytes) else value for key, value in record.items() if key != "ordinal"}
    sent = {"logs": "time", "traces": "start_time", "metrics": "time"}[signal]
    time = record[sent] or record.get("observed_time", 0) if signal == "logs" else record[sent]
    row["timestamp"] = effective(time, record["received_time"])
    if signal == "traces":
        row["kind"] = KINDS[record["kind"]]
        row["status"] = ["unset", "ok", "error"][row.pop("status_code")]
        started, ended = record["start_time"], record["end_time"]
        row["duration_ns"] = ended - started if 0 < started < ended else 0
        row["links"] = [ids_as_text(link) for link in record["links"]]
    if signal == "metrics":
        row["exemplars"] = [ids_as_text(exemplar) for exemplar in record["exemplars"]]
    return exact(row)


def ids_as_text(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value.hex() if isinstance(value, bytes) else value for key, value in part.items()}


def full_request(signal: Signal) -> Any:
    return everything("checkout") if signal == "metrics" else requests.ONE_OF_EVERYTHING[signal]


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_views_say_what_was_sent(events_store: Events, signal: Signal) -> None:
    """Every field of a full request reads back as fastavro decodes it, exactly."""
    sent = encoded(signal, full_request(signal))
    assert ClickHouseWriter(events_store.settings, signal).write(messages(signal, sent)) == sent.accepted
    assert events_store.read(signal) == [
        as_read(signal, record) for record in sorted(records(sent), key=lambda record: record["event_id"])
    ]


def test_events_of_spans_are_rows_of_their_own(events_store: Events) -> None:
    """Each with its place in the list and its own time, or the span's where it has none."""
    sent = encoded("traces", requests.traces())
    ClickHouseWriter(events_store.settings, "traces").write(messages("traces", sent))
    found = events_store.client.query(
        "SELECT toUnixTimestamp64Nano(timestamp), lower(hex(event_id)), event_index, trace_id, span_name, name, attributes"
        " FROM span_events ORDER BY event_id, event_index"
    ).result_rows
    [span] = [record for record in records(sent) if record["events"]]
    start = (span["event_id"].hex(), span["trace_id"].hex())
    assert found == [
        (T0 + 3, start[0], 0, start[1], "POST /order", "exception", {"exception.type": "KeyError"}),
        (span["start_time"], start[0], 1, start[1], "POST /order", "empty", {}),
    ]


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_same_batch_twice_is_the_same_rows(events_store: Events, signal: Signal) -> None:
    """An insert repeated with its token adds no row at all, also from a writer that has just started."""
    batch = messages(signal, encoded(signal, full_request(signal)))
    count = ClickHouseWriter(events_store.settings, signal).write(batch)
    assert ClickHouseWriter(events_store.settings, signal).write(batch) == count
    assert len(events_store.read(signal)) == events_store.raw_count(signal) == count


@pytest.mark.parametrize("signal", SIGNALS)
def test_overlapping_batches_show_each_event_once(events_store: Events, signal: Signal) -> None:
    """What a crash redelivers in another cut, and another region's copy of it, is seen once: the later receipt."""
    first, second = full_request(signal), type(full_request(signal))()
    second.CopyFrom(first)
    parts = [encoded(signal, first), encoded(signal, second, received=RECEIVED + 5000, region="us")]
    early, late = (messages(signal, part) for part in parts)
    writer = ClickHouseWriter(events_store.settings, signal)
    writer.write(early + late)
    writer.write(late)
    writer.write(early)
    count = parts[0].accepted
    assert events_store.raw_count(signal) > count, "twins must have been written for this to say something"
    found = events_store.read(signal)
    unique = {row["event_id"] for row in found}
    sent_at = "start_time" if signal == "traces" else "time"
    timed = {record["event_id"].hex() for record in records(parts[0]) if record[sent_at]}
    rows = [row for row in found if row["event_id"] in timed]
    assert unique == {record["event_id"].hex() for record in records(parts[0])}
    assert len(rows) == len(timed) > 0
    assert {row["region"] for row in rows} == {"us"}


def test_records_that_do_not_decode_are_rejected(events_store: Events) -> None:
    """Whole in its framing and damaged inside: found by the server, and nothing of the batch is stored."""
    writer = ClickHouseWriter(events_store.settings, "metrics")
    good = one("metrics", gauges("s", ("m", T0, 1.0)))
    with pytest.raises(Rejected, match=r"^ClickHouse: "):
        writer.write([good, damaged(one("metrics", gauges("s", ("n", T0, 1.0))))])
    assert events_store.raw_count("metrics") == 0
    assert writer.write([good]) == 1
