"""Migrations of PostgreSQL and ClickHouse: what the files say against what the stores have.

    opened(settings) → status(stores) or plan(stores) → rehearse(stores) → up(planned, stores) → verify(stores)

The schema exists only in the files. An applied file never changes; a file that stopped in the middle goes on from the
statement that did not finish, which is why one that runs outside a transaction must bear repeating.
"""

import pathlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from pipeline.errors import Misconfigured
from pipeline.migrations import files
from pipeline.migrations.definitions import Difference, differences
from pipeline.migrations.files import Migration
from pipeline.migrations.stores import ClickHouse, Entry, LockedError, Postgres, StatementError, Store
from pipeline.settings import Settings

LOCKED_WITHIN_S = 2.0  # a runner that was killed a moment ago still holds its lock
StoreName = Literal["postgres", "clickhouse"]


@dataclass(frozen=True, slots=True)
class State:
    """A file and how far it has come: `done` of its statements. `problem` is why a dirty one stopped."""

    migration: Migration
    state: Literal["applied", "pending", "dirty"]
    done: int
    problem: str = ""

    def __str__(self) -> str:
        line = f"{self.migration.store} {self.migration.name}: {self.state}"
        total = len(self.migration.statements)
        if self.state == "pending":
            return f"{line}, {total} statement{'s' if total > 1 else ''}"
        if self.state == "dirty":
            return (
                f"{line}, {self.done} of {total} statements done; {self.problem or 'the runner was stopped there.'} "
                "To repair: correct that statement or what it needs, then `pipeline migrate up` goes on from it."
            )
        return line

    @property
    def steps(self) -> list[str]:
        """The statements that are not done, a line each."""
        lines = []
        for n, statement in enumerate(self.migration.statements, 1):
            marks = f" [{', '.join(statement.marks)}]" if statement.marks else ""
            lines.append(f"{n}. {statement.title}{marks}")
        return lines[self.done :]

    def as_json(self) -> dict[str, Any]:
        return {
            "store": self.migration.store,
            "version": self.migration.version,
            "name": self.migration.name,
            "state": self.state,
            "statements": len(self.migration.statements),
            "done": self.done,
            "problem": self.problem,
            "steps": self.steps,
        }


@contextmanager
def opened(settings: Settings, only: StoreName | None = None) -> Iterator[list[Store]]:
    """Both stores, or the one that is named; closed at the end."""
    with ExitStack() as open_stores:
        stores: list[Store] = []
        if only != "clickhouse":
            stores.append(open_stores.enter_context(Postgres.opened(settings.postgres)))
        if only != "postgres":
            stores.append(open_stores.enter_context(ClickHouse.opened(settings.clickhouse)))
        yield stores


def status(stores: Sequence[Store], directory: pathlib.Path = files.DIRECTORY) -> list[State]:
    """Every file and its state. Raise Misconfigured where files and history do not belong together."""
    problems: list[str] = []
    states: list[State] = []
    for store in stores:
        migrations, history = files.load(store.name, directory), _history(store)
        problems += _conflicts(migrations, history, store.name)
        states += [_state(migration, history) for migration in migrations]
    if problems:
        raise Misconfigured(problems)
    return states


def plan(stores: Sequence[Store], directory: pathlib.Path = files.DIRECTORY) -> list[State]:
    """The files that `up` would carry out, in that order."""
    return [state for state in status(stores, directory) if state.state != "applied"]


def up(planned: Sequence[State], stores: Sequence[Store]) -> None:
    """Carry out the plan that was read.

    Raise LockedError where another runner is at work; Misconfigured where the stores have moved since, or at the first
    statement that a store refuses, by name.
    """
    with _locked(stores):
        history = {store.name: _history(store) for store in stores}
        if any(_state(state.migration, history[state.migration.store]) != state for state in planned):
            raise Misconfigured("The stores have changed since this plan was read: read `pipeline migrate plan` again.")
        _carry_out(planned, stores)


def up_all(settings: Settings, only: StoreName | None = None) -> list[State]:
    """Plan and carry out at once, for stores that are nobody else's; return what was pending."""
    with opened(settings, only) as stores, _locked(stores):
        planned = plan(stores)
        _carry_out(planned, stores)
    return planned


