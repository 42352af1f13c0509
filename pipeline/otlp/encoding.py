"""What the three signals share: the walk to a request's records, identity, grouping by partition."""

import hashlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf.message import Message

from pipeline.otlp.messages import RECORDS, Part
from pipeline.otlp.rules import Rules
from pipeline.otlp.values import Attributes
from pipeline.otlp.wire import Level, level
from pipeline.record import schema
from pipeline.record.avro import STRING, blob, long, pair, pair_map, text_in
from pipeline.record.framing import (
    EVENT_ID_BYTES,
    FIRST,
    MAX_VALUE_BYTES,
    Group,
    Lane,
    Origin,
    groups,
    largest,
    place_untimed,
)
from pipeline.record.series import Scope, scope_labels

Span = Sequence[int]  # start and end of a part in the body


@dataclass(slots=True)
class Encoded:
    """All of one request: what to publish, and the count of what was not taken as it came.

    `groups` are in the order of their partitions' first records, and in each partition in the order sent.
    `refused` counts by the codes of REFUSALS. `shed` counts what policy gave up, neither accepted nor refused: log
    records by "TRACE", "DEBUG", "INFO", spans as "SPAN". `cut` counts attributes and bodies of which a limit took
    something. `untimed` counts accepted records without a usable time.
    """

    groups: list[Group] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    shed: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    untimed: int = 0

    @property
    def accepted(self) -> int:
        return sum(group.records for group in self.groups)


class Prefix(NamedTuple):
    """The start that records share: as written, after the event_id, and as hashed."""

    written: bytes
    hashed: "hashlib.blake2b"


class Shared(NamedTuple):
    """What all records of one resource and scope share: their first fields, partition key, labels of their series."""

    fields: bytes
    place: bytes
    labels: dict[str, bytes]


