"""The laws that every agent keeps, held against records of its topic and generated ones.

deterministic    the same message gives the same bytes, in another process too
independent      a record's answer depends neither on its neighbours nor on where a message ends
fit              what it emits is read back by its schema
total            it has an answer for every record, and soon
"""

import hashlib
import io
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import fastavro
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from pipeline.agents.api import Agent
from pipeline.agents.isolated import Isolated
from pipeline.agents.transform import DROPS_TOPIC, Made, layout_of, signal_of
from pipeline.delivery import Message
from pipeline.errors import Rejected
from pipeline.record import container, schema
from pipeline.record.layout import RECORDS, layout
from pipeline.record.records import TYPES, Record, encoded, read
from pipeline.record.schema import Signal

EXAMPLES = 100
AT_ONCE = 50  # records of a sample that are looked at together
SPEED_RECORDS = 2000
SPEED_RUNS = 3
NOW_NS = 1_795_000_000 * 10**9
TEXTS = ("", "GET /api?user=ann@example.com", "4111 1111 1111 1111", "grüße 🙂", "\0", "10.0.0.1", "{}", "x" * 2000)
KEYS = ("http.route", "user.email", "order.id", "")


class Broken(Exception):
    """A law, and how it is broken."""

    def __init__(self, law: str, how: str) -> None:
        super().__init__(law, how)
        self.law, self.how = law, how


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one agent: its speed or, where it breaks a law, the smallest records that were found to show it."""

    agent: str
    records: int
    records_per_s: float
    broken: str
    how: str
    smallest: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.broken:
            return "\n".join(
                [f"{self.agent} is not {self.broken}: {self.how}", *(f"    {one}" for one in self.smallest)]
            )
        cost = 1e6 / self.records_per_s
        speed = f"{self.records_per_s:,.0f} records/s, {cost:.1f} us a record"
        return f"{self.agent} keeps every law, on {self.records:,} records: {speed}"


def judge(
    agent: Agent,
    signal: Signal,
    processes: tuple[Isolated, Isolated],
    samples: Sequence[Message],
    examples: int = EXAMPLES,
) -> Verdict:
    """Hold the agent, which runs in both processes, to every law; `samples` are messages of the topic that it reads,
    `examples` so many generated ones."""
    seen = 0
    found: tuple[Broken, list[Record]] | None = None

    def hold(records: list[Record]) -> None:
        nonlocal seen, found
        seen += len(records)
        try:
            _hold(agent, _message(agent, signal, records), processes)
        except Broken as broken:
            found = broken, records
            raise

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink), report_multiple_bugs=False,
    )  # fmt: skip
    @given(st.lists(records_of(signal), min_size=1, max_size=5))
    def generated(records: list[Record]) -> None:
        hold(records)

    with suppress(Broken, Flaky):  # what remembers breaks a law once, and not when it is asked again
        for message in samples:
            records = _records(message)
            for at in range(0, len(records), AT_ONCE):
                _smaller(hold, records[at : at + AT_ONCE])
        generated()
    if found is not None:
        broken, smallest = found
        return Verdict(agent.name, seen, 0.0, broken.law, broken.how, [repr(each) for each in smallest])
    return Verdict(agent.name, seen, _speed(agent, signal, processes[0], samples), "", "", [])


def records_of(signal: Signal) -> st.SearchStrategy[Record]:
    """Anything that a gateway may have accepted."""
    of = TYPES[signal]
    fields = {
        field["name"]: _values(field["name"], field["type"])
        for field in schema.of(signal).avro["fields"]
        if field["name"] not in ("event_id", "region", "received_time", "tenant", "series_id")
    }
    some, every = st.fixed_dictionaries({}, optional=fields), st.fixed_dictionaries(fields)
    return st.one_of(some, every).map(lambda values: of(**values))


def _values(name: str, of: Any) -> st.SearchStrategy[Any]:
    texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=30))
    if isinstance(of, list):
        return st.one_of(st.none(), _values(name, of[1]))
    if of == "bytes":
        return st.sampled_from((b"", bytes(range(16)) if name == "trace_id" else bytes(range(8))))
    if isinstance(of, str):
        return {
            "string": texts,
            "long": st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(NOW_NS, NOW_NS + 10**12)),
            "int": st.integers(-(2**31), 2**31 - 1),
            "double": st.floats(),
            "boolean": st.booleans(),
        }[of]
    made: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
        "map": lambda: st.dictionaries(st.one_of(st.sampled_from(KEYS), texts), texts, max_size=4),
        "fixed": lambda: st.binary(min_size=of["size"], max_size=of["size"]),
        "enum": lambda: st.sampled_from(of["symbols"]),
        "array": lambda: st.lists(_values(name, of["items"]), max_size=3).map(tuple),
        "record": lambda: st.builds(
            RECORDS[of["name"]], **{each["name"]: _values(each["name"], each["type"]) for each in of["fields"]}
        ),
    }
    return made[of["type"]]()


def _message(agent: Agent, signal: Signal, records: list[Record]) -> Message:
    """A message as the gateway's: records of a topic as they are, made ones with an id of their own."""
    blank = TYPES[signal]()
    pieces = []
    for n, record in enumerate(records):
        if record.event_id:
            pieces.append(encoded(record, record.event_id, record, 0))
        else:
            event_id = hashlib.blake2b(b"%d" % n, digest_size=16).digest()
            pieces.append(encoded(record, event_id, blank, NOW_NS))
    of = schema.of(signal)
    headers = {
        "schema": of.name.encode(), "records": b"%d" % len(pieces), "signal": signal.encode(),
        "min_time": b"%d" % NOW_NS, "max_time": b"%d" % NOW_NS,
    }  # fmt: skip
    return Message(agent.reads, 0, 0, headers, container.value(of.head, pieces))


