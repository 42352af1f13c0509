"""What both protocols owe their clients beyond the specification's sentences, on real servers with a fake Kafka."""

import contextlib
import gzip
import json
import pathlib
import select
import socket
import ssl
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings
import httpx
import lz4.frame
import psutil
import pytest
import trustme
from backports import zstd
from cramjam import snappy
from google.rpc import error_details_pb2, status_pb2

from pipeline.gateway.grpc import PREFIX
from pipeline.gateway.tenants import hashed
from pipeline.settings import GatewaySettings
from tests.gateway.served import JSON, PROTOBUF, Gateway, export, serving
from tests.otlp.as_json import as_json
from tests.otlp.requests import ONE_OF_EVERYTHING, logs

SETTINGS = GatewaySettings(
    max_body_bytes=100_000,
    max_decoded_bytes=200_000,
    max_records=50,
    max_requests=8,
    cors_origins=("https://shop.example",),
)
CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "snappy": lambda body: bytes(snappy.compress_raw(body)),
    "x-snappy-framed": lambda body: bytes(snappy.compress(body)),
    "lz4": lz4.frame.compress,
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with serving(tmp_path_factory.mktemp("spool"), SETTINGS) as gateway:
        yield gateway


@pytest.fixture
def gateway(running: Gateway) -> Gateway:
    running.publisher.published.clear()
    return running


def ids(gateway: Gateway) -> list[list[bytes]]:
    return [sorted(r["event_id"] for r in message.records) for message in gateway.publisher.published]


class RawGrpc:
    """An HTTP/2 client that can say what no gRPC library would."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.settimeout(10)
        self.http2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.http2.initiate_connection()
        self._stream = -1
        self._pending: list[h2.events.Event] = []

    def call(self, data: bytes, headers: dict[str, str] | None = None) -> dict[str, str]:
        """Send one request with this DATA and end it; return all response headers and trailers."""
        self.begin(headers)
        self.http2.send_data(self._stream, data, end_stream=True)
        return self.answer()

    def begin(self, headers: dict[str, str] | None = None) -> None:
        self._stream += 2
        wanted = {
            ":method": "POST", ":scheme": "http", ":authority": "x", "te": "trailers", "content-type": "application/grpc",
            ":path": "/opentelemetry.proto.collector.logs.v1.LogsService/Export", **(headers or {}),
        }  # fmt: skip
        self.http2.send_headers(self._stream, sorted(wanted.items(), key=lambda pair: not pair[0].startswith(":")))
        self.flush()

    def answer(self) -> dict[str, str]:
        self.flush()
        found: dict[str, str] = {}
        while True:
            for event in self.http2.receive_data(self._socket.recv(65536)):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    found |= dict(event.headers)
                if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    self.flush()
                    return found
            self.flush()

    def events(self) -> Iterator[h2.events.Event]:
        """What comes until the connection ends."""
        while data := self._socket.recv(65536):
            yield from self.http2.receive_data(data)

    def flush(self) -> None:
        self._socket.sendall(self.http2.data_to_send())


@pytest.mark.parametrize("signal", ["logs", "metrics", "traces"])
def test_ids_do_not_depend_on_protocol_encoding_or_coding(gateway: Gateway, signal: str) -> None:
    """gRPC and HTTP, protobuf and JSON, plain and in every coding publish the same ids."""
    body, text = ONE_OF_EVERYTHING[signal].SerializeToString(), as_json(ONE_OF_EVERYTHING[signal])
    for coding, compress in CODINGS.items():
        said = {"content-encoding": coding}
        assert gateway.post(compress(body), {**PROTOBUF, **said}, f"/v1/{signal}").content == b""
        assert gateway.post(compress(text), {**JSON, **said}, f"/v1/{signal}").content == b"{}"
    for compression in (None, grpc.Compression.Gzip, grpc.Compression.Deflate):
        assert gateway.export(body, signal, compression=compression) == b""
    found, sent = ids(gateway), 2 * len(CODINGS) + 3
    assert len(found) == sent * (len(found) // sent)
    assert len({tuple(one) for one in found}) == len(found) // sent


@pytest.mark.parametrize(
    ("coding", "compress"), [("zstd", zstd.compress), ("snappy", snappy.compress), ("lz4", lz4.frame.compress)]
)
def test_grpc_speaks_what_clients_do(gateway: Gateway, coding: str, compress: Callable[[bytes], Any]) -> None:
    """The Collector's zstd and snappy, framed, and lz4; the answer says what is understood."""
    packed = bytes(compress(logs("a").SerializeToString()))
    answer = RawGrpc(gateway.grpc_port).call(PREFIX.pack(1, len(packed)) + packed, {"grpc-encoding": coding})
    assert answer["grpc-status"] == "0"
    assert answer["grpc-accept-encoding"] == "identity,gzip,deflate,zstd,snappy,lz4"
    assert [r["body"] for m in gateway.publisher.published for r in m.records] == ["a"]


