"""The only module that imports Faust, and the only way it is used.

`noack_take`, one agent a topic with concurrency 1, acknowledgements in order after the store's commit. Every other way
lost records under faults (design, section 5); scale by processes. A failure that deliver does not handle stops the
process, never the agent: Faust would commit over the batch.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, NoReturn

import faust
import faust.auth
import mode.loop
import structlog
import tenacity
from aiohttp import web
from aiokafka.errors import IllegalStateError, NoOffsetForPartitionError, OffsetOutOfRangeError
from mode.utils.queues import ThrowableQueue

from pipeline import allocator, digits
from pipeline.agents import ch_writer, consumers, gaps, registered
from pipeline.agents.agent_writer import AgentWriter
from pipeline.agents.api import Agent, Topics
from pipeline.agents.load import settings_of
from pipeline.agents.transform import DROPS_TOPIC
from pipeline.agents.waiting import Waiting
from pipeline.delivery import Delivery, Limit, Message, TooManyDeadLetters, Writer
from pipeline.errors import Misconfigured, PipelineError, Rejected, Unavailable
from pipeline.kafka import dead_letters
from pipeline.kafka.admin import Cluster
from pipeline.kafka.connection import tls, unseen
from pipeline.kafka.groups import Groups
from pipeline.kafka.producer import ANY_PARTITION, Publisher
from pipeline.kafka.reader import Range, Reader
from pipeline.record import schema
from pipeline.settings import KafkaSettings, Settings, WriterSettings
from pipeline.tables.client import Tables
from pipeline.telemetry import health, metrics

log = structlog.get_logger()
FAILED = 70  # EX_SOFTWARE: the supervisor may start the process again
FOR_A_HUMAN = 2  # starting again would not help
IN_FLIGHT = 2  # batches at a store: one insert stream keeps one core of ClickHouse busy
# What holds a process's memory, with batch_bytes: a batch is held as messages and joined.
TAKE_MESSAGES = 100  # at once
BUFFER_BYTES = 32 * 1024 * 1024  # fetched and waiting, all topics together
DEAD_LETTER_WITHIN_S = 30.0
LEAVE_WITHIN_S = 5.0
GROWN_WITHIN_MS = 30_000  # partitions that a topic has grown by are read; Faust's own 5 minutes are not fresh
NEVER_S = 1e9
KEPT_BLOCK_BYTES, KEPT_BYTES = 1 << 24, 1 << 26  # what an insert is sent in, not a whole batch


def run_writer(process: str, settings: Settings, number: int) -> NoReturn:
    """Consume until SIGTERM or SIGINT; what was not committed by the store is redelivered to the next process."""
    own: WriterSettings = getattr(settings, process)
    tables = Tables(settings.registry)
    tables.start()
    in_flight = 1 if process == "otlp_writer" else IN_FLIGHT
    consuming = _Process(process, process, own.health_port + number, in_flight)
    _end(_consume(consuming, _writers(process, settings, tables), own, settings))


def run_agent(agent: Agent, settings: Settings, topics: Topics, number: int) -> NoReturn:
    """The same for an agent; `topics` are those that it writes, by signal."""
    own, _ = settings_of(agent, settings)
    writer = AgentWriter(agent, own, settings, topics)
    process = _Process(agent.name, f"agents.{agent.name}", own.health_port + number, 1)
    code = _consume(process, {agent.reads: writer}, own, settings, writes=(*topics.values(), DROPS_TOPIC))
    writer.close()
    _end(code)


class _Process(NamedTuple):
    """What consumes: the name of its group, the part of the settings that is its own, where it serves its health, and
    how many batches it delivers at a time."""

    name: str
    setting: str
    health_port: int
    in_flight: int


def _consume(
    process: _Process,
    writers: dict[str, Writer],
    own: WriterSettings,
    settings: Settings,
    *,
    writes: Sequence[str] = (),
) -> int:
    allocator.keep(below=KEPT_BLOCK_BYTES, at_most=KEPT_BYTES, arenas=1)  # 0.3 us a log record
    named = settings.kafka.named
    writers = {named(topic): writer for topic, writer in writers.items()}
    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Unavailable),
        wait=tenacity.wait_random_exponential(max=5),
        before_sleep=_tell_wait,
    ):
        with attempt:
            _demand_topics(settings, [*writers, *map(named, writes)])
            _demand_rights(settings, named(process.name), [*writers])
            limit = _limit(own, settings, list(writers), setting=process.setting)
    mode.loop.use("uvloop")  # saves a quarter of the CPU
    consumers.closed_is_broken()
    with tempfile.TemporaryDirectory(prefix=f"pipeline-{process.name}-") as unused:
        app = _application(settings, (named(process.name), len(writers)), unused)
        _Agents(app, own, settings, process.in_flight).subscribe(writers, process.health_port, limit)
        worker = faust.Worker(
            app, loglevel="WARN", override_logging=False, redirect_stdouts=False, quiet=True, stdout=sys.stderr
        )
        worker.spinner = None  # its escape codes would stand in the log
        return _run(worker)


def _end(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)  # Python would wait for threads, and those for a store that is silent


def _run(worker: faust.Worker) -> int:
    try:
        worker.execute_from_commandline()
    except SystemExit as ended:
        return FAILED if ended.code == 1 else int(ended.code or 0)  # 1 is Faust's own for a crash


def _writers(process: str, settings: Settings, tables: Tables) -> dict[str, Writer]:
    """Who writes which topic."""
    tables_topics = settings.here_and_mirrored(registered.TOPIC)
    if process == "otlp_writer":
        from pipeline.agents.otlp_writer import OtlpWriter  # noqa: PLC0415 - the others can do without grpcio
        from pipeline.backend import backend  # noqa: PLC0415

        to = backend(settings.otlp_writer)
        return {
            topic: OtlpWriter(settings.otlp_writer, signal, to)
            for signal in settings.otlp_writer.signals
            for topic in settings.stored(signal)
        }
    if process == "pg_writer":
        from pipeline.agents import pg_writer  # noqa: PLC0415 - polars takes 90 MB that ch_writer can do without

        return {
            **{
                topic: pg_writer.PostgresWriter(settings.postgres, signal)
                for signal in pg_writer.STORES
                for topic in settings.stored(signal)
            },
            **{topic: pg_writer.registered(settings.postgres, tables) for topic in tables_topics},
        }
    return {
        **{
            topic: ch_writer.ClickHouseWriter(settings.clickhouse, signal)
            for signal in schema.SIGNALS
            for topic in settings.stored(signal)
        },
        **{topic: ch_writer.registered(settings.clickhouse, tables) for topic in tables_topics},
    }


def _tell_wait(state: tenacity.RetryCallState) -> None:
    reason = str(state.outcome.exception()) if state.outcome else ""
    log.warning("waiting for Kafka", attempt=state.attempt_number, reason=reason)


def _demand_topics(settings: Settings, topics: list[str]) -> None:
    """Raise Misconfigured where Kafka lacks one: Faust would give up, or consume nothing and not say so."""
    missing = set(topics) - set(Cluster(settings.kafka).names())
    if missing:
        raise Misconfigured(f"Topics {unseen(settings.kafka, sorted(missing))}.")


def _demand_rights(settings: Settings, group: str, topics: list[str]) -> None:
    """Raise Misconfigured where we may not be in the group, of which Faust says nothing and waits for ever, or not read
    a topic, of which it crashes."""
    Groups(settings.kafka).committed(group, [(topic, 0) for topic in topics])
    reader = Reader(settings.kafka)
    with contextlib.suppress(Unavailable):  # a partition without a leader keeps nobody from the others
        ends = [Range(each.topic, 0, each.end, each.end + 1) for each in reader.retained(topics) if each.partition == 0]
        for _ in reader.read(ends):  # nothing, or what has just come
            pass


def _limit(own: WriterSettings, settings: Settings, topics: list[str], *, setting: str) -> Limit:
    """The limit of this process, less what anybody dead-lettered in the time in which a whole burst comes back.

    So a supervisor that starts a stopped writer again and again gives it no new burst each time.
    """
    reader = Reader(settings.kafka)
    refilled_ms = int(own.dead_letters_burst / own.dead_letters_per_min * 60_000)
    names = reader.topics().keys() & {f"{topic}{dead_letters.SUFFIX}" for topic in topics}
    recent = reader.between(reader.retained(names), time.time_ns() // 10**6 - refilled_ms, None)
    spent = sum(each.end - each.start for each in recent)
    return Limit(own.dead_letters_per_min, own.dead_letters_burst, spent=spent, setting=setting)


class _App(faust.App):
    def FlowControlQueue(self, maxsize: int | None = None, *, clear_on_resume: bool = False) -> Any:  # noqa: N802
        return _BytesBoundQueue(maxsize=maxsize, flow_control=self.flow_control, clear_on_resume=clear_on_resume)


class _BytesBoundQueue(ThrowableQueue[Any]):
    """Faust's queue counts messages; ours are of 1 KB to 900 KB, so pressure is measured in bytes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bytes = 0

    def _put(self, item: Any) -> None:
        super()._put(item)
        self._bytes += _size(item)

    def _get(self) -> Any:
        item = super()._get()
        self._bytes -= _size(item)
        return item

    def clear(self) -> None:
        super().clear()
        self._bytes = 0

    def qsize(self) -> int:
        return self._bytes


def _size(item: Any) -> int:
    return len(item.message.value or b"") + 512 if isinstance(item, faust.EventT) else 512


def _application(settings: Settings, name_and_topics: tuple[str, int], directory: str) -> faust.App:
    process, topics = name_and_topics
    servers = settings.kafka.bootstrap_servers.split(",")
    return _App(
        process,
        broker=[f"kafka://{server.strip()}" for server in servers],
        broker_credentials=_credentials(settings.kafka),
        store="memory://",
        datadir=directory,  # Faust makes one, for tables that we do not have
        web_enabled=False,
        loop=None,
        key_serializer="raw",
        value_serializer="raw",
        stream_wait_empty=False,  # safe only with noack_take; True hangs at SIGTERM while the store is down
        stream_buffer_maxsize=BUFFER_BYTES // topics,  # bytes: see _BytesBoundQueue
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        broker_commit_interval=1.0,
        broker_session_timeout=15,
        broker_request_timeout=90,
        consumer_metadata_max_age_ms=GROWN_WITHIN_MS,
        # Else Faust tells of every partition every few seconds, at length, what we have said: that a store is away.
        stream_processing_timeout=NEVER_S,
        broker_commit_livelock_soft_timeout=NEVER_S,
        consumer_max_fetch_size=consumers.FETCH_BYTES,
        consumer_auto_offset_reset="none",  # what is out of range is a gap: see _Agents._watch_offsets
    )


