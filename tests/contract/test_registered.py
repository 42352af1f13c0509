"""What both stores promise of registered tables: made once by many, widened, each row seen once, alone in its trouble."""

import asyncio
import base64
import datetime
import pathlib
import struct
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pipeline import clickhouse as clickhouse_door
from pipeline.agents import ch_writer, pg_writer
from pipeline.agents.registered import RegisteredWriter
from pipeline.clickhouse import registered as clickhouse_tables
from pipeline.delivery import BrokenTable, Delivery, Limit, Message
from pipeline.errors import Rejected, Unavailable
from pipeline.settings import ClickHouseSettings, PostgresSettings
from pipeline.tables import model
from pipeline.tables.client import Tables
from pipeline.tables.model import Column, Table
from pipeline.timescale import registered as postgres_tables
from pipeline.timescale.connection import connect
from tests.contract import registered
from tests.contract.registered import FIELDS, NOW, ROWS, VALUES, day, declared, evolved, known, message
from tests.delivery.test_delivery import Dead

STRING, LONG = "string", "long"


class Target:
    """An empty store: no migration makes anything that registered tables need."""

    several = True  # whether it can be written by many at once
    store: str

    def writer(self, tables: Tables) -> RegisteredWriter:
        raise NotImplementedError

    def make(self, table: Table) -> None:
        """What a writer does at the first row."""
        raise NotImplementedError

    def execute(self, statement: str) -> None:
        raise NotImplementedError

    def refuse(self, table: Table, patch: pytest.MonkeyPatch) -> None:
        """Let the store refuse to make the table by an error that it also has for rows."""
        raise NotImplementedError

    def seen(self, table: str) -> list[dict[str, Any]]:
        """What a reader of the table sees, in order of time, then by what `n` says; no column for one store alone."""
        raise NotImplementedError


class Postgres(Target):
    store = "postgres"

    def __init__(self, settings: PostgresSettings, several: bool) -> None:
        self._settings = settings
        self.several = several

    def writer(self, tables: Tables) -> RegisteredWriter:
        return pg_writer.registered(self._settings, tables)

    def make(self, table: Table) -> None:
        with connect(self._settings) as connection, connection.transaction(), connection.cursor() as cursor:
            postgres_tables.make(cursor, table)

    def execute(self, statement: str) -> None:
        with connect(self._settings) as connection:
            connection.execute(statement.encode())

    def refuse(self, table: Table, patch: pytest.MonkeyPatch) -> None:
        """A row that is there already would have nothing in a column that is not nullable."""
        self.execute(f"CREATE TABLE {table.name} (time timestamptz, event_id uuid, PRIMARY KEY (time, event_id))")
        self.execute(f"INSERT INTO {table.name} VALUES (now(), gen_random_uuid())")

    def seen(self, table: str) -> list[dict[str, Any]]:
        with connect(self._settings) as connection:
            connection.execute("SET TIME ZONE 'UTC'")
            query = sql.SQL("SELECT * FROM {} ORDER BY time, n").format(sql.Identifier(table))
            cursor = connection.execute(query, binary=True)  # a text of a real is shorter than the number
            names = [column.name for column in cursor.description or ()]
            rows = [dict(zip(names, row, strict=True)) for row in cursor]
        for row in rows:
            row["event_id"] = row["event_id"].hex
        return rows


class ClickHouse(Target):
    store = "clickhouse"

    def __init__(self, settings: ClickHouseSettings) -> None:
        self._settings = settings

    def writer(self, tables: Tables) -> RegisteredWriter:
        return ch_writer.registered(self._settings, tables)

    def make(self, table: Table) -> None:
        clickhouse_tables.make(clickhouse_door.connect(self._settings), table)

    def execute(self, statement: str) -> None:
        clickhouse_door.connect(self._settings).command(statement)

    def refuse(self, table: Table, patch: pytest.MonkeyPatch) -> None:
        """Nothing is known by which it would: one definition is spoiled."""
        own = clickhouse_tables._definition
        patch.setattr(
            clickhouse_tables, "_definition",
            lambda column: "odd Date DEFAULT toDate('x')" if column.name == "odd" else own(column),
        )  # fmt: skip

    def seen(self, table: str) -> list[dict[str, Any]]:
        client = clickhouse_door.connect(self._settings)
        query = f"SELECT * EXCEPT time FROM {clickhouse_door.quoted(table)} ORDER BY timestamp, n"
        found = client.query(query, query_tz="UTC")
        rows = [{**row, "time": row.pop("timestamp")} for row in map(dict, found.named_results())]
        client.close()
        return [{name: _read(name, value) for name, value in row.items()} for row in rows]


