"""The pure pieces of a writer process: batches, the bound of its buffers, what is checked, the token."""

import asyncio
import io
import json
import pathlib
from collections.abc import Callable, Iterator
from itertools import pairwise

import fastavro
import faust
import pytest
import uvloop
from aiokafka.conn import create_conn
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest
from hypothesis import given
from hypothesis import strategies as st
from mode.utils.queues import FlowControlEvent

from pipeline.agents.batch import join, known
from pipeline.agents.ch_writer import DAY_NS, DAYS_AN_INSERT, MOST_DAYS_AN_INSERT, by_days, pieces, token
from pipeline.agents.consumers import closed_is_broken
from pipeline.agents.waiting import Waiting
from pipeline.agents.worker import FAILED, _application, _BytesBoundQueue, _run
from pipeline.delivery import Message
from pipeline.errors import Rejected
from pipeline.record import container, schema
from pipeline.record.avro import long
from pipeline.settings import Settings
from tests.agents.builtin.run import of_request
from tests.otlp.requests import logs

LOGS = schema.of("logs")
KNOWN = known("logs")
OVERHEAD = 512  # what a message holds in memory beside its value


class Value:
    def __init__(self, value: bytes | None) -> None:
        self.value = value


class Event(faust.EventT):  # type: ignore[misc]
    """As much of Faust's event as the pieces look at."""

    def __init__(self, size: int | None) -> None:
        self.message = Value(None if size is None else bytes(size))  # type: ignore[assignment]

    async def send(self, *_: object, **__: object) -> None: ...  # type: ignore[override]
    async def forward(self, *_: object, **__: object) -> None: ...  # type: ignore[override]
    def ack(self) -> bool:
        return True

    async def __aenter__(self) -> "Event":
        return self

    async def __aexit__(self, *_: object) -> None: ...


Sizes = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3000)), max_size=30)


@given(Sizes, st.integers(1, 60), st.integers(1, 6000), st.booleans())
def test_batches_lose_nothing_and_keep_to_their_limits(
    items: list[tuple[int, int]], records: int, size: int, busy: bool
) -> None:
    """In order, all of it, none over a limit but of one message; while one is under way the next is as full as can be."""

    async def test() -> list[list[tuple[int, int]]]:
        waiting: Waiting[tuple[int, int]] = Waiting(records, size)

        async def put() -> None:
            for item in items:
                await waiting.put(item, *item)

        putting = asyncio.create_task(put())
        batches: list[list[tuple[int, int]]] = []
        while sum(map(len, batches)) < len(items):
            ready = asyncio.create_task(waiting.ready())
            await asyncio.wait([ready, putting], return_when=asyncio.FIRST_COMPLETED)
            if busy and batches and not ready.done():  # nothing more comes
                await waiting.done()
            await ready
            batches.append(await waiting.take())
            if not busy or len(batches) > 1:
                await waiting.done()
        await putting
        return batches

    batches = asyncio.run(test())
    assert [item for batch in batches for item in batch] == items

    def fits(batch: list[tuple[int, int]]) -> bool:
        return sum(item[0] for item in batch) <= records and sum(item[1] for item in batch) <= size

    assert all(len(batch) == 1 or fits(batch) for batch in batches)
    if busy:
        assert not any(fits([*batch, following[0]]) for batch, following in pairwise(batches[1:]))


def queue(maxsize: int) -> _BytesBoundQueue:
    flow = FlowControlEvent()
    flow.resume()
    return _BytesBoundQueue(maxsize=maxsize, flow_control=flow)


Steps = st.lists(st.one_of(st.none() | st.integers(0, 5000), st.sampled_from(["get", "clear", "mark"])), max_size=40)


@given(Steps)
def test_the_buffer_counts_the_bytes_it_holds(steps: list[int | str | None]) -> None:
    """After any puts, gets and clears, Faust's own marks included, qsize is the sum of what is inside."""

    async def test() -> None:
        buffer, inside = queue(1 << 20), []
        for step in steps:
            if step == "get":
                if inside:
                    assert buffer.get_nowait() is inside.pop(0)
            elif step == "clear":
                buffer.clear()
                inside.clear()
            else:
                item = object() if step == "mark" else Event(step)  # type: ignore[arg-type]
                buffer.force_put_nowait(item)
                inside.append(item)
            weights = [OVERHEAD + len(getattr(getattr(i, "message", None), "value", None) or b"") for i in inside]
            assert buffer.qsize() == sum(weights)
            assert buffer.empty() == (not inside)

    asyncio.run(test())


