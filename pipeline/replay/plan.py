"""What a replay will read, fixed in offsets: so it ends, and a second run reads the same."""

import datetime
import difflib
import re
import time
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import digits
from pipeline.errors import Misconfigured
from pipeline.kafka.admin import Cluster
from pipeline.kafka.dead_letters import SUFFIX
from pipeline.kafka.reader import Range, Reader
from pipeline.replay.names import Sandbox
from pipeline.replay.where import Where
from pipeline.settings import Settings

SAMPLE = 500  # messages of a partition, whose headers are read
ASSUMED_RECORDS_PER_S = 30_000  # until a run on this machine has measured it
AGAIN = "`pipeline replay drop {0}`, and plan it again."
TIME = re.compile(r"[0-2]?\d:\d\d(:\d\d)?")
Model = ConfigDict(extra="forbid", frozen=True)
Moment = datetime.datetime


class Slice(BaseModel):
    """Offsets `start` to before `end` of one partition. `records` and `bytes` (of values, as sent) are by headers and
    lengths; `exact` says whether of all messages or of the first ones only.

    `gone` says how much of the window, in seconds, retention had removed when this was made.
    """

    model_config = Model

    topic: str
    partition: int
    start: int
    end: int
    records: int
    bytes: int
    exact: bool
    gone_s: float = 0.0

    @property
    def name(self) -> str:
        """The topic in its own region: `eu.logs_raw` is a mirror of `logs_raw`."""
        return self.topic.rpartition(".")[2]

    @property
    def range(self) -> Range:
        return Range(self.topic, self.partition, self.start, self.end)


class Plan(BaseModel):
    """A replay as it was planned; it never changes afterwards. Times are of receipt, UTC."""

    model_config = Model

    name: str
    created: Moment
    expires: Moment
    start: Moment
    end: Moment
    where: dict[str, str] = {}
    slices: Annotated[tuple[Slice, ...], Field(min_length=1)]
    cluster_id: str = ""
    records_per_s: int = ASSUMED_RECORDS_PER_S

    @classmethod
    def parse(cls, text: str, where: str) -> "Plan":
        try:
            return cls.model_validate_json(text)
        except ValidationError as invalid:
            raise Misconfigured(
                f"{where} is no plan ({invalid.errors()[0]['msg']}): drop the sandbox and plan again."
            ) from None

    @property
    def sandbox(self) -> Sandbox:
        return Sandbox.called(self.name)

    @property
    def topics(self) -> list[str]:
        """The names, without regions, in order."""
        return sorted({each.name for each in self.slices})

    @property
    def records(self) -> int:
        return sum(each.records for each in self.slices)

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.slices)

    @property
    def messages(self) -> int:
        return sum(each.end - each.start for each in self.slices)

    def lines(self) -> list[str]:
        """For people: what, whereto, how long, and what of it is gone."""
        about = "" if all(each.exact for each in self.slices) else "about "
        words = [
            f"{self.name}: received {iso(self.start)} to before {iso(self.end)}"
            + "".join(f", {key}={value}" for key, value in self.where.items())
        ]
        for topic in sorted({each.topic for each in self.slices}):
            parts = [each for each in self.slices if each.topic == topic]
            exact = "" if all(each.exact for each in parts) else "about "
            words.append(
                f"  {topic}: {sum(each.end - each.start for each in parts):,} messages of {len(parts)} partitions, "
                f"{exact}{sum(each.records for each in parts):,} records, "
                f"{exact}{sum(each.bytes for each in parts) / 1e6:,.1f} MB"
            )
            words += [
                f"    [{each.partition}] offsets {each.start:,} to before {each.end:,}"
                + (f"; retention has removed the first {each.gone_s:,.0f} s of the window" if each.gone_s else "")
                for each in parts
            ]
        words.append(
            f"  into topics and groups {self.sandbox.prefix}…, PostgreSQL schema and ClickHouse database "
            f"{self.sandbox.owner}; nothing else is written"
        )
        seconds = self.records / self.records_per_s
        words.append(
            f"  {about}{self.records:,} records at {self.records_per_s:,} records/s: about {told(seconds)}; dropped by "
            f"`pipeline maintain` after {iso(self.expires)}"
        )
        return words

    def as_json(self) -> dict[str, Any]:
        document: dict[str, Any] = self.model_dump(mode="json")
        return {
            **document, "id": self.sandbox.id, "records": self.records, "bytes": self.bytes, "messages": self.messages,
        }  # fmt: skip


def window(start: str, end: str, now: Moment) -> tuple[Moment, Moment]:
    """From ISO 8601, UTC where no zone is said; `end` may be a time of the day on which the window starts.

    Raises Misconfigured with every problem.
    """
    problems: list[str] = []
    begins = _moment("--from", start, problems)
    if begins is not None and TIME.fullmatch(end):
        of_day = end if end[2] == ":" else f"0{end}"
        ends = _moment("--to", f"{begins.date().isoformat()}T{of_day}", problems, begins.tzinfo)
    else:
        ends = _moment("--to", end, problems) if begins is not None else None
    if begins is not None and ends is not None:
        if begins >= ends:
            problems.append(f"--from {iso(begins)} is not before --to {iso(ends)}: exchange them.")
        elif ends > now:
            problems.append(f"--to {iso(ends)} is in the future, now is {iso(now)}: end the window before now.")
    if problems:
        raise Misconfigured(problems)
    assert begins is not None
    assert ends is not None
    return begins.astimezone(datetime.UTC), ends.astimezone(datetime.UTC)


