"""Rows of a registered table, as JSON says them → container files, one pure function.

Identity, where the table has no keys: BLAKE2b-128 over tenant and table (Avro strings), time (Avro long), then of every
field whose value is not its default, sorted by name, its name (Avro string) and value as encoded here, then an empty
string and the ordinal (Avro long). So a field that a later version adds changes no id of a row that does not name it.
With keys: over tenant, table, time, and name and value of the key fields, sorted; a later row of these is the same
event, and within a request it counts as received a microsecond later: PostgreSQL tells no less apart.
"""

import base64
import binascii
import hashlib
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from difflib import get_close_matches
from typing import Any, NamedTuple

from pipeline.errors import Rejected, TooLarge
from pipeline.record import schema
from pipeline.record.avro import NOTHING, STRING, array, blob, double, long, pair, pair_map, single
from pipeline.record.framing import EVENT_ID_BYTES, FIRST, Group, Lane, Origin, groups, largest, place_untimed
from pipeline.record.times import SANE_AHEAD_NS, SANE_FROM_NS
from pipeline.tables.model import (
    LEAST_S,
    MOST_S,
    PER_SECOND,
    RANGES,
    Column,
    Problem,
    Table,
    fits_double,
    is_storable,
    shown,
)

MAX_ROW_PROBLEMS = 50
MAX_PROBLEMS = 2000  # of an answer; the others are counted
MAX_KEY_BYTES = 1024  # of a text that a store sorts by
MICROSECOND_NS = 1000
SPREAD_ROWS = 1000  # of a request without keys, in one partition
MOMENT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
NO_FIELD = "no such field"
EPOCH_DAY = date(1970, 1, 1).toordinal()
NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


class Limits(NamedTuple):
    """Of one request: rows, and bytes of all its records encoded. The first are accepted, the others refused."""

    max_rows: int = 100_000
    max_encoded_bytes: int = 128 * 1024 * 1024


class RowProblem(NamedTuple):
    """What is wrong with the row of this number, from 0; of NDJSON, the line."""

    row: int
    problem: Problem

    def as_json(self) -> dict[str, Any]:
        return {"row": self.row, **self.problem._asdict()}


class Unread(NamedTuple):
    """A line of NDJSON that is no JSON."""

    reason: str


BLANK = Unread("")  # a line that holds nothing, which is no row


@dataclass(slots=True)
class Taken:
    """What came of a request: what to publish, how many rows were refused, and the first MAX_PROBLEMS reasons.

    `untimed` counts accepted rows without a usable time, `strange` says that a row had a field that we do not know.
    """

    groups: list[Group] = field(default_factory=list)
    rejected: int = 0
    problems: list[RowProblem] = field(default_factory=list)
    omitted: int = 0
    untimed: int = 0
    strange: bool = False

    @property
    def accepted(self) -> int:
        return sum(group.records for group in self.groups)


class Mismatch(Exception):
    """A value is not what was expected; `path` below its field."""

    def __init__(self, expected: str, value: object, path: str = "") -> None:
        super().__init__(expected)
        self.problem = Problem(path, expected, shown(value))


Encoder = Callable[[Any], bytes]


