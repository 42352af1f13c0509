"""What an agent's author writes with: the decorator, and what a function may answer."""

import inspect
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from pipeline.errors import Misconfigured
from pipeline.record.records import Record
from pipeline.record.schema import Signal

LARGEST_VERSION = 99
NAME = re.compile(r"[\w.-]{1,100}")  # it is in the names of a group, of settings and of folders
RESERVED = frozenset({"gateway", "pg_writer", "ch_writer", "otlp_writer"})
SettingsT = TypeVar("SettingsT")
StateT = TypeVar("StateT")


@dataclass(frozen=True, slots=True)
class Drop:
    """Instead of a record: it goes nowhere, counted under `reason`."""

    reason: str


Answer = Record | Drop | Sequence[Record] | None
Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Context(Generic[SettingsT, StateT]):
    """What a function with a second parameter gets: the agent's settings, and what its `start` returned."""

    settings: SettingsT
    state: StateT


@dataclass(slots=True)
class Agent:
    """One agent as its file declares it; calling it calls the function. `line` is where the function begins."""

    name: str
    reads: str
    writes: tuple[str, ...]
    version: int
    batch: bool
    aggregates: bool
    settings: type[BaseModel] | None
    function: Function
    file: str
    line: int
    _start: Callable[[Any], Any] = field(default=lambda settings: None)
    _stop: Callable[[Any], None] = field(default=lambda state: None)

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def start(self, function: Callable[[Any], StateT]) -> Callable[[Any], StateT]:
        """Decorator: called once in each process, with the settings; what it returns is `context.state`."""
        self._start = function
        return function

    def stop(self, function: Callable[[Any], None]) -> Callable[[Any], None]:
        """Decorator: called with the state before the process ends in order."""
        self._stop = function
        return function

    def between(self, name: str, *, reads: str, writes: str | Sequence[str]) -> "Agent":
        """The same agent between other topics, declared where this is called; its settings are those of `name`."""
        caller = sys._getframe(1)
        topics = _topics(writes)
        here = caller.f_code.co_filename, caller.f_lineno
        problems = _of_names(name, reads, topics)
        if problems:
            raise Misconfigured([f"{here[0]}:{here[1]}: {problem}" for problem in problems])
        return replace(self, name=name, reads=reads, writes=topics, file=here[0], line=here[1])

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    def opened(self, settings: Any) -> tuple[Callable[[Any], Any], Callable[[], None]]:
        """The function with its context in place, and what ends it."""
        state = self._start(settings)
        function = self.function
        if len(inspect.signature(function).parameters) > 1:
            context: Context[Any, Any] = Context(settings, state)
            return lambda given: function(given, context), lambda: self._stop(state)
        return function, lambda: self._stop(state)


def agent(  # noqa: PLR0913 - what an agent is
    *,
    reads: str,
    writes: str | Sequence[str],
    version: int,
    batch: bool = False,
    aggregates: bool = False,
    settings: type[BaseModel] | None = None,
) -> Callable[[Function], Agent]:
    """Make a function an agent that reads one topic and writes others, one topic at most for each signal.

    The function takes a record and answers a record, None or `drop("reason")`, or a sequence of records of any signal
    that it writes. With `batch` it takes a list of records and answers a list with one such answer for each, in order.
    Its answer depends on the record alone; with `aggregates` on all records of one block, those that one request sent
    to one partition: a client's retry sends them again as they were, whatever shares their message then. A second
    parameter gets the `Context`. Raise `version` with every change of what the function answers: stores keep the newest
    form of an event.
    """

    def made(function: Function) -> Agent:
        where = inspect.unwrap(function).__code__
        topics = _topics(writes)
        here = f"{pathlib.Path(where.co_filename)}:{where.co_firstlineno}"
        problems = [f"{here}: {problem}" for problem in _of_names(function.__name__, reads, topics)]
        problems += [
            f"{here}: {problem}"
            for problem, is_one in (
                (f"version of {function.__name__} is {version!r}; it is 1 to {LARGEST_VERSION}.",
                    not isinstance(version, int) or not 1 <= version <= LARGEST_VERSION),
                (f"settings of {function.__name__} are {settings!r}; they are a class derived from pydantic.BaseModel.",
                    settings is not None and not (isinstance(settings, type) and issubclass(settings, BaseModel))),
                (f"{function.__name__} takes neither a record nor a record and its context: write "
                    f"def {function.__name__}(record).", not _takes_records(function)),
                (f"{function.__name__} aggregates, so it must take a batch.", aggregates and not batch),
                (f"{function.__name__} is async; it has a process of its own and may just wait.",
                    inspect.iscoroutinefunction(function)),
                (f"{function.__name__} has a yield; let it return a list of records.",
                    inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)),
            )
            if is_one
        ]  # fmt: skip
        if problems:
            raise Misconfigured(problems)
        return Agent(
            function.__name__, reads, topics, version, batch, aggregates, settings, function,
            where.co_filename, where.co_firstlineno,
        )  # fmt: skip

    return made


def _topics(writes: Any) -> tuple[Any, ...]:
    return (writes,) if isinstance(writes, str) or not isinstance(writes, Iterable) else tuple(writes)


def _of_names(name: Any, reads: Any, topics: tuple[Any, ...]) -> list[str]:
    """What an agent or its topics cannot be called."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return [
            f'{name!r} is no name for an agent: write a text of 100 letters, digits, _, - and . at most, as "mask".'
        ]
    problems = [f"{name} is a name of the platform's; choose another."] if name in RESERVED else []
    problems += [] if topics else [f"{name} writes no topic."]
    return problems + [
        f'{each!r} of {name} is no name of a topic: write a text, as "logs_raw".'
        for each in (reads, *topics)
        if not isinstance(each, str)
    ]


def _takes_records(function: Function) -> bool:
    """Whether it can be called as `Agent.opened` has it called."""
    signature = inspect.signature(function)
    try:
        signature.bind(*(None,) * min(2, max(1, len(signature.parameters))))
    except TypeError:
        return False
    return True


def drop(reason: str) -> Drop:
    """Answer this instead of a record: it goes nowhere, counted under `reason`, a few words that repeat."""
    return Drop(reason)


def answers(given: Any) -> Iterable[Any]:
    """One answer as the things that it holds."""
    if isinstance(given, list | tuple):
        return given
    return (given,)


Topics = dict[Signal, str]  # where an agent writes the records of each signal