def _credentials(kafka: KafkaSettings) -> faust.auth.Credentials | None:
    context = tls(kafka)
    if kafka.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=kafka.sasl_username,
            password=kafka.sasl_password.get_secret_value(),
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context else None


class _Agents:
    """The agents of one process, their dead letters and their health."""

    def __init__(self, app: faust.App, own: WriterSettings, settings: Settings, in_flight: int) -> None:
        self._app = app
        self._own = own
        self._settings = settings
        self._publisher: Publisher | None = None
        self._assignments = 0
        self._gap: asyncio.Task[None] | None = None
        self._in_flight = in_flight
        self._slots = asyncio.Semaphore(in_flight)
        self._deliveries: dict[str, Delivery] = {}

    def subscribe(self, writers: dict[str, Writer], health_port: int, limit: Limit) -> None:
        app = self._app
        for topic, writer in writers.items():
            self._deliveries[topic] = Delivery(writer, self, limit=limit, sleep=self._rest)
            self._agent(topic, self._deliveries[topic])

        @app.on_partitions_assigned.connect(weak=False)
        async def on_assigned(*_: Any, **__: Any) -> None:
            if not self._assignments:
                consumers.shorten_waits(app.consumer, self._own.batch_within_s)
                consumers.go_back_to_0(app.consumer)
                consumers.leave_messages_out_of_gaps(app.consumer)
                self._watch_offsets(app.consumer)
            self._assignments += 1

        @app.task  # type: ignore[untyped-decorator]
        async def serve_health() -> None:
            web_app = web.Application()
            web_app.router.add_routes(health.routes(self._unready, self._degraded))
            runner = web.AppRunner(web_app, access_log=None)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", health_port).start()
            except OSError as error:
                _stop_process(
                    f"Port {health_port} for health and metrics: {error}; set {limit.setting}.health_port.", 2
                )
            log.info("writer serves", topics=sorted(writers), health=f"127.0.0.1:{health_port}")

    def _unready(self) -> dict[str, str]:
        if self._gap:
            return {"kafka": "messages were removed before they were read; the log says which"}
        return {} if self._assignments else {"kafka": "no partitions assigned yet"}

    def _degraded(self) -> dict[str, str]:
        reasons = {topic: reason for topic, each in self._deliveries.items() for reason in each.waits.values()}
        if self._assignments and consumers.unheard(self._app.consumer):
            servers = self._settings.kafka.bootstrap_servers
            reasons["kafka"] = f"Kafka at {servers} does not answer: nothing is read until it does"
        return reasons

    def _watch_offsets(self, consumer: Any) -> None:
        """Put ourselves between Faust, which would skip or crash, and what aiokafka says of offsets."""
        getmany = consumer._getmany

        async def watched(active_partitions: Any, timeout: float) -> Any:
            if self._gap:  # read nothing more: what was read before is still being stored
                await asyncio.sleep(timeout)
                return {}
            assignments = self._assignments
            try:
                records = await getmany(active_partitions, timeout)
                if assignments == self._assignments:
                    return records
                # Of before a rebalance, from where we stood then. Faust has thrown away what came before them and would
                # take that for a gap, which it commits over.
                with contextlib.suppress(IllegalStateError):  # of before yet another one
                    await consumer.perform_seek()
            except NoOffsetForPartitionError as error:
                await consumers.begin(consumer, error.args[0])
            except OffsetOutOfRangeError as error:
                positions = {(place.topic, place.partition): offset for place, offset in error.args[0].items()}
                self._gap = asyncio.create_task(self._stop_at_gap(consumer, positions))
                self._gap.add_done_callback(_stop_after)  # it never ends but by a bug
            return {}

        consumer._getmany = watched

    async def _stop_at_gap(self, consumer: Any, positions: dict[tuple[str, int], int]) -> None:
        """Store and commit what was read, which Kafka may not have any more, then stop and say what is missing."""
        process = self._app.conf.id
        found: list[gaps.Gap] = []
        with contextlib.suppress(PipelineError):  # Kafka may be away just now
            found = await asyncio.to_thread(gaps.at, process, positions, self._settings)
        said = " ".join(map(str, found)) or f"Offsets are out of range at {positions}."
        log.error("messages were removed before they were read; storing what was read, then stopping", gap=said)
        while consumer.unacked:
            await asyncio.sleep(consumers.NAP_S)
        await consumer.commit()
        with contextlib.suppress(Exception):  # leave the group, or accepting the gap waits until our session has ended
            await asyncio.wait_for(consumer._thread.call_thread(consumer._thread._consumer.stop), LEAVE_WITHIN_S)
        if not found:
            _stop_process(f"{said} `pipeline agents gaps` tells more, if anything is missing.", FAILED)
        commands = "; ".join(gap.command for gap in found)
        _stop_process(f"{said} To go on without them stop every {process} and run: {commands}", FOR_A_HUMAN)

    def _agent(self, topic: str, delivery: Delivery) -> None:
        source = self._app.topic(topic, value_type=bytes, key_type=bytes)
        own = self._own

        @self._app.agent(source, name=f"{self._app.conf.id}.{topic}")
        async def write(stream: Any) -> None:
            waiting: Waiting[Any] = Waiting(own.batch_records, own.batch_bytes)
            under_way: asyncio.Queue[tuple[asyncio.Task[None], list[Any]]] = asyncio.Queue()
            places = asyncio.Semaphore(self._in_flight)
            tasks = [
                asyncio.create_task(_or_stop(_deliver(waiting, delivery, under_way, (places, self._slots)))),
                asyncio.create_task(_or_stop(_acknowledge(stream, waiting, under_way, places))),
            ]
            try:
                await _or_stop(_take(stream, own.batch_within_s, waiting))
            finally:
                for task in tasks:
                    task.cancel()

    async def _rest(self, seconds: float) -> None:
        """A batch that waits for its store leaves its slot to other topics."""
        self._slots.release()
        await asyncio.sleep(seconds)
        await self._slots.acquire()

    async def put(self, message: Message, reason: Rejected) -> None:
        """Publish to `<topic>_dlq`: the raw bytes, why, and where from."""
        topic = f"{message.topic}{dead_letters.SUFFIX}"
        if self._publisher is None:
            self._publisher = Publisher(self._settings.kafka, [topic], within_s=DEAD_LETTER_WITHIN_S)
        headers = dead_letters.headers(message, reason, writer=self._app.conf.id, time_ns=time.time_ns())
        failure = await self._publisher.publish(topic, ANY_PARTITION, message.value, headers)
        if failure is not None:
            raise failure