@pytest.mark.parametrize(
    ("data", "headers", "code", "says"),
    [
        (b"", {}, "3", "before a gRPC message began"),
        (b"\0\0\0", {}, "3", "before a gRPC message began"),
        (PREFIX.pack(0, 10) + b"short", {}, "3", "holds 5 bytes where its one gRPC message has 10"),
        (PREFIX.pack(0, 1) + b"\x0a\x00", {}, "3", "holds 2 bytes where its one gRPC message has 1"),
        (PREFIX.pack(1, 2) + b"\x0a\x00", {}, "3", "does not say how"),
        (PREFIX.pack(7, 2) + b"\x0a\x00", {"grpc-encoding": "gzip"}, "3", "does not say how"),
        (PREFIX.pack(1, 2) + b"\x0a\x00", {"grpc-encoding": "br"}, "12", "br is not supported"),
        (PREFIX.pack(0, 2) + b"\x0a\x00", {"grpc-encoding": "br"}, "0", ""),
        (PREFIX.pack(1, 2) + b"\x0a\x00", {"grpc-encoding": "snappy"}, "3", "is not snappy"),
        (PREFIX.pack(1, 5) + b"\xff\xff\xff\xff\x0f", {"grpc-encoding": "snappy"}, "3", "which it cannot"),
        (PREFIX.pack(0, 1 << 31), {}, "8", "larger than 100000 bytes"),
        (PREFIX.pack(0, 0), {":path": "/no.such/Method"}, "12", "no such method"),
    ],
)  # fmt: skip
def test_odd_grpc_requests_have_a_code_and_a_sentence(
    gateway: Gateway, data: bytes, headers: dict[str, str], code: str, says: str
) -> None:
    """And the connection goes on."""
    client = RawGrpc(gateway.grpc_port)
    answer = client.call(data, headers)
    assert (answer[":status"], answer["grpc-status"]) == ("200", code)
    assert says in answer.get("grpc-message", "")
    good = logs("a").SerializeToString()
    assert client.call(PREFIX.pack(0, len(good)) + good)["grpc-status"] == "0"


def test_what_is_not_grpc_is_415_or_cut_off(gateway: Gateway) -> None:
    """A browser's HTTP/2 request has an HTTP answer, and HTTP/1 on the gRPC port is closed."""
    assert RawGrpc(gateway.grpc_port).call(b"", {"content-type": "text/html"})[":status"] == "415"
    with socket.create_connection(("127.0.0.1", gateway.grpc_port)) as connection:
        connection.settimeout(5)
        connection.sendall(b"POST /v1/logs HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(100))
        while connection.recv(4096):
            pass


@pytest.mark.parametrize(
    ("body", "headers", "status", "sentence"),
    [
        (b"garbage", PROTOBUF, 400, "is not a protobuf ExportLogsServiceRequest"),
        (b"garbage", JSON, 400, "is not JSON"),
        (b"x", {"content-type": "text/plain"}, 415, "send application/x-protobuf or application/json"),
        (b"x", {}, 415, "application/octet-stream is not supported"),
        (b"x", {**PROTOBUF, "content-encoding": "br"}, 415, "br is not supported"),
        (b"no gzip at all", {**PROTOBUF, "content-encoding": "gzip"}, 400, "is not gzip"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-9], {**PROTOBUF, "content-encoding": "gzip"}, 400, "cut short"),
        (bytes(100_001), PROTOBUF, 413, "larger than 100000 bytes"),
        (gzip.compress(bytes(50_000_000)), {**PROTOBUF, "content-encoding": "gzip"}, 413, "when decompressed"),
        (zstd.compress(bytes(50_000_000)), {**PROTOBUF, "content-encoding": "zstd"}, 413, "when decompressed"),
        (CODINGS["x-snappy-framed"](bytes(2_000_000)), {**PROTOBUF, "content-encoding": "snappy"}, 413, "when decomp"),
        (CODINGS["snappy"](bytes(2_000_000)), {**PROTOBUF, "content-encoding": "snappy"}, 413, "when decompressed"),
        (CODINGS["snappy"](b"x" * 99)[:-1], {**PROTOBUF, "content-encoding": "snappy"}, 400, "is not snappy"),
        (CODINGS["lz4"](bytes(20_000_000)), {**PROTOBUF, "content-encoding": "lz4"}, 413, "when decompressed"),
        (CODINGS["lz4"](bytes(1000))[:-1], {**JSON, "content-encoding": "lz4"}, 400, "cut short"),
        (zlib.compress(bytes(50_000_000)), {**JSON, "content-encoding": "deflate"}, 413, "when decompressed"),
    ],
)  # fmt: skip
def test_http_refusals_name_what_was_wrong(
    gateway: Gateway, body: bytes, headers: dict[str, str], status: int, sentence: str
) -> None:
    """Each kind of bad request has its status and a sentence in google.rpc.Status."""
    answer = gateway.post(body, headers)
    assert answer.status_code == status
    if answer.headers["content-type"] == "application/x-protobuf":
        message = status_pb2.Status.FromString(answer.content).message
    else:
        message = json.loads(answer.content)["message"]
    assert sentence in message
    assert gateway.publisher.published == []


