"""What `pipeline registry` asks of the service, and what it would change before it does."""

import json
import pathlib
from typing import Any
from urllib.parse import quote

from pipeline.errors import Misconfigured, Unavailable
from pipeline.settings import RegistrySettings
from pipeline.tables.client import request
from pipeline.tables.model import Column, Declaration, Invalid, Table, declared, parsed


def read(file: pathlib.Path) -> Declaration:
    """The declaration in a file of JSON; raise Misconfigured with all its problems."""
    try:
        return declared(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise Misconfigured(f"{file} cannot be read: {error.strerror}.") from None
    except Invalid as error:
        raise Misconfigured([f"{file}: {problem}" for problem in error.problems]) from None
    except (ValueError, RecursionError) as error:
        raise Misconfigured(f"{file} is not JSON: {error}.") from None


def tables(settings: RegistrySettings) -> list[Table]:
    return [_read(each) for each in _asked(settings, "GET", "/tables")["tables"]]


def table(settings: RegistrySettings, name: str) -> Table:
    return _read(_asked(settings, "GET", f"/tables/{quote(name, safe='')}"))


def register(settings: RegistrySettings, declaration: Declaration, by: str) -> Table:
    document = declaration.model_dump(mode="json", by_alias=True)
    return _read(_asked(settings, "POST", "/tables", document | {"by": by}))


def evolve(settings: RegistrySettings, old: Table, new: Declaration, by: str) -> Table:
    """Make `new` of what was looked at as `old`."""
    said = new.model_dump(mode="json", by_alias=True, include={"avro", "retention_days", "owner", "labels"})
    asked = said | {"expected_version": old.version, "by": by}
    return _read(_asked(settings, "POST", f"/tables/{old.name}/versions", asked))


def retire(settings: RegistrySettings, old: Table, by: str) -> Table:
    asked = {"expected_version": old.version, "by": by}
    return _read(_asked(settings, "POST", f"/tables/{old.name}/retire", asked))


def planned(new: Declaration) -> list[str]:
    """What registering does, a line each."""
    keys = f"known by {', '.join(new.keys)} and time" if new.keys else "known by their content"
    return [
        f"register {new.name} of {new.owner}: in {' and '.join(new.stores)} for {new.retention_days} days, rows {keys}",
        *(f"  {column_line(column)}" for column in new.columns),
    ]


def differences(old: Table, new: Declaration) -> list[str]:
    """What evolving changes, a line each; raise Misconfigured where it cannot be changed."""
    fixed = [name for name in ("name", "stores", "keys", "order", "time") if getattr(old, name) != getattr(new, name)]
    if fixed:
        raise Misconfigured([f"{name}: never changes; register another table." for name in fixed])
    kept = [column.name for column in old.columns if column in new.columns]
    if kept != [column.name for column in new.columns if column in old.columns]:
        raise Misconfigured(f"schema.fields: their order never changes; put these first, so: {', '.join(kept)}.")
    lines = [f"add {column_line(column)}" for column in new.columns if column not in old.columns]
    lines += [f"remove {column_line(column)}" for column in old.columns if column not in new.columns]
    lines += [
        f"{name}: {getattr(old, name)} → {getattr(new, name)}"
        for name in ("retention_days", "owner", "labels")
        if getattr(old, name) != getattr(new, name)
    ]
    return [f"{old.name}: {line}" for line in lines]


def column_line(column: Column) -> str:
    kind = f"array of {column.items}" if column.items else column.kind
    default = f", default {json.dumps(column.default)}" if column.has_default and not column.nullable else ""
    return f"{column.name} {kind}{', nullable' if column.nullable else ''}{default}"


def _asked(settings: RegistrySettings, method: str, path: str, document: object = None) -> Any:
    reply = request(settings, method, path, document=document)
    try:
        answer = json.loads(reply.body)
        if reply.status < 400:
            return answer
        problems = [f"{p['path']}: expected {p['expected']}, got {p['got']}" for p in answer["problems"]]
        raise Misconfigured(problems or answer["error"])
    except (ValueError, KeyError, TypeError):
        raise Unavailable(f"What answers at {settings.address} is no registry of tables.") from None


def _read(document: object) -> Table:
    try:
        return parsed(document)
    except Invalid as error:
        raise Misconfigured(f"The registry's answer does not read; is this command older than it? {error}") from None
