"""What can be asked, of which store, and how the answers of several regions become one.

ClickHouse's own `remote` is not used: with an unreachable server it fails as a whole, or with
skip_unavailable_shards leaves out its rows and does not say so.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from pipeline import digits
from pipeline.errors import Rejected
from pipeline.record.times import parse_ns

Row = dict[str, Any]
Store = Literal["clickhouse", "postgres"]
DEFAULT_ROWS = 1000
FIRST_NS, LAST_NS = -2_208_988_800 * 10**9, 9_214_646_400 * 10**9  # of DateTime64(9), in whole years
SEVERITIES = {"trace": 1, "debug": 5, "info": 9, "warn": 13, "error": 17, "fatal": 21}
AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "avg": lambda values: sum(values) / len(values), "sum": sum, "min": min, "max": max, "count": len,
}  # fmt: skip
LOGS = """
    SELECT toUnixTimestamp64Nano(timestamp) AS time_ns, event_id, region, tenant, service, host, severity_number,
        severity_text, event_name, body, attributes, resource_attributes, trace_id, span_id,
        toUnixTimestamp64Nano(received_time) AS received_ns
    FROM logs WHERE {where} ORDER BY timestamp DESC, event_id LIMIT %(rows)s
"""
TRACE = """
    SELECT toUnixTimestamp64Nano(timestamp) AS time_ns, event_id, region, tenant, service, host, trace_id, span_id,
        parent_span_id, name, kind, status, status_message, duration_ns, attributes, resource_attributes,
        toUnixTimestamp64Nano(received_time) AS received_ns
    FROM traces WHERE {where} ORDER BY timestamp, event_id LIMIT %(rows)s
"""
METRICS = """
    SELECT (extract(epoch FROM time) * 1000000)::bigint * 1000 AS time_ns, event_id, region, tenant, metric_name,
        service, host, type, unit, labels, value
    FROM metrics WHERE {where} ORDER BY time DESC, event_id LIMIT %(rows)s
"""


@dataclass(frozen=True)
class Question:
    """One statement, its values, how rows are ordered, and what is done with the merged ones."""

    store: Store
    statement: str
    values: dict[str, Any]
    rows: int
    newest_first: bool = True
    bucket_ns: int | None = None
    aggregate: str = "avg"
    regions: tuple[str, ...] = ()


class Bounds(NamedTuple):
    """What may be asked for: only that tenant's records where one is named, of these regions, so many rows."""

    tenant: str | None
    regions: Sequence[str]
    most_rows: int


@dataclass
class _Asked:
    """The parameters of a request: each is given once and read once, what is left is unknown."""

    given: dict[str, str]
    bounds: Bounds
    problems: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, str], bounds: Bounds) -> "_Asked":
        times = Counter(name for name, _ in given.items())  # of a multidict keys are told once
        twice = [name for name in times if times[name] > 1]
        return cls(dict(given), bounds, [f"{name[:40]!r} is given twice: ask once for each." for name in twice])

    def where(self, name: str, test: str) -> None:
        if name in self.given:
            self.tests.append(test)
            self.values[name] = self.given.pop(name)

    def moment(self, name: str, test: str) -> None:
        text = self.given.pop(name, None)
        if text is not None:
            try:
                self.values[name] = parse_ns(text)
                if not FIRST_NS <= self.values[name] <= LAST_NS:
                    self.problems.append(f"{name}: {text[:40]!r} is a time that no store has: it is in 1900 to 2261.")
            except Exception as error:
                self.problems.append(f"{name}: {error}")
            self.tests.append(test)

    def number(self, name: str, default: int, most: int) -> int:
        text = self.given.pop(name, str(default))
        found = digits.number(text, 19, 0)
        if not 1 <= found <= most:
            self.problems.append(f"{name}: {text[:20]!r} is no number from 1 to {most}.")
            return default
        return found

    def question(self, store: Store, statement: str) -> Question:
        """Raise Rejected with every problem at once."""
        most, known = self.bounds.most_rows, self.bounds.regions
        rows = self.number("limit", min(DEFAULT_ROWS, most), most)
        regions = tuple(name for name in self.given.pop("regions", "").split(",") if name)
        unknown = [name for name in regions if name not in known]
        if unknown:
            self.problems.append(f"regions: there is no {', '.join(unknown)[:60]}; there are {', '.join(known)}.")
        self.problems += [f"{name[:40]!r} is no parameter here." for name in self.given]
        if self.problems:
            raise Rejected(" ".join(self.problems))
        if self.bounds.tenant is not None:
            self.tests.append("tenant = %(tenant)s")
            self.values["tenant"] = self.bounds.tenant
        values = {**self.values, "rows": rows + 1}  # one more says that there are more
        where = " AND ".join(self.tests) or "true"
        return Question(store, statement.format(where=where), values, rows, regions=regions)


