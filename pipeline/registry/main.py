"""The registry's process: start, wait, stop."""

import asyncio
import contextlib
import signal

import structlog
from aiohttp import web

from pipeline.errors import Misconfigured, PipelineError
from pipeline.registry.http import application
from pipeline.registry.store import Store
from pipeline.settings import LOOPBACK, RegistrySettings, Settings, is_loopback
from pipeline.telemetry import health

log = structlog.get_logger()
LOOK_S = 2.0  # for PostgreSQL


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    own = settings.registry
    store = Store(settings.postgres, max_tables=own.max_tables)
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    away = {"postgres": "not asked yet"}

    def unready() -> dict[str, str]:
        return away | ({"registry": "stopping"} if stop.is_set() else {})

    app = application(store, api_key=own.api_key.get_secret_value())
    app.router.add_routes(health.routes(unready))
    runner = web.AppRunner(app, access_log=None)
    host = _host(own)
    try:
        await runner.setup()
        await web.TCPSite(runner, host, own.port).start()
    except OSError as error:
        raise Misconfigured(
            f"Port {own.port} on {host}: {error}. Stop what listens there, or set registry.port."
        ) from None
    log.info("registry serves", http=f"{host}:{own.port}")
    try:
        while not stop.is_set():
            try:
                await asyncio.to_thread(store.table, "")
                away.clear()
            except PipelineError as error:
                away["postgres"] = str(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_S)
    finally:
        await runner.cleanup()
    log.info("registry stopped")


def _host(own: RegistrySettings) -> str:
    """Where to listen: loopback only, unless clients say who they are."""
    if own.api_key.get_secret_value() or is_loopback(own.host):
        return own.host
    log.warning(
        f"Without registry.api_key anybody could change tables: listening on {LOOPBACK} only, not on {own.host}."
    )
    return LOOPBACK
