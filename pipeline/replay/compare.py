"""Two sides over one slice: closure of each, and what differs, by set, field and aggregate.

A side is a ClickHouse database: live's, or a sandbox's. Both are put beside what went in (`replay_input`) by one
grouping over event_id that spills to disk; the rows of the result are small, and everything else is asked of them. So
the memory that a comparison takes is a setting of its queries, however many records there are.
"""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import fastavro
from clickhouse_connect.driver.client import Client

from pipeline import clickhouse
from pipeline.errors import Misconfigured
from pipeline.kafka import dead_letters
from pipeline.kafka.dead_letters import DeadLetter
from pipeline.kafka.reader import Reader
from pipeline.replay.folder import Folder
from pipeline.replay.plan import Plan, iso
from pipeline.replay.tables import SEVERITY, SIGNALS, STATUS, Signal
from pipeline.settings import KafkaSettings, Settings

LIVE = "live"
MEMORY_BYTES = 400_000_000  # a query's
EXAMPLES = 3  # of each column
EXAMPLE_CHARS = 300
MOST_IDS = 10_000  # of each kind that are told one by one
MOST_ROWS = 2_000  # of closure by minute, service and severity: those that do not close come first
PASS_IDS = 1_000_000  # differing records looked at in one pass
INSERT_ROWS = 50_000
DROPS_TOPIC = "agent_drops"
DELIVERY = frozenset({"region", "received_time", "inserted_time", "event_id"})  # of the way here, not of the event


class Source(NamedTuple):
    """Where a signal's rows are, and what of them is looked at."""

    table: str
    severity: str
    error: str
    value: str  # of which quantiles are told
    label: str  # by which they are grouped


