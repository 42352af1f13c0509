"""A registry on a free port in this process, over a real PostgreSQL, that tests can take away."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import httpx
from aiohttp import web

from pipeline.registry.http import application
from pipeline.registry.store import Store
from pipeline.settings import PostgresSettings, RegistrySettings
from tests.conftest import free_ports


class Registry:
    """Its settings, and requests as a team would send them."""

    def __init__(self, settings: RegistrySettings) -> None:
        self.settings = settings

    def post(self, path: str, document: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.settings.address + path, json=document, timeout=20, **options)

    def get(self, path: str = "/tables", **options: Any) -> httpx.Response:
        return httpx.get(self.settings.address + path, timeout=20, **options)

    def register(self, document: dict[str, Any]) -> None:
        answer = self.post("/tables", document | {"by": "ann"})
        assert answer.status_code == 201, answer.text

    def evolve(self, name: str, version: int, **changes: Any) -> None:
        answer = self.post(f"/tables/{name}/versions", {"by": "ann", "expected_version": version, **changes})
        assert answer.status_code == 201, answer.text

    def retire(self, name: str, version: int) -> None:
        answer = self.post(f"/tables/{name}/retire", {"by": "ann", "expected_version": version})
        assert answer.status_code == 200, answer.text


@contextmanager
def serving(postgres: PostgresSettings, settings: RegistrySettings | None = None) -> Iterator[Registry]:
    """Serve until the block ends; the settings of an earlier block have its port again."""
    own = settings or RegistrySettings(port=free_ports(1)[0], refresh_s=0.2)
    loop, stop, started = asyncio.new_event_loop(), asyncio.Event(), Event()

    async def main() -> None:
        app = application(Store(postgres, max_tables=own.max_tables), api_key=own.api_key.get_secret_value())
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, own.host, own.port).start()
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert started.wait(20)
        yield Registry(own)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def lines(rows: list[dict[str, Any]]) -> bytes:
    """Rows as NDJSON."""
    return b"\n".join(json.dumps(row).encode() for row in rows)
