"""What tells one series of a metric from another, and the number that names it in every region."""

import hashlib

from pipeline.record.avro import STRING, string_map


def labels(resource: dict[str, str], scope: tuple[str, str], attributes: dict[str, str]) -> dict[str, str]:
    """Resource attributes, name and version of the scope, attributes of the point; of one key the later counts.

    Scope labels are named as attributes of OpenTelemetry's own; two scopes may measure under one metric name.
    """
    named = {"otel.scope.name": scope[0], "otel.scope.version": scope[1]}
    return {**resource, **{key: text for key, text in named.items() if text}, **attributes}


def series_id(tenant: str, metric_name: str, series_labels: dict[str, str]) -> int:
    """First 8 bytes, big-endian and signed, of BLAKE2b-512 over tenant, name and sorted labels as Avro encodes them."""
    content = STRING[tenant] + STRING[metric_name] + string_map(series_labels)
    return int.from_bytes(hashlib.blake2b(content).digest()[:8], "big", signed=True)
