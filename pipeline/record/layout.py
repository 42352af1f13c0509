"""Avro's binary encoding read by hand: where each field of a record lies, and the value of those that are asked for.

By hand because it is an agent's hot path: a generic decoder builds every field of every record, and most agents look
at one and change none. Records of one request share all bytes from `region` to the scope, so those are compared, not
read; the others are only passed over. Source: the Avro 1.12 specification, "Binary Encoding".
"""

import functools
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from pipeline import native
from pipeline.errors import Rejected
from pipeline.record import avro, schema
from pipeline.record.codes import codes
from pipeline.record.container import SYNC

ID_BYTES = 16
LAST_SHARED = "scope_schema_url"
CACHED_SHARED = 4096

Passes = Callable[[bytes, int], int]  # data and the place of a value → the place after it
Reads = Callable[[bytes, int], tuple[Any, int]]
Writes = Callable[[Any], bytes]


class Kind(NamedTuple):
    """One Avro type: how a value is passed over, read and written. `write` raises TypeError or ValueError with what is
    wrong with the value, told after its name. `freeze` gives a value that nobody can change."""

    passes: Passes
    reads: Reads
    write: Writes
    freeze: Callable[[Any], Any]
    empty: Any


class Shared:
    """The fields that records of one request have in common, from `region` to the scope: as bytes, and read once."""

    __slots__ = ("data", "ends", "values")

    def __init__(self, data: bytes, ends: list[int]) -> None:
        self.data, self.ends = data, ends
        self.values: dict[str, Any] = {}


class Raw(NamedTuple):
    """One record where it lies: its id, what it shares with others, and the bounds of its own fields in `data`."""

    data: bytes
    event_id: bytes
    shared: Shared
    bounds: Sequence[int]

    @property
    def whole(self) -> bytes:
        """The record as it is encoded."""
        return self.event_id + self.shared.data + self.data[self.bounds[0] : self.bounds[-1]]


class Layout:
    """How records of one schema lie in bytes."""

    def __init__(self, of: schema.Schema) -> None:
        self.schema = of
        fields = of.avro["fields"]
        self.kinds: dict[str, Kind] = {field["name"]: kind(field["type"]) for field in fields}
        names = list(self.kinds)
        cut = names.index(LAST_SHARED) + 1
        self.shared = {name: n for n, name in enumerate(names[1:cut])}  # after event_id
        self.own = {name: n for n, name in enumerate(names[cut:])}
        self._pass_shared = [self.kinds[name].passes for name in self.shared]
        self._pass_own = [self.kinds[name].passes for name in self.own]
        self._codes = codes(of)
        self._seen: dict[bytes, Shared] = {}

    def records(self, value: bytes) -> Iterator[Raw]:
        """Every record of a container file of this schema; raises Rejected at the first that does not decode."""
        if not value.startswith(self.schema.head):
            raise Rejected("The value does not start with the head of its schema.")
        extension = native.chosen()
        if extension and self._codes:
            try:
                places = extension.places(self._codes, value, len(self.schema.head))
            except extension.Malformed:
                pass  # what is wrong is said below
            else:
                return self._at(value, memoryview(places).cast("I"))
        return self._read(value)

    def _at(self, data: bytes, places: memoryview) -> Iterator[Raw]:
        """Records of which the extension has told where they begin and each of their fields ends."""
        width, cut = len(self.kinds) + 1, len(self.shared) + 1
        shared = Shared(b"", [])
        for first in range(0, len(places), width):
            at, end = places[first + 1], places[first + cut]
            if len(shared.data) != end - at or not data.startswith(shared.data, at):
                found = data[at:end]
                shared = self._seen.get(found) or self._remembered(
                    found, [place - at for place in places[first + 1 : first + cut + 1]]
                )
            yield Raw(data, data[places[first] : at], shared, places[first + cut : first + width])

    def _read(self, value: bytes) -> Iterator[Raw]:
        place = len(self.schema.head)
        try:
            while place < len(value):
                count, place = _long(value, place)
                size, place = _long(value, place)
                end = place + size
                if value[end : end + len(SYNC)] != SYNC or count < 0 or size < 0:
                    raise Rejected("The value is cut short or damaged: a block does not end in the sync marker.")
                yield from self._block(value, place, count, end)
                place = end + len(SYNC)
        except IndexError:
            raise Rejected("The value is cut short or damaged: a record goes on past its end.") from None

    def _block(self, data: bytes, at: int, count: int, end: int) -> Iterator[Raw]:
        passes = self._pass_own
        shared = Shared(b"", [])
        for _ in range(count):
            event_id = data[at : at + ID_BYTES]
            at += ID_BYTES
            if shared.data and data.startswith(shared.data, at):
                at += len(shared.data)
            else:
                shared, at = self._read_shared(data, at)
            bounds = [at]
            for step in passes:
                at = step(data, at)
                bounds.append(at)
            if at > end:
                break
            yield Raw(data, event_id, shared, bounds)
        if at != end:
            raise Rejected("The value is damaged: the records of a block do not fill it.")

    def _read_shared(self, data: bytes, start: int) -> tuple[Shared, int]:
        at = start
        ends = [0]
        for step in self._pass_shared:
            at = step(data, at)
            ends.append(at - start)
        found = data[start:at]
        if len(found) != at - start:
            raise IndexError
        return self._seen.get(found) or self._remembered(found, ends), at

    def _remembered(self, data: bytes, ends: list[int]) -> Shared:
        if len(self._seen) >= CACHED_SHARED:
            self._seen.clear()
        made = self._seen[data] = Shared(data, ends)
        return made

    def value(self, raw: Raw, name: str) -> Any:
        """One field of a record; what it holds cannot be changed."""
        if name == "event_id":
            return raw.event_id
        place = self.shared.get(name)
        if place is None:
            return self.kinds[name].reads(raw.data, raw.bounds[self.own[name]])[0]
        values = raw.shared.values
        if name not in values:
            values[name] = self.kinds[name].reads(raw.shared.data, raw.shared.ends[place])[0]
        return values[name]

    def piece(self, raw: Raw, name: str) -> bytes:
        """The bytes of one field."""
        place = self.shared.get(name)
        if place is None:
            place = self.own[name]
            return raw.data[raw.bounds[place] : raw.bounds[place + 1]]
        return raw.shared.data[raw.shared.ends[place] : raw.shared.ends[place + 1]]