def _read(name: str, value: Any) -> Any:
    """As PostgreSQL gives it: times with their zone, and bytes, which are text here, in hex digits where it is none."""
    if isinstance(value, list):
        return [_read(name, each) for each in value]
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=datetime.UTC)
    return bytes.fromhex(value) if name.endswith("_bytes") and value is not None else value


@pytest.fixture(scope="module")
def plain(postgres: str) -> Iterator[Target]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        yield Postgres(PostgresSettings(dsn=psycopg.conninfo.make_conninfo(postgres, dbname=name)), several=True)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="module")
def hypertables(timescale: str) -> Target:
    target = Postgres(PostgresSettings(dsn=timescale), several=False)
    target.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
    return target


@pytest.fixture(scope="module")
def columns(clickhouse: str) -> Iterator[Target]:
    name = f"test_{uuid.uuid4().hex}"
    admin = clickhouse_door.connect(ClickHouseSettings(url=clickhouse))
    admin.command(f"CREATE DATABASE {name}")
    yield ClickHouse(ClickHouseSettings(url=clickhouse, database=name))
    admin.command(f"DROP DATABASE {name} SYNC")
    admin.close()


@pytest.fixture(scope="module", params=["plain", "hypertables", "columns"])
def target(request: pytest.FixtureRequest) -> Target:
    """Shared by the tests of this module, so each uses tables of its own."""
    found: Target = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "tables.json"


def sent(value: Any, kind: str) -> Any:
    """What a reader gets for what a client wrote."""
    if kind in ("float", "double"):
        return float(str(value).replace("Infinity", "inf"))
    if kind.startswith("timestamp"):
        return datetime.datetime.fromisoformat(value)
    if kind == "bytes":
        return base64.b64decode(value)
    return datetime.date.fromisoformat(value) if kind == "date" else value


def test_every_type_is_read_as_it_was_sent(target: Target, file: pathlib.Path) -> None:
    """Every type, alone, in arrays and where null is allowed, at its odd values; a missing map or array is empty in
    ClickHouse, null in PostgreSQL."""
    nullable = {f"n_{name}": ["null", kind] for name, kind in FIELDS.items()}
    table = declared("everything", {"n": LONG, **FIELDS, **nullable})
    rows = [{"n": n, **row, **({f"n_{name}": value for name, value in row.items()} if n else {})} for n, row in
            enumerate(ROWS)]  # fmt: skip
    assert target.writer(known(file, table)).write([message(table, *rows)]) == 2
    first, second = target.seen("everything")
    for row, found in ((rows[0], first), (rows[1], second)):
        for kind in VALUES:
            name = f"f_{kind.replace('-', '_')}"
            assert found[name] == sent(row[name], kind), name
            if kind != "map":
                assert found[f"a_{name[2:]}"] == [sent(value, kind) for value in row[f"a_{name[2:]}"]], name
            if row is rows[1]:
                assert found[f"n_{name}"] == sent(row[name], kind), name
    for name in nullable:
        kind = FIELDS[name[2:]]
        empty = {"map": {}, "array": []}.get(kind["type"] if isinstance(kind, dict) else kind)
        assert first[name] == (empty if target.store == "clickhouse" else None), name
    assert first["received_time"] == second["received_time"] == datetime.datetime.fromtimestamp(NOW / 1e9, datetime.UTC)
    assert (first["tenant"], first["region"]) == ("acme", "eu")


