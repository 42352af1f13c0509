"""Many messages as one container file."""

from collections.abc import Sequence

from pipeline.delivery import Message
from pipeline.errors import Rejected
from pipeline.record import container, schema


def join(batch: Sequence[Message], expected: schema.Schema) -> tuple[bytes, int]:
    """All records of the batch as one container file, and how many there are.

    Raise Rejected where a message is of another schema, damaged, or holds another number of records than its header
    `records` promises; only framing is read.
    """
    total = 0
    for message in batch:
        try:
            total += _checked(message, expected)
        except Rejected as reason:
            raise Rejected(f"{message.topic} [{message.partition}] @ {message.offset}: {reason}") from None
    return container.join(expected.head, [message.value for message in batch]), total


def _checked(message: Message, expected: schema.Schema) -> int:
    said = message.headers.get("schema", b"").decode(errors="replace")
    if said != expected.name:
        raise Rejected(f"the header `schema` says {said[:60]!r}; this writer knows {expected.name}.")
    records = container.count(expected.head, message.value)
    promised = message.headers.get("records", b"")
    if promised != b"%d" % records:
        raise Rejected(f"the header `records` promises {promised[:20]!r}, the value holds {records}.")
    return records