@functools.cache
def layout(name: str) -> Layout:
    """Of the schema called `name`, such as `log_record/1`."""
    return Layout(schema.load(name))


def kind(of: Any) -> Kind:
    """Of a type as a schema names it."""
    if isinstance(of, list):
        return _optional(kind(next(each for each in of if each != "null")))
    if isinstance(of, str):
        return _PLAIN[of]
    made: dict[str, Callable[[], Kind]] = {
        "map": lambda: _MAP,
        "fixed": lambda: _fixed(of["size"]),
        "enum": lambda: _enum(of["symbols"]),
        "array": lambda: _array(kind(of["items"])),
        "record": lambda: _record(of["name"], [(each["name"], kind(each["type"])) for each in of["fields"]]),
    }
    return made[of["type"]]()


def _long(data: bytes, at: int) -> tuple[int, int]:
    n = shift = 0
    while True:
        byte = data[at]
        at += 1
        n |= (byte & 0x7F) << shift
        if byte < 0x80:
            return n >> 1 ^ -(n & 1), at
        shift += 7
        if shift > 63:
            raise IndexError


_varint = re.compile(rb"[\x80-\xff]*[\x00-\x7f]").match


def _pass_long(data: bytes, at: int) -> int:
    if data[at] < 0x80:
        return at + 1
    found = _varint(data, at)
    if found is None:
        raise IndexError
    return found.end()


def _pass_string(data: bytes, at: int) -> int:
    size = data[at]
    if size < 0x80:
        return at + 1 + (size >> 1)
    size, at = _long(data, at)
    if size < 0:
        raise IndexError
    return at + size


def _pass_map(data: bytes, at: int) -> int:
    while count := data[at]:
        at += 1
        if count & 0x81:  # not one to 63 entries
            count, at = _long(data, at - 1)
            if count < 0:
                size, at = _long(data, at)
                at += abs(size)
                continue
            count *= 2
        for _ in range(count):
            size = data[at]
            if size < 0x80:
                at += 1 + (size >> 1)
            else:
                at = _pass_string(data, at)
    return at + 1


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    found, at = _read_bytes(data, at)
    return found.decode(), at


def _read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _long(data, at)
    found = data[at : at + size]
    if len(found) != size:
        raise IndexError
    return found, at + size


def _count(data: bytes, at: int) -> tuple[int, int]:
    """Of the next block of an array or map; 0 at its end."""
    count, at = _long(data, at)
    if count < 0:
        _, at = _long(data, at)
    return abs(count), at


def _read_map(data: bytes, at: int) -> tuple[Mapping[str, str], int]:
    found: dict[str, str] = {}
    count, at = _count(data, at)
    while count:
        for _ in range(count):
            key, at = _read_string(data, at)
            found[key], at = _read_string(data, at)
        count, at = _count(data, at)
    return MappingProxyType(found), at


def _read_double(data: bytes, at: int) -> tuple[float, int]:
    if at + 8 > len(data):
        raise IndexError
    return struct.unpack_from("<d", data, at)[0], at + 8


def _a(value: Any, wanted: type | tuple[type, ...], said: str) -> Any:
    if not isinstance(value, wanted):
        raise TypeError(f"must be {said}, not {type(value).__name__}")
    return value


def _string(value: Any) -> bytes:
    try:
        return avro.STRING[_a(value, str, "str")]
    except UnicodeEncodeError as error:
        raise ValueError(f"holds no text that UTF-8 can: {error.reason}") from None


