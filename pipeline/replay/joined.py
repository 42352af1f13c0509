"""Both sides of a part beside what went in, and what is asked of that.

Keys are hashes, so a range of them is a fair part of all. The join goes over ranges, as many as it takes for one to fit
into the memory of a query; rows of the result are small, and what is asked of them is counted while they are read. So
the memory that a comparison takes does not depend on how many records there are.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from pipeline.replay.asked import Asked
from pipeline.replay.parts import ROWS, Part, Place, Side, Span

EXAMPLES = 3  # of each column
MOST_IDS = 10_000  # of each kind that are told one by one
MOST_ROWS = 2_000  # of closure by minute, service and severity: those that do not close come first
ROW_BYTES = 1_000  # of memory for a row of a range, at most
OTHER_WRITER = {"ch_writer": "pg_writer", "pg_writer": "ch_writer"}

MISSING = "(in_input AND NOT in_{0} AND NOT dead_{0} AND NOT drop_{0} AND NOT expired_{0})"
ALONE = "(in_{0} AND NOT in_{1} AND NOT expired_{1})"
CLOSURE = ", ".join(
    [
        "countIf(in_input) AS `in`",
        *(
            f"countIf(in_{s}) AS {s}_rows, countIf(dead_{s} AND NOT in_{s}) AS {s}_dead,"
            f" countIf(drop_{s} AND NOT in_{s} AND NOT dead_{s}) AS {s}_dropped,"
            f" countIf(expired_{s} AND NOT dead_{s} AND NOT drop_{s}) AS {s}_expired,"
            f" countIf({MISSING.format(s)}) AS {s}_missing, countIf(in_{s} AND NOT in_input) AS {s}_extra,"
            f" countIf(twice_{s}) AS {s}_twice"
            for s in "ab"
        ),
        f"countIf({ALONE.format('a', 'b')}) AS only_a",
        f"countIf({ALONE.format('b', 'a')}) AS only_b",
        "countIf(differ) AS differ",
    ]
)
KINDS = {
    "a_missing": MISSING.format("a"),
    "b_missing": MISSING.format("b"),
    "only_a": ALONE.format("a", "b"),
    "only_b": ALONE.format("b", "a"),
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
    FROM replay_joined GROUP BY label ORDER BY count_a + count_b DESC, label LIMIT 500
"""
JOINED = """
    CREATE OR REPLACE TABLE replay_joined (
        key FixedString(16) CODEC(NONE), event_id FixedString(16), minute DateTime('UTC'),
        service LowCardinality(String), severity LowCardinality(String), label LowCardinality(String), in_input Bool,
        in_a Bool, in_b Bool, dead_a Bool, dead_b Bool, drop_a Bool, drop_b Bool, expired_a Bool, expired_b Bool,
        twice_a Bool, twice_b Bool,
        reason_a LowCardinality(String), reason_b LowCardinality(String), differ Bool, error_a Bool, error_b Bool,
        value_a Nullable(Float64), value_b Nullable(Float64)
    ) ENGINE = MergeTree ORDER BY key SETTINGS index_granularity = 1024
"""
# Sides are 0: what went in; 1 and 2: rows of A and B; 3 and 4: their dead letters; 5 and 6: their drops.
JOIN = """
    INSERT INTO replay_joined
    SELECT key, if(id = toFixedString('', 16), key, id), minute, service, severity, label, in_input, in_a, in_b,
        bitTest(sides, 3), bitTest(sides, 4), bitTest(sides, 5), bitTest(sides, 6),
        in_input AND NOT in_a AND stands < {{since_a:Int64}}, in_input AND NOT in_b AND stands < {{since_b:Int64}},
        twice_a, twice_b, reason_a, reason_b,
        in_a AND in_b AND digest_a != digest_b, error_a, error_b,
        if(isNaN(value_a), NULL, value_a), if(isNaN(value_b), NULL, value_b)
    FROM (
        SELECT key, max(r.event_id) AS id, groupBitOr(bitShiftLeft(toUInt8(1), side)) AS sides,
            bitTest(sides, 0) AS in_input, bitTest(sides, 1) AS in_a, bitTest(sides, 2) AS in_b,
            anyIf(r.timestamp, side = 0) AS stands,
            if(in_input, anyIf(r.minute, side = 0), anyIf(r.minute, side IN (1, 2))) AS minute,
            if(in_input, anyIf(r.service, side = 0), anyIf(r.service, side IN (1, 2))) AS service,
            if(in_input, anyIf(r.severity, side = 0), anyIf(r.severity, side IN (1, 2))) AS severity,
            if(in_a OR in_b, anyIf(r.label, side IN (1, 2)), service) AS label,
            in_a AND minIf(r.timestamp, side = 1) != maxIf(r.timestamp, side = 1) AS twice_a,
            in_b AND minIf(r.timestamp, side = 2) != maxIf(r.timestamp, side = 2) AS twice_b,
            anyIf(r.label, side = 5) AS reason_a, anyIf(r.label, side = 6) AS reason_b,
            argMaxIf(digest, received, side = 1) AS digest_a, argMaxIf(digest, received, side = 2) AS digest_b,
            argMaxIf(error, received, side = 1) AS error_a, argMaxIf(error, received, side = 2) AS error_b,
            argMaxIf(number, received, side = 1) AS value_a, argMaxIf(number, received, side = 2) AS value_b
        FROM (
            SELECT side, key, event_id, toStartOfMinute(fromUnixTimestamp64Nano(received, 'UTC')) AS minute,
                toString(service) AS service, toString(severity) AS severity, toString(label) AS label,
                timestamp, received, digest, error, ifNull(value, nan) AS number
            FROM replay_rows WHERE {within}
            UNION ALL
            SELECT 0, key, event_id, minute, toString(service), toString(severity), '', timestamp, 0, 0, false,
                0
            FROM replay_input WHERE part = {{part:String}} AND {within}
        ) AS r GROUP BY key
    ) WHERE {made}
"""
# Digests of single columns are looked at where those of all differ.
COLUMNS = """
    SELECT number, count() AS records, groupArray({examples})(key) AS keys FROM (
        SELECT key, argMaxIf(digests, received, side = 1) AS a, argMaxIf(digests, received, side = 2) AS b,
            arrayJoin(arrayFilter((n, x, y) -> x != y, range(length(a)), a, b)) AS number
        FROM replay_rows
        WHERE {within} AND side IN (1, 2) AND key IN (SELECT key FROM replay_joined WHERE differ AND {within})
        GROUP BY key
    ) GROUP BY number
"""


