"""What tells one series of a metric from another, and the number that names it in every region."""

import hashlib
from typing import NamedTuple

from pipeline.record.avro import STRING, pair_map


class Scope(NamedTuple):
    """Who measures: two that differ in any of this may measure under one metric name."""

    name: str
    version: str
    attributes: dict[str, str]


def scope_labels(scope: Scope) -> dict[str, str]:
    """Labels that stand for a scope, named as attributes of OpenTelemetry's own; an empty name or version is none.

    Its own attributes come first: of one key the later counts.
    """
    named = {"otel.scope.name": scope.name, "otel.scope.version": scope.version}
    return {
        **{f"otel.scope.{key}": text for key, text in scope.attributes.items()},
        **{key: text for key, text in named.items() if text},
    }


def labels(resource: dict[str, str], scope: Scope, attributes: dict[str, str]) -> dict[str, str]:
    """Resource attributes, those of the scope, attributes of the point; of one key the later counts."""
    return {**resource, **scope_labels(scope), **attributes}


def series_id(tenant: str, metric_name: str, series_labels: dict[str, bytes]) -> int:
    """First 8 bytes, big-endian and signed, of BLAKE2b-512 over tenant, name and sorted labels as Avro encodes them.

    `series_labels` are those of `labels`, each as the Avro of its key and text.
    """
    content = STRING[tenant] + STRING[metric_name] + pair_map(series_labels)
    return int.from_bytes(hashlib.blake2b(content).digest()[:8], "big", signed=True)
