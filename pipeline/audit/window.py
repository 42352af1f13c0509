"""The stretch of receipt time that an audit covers."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Misconfigured

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Window:
    """From `start_us` to before `end_us`, microseconds since 1970; None: no bound on that side."""

    start_us: int | None = None
    end_us: int | None = None

    @classmethod
    def parse(cls, start: str | None, end: str | None) -> "Window":
        """From ISO 8601, UTC where no zone is said; raises Misconfigured with every problem."""
        problems: list[str] = []
        bounds = [_parse(option, text, problems) for option, text in (("--from", start), ("--to", end))]
        if not problems and None not in bounds and bounds[0] >= bounds[1]:  # type: ignore[operator]
            problems.append(f"--from {start} is not before --to {end}.")
        if problems:
            raise Misconfigured(problems)
        return cls(*bounds)

    @property
    def start_ms(self) -> int | None:
        return None if self.start_us is None else self.start_us // 1000

    @property
    def end_ms(self) -> int | None:
        """Rounded up: no message of the window is at this millisecond or later."""
        return None if self.end_us is None else -(-self.end_us // 1000)

    def contains(self, time_us: NDArray[np.int64]) -> NDArray[np.bool_]:
        inside = np.ones(len(time_us), bool)
        if self.start_us is not None:
            inside &= time_us >= self.start_us
        if self.end_us is not None:
            inside &= time_us < self.end_us
        return inside

    def padded(self, padding_us: int) -> "Window":
        return Window(
            None if self.start_us is None else self.start_us - padding_us,
            None if self.end_us is None else self.end_us + padding_us,
        )

    def as_dict(self) -> dict[str, str | None]:
        return {
            "from": None if self.start_us is None else iso(self.start_us),
            "to": None if self.end_us is None else iso(self.end_us),
        }


def iso(time_us: int) -> str:
    """ISO 8601 in UTC, for any time that Python can name; else the number with its unit."""
    try:
        return (EPOCH + time_us * MICROSECOND).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return f"{time_us} us"


def _parse(option: str, text: str | None, problems: list[str]) -> int | None:
    if text is None:
        return None
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        problems.append(f"{option}: {text!r} is not ISO 8601, such as 2026-01-31T12:00:00Z.")
        return None
    return ((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND
