"""The ordinary HTTP request is read by hand, every other by aiohttp: nobody can tell by the answer."""

import contextlib
import http.client
import pathlib
import socket
import time
from collections.abc import Iterator

import grpc
import httpx
import pytest
from google.rpc import code_pb2, status_pb2
from prometheus_client import REGISTRY

from pipeline.gateway import front, sockets
from pipeline.gateway.frames import PREFACE, Kind, frame
from pipeline.gateway.tenants import hashed
from pipeline.settings import GatewaySettings
from tests.gateway.served import Gateway, serving
from tests.otlp.requests import logs

KEY = "front-key"
BODY = logs("a").SerializeToString()
TYPE = {"Content-Type": "application/x-protobuf"}
WHO = {"Authorization": f"Bearer {KEY}"}
PAGE = "https://shop.example"
PASSES_ON = {"Origin": "https://elsewhere.example"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("front")
    tenants = directory / "tenants.toml"
    tenants.write_text(f'[tenants.shop]\nkeys = ["{hashed(KEY)}"]\nsignals = ["logs"]\n')
    settings = GatewaySettings(tenants_file=tenants, max_body_bytes=400_000, max_records=2, cors_origins=(PAGE,))
    with serving(directory / "spool", settings) as running:
        yield running


def asked(gateway: Gateway, path: str, body: bytes, headers: dict[str, str]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.http_port, timeout=10)
    connection.request("POST", path, body, headers)
    return connection.getresponse()


def request(body: bytes, **headers: str) -> bytes:
    """A request as it is on the wire."""
    said = {"Host": "x", **TYPE, **WHO, "Content-Length": str(len(body)), **headers}
    return b"POST /v1/logs HTTP/1.1\r\n%s\r\n%s" % ("".join(f"{k}: {v}\r\n" for k, v in said.items()).encode(), body)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/logs", BODY, WHO, 200),
        ("/v1/logs", logs("a", "b", "c").SerializeToString(), WHO, 200),
        ("/v1/logs", b"", {**WHO, "Connection": "close"}, 200),
        ("/v1/logs", b"\xff", WHO, 400),
        ("/v1/logs", BODY, {}, 401),
        ("/v1/traces", BODY, WHO, 403),
        ("/v1/logs", bytes(400_001), WHO, 413),
        ("/v1/logs", BODY, {**WHO, "Content-Encoding": "br"}, 415),
    ],
)
def test_both_roads_answer_alike(
    gateway: Gateway, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    """Status, headers and body are the same, whichever read the request."""
    own, other = (asked(gateway, path, body, {**TYPE, **headers, **extra}) for extra in ({}, PASSES_ON))
    assert other.getheader("server", "").startswith("Python"), "this one was not aiohttp's"
    assert (own.getheader("server") is None) == (status != 413), "too large a body is aiohttp's to refuse"
    assert own.status == other.status == status
    assert own.read() == other.read()
    first, second = ({k.lower(): v for k, v in answer.getheaders()} for answer in (own, other))
    for ours_to_say in ("date", "server"):
        first.pop(ours_to_say, None)
        second.pop(ours_to_say, None)
    assert first == second


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_pieces_of_any_size_and_requests_in_a_row_are_answered_in_order(gateway: Gateway, size: int) -> None:
    """Three requests on one connection, the second of them malformed, the last one aiohttp's."""
    gateway.publisher.published.clear()
    wire = request(BODY) + request(b"\xff\xff") + request(BODY, **PASSES_ON, Connection="close")
    with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(0, len(wire), size):
            connection.sendall(wire[place : place + size])
        answered = b"".join(iter(lambda: connection.recv(65536), b""))
    assert [part[:3] for part in answered.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400", b"200"]
    assert [len(message.records) for message in gateway.publisher.published] == [1, 1]


def test_an_answer_before_the_body_keeps_the_connection(gateway: Gateway) -> None:
    """The rest of a body that nobody wants is passed over, and the next request is answered."""
    with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=10) as connection:
        unwanted = request(bytes(300_000), Authorization="Bearer wrong")
        connection.sendall(unwanted[:1000])
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        connection.sendall(unwanted[1000:] + request(BODY))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_who_leaves_in_the_middle_leaves_nothing_behind(gateway: Gateway) -> None:
    """Neither bytes held nor a request in flight."""
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=10) as connection:
            connection.sendall(request(bytes(300_000))[:200_000])
    deadline = time.monotonic() + 10
    while _left():
        assert time.monotonic() < deadline, _left()
        time.sleep(0.02)


def _left() -> dict[str, float]:
    values = {
        "held": REGISTRY.get_sample_value("pipeline_gateway_held_bytes"),
        "in flight": REGISTRY.get_sample_value("pipeline_gateway_in_flight_requests", {"protocol": "http"}),
    }
    return {name: value for name, value in values.items() if value}


def test_lines_that_no_client_should_send_are_aiohttps_to_refuse(gateway: Gateway) -> None:
    """A length twice, a length beside chunks, a folded line, a bare line feed: 400, never two requests of one."""
    head = b"POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
    for lines in (
        b"Content-Length: 3\r\nContent-Length: 4\r\n",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: +3\r\n",
        b"Content-Length: 3\r\nX: a\nContent-Length: 0\r\n",
        b"Content-Length : 3\r\n",
        b"Content-Length: 3\n\n",
        b"Content-Length: 3\n",
    ):
        with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=10) as connection:
            connection.sendall(head + lines + b"\r\nabc")
            assert connection.recv(65536)[9:12] == b"400", lines