def _hold(agent: Agent, message: Message, processes: tuple[Isolated, Isolated]) -> None:
    one, other = (_asked(process, message) for process in processes)
    if one.outputs != other.outputs:
        raise Broken("deterministic", "two processes made different records of the same message.")
    for output in one.outputs:
        try:
            read_back = list(fastavro.reader(io.BytesIO(output.value)))
        except Exception as error:
            raise Broken("fit", f"what it emits to {output.topic} is not read back: {error!r}.") from None
        if len(read_back) != output.records:
            raise Broken("fit", f"of {output.records} records for {output.topic}, {len(read_back)} are read back.")
    records = _records(message)
    if agent.aggregates or len(records) == 1:
        return
    apart: dict[str, list[bytes]] = defaultdict(list)
    for record in records:
        single = message._replace(
            headers={**message.headers, "records": b"1"},
            value=container.value(layout_of(message).schema.head, [encoded(record, record.event_id, record, 0)]),
        )
        for topic, values in _by_topic(_asked(processes[0], single)).items():
            apart[topic] += values
    if _by_topic(one) != apart:
        raise Broken("independent", "records in one message get other answers than each in a message of its own.")


def _asked(process: Isolated, message: Message) -> Made:
    try:
        made = process.transform(message)
    except Rejected as reason:
        raise Broken("total", str(reason)) from None
    if made.failed:
        raise Broken("total", made.failed[0].reason)
    return made


def _by_topic(made: Made) -> dict[str, list[bytes]]:
    """The encoded records for each topic, in order."""
    found: dict[str, list[bytes]] = defaultdict(list)
    for output in made.outputs:
        if not output.records:
            continue
        if output.topic == DROPS_TOPIC:
            found[output.topic] += [repr(each).encode() for each in fastavro.reader(io.BytesIO(output.value))]
        else:
            of = layout(dict(output.headers)["schema"].decode())
            found[output.topic] += [raw.whole for raw in of.records(output.value)]
    return found


def _smaller(hold: Callable[[list[Record]], None], records: list[Record]) -> None:
    """Hold the records to the laws, and those of them that break one by themselves again, fewer and fewer."""
    try:
        hold(records)
    except Broken:
        rest = records
        for record in records:
            fewer = [each for each in rest if each is not record]
            if fewer:
                try:
                    hold(fewer)
                except Broken:
                    rest = fewer
        hold(rest)


def _speed(agent: Agent, signal: Signal, process: Isolated, samples: Sequence[Message]) -> float:
    records = [record for message in samples for record in _records(message)] or [TYPES[signal]()]
    many = _message(agent, signal, (records * (SPEED_RECORDS // len(records) + 1))[:SPEED_RECORDS])
    best = float("inf")
    for _ in range(SPEED_RUNS):
        began = time.perf_counter()
        process.transform(many)
        best = min(best, time.perf_counter() - began)
    return SPEED_RECORDS / best


def _records(message: Message) -> list[Record]:
    of = layout_of(message)
    return [read(raw, of, TYPES[signal_of(of)]) for raw in of.records(message.value)]
