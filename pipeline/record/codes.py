"""Schemas as the extension is told them: see pipeline/native/src/columns.rs."""

import functools
import json
from typing import Any

from pipeline.record.schema import Schema

LETTERS = {"long": "l", "int": "i", "double": "d", "float": "r", "boolean": "b", "string": "s", "bytes": "s"}


def codes(of: Schema) -> list[tuple[str, str]]:
    """Names and types of its fields; none where there is a type that the extension does not know."""
    return _codes(json.dumps(of.avro))


@functools.cache
def _codes(avro: str) -> list[tuple[str, str]]:
    try:
        return [(field["name"], _code(field["type"])) for field in json.loads(avro)["fields"]]
    except KeyError:
        return []


def _code(avro: Any) -> str:
    """Of one Avro type; raise KeyError where it has no equal."""
    match avro:
        case ["null", (str() as other)] | [(str() as other), "null"]:
            code = f"?{avro.index('null')}{LETTERS[other]}"
        case {"logicalType": kind}:
            raise KeyError(kind)
        case {"type": "fixed", "size": size}:
            code = f"f{size};"
        case {"type": "enum", "symbols": symbols}:
            code = f"e{{{','.join(symbols)}}}"
        case {"type": "map", "values": values}:
            code = f"{{{_code(values)}"
        case {"type": "array", "items": items}:
            code = f"[{_code(items)}"
        case {"type": "record", "fields": fields}:
            code = "(" + ",".join(f"{field['name']}:{_code(field['type'])}" for field in fields) + ")"
        case _:
            code = LETTERS[avro["type"] if isinstance(avro, dict) else str(avro)]
    return code
