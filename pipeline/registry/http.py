"""The registry's HTTP.

    GET  /tables                     all of them; with an ETag
    POST /tables                     register: a declaration, and `by`, who does it
    GET  /tables/{name}
    POST /tables/{name}/versions     evolve: `expected_version`, `by`, and what is new
    POST /tables/{name}/retire       `expected_version` and `by`

Answers are JSON. One that refuses is `{"error": sentence, "problems": [{path, expected, got}, …]}`: 400 with every
problem of a document, 404 with near names, 409 where somebody else was first.
"""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from pipeline.errors import Misconfigured, PipelineError, Rejected, TooLarge, Unavailable
from pipeline.registry.store import Store
from pipeline.settings import MIB
from pipeline.tables.client import UnknownTable, no_such_table
from pipeline.tables.model import Conflict, Invalid, Problem, Table, declared, evolution, is_who, shown

log = structlog.get_logger()
MAX_BODY_BYTES = MIB
STATUSES: dict[type[PipelineError], int] = {
    UnknownTable: 404,
    Conflict: 409,
    TooLarge: 413,
    Rejected: 400,
    Unavailable: 503,
    Misconfigured: 503,
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(store: Store, *, api_key: str) -> web.Application:
    """With an `api_key` every request on tables must show it."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_told, _knows(api_key)])
    own = _Routes(store)
    app.router.add_routes([
        web.get("/tables", own.list),
        web.post("/tables", own.register),
        web.get("/tables/{name}", own.show),
        web.post("/tables/{name}/versions", own.evolve),
        web.post("/tables/{name}/retire", own.retire),
    ])  # fmt: skip
    return app


class _Routes:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, request: web.Request) -> web.Response:
        documents = await asyncio.to_thread(self._store.documents)
        body = f'{{"tables": [{", ".join(documents)}]}}'.encode()
        etag = f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        return web.Response(body=body, content_type="application/json", headers={"ETag": etag})

    async def show(self, request: web.Request) -> web.Response:
        return _json((await self._table(request)).as_json())

    async def register(self, request: web.Request) -> web.Response:
        by, document = await _signed(request)
        declaration = declared(document)
        table = await asyncio.to_thread(self._store.register, declaration, who=by, at=_now())
        log.info("table registered", table=table.name, by=by)
        return _json(table.as_json(), 201)

    async def evolve(self, request: web.Request) -> web.Response:
        by, document = await _signed(request)
        wanted = evolution(document)
        table = await self._table(request)
        new = await asyncio.to_thread(self._store.evolve, table, wanted, who=by, at=_now())
        if new is not table:
            log.info("table evolved", table=new.name, version=new.version, by=by)
        return _json(new.as_json(), 200 if new is table else 201)

    async def retire(self, request: web.Request) -> web.Response:
        by, document = await _signed(request)
        expected = document.pop("expected_version", None)
        problems = [Problem(key, "no such key", shown(value)) for key, value in document.items()]
        if type(expected) is not int:
            problems.append(Problem("expected_version", "the version that is retired", shown(expected)))
        if problems:
            raise Invalid(problems)
        table = await self._table(request)
        new = await asyncio.to_thread(self._store.retire, table, expected, who=by, at=_now())
        log.info("table retired", table=new.name, by=by)
        return _json(new.as_json())

    async def _table(self, request: web.Request) -> Table:
        name = request.match_info["name"]
        table = await asyncio.to_thread(self._store.table, name) if "\0" not in name else None
        if table is None:
            raise no_such_table(name, await asyncio.to_thread(self._store.names))
        return table


async def _signed(request: web.Request) -> tuple[str, dict[str, Any]]:
    """Who asks, and the rest of the document."""
    # Of this type a page of another site cannot send without asking, and we never allow it.
    if request.content_type != "application/json":
        raise Rejected("Content-Type must be application/json.")
    try:
        document = json.loads((await request.read()).decode())
    except web.HTTPRequestEntityTooLarge:
        raise TooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes.") from None
    except (ValueError, RecursionError) as error:
        raise Rejected(f"The body is not JSON: {str(error)[:200]}.") from None
    if not isinstance(document, dict):
        raise Invalid([Problem("", "an object", shown(document))])
    by = document.pop("by", None)
    if not is_who(by):
        raise Invalid([Problem("by", "who does this, a text of 1 to 200 characters", shown(by))])
    return by, document


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(document: object, status: int = 200) -> web.Response:
    return web.json_response(document, status=status)


def _refused(status: int, sentence: str, problems: Sequence[Problem] = ()) -> web.Response:
    return _json({"error": sentence, "problems": [problem._asdict() for problem in problems]}, status)


@web.middleware
async def _told(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPClientError as error:
        return _refused(error.status, f"{error.reason}: the paths are /tables, /tables/NAME, and below it POST to "
                                      "versions and retire.")  # fmt: skip
    except PipelineError as error:
        status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
        problems = error.problems if isinstance(error, Invalid) else ()
        sentence = "The document has problems." if problems else str(error)
        response = _refused(status, sentence, problems)
        if status == 503:
            log.warning("the registry cannot answer", reason=sentence)
            response.headers["Retry-After"] = "1"
        return response


def _knows(api_key: str) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if api_key and request.path.startswith("/tables"):
            scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            shown_key = key.strip().encode("utf-8", "surrogateescape")
            if scheme.lower() != "bearer" or not hmac.compare_digest(shown_key, api_key.encode()):
                response = _refused(401, "Say who you are: send the header `Authorization: Bearer <registry.api_key>`.")
                response.headers["WWW-Authenticate"] = "Bearer"
                return response
        return await handler(request)

    return middleware