def read(body: bytes, *, lines: bool, max_values: int) -> list[Any]:
    """The rows in `body`: an object, an array of them, or one in each of its lines.

    Raise Rejected where it is no JSON; a bad line is Unread, and its neighbours count. Raise TooLarge where it may
    hold more than `max_values` values, each of which costs up to 100 bytes of memory.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{", b"\n")) > max_values:
        raise TooLarge(f"The body holds more than {max_values} values (gateway.max_json_values): send smaller batches.")
    if lines:
        return [_line(line) for line in body.split(b"\n")]
    found = _parsed(body)
    if isinstance(found, Unread):
        raise Rejected(f"The body is not JSON: {found.reason}.")
    return found if isinstance(found, list) else [found]


def _line(line: bytes) -> Any:
    return _parsed(line) if line.strip() else BLANK


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        return Unread(f"it is not UTF-8: {error.reason} at byte {error.start}")
    except RecursionError:
        return Unread("it is nested too deep")
    except ValueError as error:  # no JSON, or an integer of thousands of digits
        return Unread(str(error)[:200])


def _no_constant(name: str) -> None:
    raise ValueError(f'{name} is not JSON: write "{name}"')


class Rows:
    """How rows of one version of a table are encoded."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.schema = schema.made(table.schema_name, table.wire)
        self._columns = [(column.name, _encoder(column, table), column) for column in table.columns]
        self._names = {column.name for column in table.columns}
        self._defaults = {
            column.name: NOTHING if column.nullable else _encoder(column, table)(column.default)
            for column in table.columns
            if column.has_default
        }
        hashed = sorted(table.keys or self._names)
        self._hashed = [(name, STRING[name], None if table.keys else self._defaults.get(name)) for name in hashed]
        self._per_s = PER_SECOND[table.column(table.time).kind] if table.time else 10**9

    def encode(self, rows: Iterable[Any], origin: Origin, *, partitions: int, limits: Limits) -> Taken:
        """Rows as `read` gives them → container files. Bad rows are refused by name, their neighbours taken.

        Rows of one key share a partition; a request without keys fills one partition after the other. Never raises for
        what rows hold.
        """
        taken = Taken()
        lanes: dict[int, Lane] = defaultdict(Lane)
        twins: Counter[bytes] = Counter()
        region, tenant = STRING[origin.region], STRING[origin.tenant]
        base = hashlib.blake2b(tenant + STRING[self.table.name], digest_size=EVENT_ID_BYTES)
        written = region + long(origin.received_time) + tenant
        most, left = largest(self.schema.head), limits.max_encoded_bytes
        count, start = 0, None
        for number, row in enumerate(rows):
            if row is BLANK:
                continue
            problems, values, time = self._values(row, origin.received_time)
            if not problems and count >= limits.max_rows:
                problems = [Problem("", f"at most {limits.max_rows} rows (gateway.max_records)", "one more")]
            count += 1
            if problems:
                _refuse(taken, number, problems)
                taken.strange |= any(problem.expected.startswith(NO_FIELD) for problem in problems)
                continue
            fields = b"".join(values.values())
            size = EVENT_ID_BYTES + len(written) + len(fields) + 32
            if size > most or size > left:
                told = f"at most {most} bytes encoded" if size > most else "a request within gateway.max_encoded_bytes"
                _refuse(taken, number, [Problem("", told, f"{size} bytes")])
                left = left if size > most else 0
                continue
            left -= size
            content, moment = self._content(values), long(time)
            event_id, twin = self._identified(base, moment + content, twins)
            if start is None:
                start = zlib.crc32(event_id)
            place = zlib.crc32(content) if self.table.keys else start + len(twins) // SPREAD_ROWS
            unhashed, ordinal = written, FIRST
            if twin and self.table.keys:
                unhashed = region + long(origin.received_time + twin * MICROSECOND_NS) + tenant
            elif twin:
                ordinal = long(twin)
            lane = lanes[place % partitions]
            lane.pieces += event_id, unhashed, moment + fields + ordinal
            lane.times.append(time)
        for partition, lane in lanes.items():
            taken.untimed += place_untimed(lane.times, origin.received_time)
            taken.groups += groups(partition, lane, self.schema.head)
        return taken

    def _identified(self, base: "hashlib.blake2b", content: bytes, twins: Counter[bytes]) -> tuple[bytes, int]:
        """The event_id, and how many rows before it in the request have the same content, or the same keys."""
        event_id = _digest(base, content if self.table.keys else content + NOTHING + FIRST)
        twin = twins[event_id]
        twins[event_id] += 1
        if twin and not self.table.keys:
            event_id = _digest(base, content + NOTHING + long(twin))
        return event_id, twin

    def _content(self, values: dict[str, bytes]) -> bytes:
        """What of the fields is hashed."""
        parts: list[bytes] = []
        for name, label, default in self._hashed:
            value = values[name]
            if value != default:
                parts += label, value
        return b"".join(parts)

    def _values(self, row: Any, received: int) -> tuple[list[Problem], dict[str, bytes], int]:
        """All that is wrong with a row, its fields encoded in order, and its time, 0 where it has none."""
        if not isinstance(row, dict):
            if isinstance(row, Unread):
                return [Problem("", "a JSON object", row.reason)], {}, 0
            return [Problem("", "an object", shown(row))], {}, 0
        problems: list[Problem] = []
        values: dict[str, bytes] = {}
        for name, encoder, column in self._columns:
            if name not in row:
                if column.has_default:
                    values[name] = self._defaults[name]
                else:
                    problems.append(Problem(name, _wanted(column), "nothing"))
                continue
            try:
                values[name] = encoder(row[name])
            except Mismatch as error:
                path, expected, got = error.problem
                problems.append(Problem(name + path, expected, got))
        if not row.keys() <= self._names:
            problems += self._strange(row)
        time = self._time(row, received, problems)
        return problems[:MAX_ROW_PROBLEMS], values, time

    def _strange(self, row: dict[str, Any]) -> Iterator[Problem]:
        for key, value in row.items():
            if key in self._names or (key == "time" and self.table.time is None):
                continue
            near = get_close_matches(key[:100], self._names, n=1) if len(self._names) < 50 else []
            hint = f"; near it is {near[0]}" if near else ""
            yield Problem(key[:100], f"{NO_FIELD}{hint}", shown(value))

    def _time(self, row: dict[str, Any], received: int, problems: list[Problem]) -> int:
        """When the row happened; what is wrong with a field of the table has been told already."""
        own = self.table.time
        said = row.get("time") if own is None else row.get(own, self.table.column(own).default)
        try:
            time = 0 if said is None else _moment(said, self._per_s) * (10**9 // self._per_s)
        except Mismatch as error:
            if own is None:
                problems.append(error.problem._replace(path="time"))
            return 0
        if self.table.keys and not SANE_FROM_NS <= time <= received + SANE_AHEAD_NS:
            told = "a time from 2000 to a day ahead: rows of this table are known by keys and time"
            problems.append(Problem(own or "time", told, "nothing" if said is None else shown(said)))
        return time


def _refuse(taken: Taken, number: int, problems: list[Problem]) -> None:
    taken.rejected += 1
    room = MAX_PROBLEMS - len(taken.problems)
    taken.problems += [RowProblem(number, problem) for problem in problems[:room]]
    taken.omitted += max(0, len(problems) - room)


def _digest(base: "hashlib.blake2b", content: bytes) -> bytes:
    event_id = base.copy()
    event_id.update(content)
    return event_id.digest()


# One encoder a kind: a JSON value → Avro, or Mismatch.


def _encoder(column: Column, table: Table) -> Encoder:
    if column.kind == "array":
        assert column.items is not None
        plain = _array(KINDS[column.items])
    elif column.kind == "string" and column.name in (*table.keys, *table.order):
        plain = _short
    else:
        plain = KINDS[column.kind]
    return _nullable(plain) if column.nullable else plain


def _wanted(column: Column) -> str:
    return f"a value of type {column.kind}" if column.items is None else f"an array of {column.items}"


def _nullable(plain: Encoder) -> Encoder:
    def encode(value: Any) -> bytes:
        return NOTHING if value is None else b"\2" + plain(value)

    return encode


def _array(item: Encoder) -> Encoder:
    def encode(value: Any) -> bytes:
        if not isinstance(value, list):
            raise Mismatch("an array", value)
        items = []
        for n, each in enumerate(value):
            try:
                items.append(item(each))
            except Mismatch as error:
                raise Mismatch(error.problem.expected, each, f"[{n}]") from None
        return array(items)

    return encode


def _boolean(value: Any) -> bytes:
    if value is True:
        return b"\1"
    if value is False:
        return b"\0"
    raise Mismatch("true or false", value)


def _integer(kind: str) -> Encoder:
    least, most = RANGES[kind]

    def encode(value: Any) -> bytes:
        if type(value) is not int or not least <= value <= most:
            raise Mismatch(f"an integer from {least} to {most}", value)
        return long(value)

    return encode


def _number(value: Any, kind: str) -> float:
    if isinstance(value, str) and value in NOT_FINITE:
        return NOT_FINITE[value]
    if type(value) not in (int, float) or not fits_double(value, kind):
        raise Mismatch(f'a number that {kind} holds, or "NaN", "Infinity", "-Infinity"', value)
    return float(value)


def _float(value: Any) -> bytes:
    return single(_number(value, "float"))


def _double(value: Any) -> bytes:
    return double(_number(value, "double"))


def _string(value: Any) -> bytes:
    if not isinstance(value, str) or not is_storable(value):
        raise Mismatch("a text without U+0000 and lone surrogates", value)
    return STRING[value]


def _short(value: Any) -> bytes:
    encoded = _string(value)
    if len(encoded) > MAX_KEY_BYTES:
        raise Mismatch(f"a text of at most {MAX_KEY_BYTES} bytes: the stores sort by it", value)
    return encoded


def _bytes(value: Any) -> bytes:
    try:
        return blob(base64.b64decode(value, validate=True))
    except (TypeError, ValueError, binascii.Error):
        raise Mismatch("bytes in base64", value) from None


def _timestamp(kind: str) -> Encoder:
    per_s = PER_SECOND[kind]

    def encode(value: Any) -> bytes:
        return long(_moment(value, per_s))

    return encode


def _moment(value: Any, per_s: int) -> int:
    """A time as RFC 3339 says it, or an integer of its unit."""
    digits = len(str(per_s)) - 1
    least, most = LEAST_S * per_s, MOST_S * per_s
    found: int | None = value if type(value) is int else None
    said = MOMENT.fullmatch(value) if isinstance(value, str) else None
    if said and len((said[3] or "").rstrip("0")) <= digits:
        try:
            whole = datetime.fromisoformat(f"{said[1]}T{said[2]}{said[4].upper()}")
            found = round(whole.timestamp()) * per_s + int((said[3] or "0").ljust(9, "0")[:digits] or 0)
        except (ValueError, OverflowError):
            found = None
    if found is None or not least <= found <= most:
        raise Mismatch(f"a time such as 2026-11-20T10:00:00Z, with at most {digits} decimals, or an integer", value)
    return found


def _date(value: Any) -> bytes:
    found = value
    if isinstance(value, str) and DAY.fullmatch(value):
        try:
            found = date.fromisoformat(value).toordinal() - EPOCH_DAY
        except ValueError:
            found = None
    least, most = RANGES["date"]
    if type(found) is not int or not least <= found <= most:
        raise Mismatch("a date such as 2026-11-20, or days since 1970", value)
    return long(found)


def _map(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise Mismatch("an object of texts", value)
    pairs = {}
    for key, text in value.items():
        if not isinstance(text, str) or not is_storable(text) or not is_storable(key):
            raise Mismatch("a text without U+0000 and lone surrogates", text, f".{key[:50]}")
        pairs[key] = pair(key, text)
    return pair_map(pairs)


KINDS: dict[str, Encoder] = {
    "boolean": _boolean,
    "int": _integer("int"),
    "long": _integer("long"),
    "float": _float,
    "double": _double,
    "string": _string,
    "bytes": _bytes,
    "date": _date,
    "map": _map,
    **{kind: _timestamp(kind) for kind in PER_SECOND},
}
