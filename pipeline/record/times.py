"""Which times a client may claim: outside of these the receipt time stands in. And times as people write them."""

from datetime import UTC, datetime

from pipeline.errors import Misconfigured

SANE_FROM_NS = 946_684_800 * 10**9  # 2000-01-01
SANE_AHEAD_NS = 86_400 * 10**9  # of the receipt
RECEIPT_NS = 10**6  # receipts are whole milliseconds: what is below tells the forms of an event apart
FORM_NS = 1000  # by which an agent's form is received later than what it was made of, for each of its version


def receipt_ns(received_time: int) -> int:
    """When the gateway received it, of any form."""
    return received_time - received_time % RECEIPT_NS


def parse_ns(text: str) -> int:
    """ISO 8601, UTC where it names no zone, in ns since 1970, cut to ms; raises Misconfigured where it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Misconfigured(
            f"{text[:100]!r} is no time: write it as 2026-11-20T10:00, in UTC or with its zone."
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000) * 10**6
