"""Two sides over one slice: closure of each, and what differs, by set, field and aggregate.

A side is live, or a sandbox: its tables in both stores, its dead letters and its drops. Everything is joined and
counted in the sandbox's ClickHouse; what comes from there is small.
"""

import contextlib
import json
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pipeline import clickhouse
from pipeline.errors import Misconfigured
from pipeline.replay import joined, outside, parts
from pipeline.replay.asked import Asked
from pipeline.replay.folder import Folder
from pipeline.replay.parts import LIVE, Side
from pipeline.replay.plan import Plan, iso
from pipeline.replay.tables import SIGNALS
from pipeline.settings import Settings

STORED_TOO = ("events", *parts.POINTS)  # by PostgreSQL, of signals
MEMORY_BYTES = 400_000_000  # a query's


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found, as the JSON document that `--json` prints and the report shows."""

    document: dict[str, Any]

    @property
    def equal(self) -> bool:
        return bool(self.document["equal"])

    def lines(self) -> list[str]:
        """The verdict in short."""
        document = self.document
        return [document["verdict"], *(f"  {line}" for line in (*document["findings"], *document["expired"]))]


def compare(folder: Folder, other: Folder | None, live: Settings, memory_bytes: int = MEMORY_BYTES) -> Comparison:
    """`folder`'s sandbox against `other`'s, or against live. No query takes more than `memory_bytes` of ClickHouse.

    Raises Misconfigured where one is not done, another command works on it, or the two are not of one slice;
    Unavailable where a server is away.
    """
    plan = folder.plan
    folders = [folder, *([other] if other else ())]
    for each in folders:
        if each.state["state"] != "done":
            raise Misconfigured(
                f"{each.plan.name} is {each.state['state']}, not done: `pipeline replay run {each.plan.name}` first."
            )
    if other is not None and other.path == folder.path:
        raise Misconfigured(f"{plan.name} is compared with live or with another sandbox, not with itself.")
    if other is not None and _slice(other.plan) != _slice(plan):
        raise Misconfigured(
            f"{plan.name} and {other.plan.name} are not of one slice: plan {other.plan.name} with the same topics, "
            "times and --where."
        )
    a = _side(folder, live)
    b = _side(other, live) if other else Side(LIVE, live.clickhouse.database, live.postgres, live.kafka)
    own = live.clickhouse.model_copy(update={"database": a.database})
    with contextlib.ExitStack() as held, closing(clickhouse.connect(own)) as client, clickhouse.translated():
        for each in folders:
            held.enter_context(each.locked())
        asked = Asked(client, memory_bytes)
        letters = outside.read(asked, plan, (a, b))
        told = {part.name: joined.judged(asked, part, (a, b)) for part in parts.of(_registered(asked), live.retention)}
        joined.forget(asked)
    return Comparison(_document(plan, folder, other, {name: found for name, found in told.items() if found}, letters))


def _side(folder: Folder, live: Settings) -> Side:
    sandbox = folder.plan.sandbox
    own = sandbox.settings(live, live, folder.secret)
    return Side(folder.plan.name, sandbox.owner, own.postgres, live.kafka.model_copy(update={"prefix": sandbox.prefix}))


def _registered(asked: Asked) -> list[str]:
    """The parts of registered tables that something of went in."""
    known = [*SIGNALS, *(f"postgres/{table}" for table in STORED_TOO)]
    found = asked.rows(
        "SELECT DISTINCT part FROM replay_input WHERE part NOT IN {known:Array(String)} ORDER BY part", known=known
    )
    return [row["part"] for row in found]


def _slice(plan: Plan) -> object:
    return plan.where, [(each.topic, each.partition, each.start, each.end) for each in plan.slices]


def _document(
    plan: Plan, folder: Folder, other: Folder | None, judged: dict[str, Any], letters: list[dict[str, Any]]
) -> dict[str, Any]:
    findings = [line for part, found in judged.items() for line in _findings(part, found["closure"])]
    expired = [line for part, found in judged.items() for line in _expired(part, found["closure"])]
    records = _records(judged)
    b = other.plan.name if other else LIVE
    but = ", but for what has expired" if expired else ""
    verdict = (
        f"EQUAL: {plan.name} and {b} have the same {records:,} records, field by field{but}; closure is exact."
        if not findings
        else f"DIFFERENT: {plan.name} and {b} are not the same over {records:,} records."
    )
    document = {
        "equal": not findings,
        "verdict": verdict,
        "findings": findings,
        "expired": expired,
        "a": {"name": plan.name, "way": str(folder.way)},
        "b": {"name": b, "way": str(other.way) if other else LIVE},
        "window": {"from": iso(plan.start), "to": iso(plan.end), "where": plan.where},
        "slices": [each.model_dump() for each in plan.slices],
        "signals": judged,
        "dead_letters": letters,
    }
    plain: dict[str, Any] = json.loads(json.dumps(document, default=_plain))
    return plain


def _records(judged: dict[str, Any]) -> int:
    """How many went in: of what both stores keep, once."""
    counts: dict[str, int] = {}
    for part, found in judged.items():
        table = part.rpartition("/")[2]
        if part in SIGNALS or table not in STORED_TOO:
            counts[table] = max(counts.get(table, 0), found["closure"]["in"])
    return sum(counts.values())


def _findings(part: str, closure: dict[str, Any]) -> list[str]:
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
    return [f"{part}: {text.format(closure[key])}." for key, text in words.items() if closure[key]]


def _expired(part: str, closure: dict[str, Any]) -> list[str]:
    return [
        f"{part}: {closure[f'{s}_expired']:,} records of {s.upper()} have expired: their time is before what its"
        " retention keeps."
        for s in "ab"
        if closure[f"{s}_expired"]
    ]


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
