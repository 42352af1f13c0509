"""The gateway as a process, mostly with Kafka away: what it checks, where it listens, what it reads again, how it ends."""

import contextlib
import http.client
import io
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fastavro
import httpx
import pytest

from pipeline import topics
from pipeline.gateway.front import LAST_WORD_S
from pipeline.gateway.tenants import hashed
from pipeline.kafka.reader import Reader
from pipeline.settings import PREFIX, KafkaSettings, Settings
from tests.conftest import free_ports
from tests.gateway.served import JSON, PROTOBUF
from tests.otlp.requests import logs
from tests.registry.served import Registry
from tests.tables import made

BODY = "a body that no log may show"


class Process:
    """`pipeline gateway` with these settings below PIPELINE_."""

    def __init__(self, directory: pathlib.Path, **variables: object) -> None:
        self.http_port, grpc_port = free_ports(2)
        self.log = directory / "gateway.log"
        self._env = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)} | {
            "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
            "PIPELINE_SPOOL__DIRECTORY": str(directory / "spool"),
            "PIPELINE_GATEWAY__HTTP_PORT": str(self.http_port),
            "PIPELINE_GATEWAY__GRPC_PORT": str(grpc_port),
            **{f"PIPELINE_{name.upper()}": str(value) for name, value in variables.items()},
        }

    def check(self) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "pipeline", "gateway", "--check"]
        return subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=30, check=False)

    @contextlib.contextmanager
    def serving(self, health_port: int | None = None) -> "Iterator[subprocess.Popen[bytes]]":
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "gateway"], env=self._env, stdout=log, stderr=log
            )
        try:
            self.until(lambda: httpx.get(f"http://127.0.0.1:{health_port or self.http_port}/readyz").status_code == 200)
            yield process
        finally:
            process.terminate()
            process.wait(30)

    def until(self, holds: Callable[[], bool], within_s: float = 30) -> None:
        deadline = time.monotonic() + within_s
        while True:
            with contextlib.suppress(httpx.TransportError):
                if holds():
                    return
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def post(self, key: str = "") -> int:
        headers = {**PROTOBUF, **({"authorization": f"Bearer {key}"} if key else {})}
        return httpx.post(
            f"http://127.0.0.1:{self.http_port}/v1/logs", content=logs(BODY).SerializeToString(), headers=headers
        ).status_code


def shop(*keys: str) -> str:
    return "[tenants.shop]\nkeys = [" + ", ".join(f'"{hashed(key)}"' for key in keys) + "]\n"


def test_check_says_what_would_be_served(tmp_path: pathlib.Path) -> None:
    """Exit 0, and nothing was started."""
    done = Process(tmp_path).check()
    assert (done.returncode, done.stderr) == (0, "")
    assert "serves everybody as tenant default on 127.0.0.1" in done.stdout


def test_check_tells_every_problem_of_settings_and_files(tmp_path: pathlib.Path) -> None:
    """Exit 2, one sentence a problem: tenants, certificates and spool at once."""
    (tmp_path / "tenants.toml").write_text('[tenants.shop]\nkeys = ["not-hashed"]\nsignal = []\n')
    (tmp_path / "server.pem").write_text("no certificate")
    (tmp_path / "file").write_text("")
    done = Process(
        tmp_path,
        gateway__tenants_file=tmp_path / "tenants.toml",
        gateway__tls_certificate_file=tmp_path / "server.pem",
        gateway__tls_key_file=tmp_path / "server.pem",
        spool__directory=tmp_path / "file" / "spool",
    ).check()
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 4
    for name in ("tenants.shop.keys.0", "tenants.shop.signal", "gateway.tls_certificate_file", "spool.directory"):
        assert name in done.stderr
    assert "not-hashed" not in done.stderr


def test_a_key_is_shown_once_with_its_hash() -> None:
    """`pipeline tenants key` gives what the client sends and what the file keeps."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "tenants", "key"], capture_output=True, text=True, timeout=30, check=True
    )
    key, kept = (line.split()[-1] for line in done.stdout.splitlines())
    assert kept == f'["{hashed(key)}"]'


def test_without_auth_only_loopback_is_served_and_it_says_so(tmp_path: pathlib.Path) -> None:
    """Whatever gateway.host says; with a tenants file it is obeyed."""
    outside = next(address for address in addresses() if not address.startswith("127."))
    process = Process(tmp_path, gateway__host="0.0.0.0")
    with process.serving():
        assert process.post() == 200
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((outside, process.http_port), timeout=5)
    assert "listening on 127.0.0.1 only, not on 0.0.0.0" in process.log.read_text()
    (tmp_path / "tenants.toml").write_text(shop("k"))
    process = Process(tmp_path, gateway__host="0.0.0.0", gateway__tenants_file=tmp_path / "tenants.toml")
    with process.serving():
        socket.create_connection((outside, process.http_port), timeout=5).close()


def addresses() -> list[str]:
    """Of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent: it only chooses an address of ours
        return [probe.getsockname()[0], "127.0.0.1"]


def test_check_sees_certificates_that_nobody_asks_for_and_kafkas_files(tmp_path: pathlib.Path) -> None:
    """Both would else be found at night."""
    (tmp_path / "tenants.toml").write_text('[tenants.shop]\ncertificates = ["shop.example"]\n')
    done = Process(
        tmp_path,
        gateway__tenants_file=tmp_path / "tenants.toml",
        kafka__security_protocol="SSL",
        kafka__ssl_ca_file=tmp_path / "none.pem",
    ).check()
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2
    assert "set gateway.tls_client_ca_file" in done.stderr
    assert "kafka.ssl_ca_file" in done.stderr
    assert not (tmp_path / "spool").exists()


