"""OTLP requests become the records that the schemas describe, framed by partition."""

import bisect
import io

import fastavro
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from pipeline import otlp
from pipeline.errors import Rejected
from pipeline.record import schema
from tests.otlp.decode import ORIGIN, records
from tests.otlp.requests import (
    EVERY_KIND,
    EVERY_KIND_AS_TEXT,
    ONE_OF_EVERYTHING,
    RESOURCE,
    SPAN_ID,
    T0,
    TRACE_ID,
    attributes,
    logs,
)

pytestmark = pytest.mark.usefixtures("implementation")


def encode(signal: schema.Signal, request: object = None) -> otlp.Encoded:
    message = request or ONE_OF_EVERYTHING[signal]
    return otlp.encode(signal, message.SerializeToString(), ORIGIN, partitions=4)  # type: ignore[attr-defined]


@pytest.mark.parametrize("signal", schema.SIGNALS)
def test_values_are_files_that_fastavro_reads_and_writes_equal(signal: schema.Signal) -> None:
    """A value is, byte for byte, what a plain Avro library writes for the same records."""
    for group in encode(signal).groups:
        read = list(fastavro.reader(io.BytesIO(group.value)))
        written = io.BytesIO()
        fastavro.writer(
            written, schema.of(signal).avro, read, codec="null", sync_marker=b"pipeline-ocf-v01", metadata={},
            sync_interval=1 << 30,
        )  # fmt: skip
        assert group.records == len(read)
        assert written.getvalue() == group.value


def test_log_record_holds_what_was_sent() -> None:
    """Every field of a log record arrives in its column."""
    [record] = records(encode("logs", logs("hello")))
    del record["event_id"]
    assert record == {
        "region": "local", "received_time": ORIGIN.received_time, "tenant": "default", "service": "checkout",
        "host": "web-1", "resource_attributes": {**RESOURCE, "replicas": "3"},
        "resource_schema_url": "https://opentelemetry.io/schemas/1.37.0", "scope_name": "shop", "scope_version": "1.2",
        "scope_attributes": {"team": "cart"}, "scope_schema_url": "", "time": T0, "observed_time": T0 + 5,
        "severity_number": 17, "severity_text": "ERROR", "event_name": "order", "body": "hello",
        "attributes": EVERY_KIND_AS_TEXT, "dropped_attributes_count": 2, "trace_id": TRACE_ID, "span_id": SPAN_ID,
        "flags": 1, "ordinal": 0,
    }  # fmt: skip


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_bodies_of_every_kind_become_text(kind: str) -> None:
    """A body of any AnyValue kind is stored as the text that the design names."""
    [record] = records(encode("logs", logs(EVERY_KIND[kind])))
    assert record["body"] == EVERY_KIND_AS_TEXT[kind]


@pytest.mark.parametrize(("trace_id", "span_id"), [(b"short", b"x"), (bytes(16), bytes(8))])
def test_log_ids_that_are_none_count_as_absent(trace_id: bytes, span_id: bytes) -> None:
    """A log record with half a trace_id, or one of zeros, is stored as one without."""
    request = logs()
    record = request.resource_logs[0].scope_logs[0].log_records[0]
    record.trace_id, record.span_id = trace_id, span_id
    [stored] = records(encode("logs", request))
    assert (stored["trace_id"], stored["span_id"]) == (b"", b"")


def test_span_holds_events_and_links() -> None:
    """Span events and links keep their order, times and attributes."""
    full, empty = sorted(records(encode("traces")), key=lambda span: -len(span["events"]))
    assert full["events"] == [
        {
            "time": T0 + 3,
            "name": "exception",
            "attributes": {"exception.type": "KeyError"},
            "dropped_attributes_count": 0,
        },
        {"time": 0, "name": "empty", "attributes": {}, "dropped_attributes_count": 4},
    ]
    assert full["links"] == [
        {
            "trace_id": TRACE_ID[::-1], "span_id": SPAN_ID, "trace_state": "c=d", "attributes": {"why": "retry"},
            "dropped_attributes_count": 0, "flags": 1,
        }
    ]  # fmt: skip
    assert (full["status_code"], full["status_message"], full["kind"], full["end_time"]) == (
        2,
        "out of stock",
        2,
        T0 + 1_000_000,
    )
    assert (empty["name"], empty["parent_span_id"], empty["start_time"]) == ("", b"", 0)


