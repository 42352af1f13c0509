"""Records as agents see them: typed, immutable, read only as far as they are looked at.

A record that came from Kafka keeps its bytes; `replace` makes another one of which only the named fields are encoded
anew. One that an agent makes of nothing has what it was given, and the schema's empty values for the rest.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, NoReturn, Self, dataclass_transform

from pipeline.record import layout as layouts
from pipeline.record.avro import long, pair
from pipeline.record.layout import Kind, Layout, Raw, Shared
from pipeline.record.schema import CURRENT, Signal
from pipeline.record.series import Scope, labels, series_id

Texts = Mapping[str, str]
NONE: Texts = MappingProxyType({})
GIVEN = frozenset({"event_id", "region", "received_time", "tenant", "series_id"})  # the platform's to set
LABELLED = frozenset(
    {"metric_name", "resource_attributes", "scope_name", "scope_version", "scope_attributes", "attributes"}
)


class SpanEvent(NamedTuple):
    time: int
    name: str = ""
    attributes: Texts = NONE
    dropped_attributes_count: int = 0


class SpanLink(NamedTuple):
    trace_id: bytes
    span_id: bytes
    trace_state: str = ""
    attributes: Texts = NONE
    dropped_attributes_count: int = 0
    flags: int = 0


class Quantile(NamedTuple):
    quantile: float
    value: float


class Exemplar(NamedTuple):
    time: int
    value: float
    trace_id: bytes = b""
    span_id: bytes = b""
    attributes: Texts = NONE


layouts.RECORDS |= {
    "span_event": SpanEvent, "span_link": SpanLink, "summary_quantile": Quantile, "exemplar": Exemplar,
}  # fmt: skip


class _Field:
    """Reads a field at its first use; Python then finds the value in the record itself."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, record: Any, owner: type) -> Any:
        if record is None:
            return self
        value = record.__dict__[self._name] = record._layout.value(record._raw, self._name)
        return value


@dataclass_transform(frozen_default=True, kw_only_default=True)
class _Lying:
    """Where a record lies; apart, because type checkers take no field of this class for an argument."""

    __slots__ = ("__dict__", "_changed", "_layout", "_raw")

    _layout: Layout
    _raw: Raw | None
    _changed: dict[str, bytes]


class Record(_Lying):
    """What all signals' records share. Fields are those of the schema, in the field's standard terms."""

    __slots__ = ()

    signal: ClassVar[Signal]
    # Where stores file a record: an agent that changes one of these makes another event.
    place: ClassVar[tuple[str, ...]]

    event_id: bytes = b""
    region: str = ""
    received_time: int = 0
    tenant: str = ""
    service: str = ""
    host: str = ""
    resource_attributes: Texts = NONE
    resource_schema_url: str = ""
    scope_name: str = ""
    scope_version: str = ""
    scope_attributes: Texts = NONE
    scope_schema_url: str = ""

    def __init__(self, **values: Any) -> None:
        layout = layouts.layout(CURRENT[self.signal])
        _set(self, "_layout", layout)
        _set(self, "_raw", None)
        _set(self, "_changed", {})
        self.__dict__.update({name: kind.empty for name, kind in layout.kinds.items()})
        self.__dict__["event_id"] = b""
        _change(self, values)

    def __init_subclass__(cls, *, signal: Signal, place: tuple[str, ...]) -> None:
        cls.signal, cls.place = signal, place
        for base in (Record, cls):
            for name in base.__annotations__:
                if name[0] != "_" and name not in ("signal", "place"):
                    setattr(cls, name, _Field(name))

    def replace(self, **values: Any) -> Self:
        """The same event with other values; raises TypeError or ValueError where one does not fit the schema."""
        made: Self = _empty(type(self), self._layout, self._raw)
        _set(made, "_changed", self._changed.copy())
        if self._raw is None:
            made.__dict__.update(self.__dict__)
        else:
            made.__dict__.update({name: self.__dict__[name] for name in self._changed})
        _change(made, values)
        return made

    def as_dict(self) -> dict[str, Any]:
        """Every field by name."""
        return {name: getattr(self, name) for name in self._layout.kinds}

    def piece(self, name: str) -> bytes:
        """One field as it is encoded."""
        changed = self._changed.get(name)
        if changed is not None:
            return changed
        if self._raw is not None:
            return self._layout.piece(self._raw, name)
        return self._layout.kinds[name].write(self.__dict__[name])

    def __setattr__(self, name: str, _: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} does not change: use record.replace({name}=…).")

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record) or type(self) is not type(other):
            return NotImplemented
        return all(self.piece(name) == other.piece(name) for name in self._layout.kinds if name != "event_id") and (
            self.event_id == other.event_id
        )

    def __hash__(self) -> int:
        return hash((type(self), self.event_id))

    def __repr__(self) -> str:
        empty = {name: kind.empty for name, kind in self._layout.kinds.items()} | {"event_id": b""}
        told = ", ".join(
            f"{name}={dict(value) if isinstance(value, Mapping) else value!r}"
            for name, value in self.as_dict().items()
            if value != empty[name]
        )
        return f"{type(self).__name__}({told})"


