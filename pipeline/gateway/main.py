"""One gateway worker: check, start, wait, stop in reverse."""

import asyncio
import contextlib
import ipaddress
import os
import pathlib
import signal
import sys

import structlog
import uvloop
from aiohttp import web

from pipeline.errors import Misconfigured
from pipeline.gateway import grpc, http
from pipeline.gateway.exports import Exports
from pipeline.gateway.intake import Intake
from pipeline.gateway.outlet import Outlet
from pipeline.gateway.tenants import Tenants
from pipeline.gateway.tls import Certificates
from pipeline.kafka.producer import Publisher
from pipeline.record import schema
from pipeline.settings import GatewaySettings, Settings
from pipeline.spool.spool import Spool
from pipeline.telemetry import health, metrics

log = structlog.get_logger()
STOP_WITHIN_S = 15.0  # in-flight requests and what is queued to Kafka
LOOK_S = 1.0  # for changed files
LOOPBACK = "127.0.0.1"


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; what was answered OK is safe, what was not is answered or cut off by then."""
    uvloop.run(_serve(settings))


def check(settings: Settings) -> str:
    """What would be served, without serving it; raise Misconfigured with every problem of settings and files."""
    gateway = settings.gateway
    problems: list[str] = []
    tenants = certificates = None
    try:
        tenants = Tenants(gateway.tenants_file, default=settings.tenant, workers=gateway.workers)
    except Misconfigured as error:
        problems += error.problems
    try:
        certificates = Certificates(gateway)
    except Misconfigured as error:
        problems += error.problems
    try:
        settings.spool.directory.mkdir(parents=True, exist_ok=True)
        if not os.access(settings.spool.directory, os.W_OK | os.X_OK):
            raise PermissionError(13, "no right to write there")
    except OSError as error:
        problems.append(f"spool.directory {settings.spool.directory}: {error.strerror}.")
    if problems or tenants is None or certificates is None:
        raise Misconfigured(problems)
    who = f"tenants of {gateway.tenants_file}" if gateway.tenants_file else f"everybody as tenant {settings.tenant}"
    how = "TLS" if gateway.tls_certificate_file else "no TLS"
    return f"serves {who} on {_host(gateway)}, HTTP {gateway.http_port}, gRPC {gateway.grpc_port}, {how}"


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
    topics = [schema.topic(name) for name in schema.SIGNALS]
    publisher = Publisher(settings.kafka, topics, within_s=gateway.acknowledge_within_s)
    outlet = Outlet(publisher, spool, own)
    intake = Intake(outlet, settings.region, within_s=gateway.acknowledge_within_s)
    exports = Exports(gateway, settings.region, tenants, intake)

    def unready() -> dict[str, str]:
        asked = None if publisher.asked else publisher.unready()
        reasons = {"gateway": "stopping" if stop.is_set() else None, "kafka": asked or outlet.unready()}
        return {part: reason for part, reason in reasons.items() if reason}

    def degraded() -> dict[str, str]:
        reason = outlet.degraded()
        return {"kafka": reason} if reason else {}

    app = http.application(exports, gateway)
    app.router.add_routes(health.routes(unready, degraded))
    # Compressed bodies are opened by us, within a limit; aiohttp's own way has none.
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=STOP_WITHIN_S / 2)
    await runner.setup()
    grpc_server = grpc.Server(exports, gateway)
    host = _host(gateway)
    try:
        site = web.TCPSite(
            runner, host, gateway.http_port,
            ssl_context=certificates.context("http/1.1"), reuse_port=gateway.workers > 1,
        )  # fmt: skip
        await site.start()
        await grpc_server.start(host, gateway.grpc_port, certificates.context("h2"))
    except OSError as error:
        raise Misconfigured(
            f"Ports {gateway.http_port} (HTTP) and {gateway.grpc_port} (gRPC) on {host}: {error}. "
            "Stop what listens there, or set gateway.http_port and gateway.grpc_port."
        ) from None
    draining = asyncio.create_task(outlet.drain(stop))
    watching = asyncio.create_task(_watch(gateway, reload, (tenants, certificates)))
    log.info("gateway serves", http=f"{host}:{gateway.http_port}", grpc=f"{host}:{gateway.grpc_port}")

    await _stopped_or_failed(stop, publisher, draining)
    stop.set()

    watching.cancel()
    await asyncio.gather(grpc_server.stop(STOP_WITHIN_S / 2), runner.cleanup())
    await draining
    left = await asyncio.to_thread(publisher.close, STOP_WITHIN_S / 2)
    await asyncio.to_thread(spool.close)
    log.info("gateway stopped", unacknowledged_messages=left)
    if publisher.fatal:
        sys.stdout.flush()
        os._exit(70)  # librdkafka's threads may hang after a fatal error; the supervisor starts a new process


def _host(gateway: GatewaySettings) -> str:
    """Where to listen: loopback only, unless clients say who they are."""
    if gateway.tenants_file or gateway.tls_client_ca_file or _is_loopback(gateway.host):
        return gateway.host
    log.warning(
        f"Without gateway.tenants_file or gateway.tls_client_ca_file anybody could send: "
        f"listening on {LOOPBACK} only, not on {gateway.host}."
    )
    return LOOPBACK


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _stopped_or_failed(stop: asyncio.Event, publisher: Publisher, draining: "asyncio.Task[None]") -> None:
    while not publisher.fatal and not draining.done():
        try:
            await asyncio.wait_for(stop.wait(), 1.0)
        except TimeoutError:
            continue
        return


async def _watch(gateway: GatewaySettings, reload: asyncio.Event, parts: tuple[Tenants, Certificates]) -> None:
    """Read tenants and certificates again when their files change, or at SIGHUP."""
    own = (gateway.tenants_file, gateway.tls_certificate_file, gateway.tls_key_file, gateway.tls_client_ca_file)
    files = [file for file in own if file]
    seen = _versions(files)
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reload.wait(), LOOK_S)
        found = _versions(files)
        if found == seen and not reload.is_set():
            continue
        seen = found
        reload.clear()
        for part in parts:
            try:
                part.reload()
            except Misconfigured as error:
                metrics.RELOADS.labels("failed").inc()
                log.error("a changed file does not read, what was known stays in force", problems=error.problems)
            else:
                metrics.RELOADS.labels("done").inc()
        log.info("tenants and certificates were read again")


def _versions(files: list[pathlib.Path]) -> list[tuple[int, int, int] | None]:
    found: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return found
