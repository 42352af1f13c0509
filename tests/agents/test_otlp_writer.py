"""otlp_writer against a back end that answers by a script, and records through it and back."""

import asyncio
import json
import pathlib
import random
import time
import tracemalloc
import urllib.request
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from pydantic import SecretStr

from pipeline import native, otlp, topics
from pipeline.agents.otlp_writer import OtlpWriter
from pipeline.backend import LONGEST_WAIT_S, Later, Taken, backend, parsed
from pipeline.delivery import Delivery, Message
from pipeline.errors import Misconfigured, Rejected, Unavailable
from pipeline.otlp.export import export_request
from pipeline.record import container, schema
from pipeline.record.layout import layout
from pipeline.record.records import TYPES, read
from pipeline.record.schema import Signal
from pipeline.settings import KafkaSettings, OtlpWriterSettings, Settings
from pipeline.telemetry import metrics
from tests.agents.backend_server import Say, Server, partly
from tests.agents.builtin.run import of_request
from tests.agents.process import Process, send, until
from tests.audit.conftest import remove_topics
from tests.conftest import free_ports
from tests.drills import otlp_writer as drill
from tests.drills.context import Context
from tests.otlp.requests import logs, traces
from tests.otlp.requests import metrics as metrics_request
from tests.otlp.scramble import mutate

PROTOCOLS = ("http", "grpc")
BUSY = {"http": 429, "grpc": 8}
AWAY = {"http": 503, "grpc": 14}
BROKEN = {"http": 500, "grpc": 13}
DENIED = {"http": 401, "grpc": 16}
BAD = {"http": 400, "grpc": 3}
FAR = RetryInfo(retry_delay={"seconds": 2**63 - 1, "nanos": 2**31 - 1}).SerializeToString()
PAST = RetryInfo(retry_delay={"seconds": -(2**63), "nanos": -(2**31)}).SerializeToString()
REQUESTS = [("logs", logs("x", "twin", "twin")), ("metrics", metrics_request()), ("traces", traces())]


class Letters:
    def __init__(self) -> None:
        self.put_: list[tuple[Message, str]] = []

    async def put(self, message: Message, reason: Rejected) -> None:
        self.put_.append((message, str(reason)))


def messages(count: int) -> list[Message]:
    return [of_request("logs", logs(f"{n}"))._replace(offset=n) for n in range(count)]


def writer(server: Server, protocol: Any, **own: Any) -> OtlpWriter:
    settings = OtlpWriterSettings(endpoint=f"http://127.0.0.1:{server.port}", protocol=protocol, **own)
    return OtlpWriter(settings, "logs", backend(settings))


def delivered(to: OtlpWriter, batch: Sequence[Message]) -> Letters:
    letters = Letters()

    async def soon(_: float) -> None:
        return None

    asyncio.run(Delivery(to, letters, sleep=soon).deliver(batch))
    return letters


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_busy_away_or_broken_gets_everything_later(protocol: str) -> None:
    """429 and 5xx are tried again, and so are refused credentials; each record arrives, and none is dead-lettered."""
    script = [Say(status[protocol], retry_s=0) for status in (BUSY, AWAY, BROKEN, DENIED)]
    server = Server(protocol, script)
    try:
        letters = delivered(writer(server, protocol), messages(3))
    finally:
        server.stop()
    assert [asked.bodies for asked in server.asked] == [["0", "1", "2"]] * 5
    assert letters.put_ == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_time_that_a_back_end_asks_for_is_waited(protocol: str) -> None:
    """RetryInfo and Retry-After, before the same request goes again."""
    server = Server(protocol, [Say(BUSY[protocol], retry_s=1)])
    try:
        to = writer(server, protocol)
        with pytest.raises(Unavailable, match=r"answered (429|RESOURCE_EXHAUSTED)"):
            to.write(messages(1))
        began = time.monotonic()
        assert to.write(messages(1)) == 1
        assert time.monotonic() - began > 0.9
    finally:
        server.stop()


