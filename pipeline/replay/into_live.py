"""Back-fill: a slice of Kafka into live's stores once more, where a store has lost what Kafka still has.

The ordinary writers and their `deliver`, on offsets of a plan, in the name of a group of its own. What a store has
already stays as it is, by event_id. No sandbox is involved.
"""

import asyncio
import time
from collections.abc import Mapping

from pipeline.agents.ch_writer import ClickHouseWriter
from pipeline.agents.pg_writer import STORES, PostgresWriter
from pipeline.delivery import Delivery, Limit, Message, Writer
from pipeline.errors import Misconfigured, Rejected
from pipeline.kafka import dead_letters
from pipeline.kafka.groups import Committed, Groups
from pipeline.kafka.producer import Outbox, Outgoing
from pipeline.kafka.reader import Reader
from pipeline.replay.copy import Progress, as_delivered, batches, records_of
from pipeline.replay.plan import Plan, Slice, demand_cluster, demand_retained
from pipeline.replay.tables import SIGNALS, Signal
from pipeline.settings import Settings


def group(plan: Plan) -> str:
    """Its own, so that the writers' place in Kafka is not touched."""
    return f"backfill_{plan.sandbox.id}_{plan.created:%Y%m%d%H%M%S}"


def lines(plan: Plan, live: Settings) -> list[str]:
    """What would be done. Raises Misconfigured where live's writers do not store a topic of the plan."""
    _signals(plan, live)
    if plan.where:
        raise Misconfigured(f"{plan.name} has --where, and a back-fill takes whole messages: plan it without.")
    return [
        *plan.lines()[:-2],
        f"  into live: ClickHouse {live.clickhouse.url} database {live.clickhouse.database}, and PostgreSQL; "
        "what is there stays, by event_id",
    ]


def fill(plan: Plan, live: Settings, rate: int, progress: Progress) -> None:
    """Return when every store has the slice; what was cut off goes on where its group stands.

    Raises Misconfigured where Kafka has not all of it any more, Unavailable where it is away; a store that is away is
    waited for.
    """
    demand_cluster(plan, live)
    left = _left(plan, live)
    demand_retained(plan, left, live)
    deliveries = _deliveries(plan, live)
    started, passed = time.monotonic(), 0
    for batch in batches(Reader(live.kafka), [each.range for each in left], rate):
        for topic in {message.topic for message in batch}:
            mine = [as_delivered(message) for message in batch if message.topic == topic]
            for delivery in deliveries[topic]:
                asyncio.run(delivery.deliver(mine))
        reached = {(one.topic, one.partition): Committed(one.offset + 1) for one in batch}
        Groups(live.kafka).move(group(plan), reached)
        records = sum(map(records_of, batch))
        passed += records
        progress(records)
        time.sleep(max(0.0, started + passed / rate - time.monotonic()))


def _left(plan: Plan, live: Settings) -> list[Slice]:
    places = [(each.topic, each.partition) for each in plan.slices]
    committed = Groups(live.kafka).committed(group(plan), places)
    found = []
    for each in plan.slices:
        at = committed.get((each.topic, each.partition))
        found.append(each if at is None else each.model_copy(update={"start": max(each.start, at.offset)}))
    return [each for each in found if each.start < each.end]


def _signals(plan: Plan, live: Settings) -> dict[str, Signal]:
    found: dict[str, Signal] = {}
    for each in plan.slices:
        signal = each.name.partition("_")[0]
        if signal not in SIGNALS:
            raise Misconfigured(f"{each.topic} holds rows of registered tables, which a back-fill does not write.")
        if each.topic not in live.stored(signal):
            raise Misconfigured(
                f"Live's stores are not filled from {each.topic} but from {', '.join(live.stored(signal))}: it would "
                "bring what they never hold. Plan these instead."
            )
        found[each.topic] = signal
    return found


def _deliveries(plan: Plan, live: Settings) -> Mapping[str, list[Delivery]]:
    made: dict[str, list[Delivery]] = {}
    for topic, signal in _signals(plan, live).items():
        writers: list[Writer] = [ClickHouseWriter(live.clickhouse, signal)]
        if signal in STORES:
            writers.append(PostgresWriter(live.postgres, signal))
        made[topic] = [
            Delivery(
                writer,
                _DeadLetters(live, writer.name),
                limit=Limit(
                    live.ch_writer.dead_letters_per_min, live.ch_writer.dead_letters_burst, setting="ch_writer"
                ),
            )
            for writer in writers
        ]
    return made


class _DeadLetters:
    """Of a message that no store can take, as the writers keep them."""

    def __init__(self, live: Settings, writer: str) -> None:
        self._outbox = Outbox(live.kafka)
        self._writer = writer

    async def put(self, message: Message, reason: Rejected) -> None:
        now_ns = time.time_ns()
        headers = dead_letters.headers(message, reason, writer=self._writer, time_ns=now_ns)
        topic = f"{message.topic}{dead_letters.SUFFIX}"
        self._outbox.publish([Outgoing(topic, message.partition, now_ns // 10**6, headers, message.value)])
