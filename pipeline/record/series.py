"""What tells one series of a metric from another, and the number that names it in every region."""

import hashlib

from pipeline.record.avro import STRING, pair_map


def scope_labels(name: str, version: str) -> dict[str, str]:
    """Labels that stand for a scope, named as attributes of OpenTelemetry's own; what is empty is none."""
    named = {"otel.scope.name": name, "otel.scope.version": version}
    return {key: text for key, text in named.items() if text}


def labels(resource: dict[str, str], scope: tuple[str, str], attributes: dict[str, str]) -> dict[str, str]:
    """Resource attributes, name and version of the scope, attributes of the point; of one key the later counts.

    Two scopes may measure under one metric name.
    """
    return {**resource, **scope_labels(*scope), **attributes}


def series_id(tenant: str, metric_name: str, series_labels: dict[str, bytes]) -> int:
    """First 8 bytes, big-endian and signed, of BLAKE2b-512 over tenant, name and sorted labels as Avro encodes them.

    `series_labels` are those of `labels`, each as the Avro of its key and text.
    """
    content = STRING[tenant] + STRING[metric_name] + pair_map(series_labels)
    return int.from_bytes(hashlib.blake2b(content).digest()[:8], "big", signed=True)
