"""A gateway on free ports in this process: real servers and a real spool, and a Kafka that tests can take away."""

import asyncio
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import grpc
import httpx

from pipeline.gateway import front as otlp_front
from pipeline.gateway import grpc as otlp_grpc
from pipeline.gateway import http as otlp_http
from pipeline.gateway.events import Events
from pipeline.gateway.exports import Exports
from pipeline.gateway.intake import Intake
from pipeline.gateway.outlet import Outlet
from pipeline.gateway.tenants import Tenants
from pipeline.gateway.tls import Certificates
from pipeline.settings import GatewaySettings, RegistrySettings, SpoolSettings
from pipeline.spool.spool import Spool
from pipeline.tables.client import Tables
from tests.gateway.fake import FakePublisher

PROTOBUF = {"content-type": "application/x-protobuf"}
JSON = {"content-type": "application/json"}
SERVICES = {"logs": "logs.v1.LogsService", "metrics": "metrics.v1.MetricsService", "traces": "trace.v1.TraceService"}


class Gateway:
    """What a test holds of it: addresses, the fake Kafka, the spool, and the parts that reload."""

    publisher: FakePublisher
    spool: Spool
    outlet: Outlet
    tenants: Tenants
    tables: Tables
    certificates: Certificates
    http_port: int
    grpc_port: int

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def post(self, body: Any, headers: dict[str, str], path: str = "/v1/logs") -> httpx.Response:
        return httpx.post(self.http + path, content=body, headers=headers)

    def export(self, body: bytes, signal: str = "logs", **options: Any) -> bytes:
        with grpc.insecure_channel(self.grpc) as channel:
            return bytes(export(channel, signal)(body, timeout=10, **options))


def export(channel: grpc.Channel, signal: str = "logs") -> Any:
    """The method of `signal`, on bytes."""
    return channel.unary_unary(f"/opentelemetry.proto.collector.{SERVICES[signal]}/Export")


@contextmanager
def serving(
    directory: pathlib.Path,
    settings: GatewaySettings | None = None,
    spool_settings: SpoolSettings | None = None,
    registry: RegistrySettings | None = None,
) -> Iterator[Gateway]:
    """Serve until the block ends."""
    gateway = Gateway()
    own = settings or GatewaySettings()
    kept = spool_settings or SpoolSettings(directory=directory, min_free_bytes=0)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main(started: Any) -> None:
        gateway.publisher = FakePublisher()
        gateway.spool = Spool(kept)
        gateway.outlet = Outlet(gateway.publisher, gateway.spool, kept)  # type: ignore[arg-type]
        gateway.tenants = Tenants(own.tenants_file, default="default", workers=1)
        gateway.certificates = Certificates(own)
        intake = Intake(gateway.outlet, "local", within_s=own.acknowledge_within_s)
        exports = Exports(own, "local", gateway.tenants, intake)
        gateway.tables = Tables(registry or RegistrySettings(port=1), file=kept.directory / "tables.json")
        gateway.tables.start()
        events = Events(own, exports, gateway.tables)
        app = otlp_http.application(exports, events, own, stop)
        front = otlp_front.Server(exports, own, app, stop)
        await front.start("127.0.0.1", 0, gateway.certificates.context("http/1.1"))
        server = otlp_grpc.Server(exports, own)
        await server.start("127.0.0.1", 0, gateway.certificates.context("h2"))
        gateway.http_port, gateway.grpc_port = front.port, server.port
        draining = asyncio.create_task(gateway.outlet.drain(stop))
        started()
        await stop.wait()
        await server.stop(1)
        await front.stop()
        await draining
        gateway.spool.close()
        gateway.tables.close()

    ready = Event()
    thread = Thread(target=lambda: loop.run_until_complete(main(ready.set)))
    thread.start()
    assert ready.wait(10)
    try:
        yield gateway
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(15)
        loop.close()
