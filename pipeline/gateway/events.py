"""POST /v1/events/{table}: rows of registered tables, on the same way in as OTLP.

The answer is `{"accepted": …, "rejected": …, "problems": [{"row", "path", "expected", "got"}, …]}`; of more problems
than an answer holds `problems_omitted` counts the others. It is 400 where no row was accepted.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.rpc import code_pb2, status_pb2

from pipeline.errors import Unavailable
from pipeline.gateway.answers import Answer, Gone
from pipeline.gateway.exports import IN_PLACE_BYTES, Body, Call, Exports
from pipeline.record.framing import Origin
from pipeline.record.schema import Signal
from pipeline.settings import GatewaySettings
from pipeline.tables import rows
from pipeline.tables.client import Tables
from pipeline.tables.model import Table
from pipeline.tables.rows import Limits, Rows, Taken
from pipeline.telemetry import metrics


class Events:
    """Answers rows. What we do not know of a table, we ask for before it is refused."""

    def __init__(self, settings: GatewaySettings, exports: Exports, tables: Tables) -> None:
        self.limits = Limits(settings.max_records, settings.max_encoded_bytes)
        self.max_values = settings.max_json_values
        self._exports = exports
        self._tables = tables
        self._rows: dict[str, Rows] = {}
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="registry")

    async def post(self, call: Call, name: str, body: Body) -> tuple[Answer, dict[str, Any]]:
        """Answer one request, and the document that says it: OK once every accepted row is safe. Never raises."""
        document: dict[str, Any] = {}

        async def way() -> Answer:
            taken = await self._exports.accepted(call, body, lambda: self._job(call, name))
            document.update(_document(taken))
            outcome = "partial" if taken.rejected else "ok"
            status = 400 if taken.rejected and not taken.accepted else 200
            return Answer(outcome if status == 200 else "rejected", status, code_pb2.OK, status_pb2.Status())

        answer = await self._exports.answered(call, way())
        if not document:
            assert isinstance(answer.message, status_pb2.Status)
            document["error"] = answer.message.message
        return answer, document

    async def newest(self, name: str) -> Rows:
        """How rows of the table are encoded, by what the registry says now.

        Raise Unavailable where it does not answer, UnknownTable and Gone where it does.
        """
        await asyncio.get_running_loop().run_in_executor(self._asking, self._tables.refresh, time.monotonic())
        table = self._tables.find(name)
        if table is None:
            raise self._tables.unknown(name)
        return self._known(name, table)

    async def _job(self, call: Call, name: str) -> "_Posted":
        table = self._tables.find(name)
        known = await self.newest(name) if table is None else self._known(name, table)
        return _Posted(self, call, known)

    def _known(self, name: str, table: Table) -> Rows:
        if table.state == "retired":
            raise Gone(f"The table {table.name} is retired and takes no more rows: send them to another.")
        known = self._rows.get(name)
        if known is None or known.table is not table:
            known = self._rows[name] = Rows(table)
        return known


class _Posted:
    """The job of one request."""

    signal: Signal = "events"

    def __init__(self, events: Events, call: Call, known: Rows) -> None:
        self.schema = known.schema
        self.in_place_bytes = IN_PLACE_BYTES[call.encoding]
        self._events = events
        self._lines = call.encoding == "ndjson"
        self._rows = known

    def encode(self, body: bytes, origin: Origin, partitions: int) -> Taken:
        found = rows.read(body, lines=self._lines, max_values=self._events.max_values)
        return self._rows.encode(found, origin, partitions=partitions, limits=self._events.limits)

    async def stands(self, found: Taken) -> bool:
        """A field that we do not know may be one of a version that we have not seen."""
        if not found.strange:
            return True
        try:
            newest = await self._events.newest(self._rows.table.name)
        except Unavailable:
            return True
        if newest.table.version == self._rows.table.version:
            return True
        self._rows, self.schema = newest, newest.schema
        return False

    def count(self, found: Taken, tenant: str) -> None:
        if found.rejected:
            metrics.REFUSED.labels(self.signal, tenant, "invalid_row").inc(found.rejected)


def _document(taken: Taken) -> dict[str, Any]:
    problems = [problem.as_json() for problem in taken.problems]
    omitted = {"problems_omitted": taken.omitted} if taken.omitted else {}
    return {"accepted": taken.accepted, "rejected": taken.rejected, "problems": problems, **omitted}
