"""One gateway worker: check, start, wait, stop in reverse."""

import asyncio
import os
import signal
import sys

import structlog
from aiohttp import web

from pipeline.errors import Misconfigured
from pipeline.gateway import grpc, http
from pipeline.gateway.intake import Intake
from pipeline.kafka.producer import Publisher
from pipeline.record import schema
from pipeline.settings import Settings
from pipeline.telemetry import health

log = structlog.get_logger()
STOP_WITHIN_S = 15.0  # in-flight requests and what is queued to Kafka


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; what was answered OK is in Kafka, what was not is answered or cut off by then."""
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    gateway = settings.gateway
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    topics = [schema.topic(name) for name in schema.SIGNALS]
    publisher = Publisher(settings.kafka, topics, within_s=gateway.acknowledge_within_s)
    intake = Intake(publisher, settings.region, within_s=gateway.acknowledge_within_s)

    def unready() -> dict[str, str]:
        reasons = {"gateway": "stopping" if stop.is_set() else None, "kafka": publisher.unready()}
        return {part: reason for part, reason in reasons.items() if reason}

    app = http.application(intake, gateway, settings.tenant)
    app.router.add_routes(health.routes(unready))
    # Compressed bodies are opened by us, within a limit; aiohttp's own way has none.
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=STOP_WITHIN_S / 2)
    await runner.setup()
    grpc_server = grpc.server(intake, gateway, settings.tenant)
    try:
        await web.TCPSite(runner, gateway.host, gateway.http_port, reuse_port=gateway.workers > 1).start()
        grpc_server.add_insecure_port(f"{gateway.host}:{gateway.grpc_port}")
    except (OSError, RuntimeError) as error:
        raise Misconfigured(
            f"Ports {gateway.http_port} (HTTP) and {gateway.grpc_port} (gRPC) on {gateway.host}: {error}. "
            "Stop what listens there, or set gateway.http_port and gateway.grpc_port."
        ) from None
    await grpc_server.start()
    log.info("gateway serves", http=f"{gateway.host}:{gateway.http_port}", grpc=f"{gateway.host}:{gateway.grpc_port}")
    await _stopped_or_failed(stop, publisher)
    await grpc_server.stop(grace=STOP_WITHIN_S / 2)
    await runner.cleanup()
    left = await asyncio.to_thread(publisher.close, STOP_WITHIN_S / 2)
    log.info("gateway stopped", unacknowledged_messages=left)
    if publisher.fatal:
        sys.stdout.flush()
        os._exit(70)  # librdkafka's threads may hang after a fatal error; the supervisor starts a new process


async def _stopped_or_failed(stop: asyncio.Event, publisher: Publisher) -> None:
    while not publisher.fatal:
        try:
            await asyncio.wait_for(stop.wait(), 1.0)
        except TimeoutError:
            continue
        return
