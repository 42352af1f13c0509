"""What a drill is given: its seed and form, a stack of its own, a place to keep where it is, and a voice."""

import contextlib
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline import topics
from pipeline.local import Stack
from pipeline.settings import Settings
from tests.conftest import settings_on_free_ports

TELL_EVERY_S = 5.0
Change = Callable[[Settings], Settings]


class Failed(Exception):
    """A drill found what must not be; the message is a sentence with numbers."""


@dataclass
class Context:
    """`at` is what the drill wants to find again after an interruption; `keep()` writes it down."""

    name: str
    home: pathlib.Path
    seed: int
    short: bool
    at: dict[str, Any] = field(default_factory=dict)
    keep: Callable[[], None] = lambda: None
    only: int | None = None
    _told: float = 0.0

    def tell(self, line: str) -> None:
        print(f"{self.name}: {line}", file=sys.stderr, flush=True)

    def tell_now_and_then(self, line: Callable[[], str]) -> None:
        """Show progress, at most every few seconds."""
        if time.monotonic() - self._told > TELL_EVERY_S:
            self._told = time.monotonic()
            self.tell(line())

    @contextlib.contextmanager
    def whole_stack(self, change: Change = lambda settings: settings) -> Iterator[tuple[Stack, Settings]]:
        """A fresh stack with everything up; removed at the end, its logs kept where the drill failed."""
        with self._stack(change) as (stack, settings):
            stack.up()
            yield stack, settings

    @contextlib.contextmanager
    def gateway_and_kafka(self) -> Iterator[tuple[Stack, Settings]]:
        """A fresh Kafka with our topics and a gateway; removed at the end, its logs kept where the drill failed."""
        with self._stack() as (stack, settings):
            stack.start(["kafka"])
            topics.apply_all(settings)
            stack.start(["gateway"])
            yield stack, settings

    @contextlib.contextmanager
    def _stack(self, change: Change = lambda settings: settings) -> Iterator[tuple[Stack, Settings]]:
        home = self.home / "stack"
        settings = change(settings_on_free_ports(home))
        stack = Stack(settings, lambda line: self.tell(f"  {line}"))
        stack.wipe()  # what a drill that was killed has left
        try:
            yield stack, settings
        except BaseException:
            shutil.rmtree(self.home / "logs", ignore_errors=True)
            if (home / "log").is_dir():
                shutil.copytree(home / "log", self.home / "logs")
            raise
        finally:
            stack.wipe()
            shutil.rmtree(home, ignore_errors=True)