def test_pressure_rises_and_drops_by_bytes() -> None:
    """Few large messages raise it, it is raised once, and it drops when most of the bytes are gone."""

    async def test() -> None:
        buffer, said = queue(100_000), []
        weight = 20_000

        def put() -> None:
            buffer.put_nowait_enhanced(
                Event(weight - OVERHEAD), on_pressure_high=lambda: said.append("high"), on_pressure_drop=drop
            )

        def drop() -> None:
            said.append("drop")

        for _ in range(4):
            put()
        assert (buffer.qsize(), said) == (80_000, [])
        put()
        put()
        assert said == ["high"]
        while buffer.qsize() > 40_000:
            assert said == ["high"]
            buffer.get_nowait()
        buffer.get_nowait()
        assert said == ["high", "drop"]
        assert buffer.qsize() == 20_000

    asyncio.run(test())


def message(value: bytes, *, offset: int = 7, **headers: bytes) -> Message:
    return Message("logs_raw", 2, offset, {"schema": LOGS.name.encode(), **headers}, value)


def whole(*records: bytes) -> Message:
    return message(container.value(LOGS.head, list(records)), records=b"%d" % len(records))


def test_a_joined_batch_is_one_file_of_all_blocks() -> None:
    """One head, then every block as it came, in order; messages that were joined before are joined again."""
    first, second = whole(b"a", b"bc"), whole(b"d")
    twice = message(container.join(LOGS.head, [first.value, second.value]), records=b"3")
    [joined] = join([first, second, twice], KNOWN)
    blocks = [one.value[len(LOGS.head) :] for one in (first, second)]
    assert (joined.value(), joined.records) == (LOGS.head + b"".join(blocks * 2), 6)
    assert joined.messages == [first, second, twice]
    assert join([], KNOWN) == []


@pytest.fixture
def versions(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[schema.Schema, schema.Schema]]:
    """A made-up log_record/2, locked but not written by our gateway yet, beside log_record/1 and another record."""
    lock = {}
    for name, extra in (("log_record/1", 0), ("log_record/2", 1), ("span/1", 0)):
        path = schema.DIRECTORY / f"{'span' if name == 'span/1' else 'log_record'}.v1.avsc"
        avro = json.loads(path.read_text())
        avro["fields"] += [{"name": f"extra_{n}", "type": "string"} for n in range(extra)]
        (tmp_path / f"{name.replace('/', '.v')}.avsc").write_text(json.dumps(avro))
        lock[name] = schema.fingerprint(avro)
    (tmp_path / "lock.json").write_text(json.dumps(lock))
    monkeypatch.setattr(schema, "DIRECTORY", tmp_path)
    schema.load.cache_clear()
    known.cache_clear()
    yield schema.load("log_record/1"), schema.load("log_record/2")
    schema.load.cache_clear()
    known.cache_clear()


def test_older_versions_are_joined_beside_the_current_one(versions: tuple[schema.Schema, schema.Schema]) -> None:
    """A batch of two versions becomes one file for each, in order and complete; a newer one is refused by name."""
    batch = []
    for n, kind in enumerate([versions[1], versions[0], versions[0], versions[1]]):
        value = container.value(kind.head, [b"%d" % n] * (n + 1))
        batch.append(message(value, offset=n, schema=kind.name.encode(), records=b"%d" % (n + 1)))
    accepted = known("logs")
    assert list(accepted) == ["log_record/1", "log_record/2"]
    new, old = join(batch, accepted)
    assert ([m.offset for m in new.messages], new.records) == ([0, 3], 5)
    assert ([m.offset for m in old.messages], old.records) == ([1, 2], 5)
    assert (container.count(versions[1].head, new.value()), container.count(versions[0].head, old.value())) == (5, 5)
    newer = batch[0]._replace(headers=batch[0].headers | {"schema": b"log_record/3"})
    with pytest.raises(Rejected, match="log_record/3 is newer than this writer knows; replay after the upgrade"):
        join([newer], accepted)
    with pytest.raises(Rejected, match=r"knows log_record/1, log_record/2\.$"):
        join([batch[0]._replace(headers=batch[0].headers | {"schema": b"span/1"})], accepted)


def changed(place: int, byte: int) -> Callable[[Message], Message]:
    def change(one: Message) -> Message:
        value = bytearray(one.value)
        value[place] ^= byte
        return one._replace(value=bytes(value))

    return change


def with_headers(**headers: bytes | None) -> Callable[[Message], Message]:
    def change(one: Message) -> Message:
        merged = one.headers | headers
        return one._replace(headers={key: value for key, value in merged.items() if value is not None})

    return change


AFTER_HEAD = len(LOGS.head)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (with_headers(schema=b"log_record/2"), "log_record/2.*knows log_record/1.*replay after the upgrade"),
        (with_headers(schema=b"span/1"), "span/1"),
        (with_headers(schema=None), "''"),
        (with_headers(schema=b"\xff\xfe" * 200), "schema"),
        (with_headers(records=None), "promises b''"),
        (with_headers(records=b"3"), "promises b'3', the value holds 2"),
        (with_headers(records=b"02"), "promises b'02'"),
        (with_headers(records=b"9" * 1000), "promises"),
        (lambda m: m._replace(value=b""), "head"),
        (lambda m: m._replace(value=m.value[: AFTER_HEAD - 1]), "head"),
        (lambda m: m._replace(value=m.value[:AFTER_HEAD]), "the value holds 0"),
        (lambda m: m._replace(value=m.value[: AFTER_HEAD + 1]), "cut short"),
        (lambda m: m._replace(value=m.value + m.value), "cut short"),
        (lambda m: m._replace(value=m.value + b"\0"), "cut short"),
        (lambda m: m._replace(value=schema.of("traces").head + m.value[AFTER_HEAD:]), "head"),
        (lambda m: m._replace(value=LOGS.head + b"\xff" * 40), "count and length"),
        (lambda m: m._replace(value=LOGS.head + long(2) + long(1 << 62) + b"ab" + container.SYNC), "sync marker"),
        (changed(0, 1), "head"),
        (changed(AFTER_HEAD, 1), "count and length"),  # a negative count
        (changed(AFTER_HEAD, 2), "the value holds 3"),
        (changed(AFTER_HEAD + 1, 2), "sync marker"),
        (changed(-1, 1), "sync marker"),
    ],
)
def test_damage_is_rejected_by_name(damage: Callable[[Message], Message], reason: str) -> None:
    """Whatever is wrong with one message of a batch, the reason says what, and which, in a short sentence."""
    batch = [whole(b"x")._replace(offset=6), damage(whole(b"a", b"b")), whole(b"y")._replace(offset=8)]
    with pytest.raises(Rejected, match=rf"(?s)^logs_raw \[2\] @ 7: .*{reason}.*\.$") as caught:
        join(batch, KNOWN)
    assert len(str(caught.value)) < 300


@given(st.lists(st.binary(max_size=200), max_size=4), st.data())
def test_a_value_cut_anywhere_is_rejected(records: list[bytes], data: st.DataObject) -> None:
    """No prefix of a message passes for it."""
    one = whole(*records)
    cut = data.draw(st.integers(0, len(one.value) - 1))
    with pytest.raises(Rejected):
        join([one._replace(value=one.value[:cut])], KNOWN)


places = st.tuples(st.sampled_from(["logs_raw", "eu.logs_raw"]), st.integers(0, 11), st.integers(0, 111))
batches = st.lists(st.tuples(places, st.binary(min_size=1, max_size=64)), max_size=4)


def placed(batch: list[tuple[tuple[str, int, int], bytes]]) -> list[Message]:
    return [Message(*place, {}, value) for place, value in batch]


@given(batches, batches)
def test_a_token_names_place_and_content(one: list, other: list) -> None:  # type: ignore[type-arg]
    """Equal for equal batches; another where a place, a value, the order or the number of messages differs."""
    assert token(placed(one)) == token(placed(one))
    assert (token(placed(one)) == token(placed(other))) == (one == other)


def days(first: int, last: int, offset: int) -> Message:
    return message(b"", offset=offset, min_time=b"%d" % (first * DAY_NS), max_time=b"%d" % (last * DAY_NS + DAY_NS - 1))


Days = st.tuples(st.integers(0, 60), st.integers(0, 3)).map(lambda pair: (pair[0], sum(pair)))