def judged(asked: Asked, part: Part, sides: tuple[Side, Side]) -> dict[str, Any] | None:
    """What the comparison says of one part; None where nothing went in and no sandbox has a row."""
    columns = part.columns(asked, sides)
    ranges = _joined(asked, part, sides, columns)
    if not ranges:
        return None
    closure = asked.rows(f"SELECT {CLOSURE} FROM replay_joined")[0]
    return {
        "closure": closure,
        "closure_by": asked.rows(
            f"SELECT * FROM (SELECT minute, service, severity, {CLOSURE} FROM replay_joined"
            " GROUP BY minute, service, severity) ORDER BY a_missing + b_missing + a_extra + b_extra + differ DESC,"
            f" minute, service, severity LIMIT {MOST_ROWS}"
        ),
        "by_minute": asked.rows(
            "SELECT minute, countIf(in_a) AS a, countIf(in_b) AS b FROM replay_joined GROUP BY minute ORDER BY minute"
        ),
        "heat": asked.rows(
            "SELECT service, minute, countIf(in_a) AS a, countIf(in_b) AS b,"
            f" countIf({ALONE.format('a', 'b')} OR {ALONE.format('b', 'a')} OR differ) AS different FROM replay_joined"
            " GROUP BY service, minute ORDER BY service, minute"
        ),
        "latency": asked.rows(
            "SELECT minute, quantileIf(0.5)(value_a, in_a) AS p50_a, quantileIf(0.5)(value_b, in_b) AS p50_b,"
            " quantileIf(0.99)(value_a, in_a) AS p99_a, quantileIf(0.99)(value_b, in_b) AS p99_b"
            " FROM replay_joined GROUP BY minute ORDER BY minute"
        ) if part.name == "traces" else [],
        "grouped_by": part.grouped_by,
        "valued": part.valued,
        "aggregates": [_relative(row) for row in asked.rows(AGGREGATES)],
        "columns": _fields(asked, part, sides, columns, ranges) if closure["differ"] else [],
        "ids": {
            kind: asked.rows(
                f"SELECT lower(hex(event_id)) AS event_id, minute, service, severity FROM replay_joined WHERE {which}"
                f" ORDER BY minute, event_id LIMIT {MOST_IDS}"
            )
            for kind, which in KINDS.items()
        },
        "drops": [
            {"side": side, **row}
            for side in "ab"
            for row in asked.rows(
                f"SELECT reason_{side} AS reason, count() AS records FROM replay_joined WHERE drop_{side}"
                " GROUP BY reason ORDER BY reason"
            )
        ],
    }  # fmt: skip


def forget(asked: Asked) -> None:
    """Remove what a comparison has made, beside what it was told."""
    for table in ("replay_rows", "replay_joined"):
        asked.command(f"DROP TABLE IF EXISTS {table} SYNC")


