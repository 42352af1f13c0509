"""What the three signals share: parsing, the prefix of a resource and scope, identity, grouping by partition."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from pipeline.errors import Rejected
from pipeline.otlp.values import attribute_map, texts
from pipeline.record.avro import STRING, long, string_map
from pipeline.record.container import value
from pipeline.record.times import SANE_AHEAD_NS, SANE_FROM_NS

MAX_VALUE_BYTES = 900_000  # a Kafka message; brokers take 1 MB


class Origin(NamedTuple):
    """Where a request came from: what the gateway knows and the client cannot say. `received_time` in ns since 1970."""

    tenant: str
    region: str
    received_time: int


class Group(NamedTuple):
    """One container file: `records` of one partition, their span of effective times in ns, and the bytes."""

    partition: int
    records: int
    min_time: int
    max_time: int
    value: bytes


@dataclass(slots=True)
class Encoded:
    """All of one request: what to publish, how many records were refused by reason, how many had no usable time."""

    groups: list[Group] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    untimed: int = 0

    @property
    def accepted(self) -> int:
        return sum(group.records for group in self.groups)


class Shared(NamedTuple):
    """What all records of one resource and scope have in common: encoded fields, partition key, labels."""

    prefix: bytes
    place: bytes
    resource: dict[str, str]
    scope: InstrumentationScope


def parse(request: type[Message], body: bytes) -> Any:
    """The request in `body`; raise Rejected where it is none."""
    try:
        return request.FromString(body)
    except DecodeError as error:
        raise Rejected(f"The body is not a protobuf {request.DESCRIPTOR.name}: {error}.") from None


def scopes(request: Any, tenant: str, names: tuple[str, str]) -> Iterator[tuple[Shared, Any]]:
    """Walk `resource_*` and `scope_*` (their field names are `names`), encoding what is shared once."""
    resources, inner = names
    for resource_part in getattr(request, resources):
        resource: Resource = resource_part.resource
        attributes = texts(resource.attributes)
        service, host = attributes.get("service.name", ""), attributes.get("host.name", "")
        place = f"{service}\0{host}".encode()
        head = b"".join(
            (STRING[tenant], STRING[service], STRING[host], string_map(attributes), STRING[resource_part.schema_url])
        )
        for scope_part in getattr(resource_part, inner):
            scope = scope_part.scope
            prefix = b"".join(
                (head, STRING[scope.name], STRING[scope.version], attribute_map(scope.attributes),
                 STRING[scope_part.schema_url])
            )  # fmt: skip
            yield Shared(prefix, place, attributes, scope), scope_part


class Framing:
    """Collects the records of one request: gives ids and ordinals, groups by partition, splits at MAX_VALUE_BYTES."""

    def __init__(self, head: bytes, origin: Origin, partitions: int) -> None:
        self._head = head
        self._unhashed = STRING[origin.region] + long(origin.received_time)
        self._received_time = origin.received_time
        self._latest = origin.received_time + SANE_AHEAD_NS
        self._partitions = partitions
        self._room = MAX_VALUE_BYTES - len(head) - 64  # 64: two varints and the sync marker
        self._open: dict[int, tuple[list[bytes], list[int]]] = {}
        self._open_bytes: dict[int, int] = {}
        self._seen: dict[bytes, int] = {}
        self.encoded = Encoded()

    def partition(self, key: bytes) -> int:
        """CRC-32 of the key, modulo the topic's partitions."""
        return zlib.crc32(key) % self._partitions

    def add(self, content: bytes, time: int, partition: int) -> None:
        """Take one record: `content` is its hashed fields but for the ordinal, `time` its time as sent or 0 (ns)."""
        tail = content + b"\0"
        event_id = hashlib.blake2b(tail, digest_size=16).digest()
        twins = self._seen.get(event_id, 0)
        self._seen[event_id] = twins + 1
        if twins:
            tail = content + long(twins)
            event_id = hashlib.blake2b(tail, digest_size=16).digest()
        record = event_id + self._unhashed + tail
        if not SANE_FROM_NS <= time <= self._latest:
            time = self._received_time
            self.encoded.untimed += 1
        size = len(record)
        filled = self._open_bytes.get(partition, 0) + size
        if filled > self._room:
            if size > self._room:
                self.encoded.refused[f"a record is larger than {MAX_VALUE_BYTES:,} bytes"] += 1
                return
            self._close(partition)
            filled = size
        self._open_bytes[partition] = filled
        group = self._open.get(partition)
        if group is None:
            self._open[partition] = [record], [time]
        else:
            group[0].append(record)
            group[1].append(time)

    def finish(self) -> Encoded:
        for partition in list(self._open):
            self._close(partition)
        return self.encoded

    def _close(self, partition: int) -> None:
        records, times = self._open.pop(partition)
        self.encoded.groups.append(Group(partition, len(records), min(times), max(times), value(self._head, records)))