SOURCES: dict[Signal, Source] = {
    "logs": Source("logs_events", SEVERITY.format("severity_number"), "severity_number >= 17", "NULL", "service"),
    "traces": Source(
        "spans", STATUS.format("status_code"), "status_code = 2",
        "if(start_time > 0 AND end_time > start_time, (end_time - start_time) / 1e6, 0)", "service",
    ),
    "metrics": Source("metrics_points", "type", "0", "value", "metric_name"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Side:
    """`name` is `live` or a sandbox's; `kafka` has its dead letters and drops. Of live only the slice counts."""

    name: str
    database: str
    kafka: KafkaSettings

    @property
    def live(self) -> bool:
        return self.name == LIVE


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found, as the JSON document that `--json` prints and the report shows."""

    document: dict[str, Any]

    @property
    def equal(self) -> bool:
        return bool(self.document["equal"])

    def lines(self) -> list[str]:
        """The verdict in short."""
        return [self.document["verdict"], *(f"  {line}" for line in self.document["findings"])]


def compare(folder: Folder, other: Folder | None, live: Settings, memory_bytes: int = MEMORY_BYTES) -> Comparison:
    """`folder`'s sandbox against `other`'s, or against live.

    Raises Misconfigured where one is not done, or the two are not of one slice; Unavailable where a server is away.
    """
    plan = folder.plan
    for each in (folder, *([other] if other else ())):
        if each.state["state"] != "done":
            raise Misconfigured(
                f"{each.plan.name} is {each.state['state']}, not done: `pipeline replay run {each.plan.name}` first."
            )
    if other is not None and _slice(other.plan) != _slice(plan):
        raise Misconfigured(
            f"{plan.name} and {other.plan.name} are not of one slice: plan {other.plan.name} with the same topics, "
            "times and --where."
        )
    a, b = _side(folder, live), _side(other, live) if other else Side(LIVE, live.clickhouse.database, live.kafka)
    own = live.clickhouse.model_copy(update={"database": a.database})
    with closing(clickhouse.connect(own)) as client, clickhouse.translated():
        asked = _Asked(client, memory_bytes)
        _prepare(asked)
        letters = _outside(asked, plan, (a, b))
        signals = {signal: _signal(asked, signal, (a, b)) for signal in SIGNALS}
    signals = {name: found for name, found in signals.items() if found["closure"]["in"] or found["extra"]}
    return Comparison(_document(plan, folder, other, signals, letters))


class _Asked:
    """One ClickHouse, asked within a limit of memory."""

    def __init__(self, client: Client, memory_bytes: int) -> None:
        self.client = client
        self._settings = {
            "max_memory_usage": memory_bytes,
            "max_bytes_before_external_group_by": memory_bytes // 4,
            "max_bytes_before_external_sort": memory_bytes // 4,
            "max_bytes_ratio_before_external_group_by": 0,
            "max_bytes_ratio_before_external_sort": 0,
            "group_by_two_level_threshold": 10_000,  # only two-level tables spill
            "group_by_two_level_threshold_bytes": 4_000_000,
            "max_threads": 1,
            "max_insert_threads": 1,
            "max_block_size": 16_384,
            "max_insert_block_size": 65_536,
            "min_insert_block_size_rows": 65_536,
            "min_insert_block_size_bytes": 16_000_000,
            "preferred_block_size_bytes": 500_000,
            "priority": 10,
        }

    def command(self, statement: str, **parameters: Any) -> None:
        self.client.command(statement, parameters=parameters, settings=self._settings)

    def rows(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        return list(self.client.query(query, parameters=parameters, settings=self._settings).named_results())


def _side(folder: Folder, live: Settings) -> Side:
    sandbox = folder.plan.sandbox
    return Side(folder.plan.name, sandbox.owner, live.kafka.model_copy(update={"prefix": sandbox.prefix}))


def _slice(plan: Plan) -> object:
    return plan.where, [(each.topic, each.partition, each.start, each.end) for each in plan.slices]


def _prepare(asked: _Asked) -> None:
    asked.command(
        "CREATE OR REPLACE TABLE replay_outside (side UInt8, kind LowCardinality(String), event_id FixedString(16),"
        " reason String) ENGINE = MergeTree ORDER BY (event_id, side)"
    )


# --------------------------------------------------------------------------------- what no store has, and why


def _outside(asked: _Asked, plan: Plan, sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Fill replay_outside from dead letters and drops; return dead letters by topic, writer and reason."""
    told: dict[tuple[str, str, str, str], list[int]] = {}
    for number, side in enumerate(sides):
        reader = Reader(side.kafka)
        there = reader.topics()
        since = int(plan.start.timestamp() * 1000)
        rows: list[tuple[Any, ...]] = []
        names = [side.kafka.named(f"{name}{dead_letters.SUFFIX}") for name in _stored(there, side)]
        for message in reader.read(reader.between(reader.retained(names), since if side.live else None, None)):
            letter = DeadLetter.of(message)
            if side.live and not _in_slice(letter, plan):
                continue
            ids = list(_ids(letter.value))
            counted = told.setdefault((side.name, letter.topic, letter.writer, letter.reason), [0, 0])
            counted[0] += 1
            counted[1] += len(ids)
            rows += [
                (number, f"dead:{letter.writer.removeprefix(side.kafka.prefix)}", one, letter.reason) for one in ids
            ]
            rows = _flushed(asked, rows)
        drops = side.kafka.named(DROPS_TOPIC)
        if drops in there:
            for message in reader.read(reader.between(reader.retained([drops]), since if side.live else None, None)):
                dropped: Any = fastavro.reader(io.BytesIO(message.value))
                rows += [(number, "drop", one["event_id"], one["reason"]) for one in dropped]
                rows = _flushed(asked, rows)
        _flushed(asked, rows, least=1)
    return [
        {"side": side, "topic": topic, "writer": writer, "reason": reason, "messages": messages, "records": records}
        for (side, topic, writer, reason), (messages, records) in sorted(told.items())
    ]


def _stored(there: dict[str, int], side: Side) -> list[str]:
    """Topics of the side that have a dead-letter topic."""
    suffix = dead_letters.SUFFIX
    mine = [name.removeprefix(side.kafka.prefix) for name in there if name.startswith(side.kafka.prefix)]
    return sorted(name.removesuffix(suffix) for name in mine if name.endswith(suffix) and "sandbox_" not in name)


def _in_slice(letter: DeadLetter, plan: Plan) -> bool:
    return any(
        (each.topic, each.partition) == (letter.topic, letter.partition) and each.start <= letter.offset < each.end
        for each in plan.slices
    )


def _ids(value: bytes) -> Iterator[bytes]:
    """The event_ids of a message as far as it decodes."""
    try:
        for record in fastavro.reader(io.BytesIO(value)):
            if isinstance(record, dict):
                yield record["event_id"]
    except Exception:  # fastavro promises no type for what foreign bytes do to it
        return


def _flushed(asked: _Asked, rows: list[tuple[Any, ...]], least: int = INSERT_ROWS) -> list[tuple[Any, ...]]:
    if len(rows) < least:
        return rows
    asked.client.insert("replay_outside", rows, column_names=["side", "kind", "event_id", "reason"])
    return []


# ----------------------------------------------------------------------------------------------- one signal


def _signal(asked: _Asked, signal: Signal, sides: tuple[Side, Side]) -> dict[str, Any]:
    columns = _columns(asked, signal, sides)
    _join(asked, signal, sides, columns)
    closure = asked.rows(f"SELECT {CLOSURE} FROM replay_{signal}")[0]
    differing = int(closure["differ"])
    return {
        "closure": closure,
        "closure_by": asked.rows(
            f"SELECT * FROM (SELECT minute, service, severity, {CLOSURE} FROM replay_{signal}"
            " GROUP BY minute, service, severity) ORDER BY a_missing + b_missing + a_extra + b_extra + differ DESC,"
            f" minute, service, severity LIMIT {MOST_ROWS}"
        ),
        "by_minute": asked.rows(
            f"SELECT minute, countIf(in_a) AS a, countIf(in_b) AS b FROM replay_{signal}"
            " GROUP BY minute ORDER BY minute"
        ),
        "heat": asked.rows(
            "SELECT service, minute, countIf(in_a) AS a, countIf(in_b) AS b,"
            f" countIf(in_a != in_b OR {DIFFER}) AS different FROM replay_{signal}"
            " GROUP BY service, minute ORDER BY service, minute"
        ),
        "latency": asked.rows(
            "SELECT minute, quantileIf(0.5)(value_a, in_a) AS p50_a, quantileIf(0.5)(value_b, in_b) AS p50_b,"
            " quantileIf(0.99)(value_a, in_a) AS p99_a, quantileIf(0.99)(value_b, in_b) AS p99_b"
            f" FROM replay_{signal} GROUP BY minute ORDER BY minute"
        ) if signal == "traces" else [],
        "aggregates": [_relative(row) for row in asked.rows(AGGREGATES.format(signal=signal))],
        "columns": _fields(asked, signal, sides, columns, differing) if differing else [],
        "extra": int(closure["a_extra"]) + int(closure["b_extra"]),
        "ids": {
            kind: asked.rows(
                f"SELECT lower(hex(event_id)) AS event_id, minute, service, severity FROM replay_{signal} WHERE {which}"
                f" ORDER BY minute, event_id LIMIT {MOST_IDS}"
            )
            for kind, which in KINDS.items()
        },
        "drops": asked.rows(
            "SELECT if(side = 0, 'a', 'b') AS side, reason, uniqExact(event_id) AS records FROM replay_outside"
            " WHERE kind = 'drop' AND event_id IN"
            f" (SELECT event_id FROM replay_{signal} WHERE drop_a OR drop_b)"
            " GROUP BY side, reason ORDER BY side, reason"
        ),
    }  # fmt: skip


DIFFER = "(in_a AND in_b AND hash_a != hash_b)"
MISSING = "(in_input AND NOT in_{0} AND NOT dead_{0} AND NOT drop_{0})"
CLOSURE = ", ".join(
    [
        "countIf(in_input) AS `in`",
        *(
            f"countIf(in_{s}) AS {s}_rows, countIf(dead_{s} AND NOT in_{s}) AS {s}_dead,"
            f" countIf(drop_{s} AND NOT in_{s} AND NOT dead_{s}) AS {s}_dropped,"
            f" countIf({MISSING.format(s)}) AS {s}_missing, countIf(in_{s} AND NOT in_input) AS {s}_extra,"
            f" countIf(twice_{s}) AS {s}_twice"
            for s in "ab"
        ),
        "countIf(in_a AND NOT in_b) AS only_a",
        "countIf(in_b AND NOT in_a) AS only_b",
        f"countIf({DIFFER}) AS differ",
    ]
)
KINDS = {
    "a_missing": MISSING.format("a"),
    "b_missing": MISSING.format("b"),
    "only_a": "in_a AND NOT in_b",
    "only_b": "in_b AND NOT in_a",
    "a_extra": "in_a AND NOT in_input",
    "b_extra": "in_b AND NOT in_input",
}
AGGREGATES = """
    SELECT label,
        countIf(in_a) AS count_a, countIf(in_b) AS count_b,
        countIf(in_a AND error_a) / greatest(countIf(in_a), 1) AS error_rate_a,
        countIf(in_b AND error_b) / greatest(countIf(in_b), 1) AS error_rate_b,
        quantileIf(0.5)(value_a, in_a) AS p50_a, quantileIf(0.5)(value_b, in_b) AS p50_b,
        quantileIf(0.99)(value_a, in_a) AS p99_a, quantileIf(0.99)(value_b, in_b) AS p99_b
    FROM replay_{signal} GROUP BY label ORDER BY count_a + count_b DESC, label LIMIT 500
"""


def _join(asked: _Asked, signal: Signal, sides: tuple[Side, Side], columns: Sequence[str]) -> None:
    """replay_<signal>: a row for each event that went in or that a sandbox made, and what each side has of it."""
    source = SOURCES[signal]
    digest = f"cityHash64({', '.join(map(_hashable, columns))})"
    asked.command(
        f"""CREATE OR REPLACE TABLE replay_{signal} (
            event_id FixedString(16), minute DateTime('UTC'), service LowCardinality(String),
            severity LowCardinality(String), label LowCardinality(String), in_input Bool,
            in_a Bool, in_b Bool, dead_a Bool, dead_b Bool, drop_a Bool, drop_b Bool, twice_a Bool, twice_b Bool,
            hash_a UInt64, hash_b UInt64, error_a Bool, error_b Bool,
            value_a Nullable(Float64), value_b Nullable(Float64)
        ) ENGINE = MergeTree ORDER BY tuple()"""
    )
    rows = [
        f"""SELECT {number} AS side, event_id, toStartOfMinute(received_time) AS minute, toString(service) AS service,
            toString({source.severity}) AS severity, toString({source.label}) AS label,
            {digest} AS digest, toBool({source.error}) AS error, toNullable(toFloat64({source.value})) AS number,
            timestamp, received_time
        FROM {side.database}.{source.table} WHERE {_span(signal, side)}"""
        for number, side in enumerate(sides, 1)
    ]
    blank = (
        "0 AS digest, false AS error, CAST(NULL AS Nullable(Float64)) AS number,"
        " toDateTime64(0, 9, 'UTC') AS timestamp, toDateTime64(0, 9, 'UTC') AS received_time"
    )
    rows += [
        f"""SELECT 0 AS side, event_id, toDateTime(minute, 'UTC') AS minute, toString(service) AS service,
            toString(severity) AS severity, '' AS label, {blank} FROM replay_input WHERE signal = '{signal}'""",
        f"""SELECT 3 + 2 * side + (kind = 'drop') AS side, event_id, toDateTime(0, 'UTC') AS minute, '' AS service,
            '' AS severity, '' AS label, {blank} FROM replay_outside WHERE kind != 'dead:pg_writer'""",
    ]
    made = " OR ".join(["in_input", *(f"in_{s}" for s, side in zip("ab", sides, strict=True) if not side.live)])
    asked.command(
        f"""INSERT INTO replay_{signal}
        SELECT event_id, minute, service, severity, label, in_input, in_a, in_b, dead_a, dead_b, drop_a, drop_b,
            twice_a, twice_b, hash_a, hash_b, error_a, error_b, value_a, value_b
        FROM (
            SELECT event_id,
                max(side = 0) AS in_input, max(side = 1) AS in_a, max(side = 2) AS in_b,
                max(side = 3) AS dead_a, max(side = 5) AS dead_b, max(side = 4) AS drop_a, max(side = 6) AS drop_b,
                if(in_input, anyIf(r.minute, side = 0), anyIf(r.minute, side IN (1, 2))) AS minute,
                if(in_input, anyIf(r.service, side = 0), anyIf(r.service, side IN (1, 2))) AS service,
                if(in_input, anyIf(r.severity, side = 0), anyIf(r.severity, side IN (1, 2))) AS severity,
                if(in_a OR in_b, anyIf(r.label, side IN (1, 2)), service) AS label,
                in_a AND minIf(r.timestamp, side = 1) != maxIf(r.timestamp, side = 1) AS twice_a,
                in_b AND minIf(r.timestamp, side = 2) != maxIf(r.timestamp, side = 2) AS twice_b,
                argMaxIf(digest, received_time, side = 1) AS hash_a,
                argMaxIf(digest, received_time, side = 2) AS hash_b,
                argMaxIf(error, received_time, side = 1) AS error_a,
                argMaxIf(error, received_time, side = 2) AS error_b,
                argMaxIf(number, received_time, side = 1) AS value_a,
                argMaxIf(number, received_time, side = 2) AS value_b
            FROM ({" UNION ALL ".join(rows)}) AS r
            GROUP BY event_id
        ) WHERE {made}"""
    )


def _columns(asked: _Asked, signal: Signal, sides: tuple[Side, Side]) -> list[str]:
    """Those that both sides have and that say something of the event."""
    found = asked.rows(
        "SELECT name FROM system.columns WHERE table = {table:String} AND database IN {databases:Array(String)}"
        " GROUP BY name HAVING uniqExact(database) = {sides:UInt8} ORDER BY min(position)",
        table=SOURCES[signal].table,
        databases=[side.database for side in sides],
        sides=len({side.database for side in sides}),
    )
    return [row["name"] for row in found if row["name"] not in DELIVERY]


def _hashable(column: str) -> str:
    return f"toString({column})"  # as it would be read: of a null, a map and a nested tuple alike


def _span(signal: Signal, side: Side) -> str:
    """Of live only the days that the slice's records are of."""
    if not side.live:
        return "1"
    bounds = f"(SELECT {{}}(timestamp) FROM replay_input WHERE signal = '{signal}')"
    return f"timestamp BETWEEN {bounds.format('min')} AND {bounds.format('max')}"


def _fields(
    asked: _Asked, signal: Signal, sides: tuple[Side, Side], columns: Sequence[str], differing: int
) -> list[dict[str, Any]]:
    """How many of the differing records differ in each column, and examples. Passes of PASS_IDS records each."""
    passes = -(-differing // PASS_IDS)
    counts: dict[str, int] = {}
    examples: dict[str, list[bytes]] = {}
    names = "[" + ", ".join(f"'{column}'" for column in columns) + "]"
    hashes = "[" + ", ".join(f"cityHash64({_hashable(column)})" for column in columns) + "]"
    for number in range(passes):
        part = f"cityHash64(event_id) % {passes} = {number}"
        which = f"event_id IN (SELECT event_id FROM replay_{signal} WHERE {DIFFER} AND {part})"
        rows = " UNION ALL ".join(
            f"SELECT {n} AS side, event_id, received_time, {hashes} AS digests"
            f" FROM {side.database}.{SOURCES[signal].table} WHERE {_span(signal, side)} AND {which}"
            for n, side in enumerate(sides, 1)
        )
        for row in asked.rows(
            f"""SELECT column, count() AS records, groupArray({EXAMPLES})(event_id) AS ids FROM (
                SELECT event_id, arrayJoin(arrayFilter((n, x, y) -> x != y, {names},
                    argMaxIf(digests, received_time, side = 1), argMaxIf(digests, received_time, side = 2))) AS column
                FROM ({rows}) GROUP BY event_id
            ) GROUP BY column"""
        ):
            counts[row["column"]] = counts.get(row["column"], 0) + int(row["records"])
            examples.setdefault(row["column"], []).extend(row["ids"])
    return [
        {
            "column": column,
            "records": counts[column],
            "examples": _values(asked, signal, sides, column, examples[column]),
        }
        for column in sorted(counts, key=lambda one: (-counts[one], one))
    ]


def _values(
    asked: _Asked, signal: Signal, sides: tuple[Side, Side], column: str, ids: list[bytes]
) -> list[dict[str, Any]]:
    rows = " UNION ALL ".join(
        f"SELECT {n} AS side, event_id, received_time, substring(toString({column}), 1, {EXAMPLE_CHARS}) AS value"
        f" FROM {side.database}.{SOURCES[signal].table} WHERE {_span(signal, side)}"
        " AND lower(hex(event_id)) IN {ids:Array(String)}"
        for n, side in enumerate(sides, 1)
    )
    return asked.rows(
        "SELECT lower(hex(event_id)) AS event_id, argMaxIf(value, received_time, side = 1) AS a,"
        f" argMaxIf(value, received_time, side = 2) AS b FROM ({rows}) GROUP BY event_id ORDER BY event_id",
        ids=[one.hex() for one in ids[:EXAMPLES]],
    )


def _relative(row: dict[str, Any]) -> dict[str, Any]:
    """With `relative`: (a - b) / b, None where b is none or nothing."""
    found = {}
    for name in ("count", "error_rate", "p50", "p99"):
        a, b = row[f"{name}_a"], row[f"{name}_b"]
        found[name] = None if a is None or not b else (a - b) / b
    return {**row, "relative": found}


# ---------------------------------------------------------------------------------------------- the verdict


def _document(
    plan: Plan, folder: Folder, other: Folder | None, signals: dict[Signal, Any], letters: list[dict[str, Any]]
) -> dict[str, Any]:
    findings = [line for signal, found in signals.items() for line in _findings(signal, found["closure"])]
    records = sum(found["closure"]["in"] for found in signals.values())
    b = other.plan.name if other else LIVE
    verdict = (
        f"EQUAL: {plan.name} and {b} have the same {records:,} records, field by field; closure is exact."
        if not findings
        else f"DIFFERENT: {plan.name} and {b} are not the same over {records:,} records."
    )
    document = {
        "equal": not findings,
        "verdict": verdict,
        "findings": findings,
        "a": {"name": plan.name, "way": str(folder.way)},
        "b": {"name": b, "way": str(other.way) if other else LIVE},
        "window": {"from": iso(plan.start), "to": iso(plan.end), "where": plan.where},
        "slices": [each.model_dump() for each in plan.slices],
        "signals": signals,
        "dead_letters": letters,
    }
    plain: dict[str, Any] = json.loads(json.dumps(document, default=_plain))
    return plain


def _findings(signal: Signal, closure: dict[str, Any]) -> list[str]:
    words = {
        "a_missing": "{:,} records of A are neither stored, dead-lettered nor dropped",
        "b_missing": "{:,} records of B are neither stored, dead-lettered nor dropped",
        "a_extra": "{:,} records of A never went in",
        "b_extra": "{:,} records of B never went in",
        "a_twice": "{:,} records of A are visible twice",
        "b_twice": "{:,} records of B are visible twice",
        "only_a": "{:,} records are in A alone",
        "only_b": "{:,} records are in B alone",
        "differ": "{:,} records differ in a field",
    }
    return [f"{signal}: {text.format(closure[key])}." for key, text in words.items() if closure[key]]


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