@given(st.lists(Days, max_size=40))
def test_an_insert_holds_few_days(spans: list[tuple[int, int]]) -> None:
    """Each message is in one part, no part holds over ten days, and those of one day alone are in one part."""
    batch = [days(*span, offset) for offset, span in enumerate(spans)]
    parts = by_days(batch)
    assert sorted(one.offset for part in parts for one in part) == list(range(len(batch)))
    held = [{day for one in part for day in range(spans[one.offset][0], spans[one.offset][1] + 1)} for part in parts]
    assert all(len(part) <= DAYS_AN_INSERT for part in held)
    for day in range(64):
        alone = [one.offset for one in batch if spans[one.offset] == (day, day)]
        assert sum(any(one.offset in alone for one in part) for part in parts) <= 1


def test_messages_of_many_days_or_none_are_lost_nowhere() -> None:
    """What spans years cannot be cut unread; headers that name no time are taken for one day."""
    wide = [days(0, 4000, offset) for offset in range(3)]
    odd = [message(b"", offset=offset, min_time=b"soon") for offset in (3, 4)]
    assert by_days([wide[0], odd[0], wide[1], odd[1], wide[2]]) == [*([one] for one in wide), odd]
    assert by_days([]) == []


@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, MOST_DAYS_AN_INSERT - 1)), max_size=30))
def test_no_insert_of_many_messages_holds_years(spans: list[tuple[int, int]]) -> None:
    """Each message is in one part, and no part holds more days than ClickHouse has memory for, however many it has."""
    parts = by_days([days(first, first + more, offset) for offset, (first, more) in enumerate(spans)])
    assert sorted(one.offset for part in parts for one in part) == list(range(len(spans)))
    for part in parts:
        held = [spans[one.offset] for one in part]
        assert max(first + more for first, more in held) - min(first for first, _ in held) < MOST_DAYS_AN_INSERT


@pytest.mark.parametrize(("days_", "inserts"), [(300, 1), (900, 5)])
def test_what_holds_years_is_inserted_by_pieces(days_: int, inserts: int) -> None:
    """No insert touches more days than ClickHouse has memory for; every record is in one of them, under its own token."""
    request = logs("x")
    [records] = [scope.log_records for scope in request.resource_logs[0].scope_logs]
    for day in range(1, days_):
        records.add().CopyFrom(records[0])
        records[day].time_unix_nano += day * DAY_NS
    one = of_request("logs", request, records[days_ - 1].time_unix_nano)
    times = {"min_time": b"%d" % records[0].time_unix_nano, "max_time": b"%d" % records[days_ - 1].time_unix_nano}
    [joined] = join([one._replace(offset=n, headers={**one.headers, **times}) for n in range(2)], KNOWN)
    made = list(pieces(joined))
    assert (len(made), len({token for _, _, token in made})) == (inserts, inserts)
    assert made == list(pieces(joined))
    ids = [
        record["event_id"] for values, _, _ in made for value in values for record in fastavro.reader(io.BytesIO(value))
    ]
    assert ids == [record["event_id"] for value in joined.values for record in fastavro.reader(io.BytesIO(value))]
    assert sum(count for _, count, _ in made) == joined.records == 2 * days_


def test_faust_is_silent_about_a_store_that_is_away(tmp_path: pathlib.Path) -> None:
    """After five minutes it would tell of each partition, every few seconds and at length, and bury what we say."""
    conf = _application(Settings(), ("pg_writer", 4), str(tmp_path)).conf
    assert min(conf.stream_processing_timeout, conf.broker_commit_livelock_soft_timeout) > 365 * 86_400


def test_a_crash_of_fausts_is_no_difference() -> None:
    """Its own code for it is 1, by which commands say that a difference was found."""

    class Crashed:
        def execute_from_commandline(self) -> None:
            raise SystemExit(1)

    assert _run(Crashed()) == FAILED  # type: ignore[arg-type]


def test_a_topic_made_anew_has_other_tokens() -> None:
    """The same place with another record, which its sync marker ends like every value, is another batch."""
    assert token([whole(b"first")]) != token([whole(b"other")])
    assert token([whole(b"first")]) == token([whole(b"first")])


def test_a_connection_that_was_closed_a_moment_ago_is_a_broker_that_is_away(kafka: str) -> None:
    """uvloop refuses to write to it with an error that aiokafka does not know, and that would end the process."""
    host, _, port = kafka.partition(":")

    async def sent() -> None:
        connection = await create_conn(host, int(port))
        connection._writer.transport.abort()
        await asyncio.sleep(0)
        await connection.send(MetadataRequest([]))

    closed_is_broken()
    with pytest.raises(KafkaConnectionError):
        uvloop.run(sent())