def test_a_body_that_never_ends_is_cut_off(gateway: Gateway) -> None:
    """Chunks beyond the limit are not read on, and a lying Content-Length is no harm to others."""
    with contextlib.suppress(httpx.HTTPError):
        answer = gateway.post((bytes(10_000) for _ in range(100_000)), PROTOBUF)
        assert answer.status_code == 413
    with socket.create_connection(("127.0.0.1", gateway.http_port)) as connection:
        connection.sendall(b"POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n")
        connection.sendall(b"Content-Length: 50\r\n\r\nshort")
    assert gateway.post(logs("a").SerializeToString(), PROTOBUF).status_code == 200


def test_more_records_than_the_limit_are_refused_and_the_first_accepted(gateway: Gateway) -> None:
    """partial_success names the setting."""
    answer = gateway.post(as_json(logs(*[f"{n}" for n in range(60)])), JSON)
    partial = answer.json()["partialSuccess"]
    assert partial["rejectedLogRecords"] == "10"
    assert "gateway.max_records" in partial["errorMessage"]
    assert [len(m.records) for m in gateway.publisher.published] == [50]


def test_one_request_too_many_at_a_time_is_told_to_come_again(gateway: Gateway) -> None:
    """Over both protocols, with both ways of saying when; those before it are answered."""
    gateway.publisher.hold = True
    try:
        with grpc.insecure_channel(gateway.grpc) as channel:
            waiting = [export(channel).future(logs(f"{n}").SerializeToString()) for n in range(8)]
            deadline = time.monotonic() + 5
            while not gateway.publisher.published and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            answer = gateway.post(logs().SerializeToString(), PROTOBUF)
            with pytest.raises(grpc.RpcError) as caught:
                export(channel)(logs().SerializeToString(), timeout=5)
            gateway.publisher.hold = False
            gateway.publisher.release()
            assert {one.result(10) for one in waiting} == {b""}
    finally:
        gateway.publisher.hold = False
        gateway.publisher.release()
    assert (answer.status_code, "gateway.max_requests" in status_pb2.Status.FromString(answer.content).message) == (
        503,
        True,
    )
    assert 3 <= int(answer.headers["retry-after"]) <= 8
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    trailers = dict(caught.value.trailing_metadata())
    in_status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details[0]
    assert in_status.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    assert trailers["google.rpc.retryinfo-bin"] == in_status.value


def test_a_client_that_resets_leaves_nothing_behind(gateway: Gateway) -> None:
    """Neither its place among the requests nor its bytes."""
    for _ in range(3 * SETTINGS.max_requests):
        client = RawGrpc(gateway.grpc_port)
        client.begin()
        client.http2.send_data(1, PREFIX.pack(0, 90_000) + bytes(1000))
        client.http2.reset_stream(1)
        client.flush()
    good = logs("a").SerializeToString()
    assert client.call(PREFIX.pack(0, len(good)) + good)["grpc-status"] == "0"