def http(*headers: str, body: bytes = b"", status: str = "503 x") -> bytes:
    """An answer byte for byte; it ends with its connection where no header says otherwise."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("protocol", "raw"),
    [
        *[
            ("http", http(f"Retry-After: {asked}"))
            for asked in (
                "9" * 5000, "-5", "nan", "Mon, 01 Jan 99999999999 00:00:00 GMT",
                "Mon, 01 Jan 2024 00:00:00 +99999999999999", "Mon, 01 Jan 0001 00:00:00 -0000",
            )
        ],
        ("http", http(body=b"[" * 200_000)),
        ("http", http(body=b"\xff\xfe")),
        ("http", http("Content-Length: 1000000000000000000", body=b"x")),
        ("http", http("Content-Length: 99999999999999999999999", body=b"x")),
        *[("http", http("Transfer-Encoding: chunked", body=size + b"\r\n")) for size in (b"-5", b"f" * 23, b"x")],
        ("http", http("Content-Encoding: gzip", "Content-Length: 1", body=b"x")),
        ("http", http("Location: http://[::1", "Content-Length: 0", status="302 x")),
        ("http", b"\xff\xfe\x00"),
        *[("grpc", raw) for raw in (b"\xff", FAR, PAST)],
    ],
)  # fmt: skip
def test_an_absurd_answer_is_tried_again(protocol: str, raw: bytes) -> None:
    """Whatever the back end says, the process lives, and waits neither for ever nor less than nothing."""
    server = Server(protocol, [Say(AWAY[protocol], raw=raw)])
    try:
        to = writer(server, protocol)
        with pytest.raises(Later) as caught:
            to.write(messages(1))
    finally:
        server.stop()
    assert 0 <= caught.value.wait_s <= LONGEST_WAIT_S


def test_of_an_answer_without_end_only_its_begin_is_read() -> None:
    """It takes no memory, and the next request goes through."""
    server = Server("http", [Say(raw=http(body=bytes(64 << 20), status="200 OK"))])
    try:
        to = writer(server, "http")
        tracemalloc.start()
        assert to.write(messages(1)) == 1
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
        assert to.write(messages(2)) == 2
    finally:
        tracemalloc.stop()
        server.stop()


def test_what_a_refusal_says_fits_into_a_dead_letter() -> None:
    """Half a surrogate pair, which JSON can say and no header hold, is replaced."""
    server = Server("http", [Say(400, body=b'{"message": "no \\ud800"}')])
    try:
        [(_, reason)] = delivered(writer(server, "http"), messages(1)).put_
    finally:
        server.stop()
    assert reason.encode().endswith(b"400: no ?")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_was_taken_of_a_batch_is_not_sent_again(protocol: str) -> None:
    """A batch of several requests goes on where it stopped; one that comes again from Kafka is sent again."""
    server = Server(protocol, [Say(), Say(AWAY[protocol])])
    try:
        to = writer(server, protocol, request_records=2)
        batch = messages(5)
        delivered(to, batch)
        assert [asked.bodies for asked in server.asked] == [["0", "1"], ["2", "3"], ["2", "3"], ["4"]]
        delivered(to, batch)
        assert len(server.asked) == 7
    finally:
        server.stop()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_partial_success_is_counted_and_not_sent_again(protocol: str) -> None:
    """What the back end refused of a request is given up, as the protocol says."""
    server = Server(protocol, [partly(2, "two are too old")])
    counted = metrics.OTLP_REJECTED.labels("logs")._value, metrics.OTLP_SENT.labels("logs")._value
    before = [each.get() for each in counted]
    try:
        letters = delivered(writer(server, protocol), messages(5))
    finally:
        server.stop()
    assert [each.get() - was for each, was in zip(counted, before, strict=True)] == [2, 3]
    assert (len(server.asked), letters.put_) == (1, [])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_refusal_for_good_is_dead_lettered_alone(protocol: str) -> None:
    """The batch is halved until the message is alone; its neighbours arrive once, and the reason says who refused it."""
    bad = Say(BAD[protocol], body=b"no such field")
    server = Server(protocol, [bad, bad, bad])  # of 0-3, of 0-1, of 0
    try:
        letters = delivered(writer(server, protocol), messages(4))
    finally:
        server.stop()
    [(message, reason)] = letters.put_
    assert message.offset == 0
    assert "The back end at" in reason
    taken = [body for asked in server.asked[3:] for body in asked.bodies]
    assert sorted(taken) == ["1", "2", "3"]


class Everything:
    """A back end in this process that takes all it is given."""

    def __init__(self) -> None:
        self.bodies: list[str] = []
        self.largest = 0

    def send(self, signal: Signal, request: bytes) -> Taken:
        self.largest = max(self.largest, len(request))
        if signal == "logs":
            for resource in ExportLogsServiceRequest.FromString(request).resource_logs:
                self.bodies += [each.body.string_value for one in resource.scope_logs for each in one.log_records]
        return Taken(0, "")


def test_a_damaged_text_is_dead_lettered_alone() -> None:
    """One byte that is no UTF-8, under framing that is whole: its neighbours arrive, and the reason quotes no record."""
    batch = messages(4)
    batch[2] = batch[2]._replace(value=batch[2].value.replace(b"\x022", b"\x02\xff"))
    assert batch[2].value != messages(4)[2].value
    to = Everything()
    [(message, reason)] = delivered(OtlpWriter(OtlpWriterSettings(), "logs", to), batch).put_
    assert message.offset == 2
    assert "do not decode: 'utf-8' codec can't decode byte 0xff" in reason
    assert "checkout" not in reason
    assert to.bodies == ["0", "1", "3"]


@pytest.mark.parametrize("implementation", ["auto", "python"])
@pytest.mark.parametrize(("signal", "request_"), REQUESTS)
def test_whatever_the_records_hold_they_are_sent_or_rejected(
    signal: Signal, request_: Any, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3,000 messages mutated within whole framing, or anywhere: no other error, and no request larger than they are."""
    if implementation == "python":
        monkeypatch.setattr(native, "_chosen", None)
    rng, to = random.Random(7), Everything()
    subject = OtlpWriter(OtlpWriterSettings(), signal, to)
    good = of_request(signal, request_)
    head, records = schema.of(signal).head, int(good.headers["records"])
    raws = [raw.whole for raw in layout(good.headers["schema"].decode()).records(good.value)]
    outcomes = Counter[str]()
    for _ in range(3000):
        if rng.random() < 0.2:
            value = mutate(good.value, rng)
        else:
            value = container.value(head, [mutate(b"".join(raws), rng)], records)
        try:
            subject.write([good._replace(value=value)])
            outcomes["sent"] += 1
        except Rejected as reason:
            outcomes[str(reason)[:60]] += 1
    assert outcomes["sent"] > 300
    assert len(outcomes) > 3
    assert to.largest < 4 * len(good.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_back_end_that_does_not_answer_is_away(protocol: str) -> None:
    """A port on which nobody listens is Unavailable, told with its address and without the secrets."""
    server = Server(protocol)
    server.stop()
    to = writer(server, protocol, headers=SecretStr("api-key=hunter2"), timeout_s=2)
    with pytest.raises(Unavailable, match=str(server.port)) as caught:
        to.write(messages(1))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_headers_come_from_secrets(protocol: str, compression: str, tmp_path: pathlib.Path) -> None:
    """From the settings and a file, percent-decoded; they are sent and shown nowhere."""
    file = tmp_path / "headers"
    file.write_text("x-team=pay%20ments\napi-key=fromfile\n")
    server = Server(protocol)
    try:
        headers = SecretStr("api-key=hunter2,x-org=a,x-id-bin=7")
        to = writer(server, protocol, headers=headers, headers_file=file, compression=compression)
        to.write(messages(2))
    finally:
        server.stop()
    [asked] = server.asked
    assert {name: asked.headers[name] for name in ("x-team", "api-key", "x-org", "x-id-bin")} == {
        "x-team": "pay ments", "api-key": "fromfile", "x-org": "a", "x-id-bin": {"http": "7", "grpc": b"7"}[protocol]
    }  # fmt: skip
    assert "hunter2" not in repr(to._settings)


def test_bad_settings_are_told_all_at_once_without_their_values() -> None:
    """The endpoint and the headers; a header's value is in no sentence."""
    with pytest.raises(Misconfigured) as caught:
        backend(OtlpWriterSettings(headers=SecretStr("a=1,hunter2"), headers_file=pathlib.Path("/no/such")))
    assert [problem.split()[0] for problem in caught.value.problems] == ["otlp_writer.endpoint", "otlp_writer.headers:"]
    assert "hunter2" not in str(caught.value)
    assert parsed("a=b%2Cc, D=e=f", "here") == {"a": "b,c", "d": "e=f"}


@pytest.mark.parametrize(
    "entry",
    ["key=Bearer%20s3cret%0A", "key=%E2%82%ACs3cret", "key=%FFs3cret", "key=s3cret%7F", "s3 cret=1", "s3:cret=1", "=1"],
)
def test_a_header_that_no_request_can_carry_is_told_without_its_value(entry: str) -> None:
    """Before anything is sent, where a client's own error would quote it; the entry is named by its number."""
    with pytest.raises(Misconfigured, match=r"^here: entry 2 ") as caught:
        parsed(f"a=1,{entry}", "here")
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "endpoint",
    ["http://[::1", "http://h:99999", "http://h:abc", "http://h:0", "http://a b:1", "http://", "h:4318", "ftp://h"],
)
def test_an_endpoint_that_is_none_is_ours(protocol: Any, endpoint: str) -> None:
    """It is told at the start, in either protocol."""
    with pytest.raises(Misconfigured, match=r"^otlp_writer\.endpoint must be"):
        backend(OtlpWriterSettings(endpoint=endpoint, protocol=protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("setting", "content"), [("ca_file", None), ("headers_file", None), ("headers_file", b"\xff")])
def test_a_file_that_is_none_is_ours(
    protocol: Any, setting: str, content: bytes | None, tmp_path: pathlib.Path
) -> None:
    """A missing file and one that is no text are told at the start, in either protocol."""
    file = tmp_path / "file"
    if content:
        file.write_bytes(content)
    own: Any = {setting: file}
    with pytest.raises(Misconfigured, match=rf"^otlp_writer\.{setting} "):
        backend(OtlpWriterSettings(endpoint="https://h:1", protocol=protocol, **own))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_endpoint_may_be_an_ipv6_address(protocol: Any) -> None:
    """It keeps its brackets, without which its port would be part of it."""
    with pytest.raises(Later, match=r"at (http://)?\[::1\]:1 "):
        backend(OtlpWriterSettings(endpoint="http://[::1]:1", protocol=protocol, timeout_s=2)).send("logs", b"")


@pytest.mark.parametrize(("signal", "request_"), REQUESTS)
def test_another_gateway_gives_what_is_sent_on_the_same_ids(signal: Any, request_: Any) -> None:
    """Records that were flattened, sent on and flattened again are the same; of a redelivered twin one is sent."""
    received = 1_795_000_000 * 10**9
    first = of_request(signal, request_, received)
    laid = layout(first.headers["schema"].decode())
    records = [read(raw, laid, TYPES[signal]) for raw in laid.records(first.value)]
    again = export_request(signal, [*records, *records])
    origin = otlp.Origin("shop", "eu", received)
    [group] = otlp.encode(signal, again.SerializeToString(), origin, partitions=1).groups
    assert {raw.whole for raw in laid.records(group.value)} == {raw.whole for raw in laid.records(first.value)}
    assert group.records == len(records)


@pytest.mark.timeout(300)
def test_a_back_end_away_busy_and_picky_gets_everything_once(kafka: str, tmp_path: pathlib.Path) -> None:
    """As a process: nobody listens, then 429 with RetryInfo, then partial success, each record taken once and counted;
    sent again to another gateway of ours, while both are killed, they have the same ids and none is lost."""
    remove_topics(kafka)
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=kafka))
    topics.apply_all(settings)
    assert "nothing lost" in drill.sent_on(Context("otlp_writer", tmp_path, 1, short=True), settings)
    remove_topics(kafka)


