"""What Faust's consumer, and aiokafka's below it, must do otherwise for a writer to be fast and to skip nothing."""

import contextlib
import time
from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import IllegalStateError, KafkaConnectionError

FETCH_BYTES = 256 * 1024  # a partition, compressed: five times that in memory
IDLE_WAIT_MS = 100  # that a broker may wait for what it is asked for;
LEAST_WAIT_MS, MOST_WAIT_MS = 10, 250  # while much comes, within these
GATHERED_OF_BATCH = 1 / 8  # of the time that a batch may wait
BUSY_S = 1.0  # after the last that came
NAP_S = 0.02
SILENT_S = 10.0  # the group's coordinator is asked every 3 s


def closed_is_broken() -> None:
    """Where asyncio's own loop is silent about writing to a connection that was closed a moment ago, uvloop raises
    RuntimeError. aiokafka tries again only after what it knows: a broker's end would end the writer too.
    """
    send = AIOKafkaConnection.send

    def translated(connection: Any, request: Any, expect_response: bool = True) -> Any:
        try:
            return send(connection, request, expect_response)
        except RuntimeError as closed:
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"{connection.host}:{connection.port} has closed its connection") from closed

    AIOKafkaConnection.send = translated


async def begin(consumer: Any, place: Any) -> None:
    """A group that is new to a partition starts at its first message, and says so: what is then lost is a gap."""
    with contextlib.suppress(IllegalStateError):  # another member has it by now
        await consumer._thread.seek_to_beginning(place)
        await consumer._commit({place: await consumer.position(place)})


def go_back_to_0(consumer: Any) -> None:
    """Seek partitions that are committed at 0 too, where aiokafka's seek_to_committed leaves them as far as they were
    read: what was thrown away would be passed over, and Faust, to which 0 is none, would commit over it."""
    seek_to_committed = consumer.seek_to_committed

    async def sought() -> Any:
        committed = await seek_to_committed()
        for place, offset in committed.items():
            if offset == 0:
                await consumer._thread.call_thread(consumer._thread.seek, place, 0)
        return committed

    consumer.seek_to_committed = sought


def leave_messages_out_of_gaps(consumer: Any) -> None:
    """Faust counts the message behind a gap, such as the markers of a transaction, as a part of the gap: acknowledged
    once as that and once as itself, it holds up all behind it until the next commit."""
    add_gap = consumer._add_gap

    async def before(place: Any, first: int, message: int) -> None:
        await add_gap(place, first, message - 1)

    consumer._add_gap = before


def shorten_waits(consumer: Any, batch_within_s: float) -> None:
    """Idle partitions are not waited for while busy ones are held back, or our buffers run dry.

    Faust's consumer sleeps a whole second where all are held back, and waits that long for the idle ones where some
    are. A broker is asked one thing at a time, and while what came of busy partitions is being read, for idle ones
    alone: it would answer after 1.5 s. What comes first after a pause is answered at once; then the broker gathers for
    a part of the time that a batch may wait: asked for each of 200 messages a second, it and the writers take twice
    the CPU.
    """
    sleep, getmany = consumer.sleep, consumer._getmany
    fetcher = consumer._thread._consumer._fetcher
    fetcher._fetch_max_wait_ms = IDLE_WAIT_MS
    busy_wait_ms = min(MOST_WAIT_MS, max(LEAST_WAIT_MS, round(batch_within_s * GATHERED_OF_BATCH * 1000)))
    busy_until_s = 0.0

    async def nap(seconds: float) -> None:
        await sleep(NAP_S if seconds == 1 and isinstance(seconds, int) else seconds)  # intervals are floats

    async def briefly(active_partitions: Any, timeout: float) -> Any:
        nonlocal busy_until_s
        held_back = bool(consumer._buffered_partitions)
        found = await getmany(active_partitions, NAP_S if held_back else timeout)
        now_s = time.monotonic()
        if held_back or found:
            busy_until_s = now_s + BUSY_S
        busy = now_s < busy_until_s
        fetcher._fetch_max_wait_ms = busy_wait_ms if busy else IDLE_WAIT_MS
        fetcher._fetch_min_bytes = FETCH_BYTES if busy else 1
        return found

    consumer.sleep, consumer._getmany = nap, briefly


def unheard(consumer: Any) -> bool:
    """Whether no broker that we are connected to has answered within SILENT_S: Kafka is away, or frozen."""
    since = time.monotonic() - SILENT_S
    connections = list(consumer._thread._consumer._client._conns.values())
    return not any(each.connected() and each._last_action > since for each in connections)