def test_who_sends_more_than_the_window_is_cut_off(gateway: Gateway) -> None:
    """A GOAWAY that says FLOW_CONTROL_ERROR, and others go on."""
    client = RawGrpc(gateway.grpc_port)
    client.begin()
    frame = struct.pack(">BHBBI", 0, 16_384, 0, 0, 1) + PREFIX.pack(0, 90_000) + bytes(16_384 - PREFIX.size)
    client._socket.sendall(frame * 20)
    with contextlib.suppress(ConnectionError):
        events = list(client.events())
        assert [e.error_code for e in events if isinstance(e, h2.events.ConnectionTerminated)] == [3]
    assert RawGrpc(gateway.grpc_port).call(PREFIX.pack(0, 0))["grpc-status"] == "0"


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_frames_in_pieces_of_any_size_are_taken(gateway: Gateway, size: int) -> None:
    """Two requests on one connection, whose DATA is cut into frames of 300 bytes, and these on their way again."""
    gateway.publisher.published.clear()
    body = logs(*("a" * 100 for _ in range(10))).SerializeToString()
    data = PREFIX.pack(0, len(body)) + body
    client = RawGrpc(gateway.grpc_port)
    for stream in (1, 3):
        client.begin()
        for place in range(0, len(data), 300):
            client.http2.send_data(stream, data[place : place + 300], end_stream=place + 300 >= len(data))
        wire = client.http2.data_to_send()
        for place in range(0, len(wire), size):
            client._socket.sendall(wire[place : place + size])
        assert client.answer()["grpc-status"] == "0"
    assert [len(message.records) for message in gateway.publisher.published] == [10, 10]


def test_data_within_a_header_block_is_cut_off(gateway: Gateway) -> None:
    """A GOAWAY that says PROTOCOL_ERROR, and others go on (RFC 9113, 6.10)."""
    client = RawGrpc(gateway.grpc_port)
    client.begin()
    begun = struct.pack(">BHBBI", 0, 1, 1, 0, 3) + b"\x83"
    client._socket.sendall(begun + struct.pack(">BHBBI", 0, PREFIX.size, 0, 0, 1) + PREFIX.pack(0, 10))
    with contextlib.suppress(ConnectionError):
        events = list(client.events())
        assert [e.error_code for e in events if isinstance(e, h2.events.ConnectionTerminated)] == [1]
    assert RawGrpc(gateway.grpc_port).call(PREFIX.pack(0, 0))["grpc-status"] == "0"


def test_a_content_length_is_compared(gateway: Gateway) -> None:
    """The right one is taken, a wrong one is no request."""
    good = logs("a").SerializeToString()
    data = PREFIX.pack(0, len(good)) + good
    client = RawGrpc(gateway.grpc_port)
    assert client.call(data, {"content-length": str(len(data))})["grpc-status"] == "0"
    client.begin({"content-length": str(len(data) + 1)})
    client.http2.send_data(3, data, end_stream=True)
    client.flush()
    assert any(isinstance(event, h2.events.ConnectionTerminated) for event in client.events())


