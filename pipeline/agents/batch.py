"""Many messages as one batch for each version of their schema."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline import digits
from pipeline.delivery import Message
from pipeline.errors import Rejected
from pipeline.record import container, schema

Known = Mapping[str, schema.Schema]  # by name, as the header `schema` says it


class Joined(NamedTuple):
    """Messages of one schema, in the order they came, and how many records they hold."""

    messages: list[Message]
    schema: schema.Schema
    records: int

    @property
    def values(self) -> list[bytes]:
        """Their container files."""
        return [message.value for message in self.messages]

    def value(self) -> bytes:
        """All records as one container file."""
        return container.join(self.schema.head, self.values)


@functools.cache
def known(signal: schema.Signal) -> Known:
    """What a writer of `signal` can take: every locked version, for gateways of another release write another one."""
    record, _ = _parts(schema.CURRENT[signal])
    versions = sorted(version for other, version in map(_parts, schema.locked()) if other == record)
    return {one.name: one for one in (schema.load(f"{record}/{version}") for version in versions)}


def join(batch: Sequence[Message], accepted: Known) -> list[Joined]:
    """All messages of the batch, grouped by schema, in the order of their first messages.

    Raise Rejected, with the message's place, where it is of another schema, damaged, or holds another number of records
    than its header `records` promises; only framing is read.
    """
    groups: dict[str, list[tuple[Message, int]]] = {}
    for message in batch:
        try:
            one, records = checked(message, accepted)
        except Rejected as reason:
            raise Rejected(f"{message.place}: {reason}") from None
        groups.setdefault(one.name, []).append((message, records))
    return [
        Joined(
            [message for message, _ in group],
            accepted[name],
            sum(records for _, records in group),
        )
        for name, group in groups.items()
    ]


def checked(message: Message, accepted: Known) -> tuple[schema.Schema, int]:
    """The message's schema and how many records it holds; raises Rejected as `join` does, without the place."""
    said = message.headers.get("schema", b"").decode(errors="replace")
    if said not in accepted:
        newest = list(accepted)[-1]
        why = f"The header `schema` says {said[:60]!r}; this writer knows {', '.join(accepted)}."
        (name, version), (own, current) = _parts(said), _parts(newest)
        if name == own and version > current:
            why += f" Schema {said} is newer than this writer knows; replay after the upgrade."
        raise Rejected(why)
    records = container.count(accepted[said].head, message.value)
    promised = message.headers.get("records", b"")
    if promised != b"%d" % records:
        raise Rejected(f"The header `records` promises {promised[:20]!r}, the value holds {records}.")
    return accepted[said], records


def _parts(name: str) -> tuple[str, int]:
    """Record and version of `log_record/1`; version 0 where it names none."""
    record, _, version = name.partition("/")
    return record, digits.number(version, 5, 0)
