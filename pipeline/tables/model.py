"""A registered table: what is declared of it, its versions, and the Avro schema that its records have on the wire.

    declared(document) → Declaration → registered(…) → Table → evolved(table, …) → Table → retired(table, …) → Table

A wrong document is told all its problems at once, each with path, expected and got. Column types are a closed list:
boolean, int, long, float, double, string, bytes, timestamp-millis, -micros and -nanos, date, a map of strings, an array
of any of these but maps and arrays, and ["null", T] of each. A version only adds fields, at the end, each with a
default or nullable, so the fields of every version are the first of the latest, and every version reads every other.
"""

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import Rejected
from pipeline.tables import names

Kind = Literal[
    "boolean", "int", "long", "float", "double", "string", "bytes",
    "timestamp-millis", "timestamp-micros", "timestamp-nanos", "date", "map", "array",
]  # fmt: skip
StoreName = Literal["postgres", "clickhouse"]
State = Literal["active", "retired"]
SIMPLE = ("boolean", "int", "long", "float", "double", "string", "bytes")
LOGICAL = {"timestamp-millis": "long", "timestamp-micros": "long", "timestamp-nanos": "long", "date": "int"}
PER_SECOND = {"timestamp-millis": 10**3, "timestamp-micros": 10**6, "timestamp-nanos": 10**9}
ORDERABLE = frozenset(("boolean", "int", "long", "string", "date", *PER_SECOND))  # what keys and order may be
LEAST_S, MOST_S = -2_208_988_800, 9_214_646_399  # 1900 to 2261: what ClickHouse's DateTime64(9) and Date32 both hold
RANGES: dict[str, tuple[int, int]] = {
    "int": (-(1 << 31), (1 << 31) - 1),
    "long": (-(1 << 63), (1 << 63) - 1),
    "date": (LEAST_S // 86_400, MOST_S // 86_400),
    **{kind: (LEAST_S * per_s, MOST_S * per_s) for kind, per_s in PER_SECOND.items()},
}
MAX_FIELDS = 200
MAX_VERSIONS = 200
GOT_CHARACTERS = 100
UNHASHED = [
    {"name": "event_id", "type": {"type": "fixed", "name": "event_id", "size": 16}},
    {"name": "region", "type": "string"},
    {"name": "received_time", "type": "long"},
]


def is_storable(text: str) -> bool:
    """Whether it is UTF-8 that both stores take: PostgreSQL knows no U+0000."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _storable(text: str) -> str:
    if not is_storable(text):
        raise ValueError("a text without U+0000 and lone surrogates")
    return text


Value = Annotated[str, Field(max_length=200), AfterValidator(_storable)]
Text = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_storable)]
Labels = Annotated[dict[Text, Value], Field(max_length=64)]
Days = Annotated[int, Field(ge=1, le=36500)]
Names = Annotated[tuple[str, ...], Field(max_length=8, strict=False)]


class Problem(NamedTuple):
    """One thing that is wrong: where, what should be there, what is."""

    path: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.path or 'the document'}: expected {self.expected}, got {self.got}"


class Invalid(Rejected):
    """A document with problems, all of them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Conflict(Rejected):
    """The table is not, or no longer, what the request takes it for."""


@dataclass(frozen=True, slots=True)
class Column:
    """One field that a user declared. `items` is the kind of an array's items; a nullable one has the default None."""

    name: str
    kind: Kind
    items: Kind | None = None
    nullable: bool = False
    has_default: bool = False
    default: Any = None

    @property
    def type(self) -> Any:
        """Its Avro type."""
        if self.kind == "map":
            plain: Any = {"type": "map", "values": "string"}
        elif self.kind == "array":
            assert self.items is not None
            plain = {"type": "array", "items": _avro(self.items)}
        else:
            plain = _avro(self.kind)
        return ["null", plain] if self.nullable else plain

    @property
    def avro(self) -> dict[str, Any]:
        """The field of a record, without what is for people."""
        default = {"default": self.default} if self.has_default else {}
        return {"name": self.name, "type": self.type, **default}


def _avro(kind: Kind) -> Any:
    return {"type": LOGICAL[kind], "logicalType": kind} if kind in LOGICAL else kind


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Said(_Model):
    """What may change from version to version, beside the schema."""

    retention_days: Days
    owner: Text
    labels: Labels = {}


class Declaration(_Said):
    """A table as its team declares it.

    `avro` ("schema") is an Avro record of the team's own fields, called like the table. `keys`: rows that agree in
    tenant, time and these fields are one event, and the stores keep what was received last; none: a row is known by
    its content. `order`: what readers select by, for the stores' sorting. `time`: the field, a timestamp, that says
    when a row happened; none: a row may say `time` beside its fields, else the receipt counts.
    """

    name: str
    avro: Annotated[dict[str, Any], Field(alias="schema")]
    stores: Annotated[tuple[StoreName, ...], Field(strict=False)]
    keys: Names = ()
    order: Names = ()
    time: str | None = None

    @functools.cached_property
    def columns(self) -> tuple[Column, ...]:
        """The team's fields, in order."""
        return tuple(_columns(self.avro, []))

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


class Change(_Model):
    """An entry of a table's history: what made `version`, of how many fields, who did it, and when (ISO 8601, UTC)."""

    version: Annotated[int, Field(ge=1)]
    action: Literal["registered", "evolved", "retired"]
    fields: Annotated[int, Field(ge=1)]
    who: Text
    at: str


class Evolution(_Model):
    """What `evolved` is asked for; what is left out stays."""

    expected_version: Annotated[int, Field(ge=1)]
    avro: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    retention_days: Days | None = None
    owner: Text | None = None
    labels: Labels | None = None


class Table(Declaration):
    """A table as the registry knows it, in its latest version."""

    version: Annotated[int, Field(ge=1)]
    state: State
    history: tuple[Change, ...] = Field(strict=False)

    @property
    def schema_name(self) -> str:
        """What the Kafka header `schema` says of its rows: `deployments/2`."""
        return f"{self.name}/{self.version}"

    def fields_of(self, version: int) -> tuple[Column, ...]:
        """The columns that `version` had: the first of those of today."""
        count = next(change.fields for change in self.history if change.version == version)
        return self.columns[:count]

    @property
    def wire(self) -> dict[str, Any]:
        """The Avro schema of a record of its latest version."""
        return self.wire_of(self.version)

    def wire_of(self, version: int) -> dict[str, Any]:
        """The Avro schema of a record: envelope, `time` (ns since 1970 as sent, 0 where unset), fields, ordinal.

        `keys` is an attribute of the record where there are any, so that an event_id can be checked from a message
        alone.
        """
        fields = [
            *UNHASHED,
            {"name": "tenant", "type": "string"},
            {"name": "time", "type": "long"},
            *(column.avro for column in self.fields_of(version)),
            {"name": "ordinal", "type": "int"},
        ]
        keys = {"keys": list(self.keys)} if self.keys else {}
        return {"type": "record", "name": self.name, **keys, "fields": fields}

    def as_json(self) -> dict[str, Any]:
        """The document of it, which `parsed` reads."""
        return self.model_dump(mode="json", by_alias=True)


def declared(document: object) -> Declaration:
    """What `document` declares; raise Invalid with all its problems."""
    return _checked(Declaration, document)


def parsed(document: object) -> Table:
    """A table from the registry's own document; raise Invalid."""
    return _checked(Table, document)


def evolution(document: object) -> Evolution:
    """What `document` asks for; raise Invalid with all that can be told without the table."""
    problems: list[Problem] = []
    found = _validated(Evolution, document, problems)
    if isinstance(document, dict) and isinstance(document.get("schema"), dict):
        list(_columns(document["schema"], problems))
    if problems or found is None:
        raise Invalid(problems)
    return found


def registered(declaration: Declaration, *, who: str, at: str) -> Table:
    """The first version."""
    change = Change(version=1, action="registered", fields=len(declaration.columns), who=who, at=at)
    return Table.model_validate(
        {**declaration.model_dump(by_alias=True), "version": 1, "state": "active", "history": (change,)}
    )


def evolved(table: Table, wanted: Evolution, *, who: str, at: str) -> Table:
    """The next version, or `table` itself where nothing is new.

    Raise Conflict where it is retired or has another version than expected, Invalid where stored rows could not be
    read as the new version, or new rows as the old.
    """
    _demand_current(table, wanted.expected_version)
    given = wanted.model_dump(by_alias=True, exclude_none=True, exclude={"expected_version"})
    new = _checked(Declaration, {**table.model_dump(by_alias=True, include=set(Declaration.model_fields)), **given})
    problems = [*_not_evolved(table.columns, new.columns)]
    if table.version >= MAX_VERSIONS:
        problems.append(Problem("schema", f"at most {MAX_VERSIONS} versions", "one more"))
    if problems:
        raise Invalid(problems)
    if new.model_dump() == table.model_dump(include=set(Declaration.model_fields)):
        return table
    version = table.version + 1
    change = Change(version=version, action="evolved", fields=len(new.columns), who=who, at=at)
    document = new.model_dump(by_alias=True) | {"version": version, "state": table.state}
    return Table.model_validate({**document, "history": (*table.history, change)})


def retired(table: Table, expected_version: int, *, who: str, at: str) -> Table:
    """`table`, that takes no more rows; what is stored stays. Raise Conflict as `evolved` does."""
    _demand_current(table, expected_version)
    change = Change(version=table.version, action="retired", fields=len(table.columns), who=who, at=at)
    return table.model_copy(update={"state": "retired", "history": (*table.history, change)})


def is_who(value: object) -> bool:
    """Whether it may stand in a history for who did something."""
    return isinstance(value, str) and 1 <= len(value) <= 200 and is_storable(value)


def shown(value: object) -> str:
    """A value from outside as JSON, shortened: it may be anything, and of any size."""
    if isinstance(value, str):
        value = value[: GOT_CHARACTERS + 1]
    elif isinstance(value, (list, tuple, set)):
        return f"an array of {len(value)}"
    elif isinstance(value, dict):
        return f"an object of {len(value)} keys"
    text = json.dumps(value, default=str)
    return text if len(text) <= GOT_CHARACTERS else text[:GOT_CHARACTERS] + "…"


def _demand_current(table: Table, expected_version: int) -> None:
    if table.state == "retired":
        raise Conflict(f"The table {table.name} is retired: register another name.")
    if table.version != expected_version:
        raise Conflict(
            f"The table {table.name} has version {table.version}, not {expected_version}: look at it again, then say "
            f"expected_version {table.version}."
        )


M = TypeVar("M", bound=_Model)
D = TypeVar("D", bound=Declaration)


def _validated(model: type[M], document: object, problems: list[Problem]) -> M | None:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            path = ".".join(map(str, each["loc"]))
            got = "nothing" if each["type"] == "missing" else shown(each["input"])
            problems.append(Problem(path, _expected(each["type"], each["msg"]), got))
        return None


def _expected(code: str, message: str) -> str:
    if code == "extra_forbidden":
        return "no such key"
    return "a value" if code == "missing" else message.removeprefix("Input should be ").removeprefix("Value error, ")


def _checked(model: type[D], document: object) -> D:
    problems: list[Problem] = []
    found = _validated(model, document, problems)
    given: Mapping[str, Any] = document if isinstance(document, dict) else {}
    name, avro = given.get("name"), given.get("schema")
    if isinstance(name, str) and names.table_problem(name):
        problems.append(Problem("name", names.table_problem(name), shown(name)))
    if isinstance(avro, dict):
        columns = list(_columns(avro, problems))
        if isinstance(name, str) and name != avro.get("name"):
            problems.append(Problem("schema.name", f"the table's own name, {shown(name)}", shown(avro.get("name"))))
        problems += _misused(given, {column.name: column for column in columns})
    if problems or found is None:
        raise Invalid(problems)
    return found


def _misused(given: Mapping[str, Any], columns: dict[str, Column]) -> Iterator[Problem]:
    """What does not fit together; what is no text or no list has been told already."""
    stores, keys, time = _texts(given.get("stores")), _texts(given.get("keys")), given.get("time")
    if stores is not None and len(set(stores)) != max(1, len(stores)):
        yield Problem("stores", "one store or both, each once", shown(", ".join(stores)))
    for path, wanted in (("keys", keys), ("order", _texts(given.get("order")))):
        if wanted and len(set(wanted)) < len(wanted):
            yield Problem(path, "each field once", shown(", ".join(wanted)))
        for n, name in enumerate(wanted or ()):
            column = columns.get(name)
            if column is None:
                yield Problem(f"{path}[{n}]", "a field of the schema", shown(name))
            elif column.nullable or column.kind not in ORDERABLE:
                yield Problem(f"{path}[{n}]", f"a field of type {', '.join(sorted(ORDERABLE))}, not nullable", name)
    if isinstance(time, str):
        column = columns.get(time)
        if column is None or column.kind not in PER_SECOND:
            yield Problem("time", f"a field of type {', '.join(PER_SECOND)}", shown(time))
        elif keys and column.nullable:
            yield Problem("time", "a field that is not nullable: rows are known by keys and time", shown(time))


def _texts(value: Any) -> list[str] | None:
    is_list = isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    return list(value) if is_list else None


# Avro schemas → columns.


def _columns(avro: Mapping[str, Any], problems: list[Problem]) -> Iterator[Column]:
    """The fields of `avro` that are well; what is not goes to `problems`."""
    if avro.get("type") != "record":
        problems.append(Problem("schema.type", '"record"', shown(avro.get("type"))))
    _only(avro, {"type", "name", "doc", "fields"}, "schema", problems)
    if not _is_doc(avro.get("doc", "")):
        problems.append(Problem("schema.doc", "a text of at most 1000 characters", shown(avro["doc"])))
    fields = avro.get("fields")
    if not isinstance(fields, list) or not fields or len(fields) > MAX_FIELDS:
        problems.append(Problem("schema.fields", f"an array of 1 to {MAX_FIELDS} fields", shown(fields)))
        return
    seen = set()
    for n, field in enumerate(fields):
        column = _column(field, f"schema.fields[{n}]", problems)
        if column is None:
            continue
        if column.name in seen:
            problems.append(Problem(f"schema.fields[{n}].name", "a name that no field before it has", column.name))
        seen.add(column.name)
        yield column


def _column(field: Any, path: str, problems: list[Problem]) -> Column | None:
    if not isinstance(field, dict):
        problems.append(Problem(path, "an object with name and type", shown(field)))
        return None
    _only(field, {"name", "type", "default", "doc"}, path, problems)
    name, doc = field.get("name"), field.get("doc", "")
    wanted = names.column_problem(name) if isinstance(name, str) else "a text"
    if wanted:
        problems.append(Problem(f"{path}.name", wanted, shown(name)))
    if not _is_doc(doc):
        problems.append(Problem(f"{path}.doc", "a text of at most 1000 characters", shown(doc)))
    of = _type(field.get("type"), f"{path}.type", problems)
    if of is None or wanted:
        return None
    kind, items, nullable = of
    has_default = "default" in field or nullable
    column = Column(str(name), kind, items, nullable, has_default, field.get("default"))
    expected = _default_expected(column) if "default" in field else ""
    if expected:
        problems.append(Problem(f"{path}.default", expected, shown(field["default"])))
    return column


def _type(node: Any, path: str, problems: list[Problem]) -> tuple[Kind, Kind | None, bool] | None:
    """Kind, kind of the items, nullable."""
    if isinstance(node, list):
        if len(node) != 2 or node[0] != "null":
            problems.append(Problem(path, 'of the unions only ["null", T]', shown(node)))
            return None
        below = _type(node[1], f"{path}[1]", problems) if not isinstance(node[1], list) else None
        return (below[0], below[1], True) if below else None
    if isinstance(node, dict) and node.get("type") == "map":
        _only(node, {"type", "values"}, path, problems)
        if node.get("values") == "string":
            return "map", None, False
        problems.append(Problem(f"{path}.values", '"string"', shown(node.get("values"))))
        return None
    if isinstance(node, dict) and node.get("type") == "array":
        _only(node, {"type", "items"}, path, problems)
        items = _plain(node.get("items"), f"{path}.items", problems)
        return ("array", items, False) if items else None
    kind = _plain(node, path, problems)
    return (kind, None, False) if kind else None


def _plain(node: Any, path: str, problems: list[Problem]) -> Kind | None:
    if isinstance(node, str) and node in SIMPLE:
        return node  # type: ignore[return-value]
    if isinstance(node, dict):
        logical, base = node.get("logicalType"), node.get("type")
        if logical is None and isinstance(base, str) and base in SIMPLE:
            _only(node, {"type"}, path, problems)
            return base  # type: ignore[return-value]
        if isinstance(logical, str) and logical in LOGICAL and base == LOGICAL[logical]:
            _only(node, {"type", "logicalType"}, path, problems)
            return logical  # type: ignore[return-value]
        node = f"{base} with logicalType {logical}" if logical else base
    problems.append(Problem(path, f"one of {', '.join(get_args(Kind))}", shown(node)))
    return None


def _only(node: Mapping[str, Any], known: set[str], path: str, problems: list[Problem]) -> None:
    problems += [
        Problem(f"{path}.{key[:GOT_CHARACTERS]}", "no such key", shown(node[key])) for key in node if key not in known
    ]


def _is_doc(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 1000 and is_storable(value)


def _default_expected(column: Column) -> str:
    """What the default should be and is not; nothing where it is well."""
    value = column.default
    if column.nullable:
        return "" if value is None else "null: the default of a nullable field"
    match column.kind:
        case "boolean":
            fits, wanted = isinstance(value, bool), "true or false"
        case "string":
            fits = _is_doc(value)
            wanted = "a text of at most 1000 characters"
        case "float" | "double":
            fits = isinstance(value, int | float) and not isinstance(value, bool) and fits_double(value, column.kind)
            wanted = f"a number that {column.kind} holds"
        case "map":
            fits, wanted = value == {}, "{}"
        case "array":
            fits, wanted = value == [], "[]"
        case "bytes":
            fits, wanted = value == "", '""'
        case _:
            least, most = RANGES[column.kind]
            fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
            wanted = f"an integer from {least} to {most}"
    return "" if fits else wanted


def fits_double(value: float, kind: str) -> bool:
    """Whether a number is finite in this kind."""
    try:
        return math.isfinite(value) and abs(float(value)) <= (3.4028234663852886e38 if kind == "float" else math.inf)
    except OverflowError:
        return False


def _not_evolved(old: Sequence[Column], new: Sequence[Column]) -> Iterator[Problem]:
    """Why rows of one could not be read as the other."""
    for n, before in enumerate(old):
        path = f"schema.fields[{n}]"
        if n >= len(new):
            yield Problem(path, f"{before.name}, as before: no field goes", "nothing")
        elif new[n].name != before.name:
            yield Problem(path, f"{before.name}, as before: new fields come at the end", new[n].name)
        elif (new[n].type, new[n].has_default, new[n].default) != (before.type, before.has_default, before.default):
            yield Problem(path, f"{json.dumps(before.avro)}, as before", json.dumps(new[n].avro))
    for n, added in enumerate(new[len(old) :], len(old)):
        if not added.has_default:
            yield Problem(
                f"schema.fields[{n}]", "a default, or a nullable type: older rows have no such field", added.name
            )