@pytest.mark.parametrize(
    "sent", [b"\xff", b"00-x", b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01, x", bytes(range(128, 200))]
)
def test_a_traceparent_that_is_none_is_passed_over(gateway: Gateway, sent: bytes) -> None:
    """The request is taken, and so are those after it; a real one is in the message's headers."""
    body = logs("a").SerializeToString()
    with httpx.Client() as client:
        for trace in (sent, b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"):
            answer = client.post(f"{gateway.http}/v1/logs", content=body, headers={**PROTOBUF, b"traceparent": trace})  # type: ignore[dict-item]
            assert answer.status_code == 200
    assert ["traceparent" in m.headers for m in gateway.publisher.published] == [False, True]


@pytest.mark.parametrize("name", ["authorization", "content-type", "content-encoding"])
def test_headers_that_are_no_text_are_no_bug(gateway: Gateway, name: str) -> None:
    """Any bytes in a header end in an answer that is no 5xx."""
    headers = {b"content-type": b"application/json", name.encode(): b"Bearer \xff\xfe"}
    assert httpx.post(f"{gateway.http}/v1/logs", content=b"{}", headers=headers).status_code in (200, 415)  # type: ignore[arg-type]


def test_pages_of_named_origins_may_send_and_others_not(gateway: Gateway) -> None:
    """CORS: preflight and answer, for the origins in the settings only; sendBeacon asks with credentials."""
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,authorization"}
    url = f"{gateway.http}/v1/traces"
    allowed = httpx.options(url, headers={"origin": "https://shop.example", **asked})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
    assert allowed.headers["access-control-allow-credentials"] == "true"
    assert "AUTHORIZATION" in allowed.headers["access-control-allow-headers"].upper()
    answer = gateway.post(b"", {**PROTOBUF, "origin": "https://shop.example"}, "/v1/traces")
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert httpx.options(url, headers={"origin": "https://evil.example", **asked}).status_code == 403
    refused = gateway.post(b"", {**PROTOBUF, "origin": "https://evil.example"}, "/v1/traces")
    assert "access-control-allow-origin" not in refused.headers


def test_without_origins_no_page_may_send(tmp_path: pathlib.Path) -> None:
    """CORS is off by default."""
    with serving(tmp_path) as gateway:
        asked = {"origin": "https://shop.example", "access-control-request-method": "POST"}
        answer = httpx.options(f"{gateway.http}/v1/traces", headers=asked)
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


def test_old_connections_are_asked_to_come_anew(tmp_path: pathlib.Path) -> None:
    """HTTP with Connection: close, gRPC with GOAWAY; no request fails by it."""
    with serving(tmp_path, GatewaySettings(max_connection_age_s=0.3)) as gateway:
        with httpx.Client(base_url=gateway.http) as client:
            assert "connection" not in client.post("/v1/logs", content=b"", headers=PROTOBUF).headers
            time.sleep(0.4)
            assert client.post("/v1/logs", content=b"", headers=PROTOBUF).headers["connection"] == "close"
            assert client.post("/v1/logs", content=b"", headers=PROTOBUF).status_code == 200
        with grpc.insecure_channel(gateway.grpc) as channel:
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                assert export(channel)(b"", timeout=5) == b""
        raw = RawGrpc(gateway.grpc_port)
        time.sleep(0.5)
        while raw._socket.recv(65536):
            pass


def test_a_body_that_does_not_arrive_is_given_up(tmp_path: pathlib.Path) -> None:
    """A slow client does not hold its place for ever."""
    with serving(tmp_path, GatewaySettings(receive_within_s=0.2)) as gateway:
        raw = RawGrpc(gateway.grpc_port)
        raw.begin()
        assert "did not arrive" in raw.answer()["grpc-message"]
        with socket.create_connection(("127.0.0.1", gateway.http_port)) as connection:
            connection.settimeout(5)
            connection.sendall(
                b"POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
            )
            assert b"503 Service Unavailable" in connection.recv(4096)


# Who sends


@pytest.fixture
def tenants(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "tenants.toml"
    file.write_text(
        f'[tenants.shop]\nkeys = ["{hashed("shop-key")}"]\nsignals = ["logs"]\n'
        f'[tenants.slow]\nkeys = ["{hashed("slow-key")}"]\nrecords_per_s = 1\nburst_s = 1\n'
    )
    return file


def as_sent(call: Callable[[], Any]) -> tuple[Any, Any]:
    """The outcome of one gRPC call: code and trailers."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), dict(error.trailing_metadata())
    return grpc.StatusCode.OK, {}


def test_keys_name_tenants_and_rates_are_kept(tmp_path: pathlib.Path, tenants: pathlib.Path) -> None:
    """401, 403 and 429 over HTTP, and their codes over gRPC; the tenant is what the key says, whatever the client says."""
    with serving(tmp_path / "spool", GatewaySettings(tenants_file=tenants)) as gateway:
        request = logs("a")
        for key in ("tenant", "region"):
            attribute = request.resource_logs[0].resource.attributes.add(key=key)
            attribute.value.string_value = "forged"
        body = request.SerializeToString()

        def post(key: str | None, path: str = "/v1/logs") -> httpx.Response:
            who = {} if key is None else {"authorization": f"Bearer {key}"}
            return gateway.post(body, {**PROTOBUF, **who, "tenant": "forged", "x-scope-orgid": "forged"}, path)

        def call(key: str | None, signal: str = "logs") -> tuple[Any, Any]:
            who = [] if key is None else [("authorization", f"Bearer {key}")]
            return as_sent(lambda: gateway.export(body, signal, metadata=who))

        assert [post(key).status_code for key in (None, "wrong", "shop-key")] == [401, 401, 200]
        assert post(None).headers["www-authenticate"] == "Bearer"
        assert post("shop-key", "/v1/traces").status_code == 403
        assert call(None)[0] is grpc.StatusCode.UNAUTHENTICATED
        assert call("shop-key")[0] is grpc.StatusCode.OK
        assert call("shop-key", "traces")[0] is grpc.StatusCode.PERMISSION_DENIED
        assert {m.headers["tenant"] for m in gateway.publisher.published} == {b"shop"}
        assert {(r["tenant"], r["region"]) for m in gateway.publisher.published for r in m.records} == {
            ("shop", "local")
        }

        codes = [post("slow-key") for _ in range(4)]
        assert 429 in [answer.status_code for answer in codes]
        throttled = next(answer for answer in codes if answer.status_code == 429)
        assert int(throttled.headers["retry-after"]) >= 1
        assert status_pb2.Status.FromString(throttled.content).details[0].Is(error_details_pb2.RetryInfo.DESCRIPTOR)
        calls = dict(call("slow-key") for _ in range(4))
        assert "google.rpc.retryinfo-bin" in calls[grpc.StatusCode.RESOURCE_EXHAUSTED]


def test_tls_and_client_certificates_on_both_ports(tmp_path: pathlib.Path) -> None:
    """Nobody without a certificate of the client CA gets in; its name says the tenant; a new certificate is served."""
    authority, clients, stranger = trustme.CA(), trustme.CA(), trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")
    (tmp_path / "tenants.toml").write_text('[tenants.shop]\ncertificates = ["shop.example"]\n')
    settings = GatewaySettings(
        tenants_file=tmp_path / "tenants.toml",
        tls_certificate_file=tmp_path / "server.pem",
        tls_key_file=tmp_path / "server.pem",
        tls_client_ca_file=tmp_path / "clients.pem",
    )
    body = logs("a").SerializeToString()

    def context(issuer: trustme.CA | None, name: str = "shop.example") -> ssl.SSLContext:
        made = ssl.create_default_context()
        authority.configure_trust(made)
        if issuer:
            issuer.issue_cert(name).configure_cert(made)
        return made

    with serving(tmp_path / "spool", settings) as gateway:
        url = f"https://127.0.0.1:{gateway.http_port}/v1/logs"
        assert httpx.post(url, content=body, headers=PROTOBUF, verify=context(clients)).status_code == 200
        other = httpx.post(url, content=body, headers=PROTOBUF, verify=context(clients, "unknown.example"))
        assert other.status_code == 401
        for issuer in (None, stranger):
            with pytest.raises(httpx.TransportError):
                httpx.post(url, content=body, headers=PROTOBUF, verify=context(issuer))

        mine = clients.issue_cert("shop.example")
        credentials = grpc.ssl_channel_credentials(
            authority.cert_pem.bytes(),
            mine.private_key_pem.bytes(),
            b"".join(pem.bytes() for pem in mine.cert_chain_pems),
        )
        with grpc.secure_channel(gateway.grpc, credentials) as channel:
            assert export(channel)(body, timeout=10) == b""
        nobody = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        with grpc.secure_channel(gateway.grpc, nobody) as channel:
            assert as_sent(lambda: export(channel)(body, timeout=3))[0] is grpc.StatusCode.UNAVAILABLE
        assert {m.headers["tenant"] for m in gateway.publisher.published} == {b"shop"}

        before = served_certificate(gateway.http_port)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
        gateway.certificates.reload()
        assert served_certificate(gateway.http_port) != before
        assert served_certificate(gateway.grpc_port) == served_certificate(gateway.http_port)


def served_certificate(port: int) -> bytes | None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as connection:
        return connection.getpeercert(binary_form=True)


def test_static_tags_are_on_every_record(tmp_path: pathlib.Path) -> None:
    """And stand above what the client says."""
    settings = GatewaySettings(resource_attributes={"deployment.environment": "production", "service.name": "named"})
    with serving(tmp_path, settings) as gateway:
        gateway.post(logs("a").SerializeToString(), PROTOBUF)
        [record] = gateway.publisher.published[0].records
    assert record["resource_attributes"]["deployment.environment"] == "production"
    assert record["service"] == record["resource_attributes"]["service.name"] == "named"


def test_members_without_end_are_rejected(gateway: Gateway) -> None:
    """Empty zstd and lz4 frames and gzip members cost time each, so a thousand are enough."""
    for coding, member in (
        ("zstd", zstd.compress(b"")),
        ("gzip", gzip.compress(b"")),
        ("lz4", lz4.frame.compress(b"")),
    ):
        answer = gateway.post(member * 4000, {**PROTOBUF, "content-encoding": coding})
        assert answer.status_code == 400
        assert "has more than 1000" in status_pb2.Status.FromString(answer.content).message


def test_an_answer_waits_for_the_clients_window(gateway: Gateway) -> None:
    """A client that opens its window late still hears its answer, whole."""
    client = RawGrpc(gateway.grpc_port)
    client.http2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    good = logs("a").SerializeToString()
    client.begin()
    client.http2.send_data(1, PREFIX.pack(0, len(good)) + good, end_stream=True)
    client.flush()
    time.sleep(0.2)
    client.http2.increment_flow_control_window(100, 1)
    answer = client.answer()
    assert (answer[":status"], answer["grpc-status"]) == ("200", "0")


@pytest.mark.parametrize("content_type", ["application/grpc-web+proto", "application/grpc+json", "application/grpcfoo"])
def test_other_kinds_of_grpc_are_415(gateway: Gateway, content_type: str) -> None:
    """What we do not speak is not answered as if we did."""
    assert RawGrpc(gateway.grpc_port).call(PREFIX.pack(0, 0), {"content-type": content_type})[":status"] == "415"


def test_resets_and_headers_without_end_close_the_connection(gateway: Gateway) -> None:
    """A client that only resets, or sends more headers than we said, is cut off; others are served."""
    for abuse in (reset_for_ever, too_many_headers):
        client = RawGrpc(gateway.grpc_port)
        with contextlib.suppress(ConnectionError):
            abuse(client)
            while client._socket.recv(65536):
                pass
    assert gateway.post(logs("a").SerializeToString(), PROTOBUF).status_code == 200


def reset_for_ever(client: RawGrpc) -> None:
    for stream in range(1, 3001, 2):
        client.begin()
        client.http2.reset_stream(stream)
        client.flush()


def too_many_headers(client: RawGrpc) -> None:
    client.begin({f"x-{n}": "v" * 1000 for n in range(40)})


def test_bombs_at_once_cost_what_one_costs(tmp_path: pathlib.Path) -> None:
    """Twelve bodies that become 30 MB each, held back until all are there: never more than a few in memory."""
    settings = GatewaySettings()
    bomb = gzip.compress(b"\x12\x00" * 15_000_000 + b"\xff")  # malformed at its end
    with serving(tmp_path, settings) as gateway, contextlib.ExitStack() as open_connections:
        head = (
            "POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
            f"Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
        )
        clients = []
        for _ in range(12):
            client = open_connections.enter_context(socket.create_connection(("127.0.0.1", gateway.http_port)))
            client.settimeout(60)
            client.sendall(head.encode() + bomb[:-1])
            clients.append(client)
        time.sleep(0.5)
        before = psutil.Process().memory_info().rss
        for client in clients:
            client.sendall(bomb[-1:])
        peak = 0
        waiting = set(clients)
        while waiting:
            for client in select.select(list(waiting), [], [], 0.01)[0]:
                assert client.recv(4096).split(b" ")[1] in (b"400", b"503")
                waiting.discard(client)
            peak = max(peak, psutil.Process().memory_info().rss)
    assert peak - before < 150_000_000


def test_who_announces_much_and_sends_little_keeps_nobody_out(tmp_path: pathlib.Path) -> None:
    """Forty slow clients of 16 MB each beside a limit of 4 MB in flight; a large body still passes on both ports."""
    settings = GatewaySettings(max_in_flight_bytes=4_000_000, max_body_bytes=16_000_000)
    with serving(tmp_path, settings) as gateway, contextlib.ExitStack() as slow:
        for _ in range(20):
            connection = slow.enter_context(socket.create_connection(("127.0.0.1", gateway.http_port)))
            head = "POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 16000000\r\n\r\n"
            connection.sendall(head.encode() + b"{")
            raw = RawGrpc(gateway.grpc_port)
            raw.begin()
            raw.http2.send_data(1, PREFIX.pack(0, 15_000_000) + b"\x0a")
            raw.flush()
        body = logs(*["x" * 1000 for _ in range(1500)]).SerializeToString()
        assert gateway.post(body, PROTOBUF).status_code == 200
        assert gateway.export(body) == b""