@pytest.mark.parametrize(
    ("trace_id", "span_id"), [(b"", SPAN_ID), (b"x" * 15, SPAN_ID), (bytes(16), SPAN_ID), (TRACE_ID, bytes(8))]
)
def test_a_span_without_valid_ids_is_refused_and_its_neighbours_are_not(trace_id: bytes, span_id: bytes) -> None:
    """Only the span that the protocol calls invalid is refused, with a code that has a sentence."""
    request = type(ONE_OF_EVERYTHING["traces"])()
    request.CopyFrom(ONE_OF_EVERYTHING["traces"])
    request.resource_spans[0].scope_spans[0].spans.add(trace_id=trace_id, span_id=span_id)  # type: ignore[attr-defined]
    encoded = encode("traces", request)
    assert encoded.accepted == 2
    assert encoded.refused.total() == 1
    assert "has no valid" in otlp.REFUSALS[next(iter(encoded.refused))]


def test_metric_points_of_every_type_hold_their_numbers() -> None:
    """Gauge, sum, histogram, exponential histogram and summary each arrive with all their numbers."""
    points = records(encode("metrics"))
    by_name = {point["metric_name"]: point for point in reversed(points)}
    assert len(points) == 7
    gauge, total = by_name["queue.length"], by_name["orders"]
    assert (gauge["type"], gauge["value"], gauge["int_value"], gauge["unit"]) == ("gauge", 1.5, None, "{order}")
    assert gauge["exemplars"] == [
        {"time": T0 - 1, "value": 3.0, "trace_id": TRACE_ID, "span_id": SPAN_ID, "attributes": {"a": "1"}}
    ]
    assert (total["type"], total["temporality"], total["monotonic"]) == ("sum", "cumulative", True)
    assert (total["value"], total["int_value"]) == (float(1 << 53), (1 << 53) + 1)
    histogram = by_name["duration"]
    assert (histogram["temporality"], histogram["count"], histogram["sum"]) == ("delta", 3, 6.5)
    assert (histogram["min"], histogram["max"]) == (0.5, 4.0)
    assert (histogram["explicit_bounds"], histogram["bucket_counts"]) == ([1.0, 2.0], [1, 1, 1])
    exponential = by_name["size"]
    assert (exponential["scale"], exponential["zero_count"], exponential["zero_threshold"]) == (-1, 1, 0.1)
    assert (exponential["positive_offset"], exponential["positive_counts"]) == (2, [1, 2])
    assert (exponential["negative_offset"], exponential["negative_counts"]) == (-3, [0, 0, 1])
    assert (exponential["min"], exponential["max"]) == (None, None)
    summary = by_name["latency"]
    assert (summary["count"], summary["sum"]) == (2, 3.0)
    assert summary["quantiles"] == [{"quantile": 0.5, "value": 1.0}, {"quantile": 1.0, "value": 2.0}]


def test_a_point_without_recorded_value_has_none() -> None:
    """The flag for a missing value is stored as null, never as zero."""
    point = next(point for point in records(encode("metrics")) if point["flags"] == 1)
    assert (point["value"], point["int_value"]) == (None, None)