async def _or_stop(doing: Awaitable[None]) -> None:
    """A failure left to Faust would end the agent, and the next one's batch be committed over."""
    try:
        await doing
    except TooManyDeadLetters as error:
        _stop_process(str(error), FOR_A_HUMAN)
    except PipelineError as error:
        _stop_process(str(error), FAILED)
    except Exception:
        log.exception("a bug in a writer")
        _stop_process("Nothing of the batch was acknowledged; it is redelivered.", FAILED)


async def _take(stream: Any, within_s: float, waiting: Waiting[Any]) -> None:
    async for events in stream.noack_take(TAKE_MESSAGES, within=within_s):
        for event in events:
            await waiting.put(event, _records(event), _size(event))


def _records(event: Any) -> int:
    """What the header promises, which is checked later."""
    promised = dict(event.message.headers or ()).get("records") or b""
    return digits.number(promised, 9, 1)


async def _deliver(
    waiting: Waiting[Any],
    delivery: Delivery,
    under_way: "asyncio.Queue[Any]",
    free: tuple[asyncio.Semaphore, asyncio.Semaphore],
) -> None:
    """Deliver what is ready, a batch for each place that its topic has and each slot of the process."""
    places, slots = free
    while True:
        await waiting.ready()
        await places.acquire()
        await slots.acquire()
        batch = await waiting.take()
        delivering = asyncio.create_task(delivery.deliver([_message(event) for event in batch]))
        delivering.add_done_callback(lambda _: slots.release())
        under_way.put_nowait((delivering, batch))