def make(  # noqa: PLR0913 - what a plan is made of
    live: Settings, name: str, *, topics: Sequence[str], between: tuple[Moment, Moment], where: Where, rate: int
) -> Plan:  # fmt: skip
    """Read offsets, and headers of the first messages of each partition. Changes nothing.

    Raises Misconfigured where a topic is unknown, or nothing is left or over a quota.
    """
    reader = Reader(live.kafka)
    sources = _sources(topics, list(reader.topics()))
    start, end = between
    retained = reader.retained(sources)
    ranges = reader.between(retained, _ms(start), _ms(end))
    firsts = reader.earliest_ms(retained)
    slices, told_gone = [], []
    for whole, part, first_ms in zip(retained, ranges, firsts, strict=True):
        gone_s = 0.0
        if whole.start > 0:  # something was there before
            left_ms = first_ms if first_ms is not None else _ms(end)
            gone_s = max(0.0, min(left_ms, _ms(end)) - _ms(start)) / 1000
        if gone_s:
            told_gone.append(f"{part.topic} [{part.partition}] begins {'empty' if first_ms is None else _at(first_ms)}")
        if part.start < part.end:
            slices.append(_sized(reader, part, gone_s))
    if not slices:
        what = f"{', '.join(sources)} between {iso(start)} and {iso(end)}"
        if told_gone:
            raise Misconfigured(f"Retention has removed all of {what}: {'; '.join(told_gone)}.")
        raise Misconfigured(f"There are no messages in {what}: choose another window or other topics.")
    now = datetime.datetime.now(datetime.UTC)
    lifetime = datetime.timedelta(hours=live.replay.lifetime_hours)
    made = Plan(
        name=name, created=now, expires=now + lifetime, start=start, end=end, where=dict(where.equal),
        slices=tuple(slices), cluster_id=Cluster(live.kafka).id(), records_per_s=rate,
    )  # fmt: skip
    if made.bytes > live.replay.max_bytes:
        raise Misconfigured(
            f"{name} would copy {made.bytes / 1e9:,.1f} GB and replay.max_bytes allows "
            f"{live.replay.max_bytes / 1e9:,.1f}: take a smaller window, or raise it."
        )
    return made


def demand_cluster(plan: Plan, live: Settings) -> None:
    """Raise Misconfigured where live's Kafka is another cluster than the plan was made over."""
    cluster = Cluster(live.kafka).id()
    if plan.cluster_id not in ("", cluster):
        raise Misconfigured(
            f"{plan.name} was planned over cluster {plan.cluster_id}, and {live.kafka.bootstrap_servers} is {cluster}, "
            f"where its offsets say nothing: correct kafka.bootstrap_servers, or {AGAIN.format(plan.name)}"
        )


def demand_retained(plan: Plan, left: Sequence[Slice], live: Settings) -> None:
    """Raise Misconfigured where Kafka has no longer all of `left`, a part of the plan."""
    reader = Reader(live.kafka)
    there = reader.topics()
    wanted = dict.fromkeys(each.topic for each in left)
    gone = [f"{topic} is gone" for topic in wanted if topic not in there]
    retained = {(each.topic, each.partition): each.start for each in reader.retained(t for t in wanted if t in there)}
    for each in left:
        first = retained.get((each.topic, each.partition), each.start)
        if first > each.start:
            removed = f"{each.start:,} to {min(first, each.end) - 1:,}"
            gone.append(f"{each.topic} [{each.partition}]: retention has removed offsets {removed}")
    if gone:
        raise Misconfigured([f"{each} since {plan.name} was planned: {AGAIN.format(plan.name)}" for each in gone])


def _sources(topics: Sequence[str], there: list[str]) -> list[str]:
    """Those topics and, for each that names no region, its mirrors."""
    problems, found = [], []
    known = [name for name in there if not name.startswith(("__", "sandbox_")) and not name.endswith(SUFFIX)]
    for topic in topics:
        mine = [name for name in known if name == topic or ("." not in topic and name.endswith(f".{topic}"))]
        if not mine or topic.endswith(SUFFIX):
            near = difflib.get_close_matches(topic, known, 3) or sorted(known)[:10]
            problems.append(f"There is no topic {topic[:100]} to replay; there are {', '.join(near) or 'none'}.")
        found += mine
    if problems:
        raise Misconfigured(problems)
    return sorted(set(found), key=lambda name: ("." in name, name))


def _sized(reader: Reader, part: Range, gone_s: float) -> Slice:
    """By the first messages, all where there are no more."""
    most = min(part.end, part.start + SAMPLE)
    messages = size = records = 0
    for message in reader.read([Range(part.topic, part.partition, part.start, most)]):
        said = message.headers.get("records") or b""
        messages, size = messages + 1, size + len(message.value)
        records += digits.number(said, 9, 1)
    exact = most == part.end
    share = 1.0 if exact or not messages else (part.end - part.start) / (most - part.start)
    return Slice(
        topic=part.topic, partition=part.partition, start=part.start, end=part.end,
        records=round(records * share), bytes=round(size * share), exact=exact, gone_s=gone_s,
    )  # fmt: skip


def iso(moment: Moment) -> str:
    return moment.astimezone(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def told(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _moment(option: str, text: str, problems: list[str], zone: datetime.tzinfo | None = datetime.UTC) -> Moment | None:
    try:
        parsed = datetime.datetime.fromisoformat(text)
        parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=zone)
        parsed.astimezone(datetime.UTC)
    except (ValueError, OverflowError):  # the last: of a year that UTC has not
        problems.append(f"{option}: {text[:100]!r} is not ISO 8601, such as 2026-01-31T12:00 or …+01:00.")
        return None
    return parsed


def _ms(moment: Moment) -> int:
    return int(moment.timestamp() * 1000)


def _at(ms: int) -> str:
    return "at " + time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms / 1000))