def test_a_later_version_is_seen_beside_the_earlier(target: Target, file: pathlib.Path) -> None:
    """Columns are added with their defaults, for rows of before and for rows that earlier versions still write."""
    first = declared("versions", {"n": LONG})
    defaults = {
        "boolean": True, "int": -5, "long": 1 << 40, "float": 1.5, "double": -0.5, "string": "it's \\ `x` %s {}",
        "timestamp-millis": 1_700_000_000_123, "timestamp-micros": -1, "timestamp-nanos": 10**15, "date": -1, "map": {},
    }  # fmt: skip
    added = [{"name": f"d_{kind.replace('-', '_')}", "type": registered.plain(kind), "default": value}
             for kind, value in defaults.items()]  # fmt: skip
    second = evolved(first, *added, {"name": "note", "type": ["null", "string"], "default": None})
    old = target.writer(known(file, first))
    old.write([message(first, {"n": 1})])
    new = target.writer(known(file, second))
    new.write([message(second, {"n": 2, "d_string": "own", "note": "here"}), message(first, {"n": 3})])
    old.write([message(first, {"n": 4})])
    found = {row["n"]: row for row in target.seen("versions")}
    at = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    expected = {
        **{f"d_{kind.replace('-', '_')}": value for kind, value in defaults.items()},
        "d_timestamp_millis": at + datetime.timedelta(seconds=1_700_000_000, milliseconds=123),
        "d_timestamp_micros": at - datetime.timedelta(microseconds=1),
        "d_timestamp_nanos": at + datetime.timedelta(seconds=10**6),
        "d_date": datetime.date(1969, 12, 31), "note": None,
    }  # fmt: skip
    assert found.keys() == {1, 2, 3, 4}
    for n in (1, 3, 4):
        assert {name: found[n][name] for name in expected} == expected
    assert {name: found[2][name] for name in expected} == {**expected, "d_string": "own", "note": "here"}


def _at(us: int) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=us)


def _float(value: float) -> float:
    found: float = struct.unpack("f", struct.pack("f", value))[0]
    return found


