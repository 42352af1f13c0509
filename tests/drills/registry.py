"""Two tables are registered and filled while traffic runs, one is evolved and writers are killed in the middle.

One row of a hundred is bad, each in one of four ways, and must be refused by number and path; all others must be read
exactly once in each store.
"""

import collections
import contextlib
import datetime
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import psutil
import psycopg

from pipeline import clickhouse
from pipeline.local import Stack
from pipeline.settings import Settings
from tests.bench import measured
from tests.drills.context import Context, Failed
from tests.drills.exporters import Exporters
from tests.drills.killer import with_workers
from tests.drills.proof import audited, read_once
from tests.tables.made import audit_log, deployments

ROWS = 100_000
BATCH_ROWS, POSTERS = 250, 3
BAD_EVERY = 100  # rows
EVOLVED_AT = 0.6  # of the rows, at the latest: those after it carry the new field
STORED_WITHIN_S, ANSWERED_WITHIN_S = 180.0, 60.0
WRITERS = ("ch_writer", "pg_writer")
NOTE = {"name": "note", "type": "string", "default": "none"}
# What is wrong with a bad row, and the path that must be told of it.
BAD: list[tuple[str, dict[str, Any]]] = [
    ("{number}", {"{number}": "seven"}), ("surprise", {"surprise": 1}), ("{text}", {"{text}": None}),
    ("{text}", {"{text}": "a\0b"}),
]  # fmt: skip


class Kind(NamedTuple):
    """One of the tables: its declaration, a row by its number, and the fields that bad rows are bad in."""

    name: str
    declaration: dict[str, Any]
    row: Callable[[int], dict[str, Any]]
    number: str
    text: str


def drill(context: Context) -> str:
    """100,000 rows, of which 1,000 bad, beside logs, metrics and traces."""
    with context.whole_stack(with_workers) as (stack, settings):
        load = Exporters(settings)
        load.start()
        said = proven(stack, settings, 4000 if context.short else ROWS, context.tell)
        load.finish(ANSWERED_WITHIN_S)
        audited(settings, STORED_WITHIN_S)
        read_once(settings, load)
    return f"{said}; audit clean"


def proven(stack: Stack, settings: Settings, rows: int, tell: Callable[[str], None]) -> str:
    """Register, post, evolve, kill; raise Failed where a row is not where it should be. The stack runs."""
    kinds = [
        Kind("deployments", deployments(), _deployment, "replicas", "service"),
        Kind("audit_log", audit_log(), _entry, "entry", "actor"),
    ]
    for kind in kinds:
        _registry(settings, "/tables", kind.declaration)
    posting = Posting(settings, kinds, rows)
    with ThreadPoolExecutor(POSTERS) as pool:
        done = [pool.submit(posting.post_all) for _ in range(POSTERS)]
        posting.until(0.3)
        tell(_killed(stack))
        posting.until(0.5)
        avro = kinds[0].declaration["schema"]
        _registry(
            settings,
            "/tables/deployments/versions",
            {"expected_version": 1, "schema": {**avro, "fields": [*avro["fields"], NOTE]}},
        )
        posting.evolved.set()
        tell("deployments has a field more")
        posting.until(0.6)
        tell(_killed(stack))
        for each in done:
            each.result()
    if posting.wrong:
        raise Failed(f"{len(posting.wrong)} answers are not as they should be, such as {posting.wrong[0]}")
    bad = sum(posting.refused.values())
    if bad != rows // BAD_EVERY:
        raise Failed(f"{bad} rows were refused by name, {rows // BAD_EVERY} are bad.")
    for kind in kinds:
        _read_once(settings, kind.name, posting.accepted[kind.name], posting.noted if kind is kinds[0] else None)
    return f"{rows:,} rows posted, {bad:,} refused by row and path, the others read once in each store"