def rehearse(stores: Sequence[Store], directory: pathlib.Path = files.DIRECTORY) -> None:
    """Carry out every file on a scratch database beside each store; raise Misconfigured where one is refused."""
    with _locked(stores):
        states = status(stores, directory)
        for store in stores:
            own = [state.migration for state in states if state.migration.store == store.name]
            with store.scratch() as scratch, scratch.locked():
                for migration in own:
                    _apply(migration, (0, len(migration.statements)), scratch)


def verify(stores: Sequence[Store], directory: pathlib.Path = files.DIRECTORY) -> list[Difference]:
    """Where the stores are not what the applied files make of a scratch database; empty where they are."""
    found: list[Difference] = []
    with _locked(stores):
        states = status(stores, directory)
        for store in stores:
            begun = [state for state in states if state.migration.store == store.name and state.done]
            with store.scratch() as scratch, scratch.locked():
                for state in begun:
                    _apply(state.migration, (0, state.done), scratch)
                made = scratch.definitions()
            found += differences(store.name, store.definitions(), made)
    return found


@contextmanager
def _locked(stores: Sequence[Store]) -> Iterator[None]:
    with ExitStack() as locks:
        for store in stores:
            for attempt in Retrying(
                retry=retry_if_exception_type(LockedError),
                stop=stop_after_delay(LOCKED_WITHIN_S), wait=wait_fixed(0.05), reraise=True,
            ):  # fmt: skip
                with attempt:
                    locks.enter_context(store.locked())
        yield


def _history(store: Store) -> dict[int, Entry]:
    return {entry.version: entry for entry in store.history()}


def _conflicts(migrations: list[Migration], history: dict[int, Entry], store: str) -> list[str]:
    known = {migration.version for migration in migrations}
    problems = [
        f"migrations/{store}/{entry.name} is applied but its file is gone: restore it, or use the release that has it."
        for entry in history.values()
        if entry.version not in known
    ]
    for migration in migrations:
        begun = history.get(migration.version)
        if begun and not _unchanged(migration, begun):
            problems.append(
                f"{migration.path} was edited after it was applied: restore it and put the change into a new file."
            )
        elif not begun and any(version > migration.version for version in history):
            problems.append(f"{migration.path} comes before files that are applied: give it the next free number.")
    return problems


def _unchanged(migration: Migration, begun: Entry) -> bool:
    """Of a dirty file only what is done must be as it was: the rest may be what needs repair."""
    complete = begun.state == "dirty" or begun.statements == len(migration.statements)
    return complete and migration.checksum(begun.statements) == begun.checksum


def _state(migration: Migration, history: dict[int, Entry]) -> State:
    entry = history.get(migration.version)
    if entry is None:
        return State(migration, "pending", 0)
    return State(migration, entry.state, entry.statements, entry.problem)


def _carry_out(planned: Sequence[State], stores: Sequence[Store]) -> None:
    for store in stores:
        for state in planned:
            if state.migration.store == store.name:
                _apply(state.migration, (state.done, len(state.migration.statements)), store)


def _apply(migration: Migration, statements: tuple[int, int], store: Store) -> None:
    """Run that range of the file's statements, step by step."""

    def entry(done: int, problem: str = "") -> Entry:
        finished = done == len(migration.statements) and not problem
        return Entry(
            migration.version, migration.name, migration.checksum(done), done,
            "applied" if finished else "dirty", problem,
        )  # fmt: skip

    for start, stop in _steps(migration, statements, store):
        try:
            store.run(migration.statements[start:stop], entry(stop))
        except StatementError as refused:
            number = next(n for n, statement in enumerate(migration.statements, 1) if statement is refused.statement)
            problem = f"statement {number}, `{refused.statement.title}`, failed: {refused}"
            kept = "Nothing of the file was kept"
            if start or not store.transactions or not refused.statement.transactional:
                store.run([], entry(start, problem))
                kept = f"What stands before it is kept ({start} of {len(migration.statements)})"
            way_out = "correct it, or what it needs, and run `pipeline migrate up` again."
            raise Misconfigured(f"{migration.path}: {problem} {kept}; {way_out}") from refused


def _steps(migration: Migration, statements: tuple[int, int], store: Store) -> Iterator[tuple[int, int]]:
    """Ranges of statements that are done and recorded at once: in a store with transactions all that can share one."""
    start, end = statements
    for place in range(start + 1, end):
        before, here = migration.statements[place - 1], migration.statements[place]
        if not (store.transactions and before.transactional and here.transactional):
            yield start, place
            start = place
    yield start, end