def logs(given: Mapping[str, str], bounds: Bounds) -> Question:
    """Logs by time, service, severity, text and trace; the newest first. Raises Rejected with every problem."""
    asked = _Asked.of(given, bounds)
    asked.moment("from", "timestamp >= fromUnixTimestamp64Nano(%(from)s, 'UTC')")
    asked.moment("to", "timestamp < fromUnixTimestamp64Nano(%(to)s, 'UTC')")
    for name in ("service", "host", "event_name"):
        asked.where(name, f"{name} = %({name})s")
    for name in ("trace_id", "event_id"):
        asked.where(name, f"{name} = lower(%({name})s)")
    asked.where("text", "positionCaseInsensitive(body, %(text)s) > 0")
    severity = asked.given.pop("severity", None)
    if severity is not None:
        asked.tests.append("severity_number >= %(severity)s")
        asked.values["severity"] = SEVERITIES.get(severity.lower(), 0)
        if severity.lower() not in SEVERITIES:
            asked.problems.append(f"severity: {severity[:20]!r} is none of {', '.join(SEVERITIES)}.")
    return asked.question("clickhouse", LOGS)


def trace(trace_id: str, given: Mapping[str, str], bounds: Bounds) -> Question:
    """All spans of a trace, wherever they were received; the first first."""
    asked = _Asked.of(given, bounds)
    asked.given["trace_id"] = trace_id
    asked.where("trace_id", "trace_id = lower(%(trace_id)s)")
    return replace(asked.question("clickhouse", TRACE), newest_first=False)


def metrics(given: Mapping[str, str], bounds: Bounds) -> Question:
    """Points of a metric by time, service and labels (`label.<key>=<value>`); with `step` (seconds) and `aggregate` as
    one value of each series and step, made of those merged points that have a number; a step of which some may be left
    out is left out."""
    asked = _Asked.of(given, bounds)
    if "name" not in given:
        asked.problems.append("name: is missing, the metric's.")
    nul = [name for name, text in given.items() if "\0" in name + text]
    asked.problems += [f"{name[:40]!r} holds NUL, which is U+FFFD in this store: ask for that." for name in nul]
    asked.where("name", "metric_name = %(name)s")
    asked.moment("from", "time >= to_timestamp(%(from)s / 1e9)")
    asked.moment("to", "time < to_timestamp(%(to)s / 1e9)")
    for name in ("service", "host"):
        asked.where(name, f"{name} = %({name})s")
    for number, name in enumerate([name for name in given if name.startswith("label.")]):
        asked.tests.append(f"labels->>%(key{number})s = %(label{number})s")
        asked.values |= {f"key{number}": name.removeprefix("label."), f"label{number}": asked.given.pop(name)}
    step_s = asked.number("step", 1, 86_400 * 366) if "step" in given else None
    aggregate = asked.given.pop("aggregate", "avg")
    if aggregate not in AGGREGATES:
        asked.problems.append(f"aggregate: {aggregate[:20]!r} is none of {', '.join(AGGREGATES)}.")
    bucket = None if step_s is None else step_s * 10**9
    return replace(asked.question("postgres", METRICS), bucket_ns=bucket, aggregate=aggregate)


def merged(question: Question, answers: Iterable[Sequence[Row]]) -> tuple[list[Row], bool]:
    """The rows of all regions as one answer, each event once, of its latest receipt; and whether there are more.

    Beyond the last row of a region that had more nothing is shown: another might have had rows in between.
    """
    events: dict[str, Row] = {}
    ends: list[tuple[int, str]] = []
    sign = -1 if question.newest_first else 1

    def place(row: Row) -> tuple[int, str]:
        return sign * row["time_ns"], row["event_id"]

    for answer in answers:
        if len(answer) > question.rows:
            ends.append(max(map(place, answer)))
        for row in answer:
            held = events.get(row["event_id"])
            if held is None or row.get("received_ns", 0) > held.get("received_ns", 0):
                events[row["event_id"]] = row
    ordered = sorted(events.values(), key=place)
    shown = [row for row in ordered if not ends or place(row) <= min(ends)][: question.rows]
    more = bool(ends) or len(shown) < len(ordered)
    return (shown if question.bucket_ns is None else _bucketed(question, shown, more=more)), more


def _bucketed(question: Question, points: Sequence[Row], *, more: bool) -> list[Row]:
    assert question.bucket_ns
    cut_ns = points[-1]["time_ns"] if more and points else -math.inf  # from here back there are others
    held: dict[tuple[Any, ...], list[float]] = {}
    told: dict[tuple[Any, ...], Row] = {}
    for point in points:
        if point["value"] is None or math.isnan(point["value"]):
            continue
        start = point["time_ns"] // question.bucket_ns * question.bucket_ns
        if start <= cut_ns:
            continue
        series = tuple(point[name] for name in ("tenant", "metric_name", "service", "host"))
        key = (start, *series, tuple(sorted(point["labels"].items())))
        held.setdefault(key, []).append(point["value"])
        told.setdefault(key, {name: point[name] for name in ("tenant", "metric_name", "service", "host", "labels")})
    return [
        {"time_ns": key[0], **told[key], "value": AGGREGATES[question.aggregate](held[key])} for key in sorted(held)
    ]