def test_scopes_with_one_metric_name_are_two_series() -> None:
    """Two libraries that measure under one name do not overwrite each other, nor two meters of one: a scope is its
    name, its version and its attributes."""
    request = type(ONE_OF_EVERYTHING["metrics"])()
    scopes = (
        ("one", "", {}),
        ("two", "", {}),
        ("two", "1", {}),
        ("two", "1", {"pool": "a"}),
        ("two", "1", {"pool": "b"}),
    )
    for name, version, own in scopes:
        scope_metrics = request.resource_metrics.add().scope_metrics.add()  # type: ignore[attr-defined]
        scope_metrics.scope.name, scope_metrics.scope.version = name, version
        scope_metrics.scope.attributes.extend(attributes(own))
        scope_metrics.metrics.add(name="duration").gauge.data_points.add(as_int=1, time_unix_nano=T0)
    assert len({point["series_id"] for point in records(encode("metrics", request))}) == len(scopes)


def test_times_beyond_63_bits_keep_their_bits() -> None:
    """A time of 2^64-1 is kept as sent, and the message's span of times is the receipt's."""
    request = logs()
    request.resource_logs[0].scope_logs[0].log_records[0].time_unix_nano = (1 << 64) - 1
    encoded = encode("logs", request)
    [record] = records(encoded)
    assert record["time"] == -1
    assert encoded.groups[0].min_time == encoded.groups[0].max_time == ORIGIN.received_time
    assert encoded.untimed == 1


def test_large_requests_are_split_below_the_message_limit() -> None:
    """No message is larger than 900 KB, and a single record that is larger is refused by name."""
    body = "x" * 200_000
    request = logs(*[body + str(n) for n in range(20)], "y" * 950_000)
    encoded = encode("logs", request)
    assert encoded.accepted == 20
    assert encoded.refused == {"record_too_large": 1}
    assert all(len(group.value) <= otlp.MAX_VALUE_BYTES for group in encoded.groups)
    assert len({record["event_id"] for record in records(encoded)}) == 20


def test_equal_records_of_the_largest_size_keep_to_the_message_limit() -> None:
    """The ordinal of the 65th twin is a byte longer, and still there is room for it."""
    sizes = range(otlp.MAX_VALUE_BYTES)
    largest = bisect.bisect(sizes, 0, key=lambda size: encode("logs", logs("x" * size)).refused.total()) - 1
    encoded = encode("logs", logs(*["x" * largest] * 66))
    assert [group.records for group in encoded.groups] == [1] * 66
    assert max(len(group.value) for group in encoded.groups) <= otlp.MAX_VALUE_BYTES


def test_a_service_and_host_stay_in_one_partition() -> None:
    """Logs of one service and host, in many requests, take one partition."""
    partitions = {group.partition for n in range(20) for group in encode("logs", logs(str(n))).groups}
    assert len(partitions) == 1


def test_a_trace_stays_in_one_partition() -> None:
    """All spans of a trace share a partition, whatever service they come from."""
    assert len({group.partition for group in encode("traces").groups}) == 1


@pytest.mark.parametrize("signal", schema.SIGNALS)
def test_an_empty_request_is_no_message(signal: schema.Signal) -> None:
    """Zero bytes are a valid request of zero records."""
    encoded = otlp.encode(signal, b"", ORIGIN, partitions=4)
    assert (encoded.groups, encoded.accepted, encoded.refused.total()) == ([], 0, 0)


@pytest.mark.parametrize("signal", schema.SIGNALS)
def test_bytes_that_are_no_request_are_rejected_with_a_sentence(signal: schema.Signal) -> None:
    """Undecodable bodies raise Rejected that names what was expected."""
    with pytest.raises(Rejected, match="is not a protobuf Export"):
        otlp.encode(signal, b"\x0a\xff", ORIGIN, partitions=4)


def test_of_repeated_keys_the_last_counts() -> None:
    """A client that repeats an attribute key gets the last value, once."""
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add()
    record.attributes.extend(attributes({"a": "1"}) + attributes({"a": "2"}))
    assert records(encode("logs", request))[0]["attributes"] == {"a": "2"}
