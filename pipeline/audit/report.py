"""The audit's answer, for programs and for people."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from pipeline.audit.agents import AgentFindings, Beside
from pipeline.audit.findings import EXAMPLES, Findings
from pipeline.audit.topics import Kafka
from pipeline.audit.window import Window

COLUMNS = 5  # of a table
KAFKA_ROWS = ("messages", "records", "distinct", "unreadable")
AGENT_ROWS = ("read", "emitted", "changed", "dropped", "dead_lettered", "missing", "extra")
STORE_ROWS = (
    "expected",
    "rows",
    "missing",
    "extra",
    "duplicates",
    "timeless_twins",
    "superseded",
    "dead_lettered",
    "expired",
)


@dataclass(frozen=True, slots=True)
class InKafka:
    """What Kafka holds of one part in the window.

    `unreadable` messages hide records that no dead-letter topic has: that is a difference. Those that were
    dead-lettered are counted apart. `undecodable_dead_letters` cannot be matched by id, only by where they came from.
    """

    topics: list[str]
    messages: int
    records: int
    distinct: int
    unreadable: int
    unreadable_dead_lettered: int
    unreadable_messages: list[dict[str, Any]]
    dead_letters: int
    undecodable_dead_letters: int
    undecodable_dead_letter_origins: list[dict[str, Any]]

    @classmethod
    def of(cls, kafka: Kafka) -> "InKafka":
        excused = [fault for fault in kafka.unreadable if fault.dead_lettered]
        named = sorted(kafka.unreadable, key=lambda fault: fault.dead_lettered)[:EXAMPLES]
        return cls(
            topics=list(kafka.topics),
            messages=kafka.messages,
            records=kafka.records,
            distinct=int(kafka.known.inside.sum()),
            unreadable=len(kafka.unreadable) - len(excused),
            unreadable_dead_lettered=len(excused),
            unreadable_messages=[
                {**fault.place._asdict(), "reason": fault.reason, "dead_lettered": fault.dead_lettered}
                for fault in named
            ],
            dead_letters=kafka.dead_letters.messages,
            undecodable_dead_letters=len(kafka.dead_letters.undecodable),
            undecodable_dead_letter_origins=[place._asdict() for place in kafka.dead_letters.undecodable[:EXAMPLES]],
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SignalReport:
    kafka: InKafka
    stores: dict[str, Findings]

    @property
    def clean(self) -> bool:
        return not self.kafka.unreadable and all(findings.clean for findings in self.stores.values())


@dataclass(frozen=True, slots=True)
class Report:
    """Clean where every event_id of the window is in every store of its part, or excused, and seen once.

    A signal is one part; of events each registered table is, and `events` itself has what is of none of them.
    """

    window: Window
    signals: dict[str, SignalReport]
    agents: list[AgentFindings] = field(default_factory=list)
    beside: list[Beside] = field(default_factory=list)  # agents that were not looked at

    @property
    def clean(self) -> bool:
        return all(each.clean for each in self.signals.values()) and all(each.clean for each in self.agents)

    @property
    def verdict(self) -> Literal["clean", "difference"]:
        return "clean" if self.clean else "difference"

    def as_dict(self) -> dict[str, Any]:
        """`{"verdict", "window": {"from", "to"}, "signals": {<part>: {"kafka": {…}, "stores": {<store>: {…}}}},
        "agents": [{…}], "agents_not_looked_at": [{"agent", "topic"}]}`."""
        return {
            "verdict": self.verdict,
            "window": self.window.as_dict(),
            "signals": {
                name: {
                    "kafka": signal.kafka.as_dict(),
                    "stores": {store: findings.as_dict() for store, findings in signal.stores.items()},
                }
                for name, signal in self.signals.items()
            },
            "agents": [each.as_dict() for each in self.agents],
            "agents_not_looked_at": [each._asdict() for each in self.beside],
        }

    def show(self, console: Console) -> None:
        """A table, what differs by receipt minute and by name, and a line with the verdict."""
        for table in self._tables():
            console.print(table)
        if self.agents:
            console.print(_agents_table(self.agents))
        lines: list[str] = []
        for name, signal in self.signals.items():
            lines += _unreadable(name, signal.kafka)
            for store, findings in signal.stores.items():
                lines += _differences(f"{name} in {store}", findings)
        for each in self.agents:
            lines += _agent_differences(each)
        lines += [
            f"{agent}: not looked at: what it made of {topic} is not all in the topics that these stores read."
            for agent, topic in self.beside
        ]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        differing = [
            where
            for name, signal in self.signals.items()
            for where, clean in (
                (f"{name} in Kafka", not signal.kafka.unreadable),
                *((f"{name} in {store}", findings.clean) for store, findings in signal.stores.items()),
            )
            if not clean
        ] + [f"agent {each.agent}" for each in self.agents if not each.clean]
        console.print(
            "Clean: nothing is missing and nothing is doubled."
            if self.clean
            else f"Difference in {', '.join(differing)}.",
            style="green" if self.clean else "bold red",
            soft_wrap=True,
        )

    def _tables(self) -> Iterator[Table]:
        """A column for each store of a part, as many in a table as fit into 80 characters."""
        columns = [
            (f"{part}\n{store}", signal.kafka, findings)
            for part, signal in self.signals.items()
            for store, findings in signal.stores.items()
        ]
        for first in range(0, len(columns), COLUMNS):
            table = Table(show_edge=False, pad_edge=False)
            table.add_column("")
            for title, _, _ in columns[first : first + COLUMNS]:
                table.add_column(title, justify="right")
            for row in (*KAFKA_ROWS, *STORE_ROWS):
                counts = [
                    getattr(kafka if row in KAFKA_ROWS else findings, row)
                    for _, kafka, findings in columns[first : first + COLUMNS]
                ]
                where = "Kafka: " if row in KAFKA_ROWS else ""
                table.add_row(where + row.replace("_", " "), *(f"{count:,}" for count in counts))
            yield table


def _agents_table(agents: Sequence[AgentFindings]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("agent")
    table.add_column("reads")
    for row in AGENT_ROWS:
        table.add_column(row.replace("_", " "), justify="right")
    for each in agents:
        table.add_row(each.agent, each.topic, *(f"{getattr(each, row):,}" for row in AGENT_ROWS))
    return table


def _agent_differences(one: AgentFindings) -> list[str]:
    lines = [f"{one.agent}: {count:,} dropped: {reason}" for reason, count in one.reasons.items()]
    for example in one.examples:
        place = f"{example['topic']} [{example['partition']}] @ {example['offset']}"
        lines.append(f"{one.agent}: missing: {example['event_id']} {place}")
    return lines


def _unreadable(name: str, kafka: InKafka) -> list[str]:
    lines = [
        f"{name}: {fault['topic']} [{fault['partition']}] @ {fault['offset']} is unreadable"
        f"{' (dead-lettered)' if fault['dead_lettered'] else ''}: {fault['reason']}."
        for fault in kafka.unreadable_messages
    ]
    found = kafka.unreadable + kafka.unreadable_dead_lettered
    if found > len(lines):
        lines.append(
            f"{name}: {len(lines)} of {found:,} unreadable messages are named; "
            f"{kafka.unreadable_dead_lettered:,} are dead-lettered."
        )
    return lines


def _differences(where: str, findings: Findings) -> list[str]:
    lines = []
    for minute in findings.by_minute:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in minute.items() if kind != "minute" and count)
        lines.append(f"{where}, received {minute['minute']}: {counts}")
    for kind in ("missing", "extra", "duplicates"):
        for example in findings.examples[kind]:
            place = f"{example['topic']} [{example['partition']}] @ {example['offset']}" if "topic" in example else ""
            lines.append(f"{where}: {kind}: {example['event_id']} {place or example.get('received_time', '')}".rstrip())
    return lines