def test_a_head_full_of_blanks_costs_nobody_time(gateway: Gateway) -> None:
    """Ten heads of 16 KB, most of it blanks, are answered at once: a header is read once, whatever is in it."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=10) as connection:
        for _ in range(10):
            connection.sendall(request(BODY, Blanks=f"a{' ' * 16_000}b"))
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert time.monotonic() - started < 2


def test_what_never_becomes_a_request_is_closed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence, a head that does not end, blank lines, a second head behind a first; what is no HTTP has a 400 at once."""
    monkeypatch.setattr(front, "IDLE_S", 1.0)
    asked = b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n"
    heads = [b"", b"G", b"GET / HT", b"\r\n\r\n\r\n", b"POST /v1/lo", request(b"")[:-2], asked + b"GET /"]
    with serving(tmp_path) as gateway, contextlib.ExitStack() as open_connections:
        address = "127.0.0.1", gateway.http_port
        started = time.monotonic()
        connections = [open_connections.enter_context(socket.create_connection(address, timeout=10)) for _ in heads]
        for connection, head in zip(connections, heads, strict=True):
            connection.sendall(head)
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(b"\x16\x03\x01\x02\x00")
            assert connection.recv(65536)[9:12] == b"400"
        for connection in connections:
            while connection.recv(65536):
                pass
        assert 0.9 < time.monotonic() - started < 1.9


@pytest.mark.parametrize("kind", ["ordinary", "aiohttp", "gRPC"])
def test_who_never_reads_is_cut_off(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """However much is left to be written; what a client sends is not read for ever either."""
    monkeypatch.setattr(front, "IDLE_S", 1.0)
    monkeypatch.setattr(sockets, "UNREAD_S", 1.0)
    sent = {
        "ordinary": request(b"\xff") * 50,
        "aiohttp": request(BODY, **{"Content-Type": "x/" + "x" * 8000}),
        "gRPC": frame(Kind.PING, 0, 0, bytes(8)) * 500,
    }[kind]
    with serving(tmp_path) as gateway, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(15)
        connection.connect(("127.0.0.1", gateway.grpc_port if kind == "gRPC" else gateway.http_port))
        if kind == "gRPC":
            connection.sendall(PREFACE + frame(Kind.SETTINGS, 0, 0, b""))
        with pytest.raises(ConnectionError):
            send_for_ever(connection, sent)


def send_for_ever(connection: socket.socket, sent: bytes) -> None:
    while True:
        connection.sendall(sent)


@pytest.mark.parametrize("requests", [1, 2])
def test_who_has_sent_all_still_hears_the_answers(gateway: Gateway, requests: int) -> None:
    """A client may shut its side behind its last request; that one's answer ends the connection."""
    gateway.publisher.hold = True
    try:
        with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=10) as connection:
            connection.sendall(request(BODY) * requests)
            connection.shutdown(socket.SHUT_WR)
            time.sleep(0.2)
            gateway.publisher.hold = False
            gateway.publisher.release()
            answered = b"".join(iter(lambda: connection.recv(65536), b""))
    finally:
        gateway.publisher.hold = False
        gateway.publisher.release()
    assert answered.count(b"HTTP/1.1 200 OK") == requests
    assert answered.count(b"Connection: close") == 1


def test_several_keys_are_nobodys(gateway: Gateway) -> None:
    """Over both protocols alike, whatever their order; the same key twice is that key."""
    wrong, right = "Bearer wrong", f"Bearer {KEY}"
    for shown, status in (((wrong, right), 401), ((right, wrong), 401), ((right, right), 200)):
        fields = [("authorization", value) for value in shown]
        answer = httpx.post(f"{gateway.http}/v1/logs", content=BODY, headers=[*TYPE.items(), *fields])
        assert answer.status_code == status
        if status == 200:
            assert gateway.export(BODY, metadata=fields) == b""
        else:
            with pytest.raises(grpc.RpcError) as caught:
                gateway.export(BODY, metadata=fields)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/none", 404, code_pb2.NOT_FOUND),
        ("GET", "/v1/logs", 405, code_pb2.UNIMPLEMENTED),
        ("OPTIONS", "/v1/logs", 403, code_pb2.PERMISSION_DENIED),
    ],
)
def test_what_is_no_call_of_ours_has_its_own_code(
    gateway: Gateway, method: str, path: str, status: int, code: int
) -> None:
    """In the Status, as google.rpc pairs codes with those of HTTP."""
    asks = {**TYPE, **PASSES_ON, "Access-Control-Request-Method": "POST"}
    answer = httpx.request(method, gateway.http + path, headers=asks)
    assert (answer.status_code, status_pb2.Status.FromString(answer.content).code) == (status, code)


def test_who_does_not_wait_to_be_asked_costs_no_traceback(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """A client that asks whether it may send, and leaves, is no error of the gateway's."""
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", gateway.http_port)) as client:
            client.sendall(request(b"", Expect="100-continue"))
    assert asked(gateway, "/v1/logs", BODY, {**TYPE, **WHO, "Expect": "100-continue"}).status == 200
    assert "Error handling request" not in caplog.text


def test_an_expectation_that_nobody_knows_is_none(gateway: Gateway) -> None:
    """RFC 9110, 10.1.1, knows 100-continue only, and lets a server pass over others."""
    assert asked(gateway, "/v1/logs", BODY, {**TYPE, **WHO, "Expect": "200-ok"}).status == 200