def _whole(bits: int) -> Writes:
    limit = 1 << bits - 1

    def write(value: Any) -> bytes:
        if isinstance(value, bool) or not -limit <= _a(value, int, "int") < limit:
            raise ValueError(f"must be an integer of {bits} bits, not {value!r}")
        return avro.long(value)

    return write


def _map(value: Any) -> bytes:
    pairs = {}
    for key, text in _a(value, Mapping, "a mapping of str to str").items():
        if not isinstance(text, str):
            raise TypeError(f"[{key!r}] must be str, not {type(text).__name__}")
        pairs[key] = _string(key) + _string(text)
    return avro.pair_map(pairs)


_BYTES = Kind(_pass_string, _read_bytes, lambda value: avro.blob(_a(value, bytes, "bytes")), bytes, b"")
_PLAIN: dict[str, Kind] = {
    "string": Kind(_pass_string, _read_string, _string, str, ""),
    "bytes": _BYTES,
    "long": Kind(_pass_long, _long, _whole(64), int, 0),
    "int": Kind(_pass_long, _long, _whole(32), int, 0),
    "double": Kind(
        lambda data, at: at + 8, _read_double, lambda value: avro.double(float(_a(value, (int, float), "float"))),
        float, 0.0,
    ),
    "boolean": Kind(
        lambda data, at: at + 1, lambda data, at: (data[at] == 1, at + 1),
        lambda value: avro.ONE[_a(value, bool, "bool")], bool, False,
    ),
}  # fmt: skip
_MAP = Kind(_pass_map, _read_map, _map, lambda value: MappingProxyType(dict(value)), MappingProxyType({}))


def _fixed(size: int) -> Kind:
    def write(value: Any) -> bytes:
        if len(_a(value, bytes, "bytes")) != size:
            raise ValueError(f"must be {size} bytes, not {len(value)}")
        return bytes(value)

    def reads(data: bytes, at: int) -> tuple[bytes, int]:
        return data[at : at + size], at + size

    return Kind(lambda data, at: at + size, reads, write, bytes, bytes(size))


def _enum(symbols: list[str]) -> Kind:
    def reads(data: bytes, at: int) -> tuple[str, int]:
        number, at = _long(data, at)
        return symbols[number], at

    def write(value: Any) -> bytes:
        if value not in symbols:
            raise ValueError(f"must be one of {', '.join(symbols)}, not {value!r}")
        return avro.long(symbols.index(value))

    return Kind(_pass_long, reads, write, str, symbols[0])


def _optional(of: Kind) -> Kind:
    """A union of null and one other."""

    def passes(data: bytes, at: int) -> int:
        return of.passes(data, at + 1) if data[at] else at + 1

    def reads(data: bytes, at: int) -> tuple[Any, int]:
        return of.reads(data, at + 1) if data[at] else (None, at + 1)

    def write(value: Any) -> bytes:
        return avro.NOTHING if value is None else avro.ONE[2] + of.write(value)

    return Kind(passes, reads, write, lambda value: None if value is None else of.freeze(value), None)


def _array(of: Kind) -> Kind:
    def passes(data: bytes, at: int) -> int:
        if not data[at]:
            return at + 1
        count, at = _count(data, at)
        while count:
            for _ in range(count):
                at = of.passes(data, at)
                if at > len(data):  # a damaged count may be of any size
                    raise IndexError
            count, at = _count(data, at)
        return at

    def reads(data: bytes, at: int) -> tuple[Any, int]:
        found = []
        count, at = _count(data, at)
        while count:
            for _ in range(count):
                item, at = of.reads(data, at)
                found.append(item)
            count, at = _count(data, at)
        return tuple(found), at

    def write(value: Any) -> bytes:
        return avro.array([of.write(item) for item in _a(value, (tuple, list), "a tuple")])

    return Kind(passes, reads, write, lambda value: tuple(map(of.freeze, value)), ())


RECORDS: dict[str, type] = {}  # what a nested record is read as: a NamedTuple of its fields, by its name in the schema


def _record(name: str, fields: list[tuple[str, Kind]]) -> Kind:
    made: Any = RECORDS[name]

    def passes(data: bytes, at: int) -> int:
        for _, each in fields:
            at = each.passes(data, at)
        return at

    def reads(data: bytes, at: int) -> tuple[Any, int]:
        values = {}
        for field, each in fields:
            values[field], at = each.reads(data, at)
        return made(**values), at

    def write(value: Any) -> bytes:
        pieces = []
        for field, each in fields:
            try:
                pieces.append(each.write(getattr(_a(value, made, made.__name__), field)))
            except (TypeError, ValueError) as error:
                raise type(error)(f".{field} {error}") from None
        return b"".join(pieces)

    return Kind(passes, reads, write, lambda value: value._replace(
        **{field: each.freeze(getattr(value, field)) for field, each in fields}
    ), None)  # fmt: skip