class LogRecord(Record, signal="logs", place=("service", "time", "observed_time", "trace_id")):
    """One OTLP log record, flat; times in ns since 1970."""

    time: int = 0
    observed_time: int = 0
    severity_number: int = 0
    severity_text: str = ""
    event_name: str = ""
    body: str = ""
    attributes: Texts = NONE
    dropped_attributes_count: int = 0
    trace_id: bytes = b""
    span_id: bytes = b""
    flags: int = 0
    ordinal: int = 0


class Span(Record, signal="traces", place=("service", "trace_id", "span_id", "start_time")):
    """One OTLP span, flat, with its events and links; times in ns since 1970."""

    trace_id: bytes = bytes(16)
    span_id: bytes = bytes(8)
    parent_span_id: bytes = b""
    trace_state: str = ""
    flags: int = 0
    name: str = ""
    kind: int = 0
    start_time: int = 0
    end_time: int = 0
    attributes: Texts = NONE
    dropped_attributes_count: int = 0
    status_code: int = 0
    status_message: str = ""
    events: tuple[SpanEvent, ...] = ()
    dropped_events_count: int = 0
    links: tuple[SpanLink, ...] = ()
    dropped_links_count: int = 0
    ordinal: int = 0


class MetricPoint(Record, signal="metrics", place=("service", "metric_name", "series_id", "time", "type")):
    """One OTLP metric data point of any type, flat; times in ns since 1970.

    `value` is the number that stores add up; `int_value` is the same exactly, where it is an integer. Who gives one of
    them says the other too.
    """

    metric_name: str = ""
    description: str = ""
    unit: str = ""
    type: str = "gauge"
    temporality: str = "unspecified"
    monotonic: bool = False
    attributes: Texts = NONE
    series_id: int = 0
    start_time: int = 0
    time: int = 0
    flags: int = 0
    value: float | None = None
    int_value: int | None = None
    count: int = 0
    sum: float | None = None
    min: float | None = None
    max: float | None = None
    explicit_bounds: tuple[float, ...] = ()
    bucket_counts: tuple[int, ...] = ()
    scale: int = 0
    zero_count: int = 0
    zero_threshold: float = 0.0
    positive_offset: int = 0
    positive_counts: tuple[int, ...] = ()
    negative_offset: int = 0
    negative_counts: tuple[int, ...] = ()
    quantiles: tuple[Quantile, ...] = ()
    exemplars: tuple[Exemplar, ...] = ()
    ordinal: int = 0


TYPES: dict[Signal, type[Record]] = {each.signal: each for each in (LogRecord, MetricPoint, Span)}
_set = object.__setattr__


def read(raw: Raw, layout: Layout, of: type[Record]) -> Any:
    """The record that lies there, of which nothing is read yet."""
    record = _empty(of, layout, raw)
    _set(record, "_changed", _UNCHANGED)
    return record


_UNCHANGED: dict[str, bytes] = {}


def _empty(of: type[Record], layout: Layout, raw: Raw | None) -> Any:
    record = object.__new__(of)
    _set(record, "_layout", layout)
    _set(record, "_raw", raw)
    return record


