"""The HTTP entry: who asks, may they, what do the regions say.

GET /v1/logs?from=…&to=…&service=…&severity=error&text=…&trace_id=…&limit=…&regions=eu,us
GET /v1/traces/<trace id>
GET /v1/metrics?name=…&from=…&to=…&label.<key>=…&step=60&aggregate=avg

The value of a point is null where none was recorded, or one that JSON has no number for.
"""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from pipeline import regions
from pipeline.errors import Misconfigured, Rejected
from pipeline.gateway.tenants import Tenants, Unauthenticated
from pipeline.gateway.watch import watch
from pipeline.query import questions
from pipeline.query.questions import Bounds, Question
from pipeline.query.regions import ask
from pipeline.regions import Topology
from pipeline.settings import LOOPBACK, Settings, is_loopback
from pipeline.telemetry import health

log = structlog.get_logger()
Asked = Callable[[web.Request, Bounds], Question]
RETRY_AFTER_S = 1


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    asyncio.run(_serve(settings))


def application(settings: Settings, topology: Topology, tenants: Tenants) -> web.Application:
    """The routes. A request that is dropped by its client is called off in every store."""
    own, known = settings.query, list(topology.regions)
    room = asyncio.Semaphore(own.max_questions)

    def answering(asked: Asked) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            try:
                tenant = _who(request, settings, tenants)
                question = asked(request, Bounds(tenant, known, own.max_rows))
            except Unauthenticated as reason:
                return web.json_response({"error": str(reason)}, status=401)
            except Rejected as reason:
                return web.json_response({"error": str(reason)}, status=400)
            if room.locked():
                headers = {"Retry-After": str(RETRY_AFTER_S)}
                said = f"{own.max_questions} questions are being answered; ask again."
                return web.json_response({"error": said}, status=503, headers=headers)
            async with room:
                found = await ask(question, topology, own.within_s)
            text = json.dumps(found.as_json(), default=str, ensure_ascii=False)
            nobody = found.failed and not found.answered
            return web.Response(text=text, content_type="application/json", status=503 if nobody else 200)

        return answer

    def logs(request: web.Request, bounds: Bounds) -> Question:
        return questions.logs(request.query, bounds)

    def trace(request: web.Request, bounds: Bounds) -> Question:
        return questions.trace(request.match_info["trace_id"], request.query, bounds)

    def metrics(request: web.Request, bounds: Bounds) -> Question:
        return questions.metrics(request.query, bounds)

    app = web.Application()
    app.router.add_routes([
        web.get("/v1/logs", answering(logs)),
        web.get("/v1/traces/{trace_id:[0-9a-fA-F]{32}}", answering(trace)),
        web.get("/v1/metrics", answering(metrics)),
        *health.routes(dict),
    ])  # fmt: skip
    return app


def _who(request: web.Request, settings: Settings, tenants: Tenants) -> str | None:
    """The tenant whose records may be seen; None: everybody's."""
    if settings.gateway.tenants_file is None:
        return None
    return tenants.identify(request.headers.get("Authorization", ""), ()).name


async def _serve(settings: Settings) -> None:
    own, topology = settings.query, regions.load(settings)
    tenants = Tenants(settings.gateway.tenants_file, default=settings.tenant, workers=1)
    if not topology.query:
        raise Misconfigured(f"{settings.topology}: query: names no region, so nothing could be answered.")
    host = own.host if settings.gateway.tenants_file or is_loopback(own.host) else LOOPBACK
    stop, reload = asyncio.Event(), asyncio.Event()
    for name, event in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, reload)):
        asyncio.get_running_loop().add_signal_handler(name, event.set)
    runner = web.AppRunner(application(settings, topology, tenants), access_log=None, handler_cancellation=True)
    try:
        await runner.setup()
        await web.TCPSite(runner, host, own.port).start()
    except OSError as error:
        raise Misconfigured(
            f"Port {own.port} on {host}: {error}. Stop what listens there, or set query.port."
        ) from None
    log.info("query serves", http=f"{host}:{own.port}", regions=list(topology.query))
    file = settings.gateway.tenants_file
    watching = asyncio.create_task(watch([file] if file else [], reload, (tenants,)))
    await stop.wait()
    watching.cancel()
    await runner.cleanup()
