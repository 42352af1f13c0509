"""One step of upkeep."""

from dataclasses import dataclass
from typing import Literal

StoreName = Literal["postgres", "clickhouse"]


@dataclass(frozen=True, slots=True)
class Change:
    """What it does, for people, and its statements: in PostgreSQL those of one transaction. Where it is `needed`, what
    comes after it must not happen without it."""

    what: str
    statements: tuple[str, ...]
    store: StoreName = "postgres"
    needed: bool = False

    def __str__(self) -> str:
        return self.what

    def as_json(self) -> dict[str, object]:
        return {"store": self.store, "what": self.what, "statements": list(self.statements)}