@pytest.mark.timeout(120)
def test_a_signal_that_the_back_end_has_no_place_for_holds_up_no_other(kafka: str) -> None:
    """Logs are answered 404 and wait, which `/readyz` says; spans that come after them arrive."""
    remove_topics(kafka)
    server = Server("http", unknown="/v1/logs")
    own = OtlpWriterSettings(endpoint=f"http://127.0.0.1:{server.port}", health_port=free_ports(1)[0])
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=kafka), otlp_writer=own)
    topics.apply_all(settings)
    process = Process("otlp_writer", settings)
    process.start()
    try:
        for signal, request in (("logs", logs("x")), ("traces", traces())):
            send(settings, of_request(signal, request)._replace(topic=f"{signal}_raw", partition=0))
            until(
                lambda path=f"/v1/{signal}": path in {asked.headers["path"] for asked in server.asked}, f"no {signal}"
            )
        assert {asked.headers["path"]: asked.taken for asked in server.asked} == {"/v1/logs": False, "/v1/traces": True}
        with urllib.request.urlopen(f"http://127.0.0.1:{own.health_port}/readyz", timeout=5) as answer:
            degraded = json.load(answer)["degraded"]
        assert degraded.keys() == {"logs_raw"}
        assert "answered 404" in degraded["logs_raw"]
    finally:
        process.close()
        server.stop()
        remove_topics(kafka)