class Posting:
    """Batches of both tables in turn, each sent until it is answered."""

    def __init__(self, settings: Settings, kinds: Sequence[Kind], rows: int) -> None:
        self._url = f"http://127.0.0.1:{settings.gateway.http_port}/v1/events"
        self._batches = self._numbered(kinds, rows)
        self._lock = threading.Lock()
        self._rows = rows
        self._answered = 0
        self.evolved = threading.Event()
        self.accepted: dict[str, set[int]] = {kind.name: set() for kind in kinds}
        self.noted: set[int] = set()  # whose row carries the field of the second version
        self.refused: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []

    @staticmethod
    def _numbered(kinds: Sequence[Kind], rows: int) -> Iterator[tuple[Kind, range]]:
        for first, kind in zip(range(0, rows, BATCH_ROWS), itertools.cycle(kinds), strict=False):
            yield kind, range(first, min(rows, first + BATCH_ROWS))

    def until(self, share: float) -> None:
        """Return when that share of the rows is answered."""
        if not measured.wait_until(lambda: self._answered >= share * self._rows, 300):
            raise Failed(f"After 300 s {self._answered:,} of {self._rows:,} rows are answered.")

    def post_all(self) -> None:
        with httpx.Client(timeout=30) as client:
            while True:
                with self._lock:
                    kind, numbers = next(self._batches, (None, range(0)))
                if kind is None:
                    return
                self._post(client, kind, numbers)

    def _post(self, client: httpx.Client, kind: Kind, numbers: range) -> None:
        rows = [kind.row(number) for number in numbers]
        if numbers.start >= EVOLVED_AT * self._rows:
            self.evolved.wait(ANSWERED_WITHIN_S)
        noted = self.evolved.is_set() and kind.name == "deployments"
        wanted = {}
        for place, (number, row) in enumerate(zip(numbers, rows, strict=True)):
            if noted:
                row["note"] = f"note {number}"
            if number % BAD_EVERY == 0:
                path, changed = BAD[number // BAD_EVERY % len(BAD)]
                row.update({name.format(**kind._asdict()): value for name, value in changed.items()})
                wanted[place] = path.format(**kind._asdict())
        body = b"\n".join(json.dumps(row).encode() for row in rows)
        answer = self._answer(client, kind.name, body)
        problems = [(each["row"], each["path"]) for each in answer.get("problems", ())]
        good = [number for place, number in enumerate(numbers) if place not in wanted]
        with self._lock:
            self._answered += len(numbers)
            self.accepted[kind.name].update(good)
            self.noted.update(good if noted else ())
            self.refused.update(path for _, path in problems)
            if sorted(problems) != sorted(wanted.items()) or answer.get("accepted") != len(good):
                self.wrong.append(f"{kind.name} from {numbers.start}: {json.dumps(answer)[:300]}")

    def _answer(self, client: httpx.Client, table: str, body: bytes) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWERED_WITHIN_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = client.post(
                    f"{self._url}/{table}", content=body, headers={"Content-Type": "application/x-ndjson"}
                )
                if answer.status_code not in (429, 502, 503, 504):
                    found: dict[str, Any] = answer.json()
                    return found
            if time.monotonic() > deadline:
                raise Failed(f"No answer to rows of {table} within {ANSWERED_WITHIN_S:.0f} s.")
            time.sleep(0.2)


def _deployment(number: int) -> dict[str, Any]:
    return {"service": f"shop-{number % 7}", "version": f"v{number}", "deployed_at": _moment(number), "replicas": number,
            "duration_s": number / 8 if number % 2 else None, "tags": ["drill", str(number)]}  # fmt: skip


def _entry(number: int) -> dict[str, Any]:
    return {"entry": number, "actor": f"user {number % 11}", "allowed": number % 2 == 0, "time": _moment(number),
            "details": {"why": f"drill {number}"}}  # fmt: skip


def _moment(number: int) -> str:
    """One of the last three days, always the same for a number within a run of an hour."""
    today = datetime.datetime.now(datetime.UTC).replace(minute=0, second=0, microsecond=0)
    return (today - datetime.timedelta(seconds=number % (3 * 86_400))).isoformat()


def _registry(settings: Settings, path: str, document: dict[str, Any]) -> None:
    answer = httpx.post(settings.registry.address + path, json={**document, "by": "drill"}, timeout=20)
    if answer.status_code != 201:
        raise Failed(f"The registry answers {answer.status_code} to {path}: {answer.text[:300]}")


def _killed(stack: Stack) -> str:
    """SIGKILL of one worker of each writer, or of the writer where it is one process; then it runs again."""
    alone = []
    for name in WRITERS:
        own = measured.process(stack, name)
        workers = own.children()
        victim = workers[0] if workers else own
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
            psutil.wait_procs([victim], 10)
        if not workers:
            alone.append(name)
    stack.start(alone)
    return f"killed a worker of {' and '.join(WRITERS)}"


def _read_once(settings: Settings, table: str, accepted: set[int], noted: set[int] | None) -> None:
    """Wait until all are there; raise Failed where one is lacking, doubled, or has another note than it was sent with."""
    number = "replicas" if table == "deployments" else "entry"
    note = "note" if noted is not None else "''"
    query = f"SELECT {number}, {note} FROM {table}"
    client = clickhouse.connect(settings.clickhouse)

    def in_postgres() -> list[Any]:
        with psycopg.connect(settings.postgres.dsn.get_secret_value()) as connection:
            return connection.execute(query.encode()).fetchall()

    def in_clickhouse() -> list[Any]:
        return list(client.query(query).result_rows)

    for store, read in (("PostgreSQL", in_postgres), ("ClickHouse", in_clickhouse)):
        measured.wait_until(lambda read=read: len(_quietly(read)) >= len(accepted), STORED_WITHIN_S)  # type: ignore[misc]
        rows = read()
        counts = collections.Counter(row[0] for row in rows)
        doubled = [n for n, count in counts.items() if count > 1]
        lacking, strange = sorted(accepted - counts.keys()), sorted(counts.keys() - accepted)
        if doubled or lacking or strange:
            raise Failed(
                f"{table} in {store}: {len(lacking)} rows lack ({lacking[:5]}), {len(doubled)} are doubled "
                f"({doubled[:5]}), {len(strange)} were never accepted ({strange[:5]})."
            )
        others = [n for n, said in rows if noted is not None and said != (f"note {n}" if n in noted else "none")]
        if others:
            raise Failed(
                f"{table} in {store}: {len(others)} rows have another note than they were sent with: {others[:5]}"
            )
    client.close()


def _quietly(read: Callable[[], list[Any]]) -> list[Any]:
    """Nothing where the table is not made yet."""
    try:
        return read()
    except (psycopg.Error, clickhouse.Error):
        return []
