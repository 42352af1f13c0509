"""One export, whatever carries it."""

import asyncio
import pathlib
import threading
from typing import Any

import pytest

from pipeline.gateway.exports import Call, Exports, Room
from pipeline.gateway.intake import Intake
from pipeline.gateway.outlet import Outlet
from pipeline.gateway.tenants import Tenants
from pipeline.record import schema
from pipeline.settings import GatewaySettings, SpoolSettings
from pipeline.spool.spool import Spool
from pipeline.telemetry import metrics
from tests.gateway.fake import FakePublisher

SIZE = 1000


class Large:
    """A body that has come, and that is encoded aside; `let` ends that."""

    signal = "logs"
    schema = schema.of("logs")
    in_place_bytes = 0
    coding = ""

    def __init__(self) -> None:
        self.at_work, self.let = threading.Event(), threading.Event()

    async def read(self, room: Room) -> bytes:
        await room(SIZE)
        return b"x" * SIZE

    def encode(self, *_: Any) -> Any:
        self.at_work.set()
        self.let.wait(10)
        raise AssertionError("nobody is there any more")


def test_a_body_that_is_at_work_is_held_though_its_client_left(tmp_path: pathlib.Path) -> None:
    """Who resets its requests while they are read aside has no more of them in memory than who waits."""

    async def main() -> None:
        settings = SpoolSettings(directory=tmp_path, min_free_bytes=0)
        spool = Spool(settings)
        intake = Intake(Outlet(FakePublisher(), spool, settings), "local", within_s=5)  # type: ignore[arg-type]
        exports = Exports(GatewaySettings(), "local", Tenants(None, default="t", workers=1), intake)
        large = Large()

        async def job() -> Any:
            return large

        call = Call("grpc", "logs", "protobuf", "", (), "")
        before = metrics.HELD_BYTES._value.get()
        request = asyncio.create_task(exports.accepted(call, large, job))
        assert await asyncio.to_thread(large.at_work.wait, 10)
        request.cancel()
        await asyncio.wait([request], timeout=0.2)
        assert metrics.HELD_BYTES._value.get() == before + SIZE
        large.let.set()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert metrics.HELD_BYTES._value.get() == before
        spool.close()

    asyncio.run(main())