def _change(record: Record, values: dict[str, Any]) -> None:
    kinds: dict[str, Kind] = record._layout.kinds
    for name, value in values.items():
        if name not in kinds:
            raise TypeError(f"{type(record).__name__} has no field {name!r}; it has {', '.join(kinds)}.")
        if name in GIVEN:
            raise TypeError(f"{name} of {type(record).__name__} is the platform's to set.")
        try:
            record._changed[name] = kinds[name].write(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name} {error}.".replace("  ", " ")) from None
        record.__dict__[name] = kinds[name].freeze(value)
    if isinstance(record, MetricPoint) and ("value" in values) != ("int_value" in values):
        _agree(record, values)


def _agree(point: MetricPoint, values: dict[str, Any]) -> None:
    """Make one number of a value and an int_value of which only one is in `values`."""
    exact = point.int_value
    if exact is None or point.value == float(exact):
        return
    if "value" in values:
        _change(point, {"value": point.value, "int_value": None})
    else:
        _change(point, {"value": float(exact), "int_value": exact})


def encoded(record: Record, event_id: bytes, parent: Record, shift_ns: int) -> bytes:
    """The record as it stands in a container file of its schema.

    It has the region and tenant of `parent`, the record that it was made of, and its receipt, later by `shift_ns`.
    """
    raw, layout, changed = record._raw, record._layout, record._changed
    if raw is not None and raw is parent._raw:  # its region and tenant are the parent's
        if not changed:  # most records
            bounds = raw.bounds
            return b"".join((event_id, _shifted(raw.shared, layout, shift_ns), raw.data[bounds[0] : bounds[-1]]))
        if changed.keys().isdisjoint(layout.shared):
            shared = _shifted(raw.shared, layout, shift_ns)
        else:
            received = {"received_time": long(parent.received_time + shift_ns)}
            shared = _spliced(raw.shared.data, raw.shared.ends, layout.shared, changed | received)
        return event_id + shared + _spliced(raw.data, raw.bounds, layout.own, changed)
    given = {
        "event_id": event_id,
        "region": parent.piece("region"),
        "received_time": long(parent.received_time + shift_ns),
        "tenant": parent.piece("tenant"),
    }
    return b"".join([given.get(name) or record.piece(name) for name in layout.kinds])


def _spliced(data: bytes, bounds: Sequence[int], places: Mapping[str, int], changed: Mapping[str, bytes]) -> bytes:
    """Fields that lie one behind the other, with other bytes for those that changed."""
    at = bounds[0]
    pieces: list[bytes] = []
    if changed:
        for place, piece in sorted((places[name], piece) for name, piece in changed.items() if name in places):
            pieces += data[at : bounds[place]], piece
            at = bounds[place + 1]
    pieces.append(data[at : bounds[-1]])
    return b"".join(pieces)


def moved(record: Record, parent: Record) -> bool:
    """Whether stores would file the record, or a row of its own that they make of it, elsewhere than `parent`, whose
    id it has."""
    if any(name in record._changed and record.piece(name) != parent.piece(name) for name in record.place):
        return True
    if record._changed.keys() & {"events", "links"} and isinstance(record, Span) and isinstance(parent, Span):
        return _rows(record) != _rows(parent)
    return False


def _rows(span: Span) -> tuple[list[int], list[bytes]]:
    """What tells the rows of a span's events and links apart, beside their number."""
    return [event.time for event in span.events], [link.trace_id for link in span.links]


def with_series(point: MetricPoint, parent: Record) -> MetricPoint:
    """The point with the series that its labels name, where an agent changed one of them."""
    if not point._changed.keys() & LABELLED:
        return point
    scope = Scope(point.scope_name, point.scope_version, dict(point.scope_attributes))
    told_apart = labels(dict(point.resource_attributes), scope, dict(point.attributes))
    found = series_id(parent.tenant, point.metric_name, {key: pair(key, text) for key, text in told_apart.items()})
    made = point.replace()
    made._changed["series_id"] = long(found)
    made.__dict__["series_id"] = found
    return made


def _shifted(shared: Shared, layout: Layout, shift_ns: int) -> bytes:
    """What the record shares with others, with a later receipt."""
    key = f"+{shift_ns}"
    found: bytes | None = shared.values.get(key)
    if found is None:
        received: int = layout.kinds["received_time"].reads(shared.data, shared.ends[layout.shared["received_time"]])[0]
        later = {"received_time": long(received + shift_ns)}
        found = shared.values[key] = _spliced(shared.data, shared.ends, layout.shared, later)
    return found