def _joined(asked: Asked, part: Part, sides: tuple[Side, Side], columns: Sequence[str]) -> list[str]:
    """Fill replay_joined with a row for each key that went in or that a sandbox made; return the ranges of keys that
    were joined at a time, none where there is no such key."""
    asked.command(ROWS)
    asked.command(JOINED)
    for number, side in enumerate(sides, 1):
        if not side.live:
            part.fill(asked, number, side, columns, None)
    [there] = asked.rows(
        "SELECT count() AS rows, min(timestamp) AS first_ns, max(timestamp) AS last_ns FROM (SELECT timestamp FROM"
        " replay_rows UNION ALL SELECT timestamp FROM replay_input WHERE part = {part:String})",
        part=part.name,
    )
    if not there["rows"]:
        return []
    for number, side in enumerate(sides, 1):
        if side.live:
            part.fill(asked, number, side, columns, Span(there["first_ns"], there["last_ns"]))
    _excused(asked, part)
    [total] = asked.rows(
        "SELECT (SELECT count() FROM replay_rows) + countIf(part = {part:String}) AS rows FROM replay_input",
        part=part.name,
    )
    made = " OR ".join(["in_input", *(f"in_{s}" for s, side in zip("ab", sides, strict=True) if not side.live)])
    ranges = _ranges(-(-int(total["rows"]) * ROW_BYTES // asked.memory_bytes))
    since = {f"since_{s}": part.kept_since_ns(asked, side) for s, side in zip("ab", sides, strict=True)}
    for within in ranges:
        asked.command(JOIN.format(within=within, made=made), part=part.name, **since)
    return ranges


def _ranges(count: int) -> list[str]:
    """All keys, as conditions that `count` parts of them fulfil."""
    bounds = [f"unhex('{(number << 32) // count:08x}{'0' * 24}')" for number in range(count)]
    first_to_last = [f"key >= {first} AND key < {after}" for first, after in itertools.pairwise(bounds)]
    return [*first_to_last, f"key >= {bounds[-1]}"]


def _excused(asked: Asked, part: Part) -> None:
    """Dead letters and drops into replay_rows, by the key that they would have there."""
    key, source = "o.event_id", "replay_outside AS o"
    if part.keyed:
        key, source = "i.key", f"replay_input AS i JOIN {source} ON o.event_id = i.event_id"
    asked.command(
        "INSERT INTO replay_rows (side, key, label)"
        f" SELECT if(o.kind = 'drop', 5, 3) + o.side, {key}, o.reason FROM {source} WHERE o.kind != {{other:String}}"
        + (" AND i.part = {part:String}" if part.keyed else ""),
        other=f"dead:{OTHER_WRITER[part.writer]}",
        part=part.name,
    )


def _fields(
    asked: Asked, part: Part, sides: tuple[Side, Side], columns: Sequence[str], ranges: Sequence[str]
) -> list[dict[str, Any]]:
    """How many of the differing records differ in each column, and examples."""
    counts: dict[str, int] = {}
    examples: dict[str, list[bytes]] = {}
    for within in ranges:
        for row in asked.rows(COLUMNS.format(within=within, examples=EXAMPLES)):
            name = columns[row["number"]]
            counts[name] = counts.get(name, 0) + row["records"]
            examples[name] = [*examples.get(name, []), *row["keys"]][:EXAMPLES]
    names = sorted(counts, key=lambda name: (-counts[name], name))
    keys = sorted({key.hex() for found in examples.values() for key in found})
    rows = asked.rows(
        "SELECT side, key, any(event_id) AS id, groupUniqArray(timestamp) AS times FROM replay_rows"
        " WHERE key IN (SELECT toFixedString(unhex(arrayJoin({keys:Array(String)})), 16)) AND side IN (1, 2)"
        " GROUP BY side, key",
        keys=keys,
    )
    said = [
        part.values(
            asked, side, names,
            [Place(row["key"], time) for row in rows if row["side"] == number for time in row["times"]],
        )
        for number, side in enumerate(sides, 1)
    ]  # fmt: skip
    ids = {row["key"]: row["id"] if any(row["id"]) else row["key"] for row in rows}
    return [
        {
            "column": name,
            "records": counts[name],
            "examples": [
                {"event_id": ids[key].hex(), **{s: said[n].get(key.hex(), {}).get(name) for n, s in enumerate("ab")}}
                for key in examples[name]
            ],
        }
        for name in names
    ]


def _relative(row: dict[str, Any]) -> dict[str, Any]:
    """With `relative`: (a - b) / b, None where b is none or nothing."""
    found = {}
    for name in ("count", "error_rate", "p50", "p99"):
        a, b = row[f"{name}_a"], row[f"{name}_b"]
        found[name] = None if a is None or not b else (a - b) / b
    return {**row, "relative": found}