EXTREMES: dict[str, tuple[list[Any], Callable[[Any], Any]]] = {
    **{kind: ([*model.RANGES[kind], 0], int) for kind in ("int", "long")},
    "float": ([-3.4028234663852886e38, 3.4028234663852886e38, 1e-50, -1e-45, -0.0, 0.1, 7], _float),
    "double": ([-1.7976931348623157e308, 1.7976931348623157e308, 10**308, 5e-324, -5e-324, -0.0, 1e-5, 7], float),
    "timestamp-millis": ([*model.RANGES["timestamp-millis"], 0, 7], lambda ms: _at(ms * 1000)),
    "timestamp-micros": ([*model.RANGES["timestamp-micros"], model.RANGES["timestamp-micros"][1] - 1, 0, -7], _at),
    "timestamp-nanos": ([*model.RANGES["timestamp-nanos"], 0, -7000], lambda ns: _at(ns // 1000)),
    "date": ([*model.RANGES["date"], 0, -7], lambda days: _at(days * 86_400 * 10**6).date()),
    "string": (["", "0", "é" * 1000, "';", "\\'", "\n\t\r\x01\x7f", "$1 $$ ? :n %(n)s {n:Int8}"], str),
    "boolean": ([False, True], bool),
}


@pytest.mark.parametrize("kind", EXTREMES)
def test_every_legal_default_is_what_rows_of_before_have(target: Target, file: pathlib.Path, kind: str) -> None:
    """At both ends of its range too, in a table that is widened and in one that is made with it."""
    values, read = EXTREMES[kind]
    added = [{"name": f"d{n}", "type": registered.plain(kind), "default": value} for n, value in enumerate(values)]
    for how in ("widened", "made"):
        first = declared(f"{how}_{kind.replace('-', '_')}", {"n": LONG})
        second = evolved(first, *added)
        if how == "widened":
            target.writer(known(file, first)).write([message(first, {"n": 1})])
        target.writer(known(file, second)).write([message(first, {"n": 2})])
        for row in target.seen(first.name):
            assert [repr(row[f"d{n}"]) for n in range(len(values))] == [repr(read(value)) for value in values]


def test_a_column_may_be_called_as_something_of_ours(target: Target, file: pathlib.Path) -> None:
    """What our frames and statements call their own parts by is a column like any other, in rows that replace too."""
    names = ["row", "e", "rows", "name", "value", "held", "written", "counted", "incoming", "excluded", "missing"]
    table = declared("ours", {"n": LONG, **dict.fromkeys(names, STRING)}, keys=["n"])
    writer = target.writer(known(file, table))
    for later, said in enumerate(("first", "second")):
        sent = {"n": 1, "time": day(1), **{name: f"{said} {name}" for name in names}}
        writer.write([message(table, sent, received=NOW + later * 10**6)])
    [found] = target.seen("ours")
    assert {name: found[name] for name in names} == {name: f"second {name}" for name in names}


def test_a_table_that_cannot_be_made_is_dead_lettered_over_any_limit(
    target: Target, file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the store refuses a table as data, the reason names it, and its neighbours go on."""
    good, refused = declared("beside", {"n": LONG}), declared("refused", {"n": LONG, "odd": LONG})
    target.refuse(refused, monkeypatch)
    letters = Dead()
    batch = [one for n in range(4) for one in (message(good, {"n": n}), message(refused, {"n": n, "odd": n}))]
    delivery = Delivery(target.writer(known(file, good, refused)), letters, limit=Limit(burst=1))
    asyncio.run(delivery.deliver(batch))
    assert sorted(letters.buried) == [one.offset for one in batch[1::2]]
    assert [row["n"] for row in target.seen("beside")] == [0, 1, 2, 3]
    with pytest.raises(BrokenTable, match="table refused"):
        target.writer(known(file, refused)).write(batch[1:2])


def test_what_comes_again_is_seen_once(target: Target, file: pathlib.Path) -> None:
    """The same message, another cut beside new rows, another region's copy, twins of one request, a new writer."""
    table = declared("again", {"n": LONG, "text": STRING}, order=["text"])
    rows = [{"n": n, "text": "x", "time": day(n)} for n in range(5)]
    one, two = message(table, *rows[:3]), message(table, *rows[3:], rows[4])
    copy = message(table, *rows[:2], received=NOW + 5000, region="us")
    writer = target.writer(known(file, table))
    for batch in ([one, two], [one], [two, copy, one, one], [copy]):
        writer.write(batch)
    target.writer(known(file, table)).write([two, copy, one])
    found = target.seen("again")
    assert sorted(row["n"] for row in found) == [0, 1, 2, 3, 4, 4]
    assert len({row["event_id"] for row in found}) == 6
    assert {row["n"]: row["region"] for row in found} == {0: "us", 1: "us", 2: "eu", 3: "eu", 4: "eu"}


def test_of_rows_with_one_key_the_last_received_is_kept(target: Target, file: pathlib.Path) -> None:
    """Whatever the order of arrival, in one batch or several, and whatever beside the keys has changed."""
    table = declared("keyed", {"n": LONG, "state": STRING, "note": STRING}, keys=["n"], order=["state", "n"])

    def row(state: str, n: int = 1) -> dict[str, Any]:
        return {"n": n, "state": state, "note": f"{state} note", "time": day(1)}

    writer = target.writer(known(file, table))
    writer.write([message(table, row("second"), received=NOW + 2000)])
    writer.write([message(table, row("first"), received=NOW + 1000), message(table, row("other", 2))])
    assert [(each["n"], each["state"], each["note"]) for each in target.seen("keyed")] == [
        (1, "second", "second note"), (2, "other", "other note"),
    ]  # fmt: skip
    writer.write([message(table, row("fourth"), row("fifth"), received=NOW + 9000), message(table, row("third"),
                  received=NOW + 3000)])  # fmt: skip
    assert [(each["n"], each["state"]) for each in target.seen("keyed")] == [(1, "fifth"), (2, "other")]


def test_many_make_and_widen_a_table_at_once(target: Target, file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Eight writers meet the first rows of both versions at the same time: every row is there, in all its columns."""
    if not target.several:
        pytest.skip("one backend")
    first = declared("raced", {"n": LONG})
    second = evolved(first, {"name": "added", "type": STRING, "default": "-"})
    third = evolved(second, {"name": "more", "type": LONG, "default": 7}, retention_days=10)

    def write(n: int) -> None:
        version = (first, second, third)[n % 3]
        row = {"n": n, **({"added": f"a{n}"} if n % 3 else {}), **({"more": n} if n % 3 == 2 else {})}
        target.writer(known(tmp_path / f"{n}.json", version)).write([message(version, row)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    found = {row["n"]: (row["added"], row["more"]) for row in target.seen("raced")}
    assert found == {n: (f"a{n}" if n % 3 else "-", n if n % 3 == 2 else 7) for n in range(8)}


def test_one_writer_meets_new_versions_in_several_threads(target: Target, tmp_path: pathlib.Path) -> None:
    """A process has two batches of the topic under way, by one writer: each finds its table and columns."""
    tables = [declared(f"threaded_{n}", {"n": LONG}) for n in range(4)]
    versions = [evolved(each, {"name": "added", "type": LONG, "default": 7}) for each in tables]
    writer = target.writer(known(tmp_path / "known.json", *versions))

    def write(n: int) -> None:
        writer.write([message((tables, versions)[n // 4 % 2][n % 4], {"n": n})])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(32)))
    for number, table in enumerate(tables):
        found = sorted((row["n"], row["added"]) for row in target.seen(table.name))
        assert found == [(n, 7) for n in range(number, 32, 4)]


def test_one_tables_trouble_is_its_own(target: Target, file: pathlib.Path) -> None:
    """Poison, an unknown table and one whose name is taken by something else go to the dead letters, each with its
    reason and however many there are; the rows of other tables beside them are stored."""
    good, taken = declared("good", {"n": LONG}), declared("taken", {"n": LONG})
    target.execute(
        "CREATE TABLE taken (n integer)" + (" ENGINE = MergeTree ORDER BY n" if target.store == "clickhouse" else "")
    )
    dead = Dead()
    told: list[str] = []

    class Noting(Dead):
        async def put(self, message: Message, reason: Rejected) -> None:
            told.append(str(reason))
            await dead.put(message, reason)

    batch: list[Message] = []
    for n in range(6):
        batch += [message(good, {"n": n}), message(taken, {"n": n})]
    spoiled = message(good, {"n": 100})
    batch.append(spoiled._replace(value=spoiled.value[:-1]))
    numbered = [one._replace(offset=n) for n, one in enumerate(batch)]
    asyncio.run(Delivery(target.writer(known(file, good, taken)), Noting()).deliver(numbered))
    assert sorted(row["n"] for row in target.seen("good")) == [0, 1, 2, 3, 4, 5]
    assert sorted(dead.buried) == [1, 3, 5, 7, 9, 11, 12]
    assert sum("taken" in reason and "Rename it" in reason for reason in told) == 6
    assert any("cut short" in reason for reason in told)


def test_a_table_dropped_by_hand_is_made_again(target: Target, file: pathlib.Path) -> None:
    """A writer that has seen it before makes it anew for the next row, and stops for nothing."""
    table = declared("dropped", {"n": LONG})
    writer = target.writer(known(file, table))
    writer.write([message(table, {"n": 1})])
    target.execute("DROP TABLE dropped__rows SYNC" if target.store == "clickhouse" else "DROP TABLE dropped")
    writer.write([message(table, {"n": 2})])
    assert [row["n"] for row in target.seen("dropped")] == [2]


def test_other_stores_tables_are_passed_over(target: Target, file: pathlib.Path) -> None:
    """Nothing is made and nothing is read of a table that does not name the store, however damaged its rows are."""
    other = "postgres" if target.store == "clickhouse" else "clickhouse"
    table = declared("elsewhere", {"n": LONG}, stores=[other])
    assert target.writer(known(file, table)).write([message(table, {"n": 1})._replace(value=b"x")]) == 0


def test_an_unknown_table_waits_for_the_registry(target: Target, file: pathlib.Path) -> None:
    """While the registry is away nobody can say that there is no such table, so its rows wait; a header that names
    none is refused at once."""
    table = declared("unheard", {"n": LONG})
    writer = target.writer(known(file))
    with pytest.raises(Unavailable, match="registry"):
        writer.write([message(table, {"n": 1})])
    for said in (b"", b"unheard", b"unheard/0", b"unheard/x", b"/1x"):
        with pytest.raises(Rejected, match="which is no table and version"):
            writer.write([message(table, {"n": 1})._replace(headers={"schema": said})])


HOSTILE = ['x"; DROP TABLE secret; --', "a`b\\", "it's", "%s %(x)s {} {0}", "select", "Ünï ҉"]


def test_names_are_quoted_whatever_they_hold(target: Target) -> None:
    """No such name can be registered; if one came by another way it would be a table and columns of that name."""
    columns = (Column("n", "long"), *(Column(name, "string") for name in HOSTILE))
    for name in HOSTILE:
        table = declared("honest", {"n": LONG}).model_copy(update={"name": name})
        table.__dict__["columns"] = columns
        target.make(table)
        assert target.seen(name) == []


def test_a_broken_table_is_told_as_such(target: Target, file: pathlib.Path) -> None:
    """What is there by the same name and is not what was registered is named by its columns."""
    if target.store == "clickhouse":
        target.execute("CREATE TABLE odd__rows (n String) ENGINE = MergeTree ORDER BY n")
    else:
        target.execute("CREATE TABLE odd (time timestamptz, event_id uuid, n text, PRIMARY KEY (time, event_id))")
    table = declared("odd", {"n": LONG})
    with pytest.raises(BrokenTable, match=r"odd.*(n is text, not bigint|event_id is None, not FixedString)"):
        target.writer(known(file, table)).write([message(table, {"n": 1})])