class Request:
    """One request on its way: walks to its records, takes them back encoded, and counts what was not taken."""

    def __init__(self, body: bytes, origin: Origin, *, signal: schema.Signal, partitions: int, rules: Rules) -> None:
        self.origin = origin
        self.rules = rules
        self.encoded = Encoded()
        self.attributes = Attributes(rules)
        self._body = body
        self._partitions = partitions
        self._own_attributes = {key: pair(key, text) for key, text in rules.resource_attributes}
        self._left: dict[str, int] = defaultdict(lambda: rules.max_records)
        self._left_bytes = rules.max_encoded_bytes
        self._head = schema.of(signal).head
        self._largest = largest(self._head)
        self._unhashed = STRING[origin.region] + long(origin.received_time)
        self._lanes: dict[int, Lane] = defaultdict(Lane)

    # The way in: from the body to one record at a time.

    def level(self, part: Part, span: Span) -> Level:
        """Walk one level; of records over `max_records` the first are listed and the others refused.

        Raise TooLarge where the whole request holds more of anything else, and DecodeError where it is malformed.
        """
        found = level(part, self._body, span, self._left[part.named])
        self._left[part.named] -= len(found.children)
        if found.more and part.named != RECORDS:
            raise self.rules.too_many(part.named)
        if found.more:
            self.encoded.refused["too_many_records"] += found.more
        return found

    def scopes(self, parts: tuple[Part, Part, Part]) -> Iterator[tuple[Shared | None, Level]]:
        """Every scope, with what its records share: None where that is too large to be read."""
        whole, resource_part, scope_part = parts
        for _, *resource_span in self.level(whole, (0, len(self._body))).children:
            resource = self.level(resource_part, resource_span)
            head = None if resource.shell is None else self._resource(resource_part.message.FromString(resource.shell))
            for _, *scope_span in resource.children:
                scope = self.level(scope_part, scope_span)
                if head is None or scope.shell is None:
                    yield None, scope
                else:
                    yield self._scope(head, scope_part.message.FromString(scope.shell)), scope

    def records(self, found: Level, message: type[Message]) -> Iterator[Any]:
        """Parse one record after the other; refuse those that are too large, or come when the request is full."""
        body, largest, parse = self._body, MAX_VALUE_BYTES, message.FromString
        for n, (_, start, end) in enumerate(found.children):
            if self._left_bytes < 0:
                self.encoded.refused["too_many_bytes"] += len(found.children) - n
                return
            if end - start > largest:
                self.encoded.refused["record_too_large"] += 1
                continue
            yield parse(body[start:end])

    def refuse(self, found: Level, code: str) -> None:
        """Refuse all records of a level, none of which was looked into."""
        if found.children:
            self.encoded.refused[code] += len(found.children)

    def _resource(self, message: Any) -> Shared:
        labels = self.attributes.pairs(message.resource.attributes[:]) | self._own_attributes
        service, host = text_in(labels, "service.name"), text_in(labels, "host.name")
        fields = (STRING[self.origin.tenant], blob(service), blob(host), pair_map(labels), STRING[message.schema_url])
        return Shared(b"".join(fields), service + b"\0" + host, labels)

    def _scope(self, resource: Shared, message: Any) -> Shared:
        scope = message.scope
        attributes = self.attributes.pairs(scope.attributes[:])
        fields = (
            resource.fields, STRING[scope.name], STRING[scope.version], pair_map(attributes), STRING[message.schema_url]
        )  # fmt: skip
        texts = {key: text_in(attributes, key).decode() for key in attributes}
        named = {key: pair(key, text) for key, text in scope_labels(Scope(scope.name, scope.version, texts)).items()}
        return resource._replace(fields=b"".join(fields), labels=resource.labels | named)

    # The way out: records into container files.

    def partition(self, key: bytes) -> int:
        """CRC-32 of the key, modulo the topic's partitions."""
        return zlib.crc32(key) % self._partitions

    def prefix(self, fields: bytes) -> Prefix:
        """For records whose hashed content starts with `fields`."""
        return Prefix(self._unhashed + fields, hashlib.blake2b(fields, digest_size=EVENT_ID_BYTES))

    def add(self, prefix: Prefix, tail: bytes, *, time: int, partition: int) -> None:
        """Take one record: `tail` is what follows the prefix and ends in FIRST, `time` is as sent, or 0 (ns)."""
        written, hashed = prefix
        size = EVENT_ID_BYTES + len(written) + len(tail)
        if size > self._largest:
            self.encoded.refused["record_too_large"] += 1
            return
        self._left_bytes -= size
        if self._left_bytes < 0:
            self.encoded.refused["too_many_bytes"] += 1
            return
        event_id = hashed.copy()
        event_id.update(tail)
        lane = self._lanes[partition]
        lane.pieces += event_id.digest(), written, tail
        lane.times.append(time)

    def finish(self) -> Encoded:
        """What came of the request, once all its records were added."""
        self.encoded.cut = self.attributes.cut
        for partition in list(self._lanes):
            lane = self._lanes.pop(partition)  # and let go, while the others' values are made
            _number_twins(lane.pieces, self._unhashed)
            self.encoded.untimed += place_untimed(lane.times, self.origin.received_time)
            self.encoded.groups += groups(partition, lane, self._head)
        return self.encoded


def _number_twins(pieces: list[bytes], unhashed: bytes) -> None:
    """Give equal records their ordinals, and so ids of their own. Equal records share a partition."""
    ids = pieces[::3]
    if len(set(ids)) == len(ids):
        return
    twins: Counter[bytes] = Counter()
    for n, event_id in enumerate(ids):
        ordinal = twins[event_id]
        twins[event_id] += 1
        if ordinal:
            written, tail = pieces[3 * n + 1], pieces[3 * n + 2][: -len(FIRST)] + long(ordinal)
            content = written[len(unhashed) :] + tail
            pieces[3 * n] = hashlib.blake2b(content, digest_size=EVENT_ID_BYTES).digest()
            pieces[3 * n + 2] = tail
