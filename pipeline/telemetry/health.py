"""/livez, /readyz and /metrics as aiohttp routes."""

from collections.abc import Callable

from aiohttp import web

from pipeline import native
from pipeline.telemetry import metrics

Checks = Callable[[], dict[str, str]]


def routes(unready: Checks, degraded: Checks = dict) -> list[web.RouteDef]:
    """`unready` names each part that is not ready and why; empty means ready. `degraded` names what is away without
    keeping us from our work. Neither may block.
    """

    async def livez(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        reasons = unready()
        body = {
            "status": "not ready" if reasons else "ready",
            "reasons": reasons,
            "degraded": degraded(),
            "implementation": native.name(),
        }
        return web.json_response(body, status=503 if reasons else 200)

    async def expose(_: web.Request) -> web.Response:
        body, content_type = metrics.exposition()
        return web.Response(body=body, headers={"Content-Type": content_type})

    return [web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", expose)]