def test_probes_may_have_a_port_of_their_own(tmp_path: pathlib.Path) -> None:
    """Without TLS and keys; then the OTLP port has none of them."""
    (health_port,) = free_ports(1)
    process = Process(tmp_path, gateway__health_port=health_port)
    with process.serving(health_port):
        assert httpx.get(f"http://127.0.0.1:{process.http_port}/metrics").status_code == 404
        assert "pipeline_spool_level_ratio" in httpx.get(f"http://127.0.0.1:{health_port}/metrics").text


def test_a_line_that_does_not_parse_shows_no_key_in_the_log(tmp_path: pathlib.Path) -> None:
    """Whatever is wrong with a request's headers."""
    process = Process(tmp_path)
    with process.serving():
        for line in (b"Authorization: Bearer SECRET\x01", b"Authorization Bearer SECRET", b"X: SECRET" + b"y" * 10_000):
            with socket.create_connection(("127.0.0.1", process.http_port)) as connection:
                connection.settimeout(5)
                connection.sendall(b"POST /v1/logs HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n")
                assert b" 400 " in connection.recv(4096)
    assert "SECRET" not in process.log.read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_keys_change_while_it_runs(tmp_path: pathlib.Path, workers: int) -> None:
    """A replaced file is read within seconds, at SIGHUP at once; one that does not read changes nothing; no key is logged."""
    file = tmp_path / "tenants.toml"
    file.write_text(shop("first-key"))
    process = Process(tmp_path, gateway__tenants_file=file, gateway__workers=workers)

    def settled(key: str, status: int) -> Callable[[], bool]:
        return lambda: all(process.post(key) == status for _ in range(8))  # connections reach every worker

    with process.serving() as running:
        process.until(settled("first-key", 200))
        replacement = tmp_path / "new.toml"
        replacement.write_text(shop("second-key"))
        replacement.rename(file)
        process.until(settled("second-key", 200))
        process.until(settled("first-key", 401))
        file.write_text("[tenants.shop")
        running.send_signal(signal.SIGHUP)
        process.until(lambda: "do not read" in process.log.read_text())
        assert process.post("second-key") == 200
        file.write_text(shop("second-key", "third-key"))
        running.send_signal(signal.SIGHUP)
        process.until(settled("third-key", 200))
    log = process.log.read_text()
    assert not [secret for secret in ("first-key", "second-key", "third-key", BODY) if secret in log]


def test_sigterm_ends_it_in_time_and_what_it_took_is_in_the_spool(tmp_path: pathlib.Path) -> None:
    """Also while Kafka is away; a gateway that starts later finds it there."""
    process = Process(tmp_path)
    with process.serving() as running:
        assert process.post() == 200
        started = time.monotonic()
        running.terminate()
        assert running.wait(20) == 0
        assert time.monotonic() - started < 15
    with process.serving():
        metrics = httpx.get(f"http://127.0.0.1:{process.http_port}/metrics").text
        assert "pipeline_spool_messages 1.0" in metrics


@pytest.mark.parametrize("sent", [(PROTOBUF, logs("x").SerializeToString()), (JSON, b"{}")], ids=["protobuf", "json"])
def test_no_request_fails_by_its_end(tmp_path: pathlib.Path, sent: tuple[dict[str, str], bytes]) -> None:
    """Clients that keep their connections are told to let go before these are closed, whichever road they take."""
    process = Process(tmp_path)
    with process.serving() as running, ThreadPoolExecutor() as clients:
        under_way = [clients.submit(until_nobody_listens, process.http_port, *sent) for _ in range(8)]
        time.sleep(0.3)
        running.terminate()
        assert running.wait(20) == 0
        for client in under_way:
            client.result()


def until_nobody_listens(port: int, headers: dict[str, str], body: bytes) -> None:
    """Send again and again, over one connection while it may be kept.

    What nobody had accepted when the port was closed is reset by the kernel, and who is silent for long is let go.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    while True:
        try:
            connection.connect()
        except ConnectionRefusedError:
            return
        answered_s = -math.inf
        while connection.sock:
            time.sleep(0.02)
            silent_s = time.monotonic() - answered_s
            try:
                connection.request("POST", "/v1/logs", body, headers)
                answer = connection.getresponse()
            except ConnectionError:
                assert silent_s > LAST_WORD_S / 2, "a connection in use was closed"
                return
            answer.read()
            assert answer.status == 200
            answered_s = time.monotonic()


def test_rows_of_a_new_table_are_in_kafka(kafka: str, registry: Registry, tmp_path: pathlib.Path) -> None:
    """A table registered while the gateway runs: its rows are in the real topic when the client hears OK."""
    own = Settings(kafka=KafkaSettings(bootstrap_servers=kafka))
    topics.apply_all(own)
    reader = Reader(own.kafka)
    before = reader.retained(["events_raw"])
    process = Process(tmp_path, kafka__bootstrap_servers=kafka, registry__port=registry.settings.port)
    with process.serving():
        registry.register(made.audit_log())
        entry = {"entry": 1, "actor": "ann", "allowed": True, "time": "2026-11-20T10:00:00Z"}
        url = f"http://127.0.0.1:{process.http_port}/v1/events/audit_log"
        assert httpx.post(url, json=[entry, {}], timeout=20).json()["accepted"] == 1
        ends = {(one.topic, one.partition): one.end for one in before}
        after = [replace(one, start=ends[one.topic, one.partition]) for one in reader.retained(["events_raw"])]
        [message] = reader.read([one for one in after if one.start < one.end])
        [record] = fastavro.reader(io.BytesIO(message.value))
        assert (record["actor"], dict(message.headers)["schema"]) == ("ann", b"audit_log/1")
