"""The set comparison against Python's own sets."""

from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audit.decode import Signal, records
from pipeline.audit.ledger import Ledger
from pipeline.audit.sets import Matching, Rows, ids_of, joined, locate, repeated, text
from pipeline.errors import Rejected
from pipeline.kafka.reader import Message
from tests.audit.world import file, record

# Few bytes, zeros and 0xff among them, so that ids share long prefixes, end in zeros and collide
some_ids = st.lists(
    st.lists(st.sampled_from([0, 1, 0xFF]), min_size=16, max_size=16).map(bytes) | st.binary(min_size=16, max_size=16)
)


@given(known=some_ids, ids=some_ids)
def test_locating_is_membership(known: list[bytes], ids: list[bytes]) -> None:
    """An id is found exactly where a set has it, and there."""
    distinct = sorted(set(known))
    places, found = locate(ids_of(b"".join(distinct)), ids_of(b"".join(ids)))
    assert found.tolist() == [one in set(known) for one in ids]
    assert all(distinct[place] == one for place, one, there in zip(places, ids, found, strict=True) if there)


@given(known=some_ids, rows=some_ids, cut=st.integers(0, 100))
def test_matching_counts_as_counters_do(known: list[bytes], rows: list[bytes], cut: int) -> None:
    """Missing, extra and doubled ids come out the same in any pieces."""
    distinct = sorted(set(known))
    matching = Matching(ids_of(b"".join(distinct)))
    pieces = [Rows(ids_of(b"".join(part)), np.arange(len(part))) for part in (rows[:cut], rows[cut:])]
    unknown = joined([matching.count(piece) for piece in pieces])
    counts = Counter(rows)
    assert matching.seen.tolist() == [counts[one] for one in distinct]
    assert [text(one) for one in unknown.ids] == [one.hex() for one in rows if one not in set(known)]
    assert {text(one) for one in repeated(unknown.ids)} == {
        one.hex() for one, count in counts.items() if count > 1 and one not in set(known)
    }


@given(copies=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6), st.booleans(), st.booleans())))
def test_a_ledger_knows_each_id_once(copies: list[tuple[int, int, bool, bool]]) -> None:
    """Of any copies: one entry an id, of the latest receipt; in the window or timeless where one copy is."""
    ledger = Ledger("logs", ["logs_raw"])
    for offset, (name, received, inside, timeless) in enumerate(copies):
        when = 0 if timeless else 10**18
        one = record("logs", name, received_time=10**18 + received * 1000, time=when)
        ledger.add(Message("logs_raw", 0, offset, 0, {}, b""), [one], inside)
    known = ledger.known()
    names = {record("logs", name)["event_id"].hex(): name for name, *_ in copies}
    assert [text(one) for one in known.ids] == sorted(names)
    for index, event_id in enumerate(known.ids):
        own = [copy for copy in copies if copy[0] == names[text(event_id)]]
        latest = max(received for _, received, _, _ in own)
        assert known.received_us[index] == 10**15 + latest
        assert copies[known.place(index).offset][1] == latest
        assert (known.inside[index], known.timeless[index]) == (any(c[2] for c in own), any(c[3] for c in own))


@pytest.mark.parametrize("signal", ["logs", "traces", "metrics"])
def test_every_record_of_a_file_is_read(signal: Signal) -> None:
    """All blocks of a container file, in order."""
    made = [record(signal, n) for n in range(1500)]
    assert [one["event_id"] for one in records(file(signal, made), signal)] == [one["event_id"] for one in made]


@given(data=st.data())
def test_a_damaged_file_is_rejected_or_read_to_the_end(data: Any) -> None:
    """Any cut and any changed byte ends in Rejected or in as many records as the blocks say; never in another error."""
    whole = file("logs", [record("logs", n) for n in range(3)])
    with pytest.raises(Rejected):
        records(whole[: -data.draw(st.integers(1, 150))], "logs")
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    with suppress(Rejected):
        assert len(records(changed, "logs")) == 3
