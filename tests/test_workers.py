"""Several gateway workers under one supervisor, against a real broker."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from pipeline import topics, workers
from pipeline.settings import GatewaySettings, KafkaSettings, Settings, as_environment
from tests.conftest import free_ports
from tests.otlp.requests import logs

WORKERS = 2


def until(condition: Callable[[], object], within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


class Gateway:
    """A supervisor and its workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "gateway", "--workers", str(WORKERS)],
            env=os.environ | as_environment(settings), stderr=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def port(self) -> int:
        return self.settings.gateway.http_port

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def serving(self) -> list[psutil.Process]:
        """Workers that listen: each has the port of its own."""
        return [
            worker
            for worker in self.workers()
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == self.port for c in connections(worker))
        ]

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return answer.read().decode()

    def ready(self) -> bool:
        with contextlib.suppress(OSError):
            return len(self.serving()) == WORKERS and '"ready"' in self.get("/readyz")
        return False

    def post(self, body: bytes) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/logs", body, {"Content-Type": "application/x-protobuf"}
        )
        with urllib.request.urlopen(request, timeout=15) as answer:
            assert answer.status == 200

    def metric(self, name: str, label: str) -> float:
        """A sample's value; 0 where nobody has counted yet."""
        found = re.findall(rf"^{name}\{{[^}}]*{label}[^}}]*\}} (\S+)$", self.get("/metrics"), re.MULTILINE)
        assert len(found) <= 1
        return float(found[0]) if found else 0.0

    def end(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for worker in self.workers():
                worker.kill()
        self.process.kill()
        self.process.wait()


def connections(worker: psutil.Process) -> list[Any]:
    try:
        return worker.net_connections("tcp")
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def settings_here(kafka: str) -> Callable[[], Settings]:
    """Settings of a gateway on free ports, in front of a broker with the shipped topics."""
    topics.apply_all(Settings(kafka=KafkaSettings(bootstrap_servers=kafka)))

    def make() -> Settings:
        http, grpc = free_ports(2)
        return Settings(
            kafka=KafkaSettings(bootstrap_servers=kafka), gateway=GatewaySettings(http_port=http, grpc_port=grpc)
        )

    return make


@pytest.fixture(scope="module")
def shared(settings_here: Callable[[], Settings]) -> Iterator[Gateway]:
    gateway = Gateway(settings_here())
    until(gateway.ready)
    yield gateway
    gateway.end()


@pytest.fixture
def own(settings_here: Callable[[], Settings]) -> Iterator[Gateway]:
    gateway = Gateway(settings_here())
    until(gateway.ready)
    yield gateway
    gateway.end()


def test_connections_reach_every_worker(shared: Gateway) -> None:
    """Of 40 connections to the one port each worker holds some."""
    until(shared.ready)
    with contextlib.ExitStack() as opened:
        for _ in range(40):
            opened.enter_context(socket.create_connection(("127.0.0.1", shared.port)))

        def held() -> list[int]:
            return [
                sum(c.status == psutil.CONN_ESTABLISHED and c.laddr.port == shared.port for c in connections(worker))
                for worker in shared.workers()
            ]

        until(lambda: sum(held()) >= 40)
        assert len(held()) == WORKERS
        assert min(held()) > 0


def test_metrics_are_the_sum_of_all_workers(shared: Gateway) -> None:
    """Whoever answers, every record that was accepted by any worker is counted once."""
    until(shared.ready)
    name, label = "pipeline_gateway_accepted_records_total", 'signal="logs"'
    before = shared.metric(name, label)
    for n in range(24):
        shared.post(logs(f"record {n}").SerializeToString())
    assert [shared.metric(name, label) - before for _ in range(12)] == [24.0] * 12


def test_a_killed_worker_is_started_again(shared: Gateway) -> None:
    """Another process takes its place, both serve, and the restart is counted."""
    until(shared.ready)
    name, label = "pipeline_worker_restarts_total", 'process="gateway"'
    before = shared.metric(name, label)
    [first, other] = shared.workers()
    first.kill()
    until(lambda: first.pid not in [worker.pid for worker in shared.workers()] and shared.ready())
    assert other.pid in [worker.pid for worker in shared.workers()]
    until(lambda: shared.metric(name, label) == before + 1)


def test_what_a_killed_worker_had_in_flight_is_no_longer_counted(own: Gateway) -> None:
    """A request that died with its worker is not in flight."""
    name, label = "pipeline_gateway_in_flight_requests", 'protocol="http"'
    with socket.create_connection(("127.0.0.1", own.port)) as half:
        half.sendall(
            b"POST /v1/logs HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-protobuf\r\nContent-Length: 9\r\n\r\nx"
        )
        until(lambda: own.metric(name, label) == 1)
        mine = half.getsockname()
        [holder] = [worker for worker in own.workers() if mine in [tuple(c.raddr) for c in connections(worker)]]
        holder.kill()
    until(lambda: holder.pid not in [worker.pid for worker in own.workers()] and own.ready())
    assert own.metric(name, label) == 0


def test_sigterm_ends_all_in_order(own: Gateway) -> None:
    """Exit code 0, and no worker is left."""
    workers = own.workers()
    own.process.terminate()
    assert own.process.wait(20) == 0
    assert not any(worker.is_running() for worker in workers)


def test_a_worker_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM first, and after its time SIGKILL: a stop ends, whatever hangs."""
    monkeypatch.setattr(workers, "STOP_WITHIN_S", 0.5)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(20)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        workers._stop([deaf])
        assert deaf.returncode == -signal.SIGKILL


def test_no_worker_outlives_a_killed_supervisor(own: Gateway) -> None:
    """After kill -9 all workers are gone within 2 s, and their ports with them."""
    workers = own.workers()
    assert len(workers) == WORKERS
    own.process.send_signal(signal.SIGKILL)
    own.process.wait()
    _, alive = psutil.wait_procs(workers, timeout=2)
    for worker in alive:
        worker.kill()
    assert alive == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", own.port))


def test_workers_that_are_misconfigured_stop_the_supervisor(settings_here: Callable[[], Settings]) -> None:
    """A port that is taken cannot be cured by starting again: exit code 2."""
    settings = settings_here()
    with socket.create_server(("127.0.0.1", settings.gateway.http_port)):
        gateway = Gateway(settings)
        try:
            assert gateway.process.wait(20) == 2
        finally:
            gateway.end()
