"""How much may be under way at once: requests by number, their bytes by waiting."""

import asyncio
from collections import deque
from collections.abc import Callable

from pipeline.errors import Unavailable
from pipeline.telemetry import metrics

WAIT_S = 2.0  # for room; with Kafka's budget it stays below the 10 s of stock exporters


class Admission:
    """Counts the bytes that requests hold in memory, and those of them that are being answered.

    Where there is no room a request waits before it is read; one that has arrived does not wait for a place.

    `queued_bytes` says what else is in memory: messages that nobody acknowledged yet.
    """

    def __init__(self, *, max_requests: int, max_bytes: int, queued_bytes: Callable[[], int]) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._queued_bytes = queued_bytes
        self._requests = 0
        self._held_bytes = 0
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()  # asked for, held already

    def held(self) -> "Held":
        """A request's part, nothing as yet."""
        return Held(self)

    def fits(self, size: int, *, own: int = 0) -> bool:
        """Whether `size` more bytes may be held by who holds `own`. One request that is alone always may."""
        others = self.beside(own)
        return others + own + size <= self._max_bytes or others == 0

    def beside(self, own: int) -> int:
        """The bytes in memory that are not of who holds `own`."""
        return self._held_bytes + self._queued_bytes() - own

    def room_made(self) -> None:
        """Let in who waits, first come first served."""
        while self._waiting:
            size, own, admitted = self._waiting[0]
            if not admitted.done():
                if not self.fits(size, own=own):
                    return
                self._held_bytes += size
                admitted.set_result(None)
            self._waiting.popleft()


class Held:
    """One request's part; a context manager that gives it back."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0
        self._entered = False

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self._admission._requests -= self._entered
        self.resize(0)

    def enter(self) -> None:
        """Be one of those that are being answered; raise Unavailable where these are too many."""
        admission = self._admission
        if admission._requests >= admission._max_requests:
            raise Unavailable(f"{admission._max_requests} requests are being answered, which is gateway.max_requests.")
        self._entered = True
        admission._requests += 1

    async def reserve(self, size: int) -> None:
        """Wait until `size` bytes fit into memory beside the others; raise Unavailable where that takes too long."""
        admission = self._admission
        alone = admission.beside(self._bytes) == 0  # who waits then waits for this one
        if alone or (not admission._waiting and admission.fits(size, own=self._bytes)):
            admission._held_bytes += size
        else:
            admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            admission._waiting.append((size, self._bytes, admitted))
            try:
                async with asyncio.timeout(WAIT_S):
                    await admitted
            except BaseException as error:
                if admitted.done() and not admitted.cancelled():
                    admission._held_bytes -= size  # let in and cancelled in one turn of the loop
                admission.room_made()
                if isinstance(error, TimeoutError):
                    raise Unavailable("gateway.max_in_flight_bytes are under way: come again.") from None
                raise
        self._hold(self._bytes + size)

    def resize(self, size: int) -> None:
        """Hold `size` bytes from now on, without waiting: what was let in is not turned away half way."""
        self._admission._held_bytes += size - self._bytes
        self._hold(size)
        self._admission.room_made()

    def _hold(self, size: int) -> None:
        if size != self._bytes:
            self._bytes = size
            metrics.HELD_BYTES.set(self._admission._held_bytes)
