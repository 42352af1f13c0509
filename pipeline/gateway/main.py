"""One gateway worker: check, start, wait, stop in reverse."""

import asyncio
import gc
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple, get_args

import structlog
import uvloop
from aiohttp import web

from pipeline import allocator
from pipeline.errors import Misconfigured
from pipeline.gateway import front, grpc, http
from pipeline.gateway.events import Events
from pipeline.gateway.exports import Exports
from pipeline.gateway.intake import Intake
from pipeline.gateway.outlet import Outlet
from pipeline.gateway.tenants import Tenants, load
from pipeline.gateway.tls import Certificates
from pipeline.gateway.watch import watch
from pipeline.kafka import connection
from pipeline.kafka.producer import Publisher
from pipeline.record import schema
from pipeline.settings import LOOPBACK, GatewaySettings, Settings, is_loopback
from pipeline.spool.spool import Spool
from pipeline.tables.client import Tables
from pipeline.telemetry import health

log = structlog.get_logger()
STOP_WITHIN_S = 15.0  # in-flight requests and what is queued to Kafka
TABLES = "tables.json"  # in the spool's directory: what was last known of the registered ones
KEPT_BYTES = 32 * 1024 * 1024
OBJECTS = 50_000  # made and not freed until the garbage collector looks: requests leave no cycles


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; what was answered OK is safe, what was not is answered or cut off by then."""
    allocator.keep(below=KEPT_BYTES, at_most=KEPT_BYTES)  # a block may be as large as a body
    gc.freeze()
    gc.set_threshold(OBJECTS)
    uvloop.run(_serve(settings))


def check(settings: Settings) -> str:
    """What would be served, without serving it; raise Misconfigured with every problem of the files it names."""
    gateway = settings.gateway
    problems: list[str] = []
    parts: tuple[Callable[[], object], ...] = (
        lambda: Tenants(gateway.tenants_file, default=settings.tenant, workers=gateway.workers),
        lambda: _certificates_are_asked_for(gateway),
        lambda: Certificates(gateway),
        lambda: _writable(settings.spool.directory),
        lambda: connection.check(settings.kafka),
    )
    for part in parts:
        try:
            part()
        except Misconfigured as error:
            problems += error.problems
    if problems:
        raise Misconfigured(problems)
    who = f"tenants of {gateway.tenants_file}" if gateway.tenants_file else f"everybody as tenant {settings.tenant}"
    how = "TLS" if gateway.tls_certificate_file else "no TLS"
    return f"serves {who} on {_host(gateway)}, HTTP {gateway.http_port}, gRPC {gateway.grpc_port}, {how}"


def _certificates_are_asked_for(gateway: GatewaySettings) -> None:
    if gateway.tenants_file is None or gateway.tls_client_ca_file is not None:
        return
    try:
        named = [name for name, tenant in load(gateway.tenants_file).items() if tenant.certificates]
    except Misconfigured:
        return  # told already
    if named:
        raise Misconfigured(
            f"{gateway.tenants_file}: tenants {', '.join(named)} have certificates, and nobody asks clients for one: "
            "set gateway.tls_client_ca_file."
        )


def _writable(directory: pathlib.Path) -> None:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise Misconfigured(f"spool.directory {directory}: {existing} is no directory that we may write to.")


async def _serve(settings: Settings) -> None:
    gateway = settings.gateway
    check(settings)
    tenants = Tenants(gateway.tenants_file, default=settings.tenant, workers=gateway.workers)
    certificates = Certificates(gateway)
    stop, reload = asyncio.Event(), asyncio.Event()
    for name, event in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, reload)):
        asyncio.get_running_loop().add_signal_handler(name, event.set)

    own = settings.spool.model_copy(update={"max_bytes": settings.spool.max_bytes // gateway.workers})
    spool = Spool(own)
    topics = [schema.topic(name) for name in get_args(schema.Signal)]
    publisher = Publisher(settings.kafka, topics, within_s=gateway.acknowledge_within_s)
    outlet = Outlet(publisher, spool, own)
    intake = Intake(outlet, settings.region, within_s=gateway.acknowledge_within_s)
    exports = Exports(gateway, settings.region, tenants, intake)
    tables = Tables(settings.registry, file=settings.spool.directory / TABLES)
    events = Events(gateway, exports, tables)

    def unready() -> dict[str, str]:
        asked = None if publisher.asked else publisher.unready()
        reasons = {"gateway": "stopping" if stop.is_set() else None, "kafka": asked or outlet.unready()}
        return {part: reason for part, reason in reasons.items() if reason}

    def degraded() -> dict[str, str]:
        # Where no table was ever registered nobody misses the registry.
        reasons = {"kafka": outlet.degraded(), "registry": tables.away() if tables.known() else None}
        return {part: reason for part, reason in reasons.items() if reason}

    tables.start()
    answering = exports, events, stop
    servers = await _listen(gateway, answering, certificates, health.routes(unready, degraded))
    draining = asyncio.create_task(outlet.drain(stop))
    watched = (gateway.tenants_file, gateway.tls_certificate_file, gateway.tls_key_file, gateway.tls_client_ca_file)
    files = [file for file in watched if file]
    watching = asyncio.create_task(watch(files, reload, (tenants, certificates)))

    await _stopped_or_failed(stop, publisher, draining)
    stop.set()

    watching.cancel()
    if not publisher.fatal:
        await asyncio.sleep(gateway.unready_for_s)
    await servers.stop()
    await draining
    left = await asyncio.to_thread(publisher.close, STOP_WITHIN_S / 2)
    await asyncio.to_thread(spool.close)
    await asyncio.to_thread(tables.close)
    log.info("gateway stopped", unacknowledged_messages=left)
    if publisher.fatal:
        sys.stdout.flush()
        os._exit(70)  # librdkafka's threads may hang after a fatal error; the supervisor starts a new process


class _Servers(NamedTuple):
    """What listens."""

    http: front.Server
    grpc: grpc.Server
    health: web.AppRunner

    async def stop(self) -> None:
        """Take no more, and answer what is here."""
        await asyncio.gather(self.grpc.stop(STOP_WITHIN_S / 2), self.http.stop())
        await self.health.cleanup()


async def _listen(
    gateway: GatewaySettings,
    answering: tuple[Exports, Events, asyncio.Event],
    certificates: Certificates,
    probes: list[web.RouteDef],
) -> _Servers:
    exports, events, stopping = answering
    app = http.application(exports, events, gateway, stopping)
    health_app = web.Application() if gateway.health_port else app
    health_app.router.add_routes(probes)
    servers = _Servers(
        front.Server(exports, gateway, app, stopping),
        grpc.Server(exports, gateway),
        web.AppRunner(health_app, access_log=None),
    )
    host, shared = _host(gateway), gateway.workers > 1
    try:
        await servers.http.start(host, gateway.http_port, certificates.context("http/1.1"))
        if gateway.health_port:
            await servers.health.setup()
            await web.TCPSite(servers.health, host, gateway.health_port, reuse_port=shared).start()
        await servers.grpc.start(host, gateway.grpc_port, certificates.context("h2"))
    except OSError as error:
        raise Misconfigured(
            f"Ports {gateway.http_port} (HTTP) and {gateway.grpc_port} (gRPC) on {host}: {error}. "
            "Stop what listens there, or set gateway.http_port, gateway.grpc_port or gateway.health_port."
        ) from None
    log.info("gateway serves", http=f"{host}:{gateway.http_port}", grpc=f"{host}:{gateway.grpc_port}")
    return servers


def _host(gateway: GatewaySettings) -> str:
    """Where to listen: loopback only, unless clients say who they are."""
    if gateway.tenants_file or gateway.tls_client_ca_file or is_loopback(gateway.host):
        return gateway.host
    log.warning(
        f"Without gateway.tenants_file or gateway.tls_client_ca_file anybody could send: "
        f"listening on {LOOPBACK} only, not on {gateway.host}."
    )
    return LOOPBACK


async def _stopped_or_failed(stop: asyncio.Event, publisher: Publisher, draining: "asyncio.Task[None]") -> None:
    while not publisher.fatal and not draining.done():
        try:
            await asyncio.wait_for(stop.wait(), 1.0)
        except TimeoutError:
            continue
        return
