"""One request through both implementations."""

import os
import random

import pytest

from pipeline import native, otlp
from pipeline.errors import Rejected
from pipeline.otlp.json import MAX_VALUES, REQUEST, to_protobuf
from pipeline.record import schema
from tests.otlp.decode import ORIGIN


def built() -> bool:
    """Whether the extension is there."""
    native.choose("auto")
    return native.chosen() is not None


def demand_built() -> None:
    """In CI the extension is there; elsewhere what needs it skips without it."""
    if not built():
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop("The extension was not built: install Rust (cargo), then the project again.")


def alike(signal: schema.Signal, body: bytes, rules: otlp.Rules | None = None) -> otlp.Encoded | tuple[str, str]:
    """What both make of a request: groups and counts, or the kind of refusal and its sentence."""
    by_python = _outcome("python", signal, body, rules or otlp.Rules())
    by_native = _outcome("native", signal, body, rules or otlp.Rules())
    assert by_native == by_python, (signal, body.hex(), rules)
    return by_native


def _outcome(
    implementation: native.Implementation, signal: schema.Signal, body: bytes, rules: otlp.Rules
) -> otlp.Encoded | tuple[str, str]:
    native.choose(implementation)
    try:
        return otlp.encode(signal, body, ORIGIN, partitions=3, rules=rules)
    except Rejected as error:
        return type(error).__name__, str(error)


def rules(rng: random.Random) -> otlp.Rules:
    """Rules, half of the time such that every limit bites."""
    if rng.random() < 0.5:
        return otlp.Rules()
    return otlp.Rules(
        max_records=rng.choice((1, 2, 5, 1000)),
        max_encoded_bytes=rng.choice((300, 1000, 3000, 1_000_000)),
        max_attributes=rng.choice((1, 3, 1000)),
        max_key_bytes=rng.choice((16, 20, 1000)),
        max_text_bytes=rng.choice((16, 17, 20, 40, 1000)),
        max_depth=rng.choice((1, 2, 3, 32)),
        shed_below_severity=rng.choice((0, 9, 20)),
        keep_spans=rng.choice((0.0, 0.5, 1.0)),
        resource_attributes=rng.choice(((), (("service.name", "ours"), ("é", "ü")))),
    )


def json_alike(signal: schema.Signal, body: bytes) -> bool:
    """Whether the extension takes a JSON body itself; then it is the request that the reference makes of it."""
    native.choose("native")
    extension = native.chosen()
    assert extension is not None
    ours = extension.json_to_protobuf(signal, body, MAX_VALUES)
    native.choose("python")
    try:
        expected = to_protobuf(signal, body)
    except Rejected:
        assert ours is None, body
        return False
    if ours is not None:
        found, wanted = REQUEST[signal].FromString(ours), REQUEST[signal].FromString(expected)
        assert found.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True), body
    return ours is not None
