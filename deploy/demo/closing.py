"""What the demo found: the closing table, the verdict, and how both are shown."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from examples import Example
from rich.console import Console
from rich.table import Table
from rich.text import Text

SIGNALS = ("logs", "traces", "metrics")
STORES = {"clickhouse": "ClickHouse", "postgres": "PostgreSQL"}

Counts = Mapping[str, int]  # by signal


@dataclass(frozen=True)
class Row:
    """One signal from the SDK to the stores; None where nobody looked: PostgreSQL keeps metrics, errors and events."""

    sent: int
    accepted: int
    kafka: int | None
    clickhouse: int | None
    postgres: int | None
    duplicates: int
    superseded: int
    missing: int
    extra: int
    dead_lettered: int
    failed: int  # given up by exporters, or dropped before them: never sent

    def differences(self) -> Iterator[str]:
        """Sentences; none where what was sent is in Kafka and in the stores, each record once."""
        if self.failed:
            yield f"{self.failed} records were given up or dropped by the SDK"
        if self.sent != self.accepted:
            yield f"{self.sent} were sent, {self.accepted} accepted"
        if self.kafka is None:
            yield "nobody looked into Kafka"
        elif self.kafka != self.sent:
            yield f"{self.sent} were sent, {self.kafka} are in Kafka"
        for count, what in (
            (self.missing, "missing"),
            (self.duplicates, "doubled"),
            (self.extra, "in a store and not in Kafka"),
            (self.dead_lettered, "dead-lettered"),
        ):
            if count:
                yield f"{count} are {what}"


def rows(sent: Counts, failed: Counts, accepted: Counts, audited: Mapping[str, Any]) -> dict[str, Row]:
    """The table by signal; `audited` is an audit's `signals`."""
    table = {}
    for signal in SIGNALS:
        found = audited.get(signal, {})
        stores = found.get("stores", {})
        table[signal] = Row(
            sent=sent[signal],
            accepted=accepted.get(signal, 0),
            kafka=found.get("kafka", {}).get("distinct"),
            clickhouse=stores.get("clickhouse", {}).get("rows"),
            postgres=stores.get("postgres", {}).get("rows"),
            failed=failed[signal],
            **{
                kind: sum(store.get(kind, 0) for store in stores.values())
                for kind in ("duplicates", "superseded", "missing", "extra", "dead_lettered")
            },
        )
    return table


@dataclass(frozen=True)
class Report:
    """Everything that is printed at the end."""

    table: Mapping[str, Row]
    verdict: str  # the audit's word
    freshness_s: Mapping[str, Mapping[str, float | int | None]]  # by store: p50, p99, probes, unseen
    records_per_s: float  # from the first record made to the last one visible in a store
    seconds: float
    examples: list[Example]

    def differences(self) -> list[str]:
        found = [f"{signal}: {what}." for signal, row in self.table.items() for what in row.differences()]
        if self.verdict != "clean":
            found.append(f"The audit says: {self.verdict}.")
        return found

    def as_json(self) -> dict[str, Any]:
        differences = self.differences()
        return {
            "verdict": "difference" if differences else "clean",
            "differences": differences,
            "signals": {signal: asdict(row) for signal, row in self.table.items()},
            "freshness_s": self.freshness_s,
            "records_per_s": self.records_per_s,
            "seconds": self.seconds,
            "examples": [example._asdict() for example in self.examples],
        }

    def show(self, console: Console) -> None:
        for example in self.examples:
            _show_example(example, console)
        table = Table(title="From the SDK to the stores", title_justify="left")
        heads = ("sent", "accepted", "in Kafka", *STORES.values(), "duplicates", "superseded", "missing")
        table.add_column("signal")
        for head in heads:
            table.add_column(head, justify="right")
        for signal, row in self.table.items():
            figures = (
                row.sent, row.accepted, row.kafka, row.clickhouse, row.postgres,
                row.duplicates, row.superseded, row.missing,
            )  # fmt: skip
            table.add_row(signal, *("-" if figure is None else f"{figure:,}" for figure in figures))
        console.print(table)
        for store, ages in self.freshness_s.items():
            p50, p99 = (f"{ages[p]:.2f} s" if ages[p] is not None else "unknown" for p in ("p50", "p99"))
            console.print(
                f"freshness in {STORES[store]}: p50 {p50}, p99 {p99} "
                f"({ages['probes']} probes, {ages['unseen']} not seen)",
                highlight=False,
            )
        console.print(
            f"{self.records_per_s:,.0f} records/s from the first made to the last visible; "
            f"{self.seconds:.0f} s in all, with start and proof",
            highlight=False,
        )
        differences = self.differences()
        for sentence in differences:
            console.print(sentence, style="red", markup=False, highlight=False)
        if not differences:
            console.print("Nothing missing, nothing doubled.", style="green")


def _show_example(example: Example, console: Console) -> None:
    console.print(f"{example.title} ({example.store})", style="bold", highlight=False)
    console.print(Text(example.sql, style="dim"))
    table = Table(show_header=True)
    for column in example.columns:
        table.add_column(column, overflow="fold")
    for row in example.rows:
        table.add_row(*(Text(str(value)) for value in row))
    console.print(table if example.rows else "  no rows")
    console.print()
