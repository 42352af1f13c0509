"""One step of upkeep."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """What it does, for people, and the statements of its transaction."""

    what: str
    statements: tuple[str, ...]

    def __str__(self) -> str:
        return self.what

    def as_json(self) -> dict[str, object]:
        return {"what": self.what, "statements": list(self.statements)}