async def _acknowledge(
    stream: Any, waiting: Waiting[Any], under_way: "asyncio.Queue[Any]", places: asyncio.Semaphore
) -> None:
    """Acknowledge batches in the order they were taken, each when it is delivered."""
    freshness = metrics.FRESHNESS_SECONDS.labels(stream.app.conf.id)
    while True:
        delivering, events = await under_way.get()
        await delivering
        freshness.observe(time.time() - min(event.message.timestamp for event in events))
        for event in events:
            await stream.ack(event)
        places.release()
        await waiting.done()


def _stop_after(task: "asyncio.Task[None]") -> None:
    if not task.cancelled():  # by SIGTERM
        log.error("a bug in a writer", exc_info=task.exception())
        _stop_process("Offsets are out of range; `pipeline agents gaps` says which.", FAILED)


def _stop_process(reason: str, code: int) -> NoReturn:
    log.critical("writer stops", reason=reason)
    sys.stderr.flush()
    os._exit(code)


def _message(event: Any) -> Message:
    """Kafka allows a value, and the value of a header, to be null: here they are empty."""
    message = event.message
    found = message.headers or ()
    pairs = tuple(found.items() if isinstance(found, dict) else found)
    headers = {key: value or b"" for key, value in pairs}
    timestamp_ms = round(message.timestamp * 1000)
    return Message(message.topic, message.partition, message.offset, headers, message.value or b"", pairs, timestamp_ms)
