"""One question to the stores of several regions at once, each in a thread, and what became of each."""

import asyncio
import contextlib
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
import psycopg.rows

from pipeline import clickhouse
from pipeline.errors import PipelineError
from pipeline.query.questions import Question, Row, merged
from pipeline.regions.topology import Region, Topology
from pipeline.timescale import connection

LATER_S = 2.0  # a store ends a question by itself, where nobody is left to call it off


@dataclass(frozen=True, slots=True)
class Answer:
    """`failed` names each region that did not answer, and why: then rows may be missing. `more`: the limit was hit."""

    rows: list[Row]
    answered: tuple[str, ...]
    failed: dict[str, str]
    more: bool

    def as_json(self) -> dict[str, Any]:
        """Strict JSON: a value that is NaN or infinite is null, as one that was not recorded."""
        return {
            "partial": bool(self.failed),
            "more": self.more,
            "regions": {
                **{alias: {"answered": True} for alias in self.answered},
                **{alias: {"answered": False, "reason": reason} for alias, reason in self.failed.items()},
            },
            "rows": [{name: _in_json(value) for name, value in row.items()} for row in self.rows],
        }


def _in_json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


async def ask(question: Question, topology: Topology, within_s: float) -> Answer:
    """What the regions of the question hold, or the topology's own choice of them. Cancelled, it ends in the stores."""
    aliases = question.regions or topology.query
    found = await asyncio.gather(*(_one(question, topology.regions[alias], within_s) for alias in aliases))
    rows = {alias: each for alias, each in zip(aliases, found, strict=True) if isinstance(each, list)}
    failed = {alias: each for alias, each in zip(aliases, found, strict=True) if isinstance(each, str)}
    shown, more = await asyncio.to_thread(merged, question, list(rows.values()))
    return Answer(shown, tuple(rows), failed, more)


async def _one(question: Question, region: Region, within_s: float) -> list[Row] | str:
    """The region's rows, or why there are none."""
    try:
        store: _Store = (_ClickHouse if question.store == "clickhouse" else _Postgres)(region, within_s)
        asking = asyncio.create_task(asyncio.to_thread(store.rows, question))
        done, _ = await asyncio.wait([asking], timeout=within_s)
    except asyncio.CancelledError:
        await _called_off(store.cancel)
        raise
    except PipelineError as error:
        return str(error)
    if not done:
        asking.add_done_callback(lambda late: late.cancelled() or late.exception())  # told already: it took too long
        await _called_off(store.cancel)
        return f"It did not answer within {within_s:g} s."
    try:
        return asking.result()
    except PipelineError as error:
        return str(error)
    except (clickhouse.Error, connection.Error) as error:
        return f"It refused the question: {' '.join(str(error).split())[:300]}"


async def _called_off(cancel: Callable[[], None]) -> None:
    with contextlib.suppress(PipelineError, clickhouse.Error, connection.Error, TimeoutError):
        await asyncio.wait_for(asyncio.to_thread(cancel), 1.0)


class _Store(Protocol):
    def rows(self, question: Question) -> list[Row]: ...
    def cancel(self) -> None: ...


class _ClickHouse:
    def __init__(self, region: Region, within_s: float) -> None:
        self._settings = region.clickhouse
        self._limits = {"readonly": 2, "max_execution_time": within_s + LATER_S, "max_memory_usage": 1 << 30}
        self._id = uuid.uuid4().hex

    def rows(self, question: Question) -> list[Row]:
        client = clickhouse.connect(self._settings)
        with contextlib.closing(client), clickhouse.translated():
            settings = {**self._limits, "query_id": self._id}
            found = client.query(question.statement, parameters=question.values, settings=settings)
            return [dict(zip(found.column_names, row, strict=True)) for row in found.result_rows]

    def cancel(self) -> None:
        with contextlib.closing(clickhouse.connect(self._settings)) as client, clickhouse.translated():
            client.command(f"KILL QUERY WHERE query_id = '{self._id}' ASYNC")


class _Postgres:
    def __init__(self, region: Region, within_s: float) -> None:
        self._settings = region.postgres_settings
        self._within_ms = int((within_s + LATER_S) * 1000)
        self._connection: psycopg.Connection | None = None

    def rows(self, question: Question) -> list[Row]:
        self._connection = connection.connect(self._settings)
        with contextlib.closing(self._connection) as own, connection.translated():
            own.read_only = True
            own.execute(f"SET statement_timeout = {self._within_ms}".encode())
            with own.cursor(row_factory=psycopg.rows.dict_row) as cursor:
                found: Sequence[Row] = cursor.execute(question.statement.encode(), question.values).fetchall()
        return list(found)

    def cancel(self) -> None:
        if self._connection is not None:
            self._connection.cancel_safe()
