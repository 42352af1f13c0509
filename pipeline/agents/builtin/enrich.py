"""Adds what a table knows of a record's service or host: owner, team, tier.

    [agents.enrich_logs]
    table = "/etc/pipeline/services.csv"
    by = "service"                      # or host

    service,team,tier
    checkout,payments,1

`enrich_logs`, `enrich_metrics` and `enrich_traces` read `<signal>_raw` and write `<signal>_norm`. The first column of
the table is looked up, the names of the others become resource attributes; what the record says itself, and an empty
cell, change nothing. The attribute `enrich.table` names the table that was used, by a hash of it: an answer is a
function of the record and of that table.

A changed table is read before the next message. One that is not good stops the agent when it starts; later it is told
in the log, and the table before goes on.
"""

import csv
import hashlib
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import structlog
from pydantic import BaseModel

from pipeline.agents import Context, Record, agent
from pipeline.errors import Misconfigured

log = structlog.get_logger()
VERSION = "enrich.table"


class Settings(BaseModel):
    table: pathlib.Path
    by: Literal["service", "host"] = "service"


class Stamp(NamedTuple):
    """By which a changed file is noticed."""

    modified_ns: int
    size: int
    number: int


class Table:
    """A file of rows, as it is now."""

    def __init__(self, settings: Settings) -> None:
        self._file = settings.table
        self._stamp = self._look()
        self._rows = rows(self._file)

    def rows(self) -> Mapping[str, Mapping[str, str]]:
        """By key; read again if the file is another one."""
        try:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._rows = rows(self._file)
        except Misconfigured as error:
            if self._stamp is not None:
                log.error("a changed table is not used, the one before is", problems=error.problems)
            self._stamp = None
        return self._rows

    def _look(self) -> Stamp | None:
        try:
            found = self._file.stat()
        except OSError as error:
            raise Misconfigured(f"table {self._file} is not readable: {error.strerror}.") from None
        return Stamp(found.st_mtime_ns, found.st_size, found.st_ino)


def rows(file: pathlib.Path) -> dict[str, dict[str, str]]:
    """The table's rows by their first cell, each with the table's version; raises Misconfigured with every problem."""
    try:
        content = file.read_bytes()
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Misconfigured(f"table {file} is not readable: {error}.") from None
    header, *rest = lines or [[]]
    problems = []
    if len(header) < 2 or len(set(header)) < len(header) or not all(header):
        problems.append(f"table {file}:1: the first line must name two columns or more, each once.")
    version = hashlib.blake2b(content, digest_size=8).hexdigest()
    found: dict[str, dict[str, str]] = {}
    for number, line in enumerate(rest, 2):
        if not line:
            continue
        if len(line) != len(header):
            problems.append(f"table {file}: row {number} has {len(line)} cells; the first line has {len(header)}.")
        if line[0] in found:
            problems.append(f"table {file}: row {number}: {line[0]} is there twice.")
        found[line[0]] = {name: cell for name, cell in zip(header[1:], line[1:], strict=False) if cell} | {
            VERSION: version
        }
    if problems:
        raise Misconfigured(problems)
    return found


def _enriched(records: Sequence[Record], context: Context[Settings, Table]) -> list[Record]:
    known = context.state.rows()
    by = context.settings.by
    made = []
    for record in records:
        more = known.get(getattr(record, by))
        made.append(
            record if more is None else record.replace(resource_attributes={**more, **record.resource_attributes})
        )
    return made


@agent(reads="logs_raw", writes="logs_norm", version=1, batch=True, settings=Settings)
def enrich_logs(records: Sequence[Record], context: Context[Settings, Table]) -> list[Record]:
    return _enriched(records, context)


@agent(reads="metrics_raw", writes="metrics_norm", version=1, batch=True, settings=Settings)
def enrich_metrics(records: Sequence[Record], context: Context[Settings, Table]) -> list[Record]:
    return _enriched(records, context)


@agent(reads="traces_raw", writes="traces_norm", version=1, batch=True, settings=Settings)
def enrich_traces(records: Sequence[Record], context: Context[Settings, Table]) -> list[Record]:
    return _enriched(records, context)


enrich_logs.start(Table)
enrich_metrics.start(Table)
enrich_traces.start(Table)
