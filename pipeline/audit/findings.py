"""One store against what Kafka holds.

A difference is declared only after the whole other side was looked at: first near the window, where it nearly always
is, then everywhere.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.audit.sets import Bools, Ids, Ints, Matching, Rows, joined, repeated, text
from pipeline.audit.stores import Store
from pipeline.audit.topics import PADDING_US, Kafka, Progress
from pipeline.audit.window import Window, iso

EXAMPLES = 10
MINUTE_US = 60 * 10**6
Elsewhere = Callable[[Ids], Bools]  # which of some sorted ids Kafka holds outside what was read


@dataclass(frozen=True, slots=True)
class Findings:
    """Counts of distinct event_ids, but for `rows`, which counts rows received in the window.

    expected         in Kafka, and of the kind that the store keeps
    missing          in Kafka, and in the store for no reason that may be
    extra            in the store, and nowhere in Kafka
    duplicates       more than one visible row
    timeless_twins   the same, of records without a time of their own: they stand at each of their receipt times
    superseded       not in the store because a later value of the same series and time is
    dead_lettered    not in the store, but in a dead-letter topic
    expired          rows not in Kafka, from before what its retention has left, and ids not in the store, of a time
                     before what its retention keeps

    `by_minute` has the receipt minutes with a missing, extra or duplicate id. `examples` has at most 10 a kind.
    """

    expected: int
    rows: int
    missing: int
    extra: int
    duplicates: int
    timeless_twins: int
    superseded: int
    dead_lettered: int
    expired: int
    by_minute: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return not (self.missing or self.extra or self.duplicates)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Lacking:
    """Places in `known` of the window's ids that the store does not show, by the reason; `missing` has none."""

    missing: Ints
    dead_lettered: Ints
    superseded: Ints
    expired: Ints


@dataclass(frozen=True, slots=True)
class _Surplus:
    """Rows of the window that match no id of Kafka: `extra`, one for each id; and how many are expired."""

    extra: Rows
    repeated: Ids
    expired: int


def compare(kafka: Kafka, store: Store, window: Window, elsewhere: Elsewhere, progress: Progress) -> Findings:
    """Read the store and judge it; `elsewhere` is asked only about rows that match nothing that was read."""
    kafka = replace(kafka, known=kafka.known.where(store.keeps(kafka.known)))
    known = kafka.known
    near = window.padded(PADDING_US)
    # What is older than Kafka's records and than its retention can only be expired: it is counted, not fetched.
    oldest = int(known.received_us.min()) if len(known.ids) else kafka.horizon_us
    floor = min(kafka.horizon_us, oldest)
    fetched = near
    expired_unread = 0
    if floor > 0 and (near.start_us is None or near.start_us < floor):
        fetched = Window(floor, max(floor, near.end_us) if near.end_us is not None else None)
        ends = floor if window.end_us is None else min(floor, window.end_us)
        expired_unread = store.count(Window(window.start_us, ends))
    matching = Matching(known.ids)
    rows = expired_unread
    unknown: list[Rows] = []
    for piece in _told(store, fetched, f"{store.name}: {kafka.part}", progress):
        unknown.append(matching.count(piece))
        rows += int(window.contains(piece.received_us).sum())

    lacking = _lacking(kafka, store, np.flatnonzero((matching.seen == 0) & known.inside), progress)
    surplus = _surplus(joined(unknown), window, kafka.horizon_us, elsewhere)
    twice = np.flatnonzero((matching.seen > 1) & known.inside)
    twins, doubled = twice[known.timeless[twice]], twice[~known.timeless[twice]]
    return Findings(
        expected=int(known.inside.sum()),
        rows=rows,
        missing=len(lacking.missing),
        extra=len(surplus.extra.ids),
        duplicates=len(doubled) + len(surplus.repeated),
        timeless_twins=len(twins),
        superseded=len(lacking.superseded),
        dead_lettered=len(lacking.dead_lettered),
        expired=expired_unread + surplus.expired + len(lacking.expired),
        by_minute=_by_minute(
            missing=known.minute[lacking.missing],
            extra=surplus.extra.received_us // MINUTE_US,
            duplicates=known.minute[doubled],
        ),
        examples={
            "missing": _in_kafka(kafka, lacking.missing),
            "extra": [
                {"event_id": text(event_id), "received_time": iso(int(received))}
                for event_id, received in zip(surplus.extra.ids[:EXAMPLES], surplus.extra.received_us, strict=False)
            ],
            "duplicates": (_in_kafka(kafka, doubled) + [{"event_id": text(one)} for one in surplus.repeated])[
                :EXAMPLES
            ],
            "timeless_twins": _in_kafka(kafka, twins),
            "superseded": _in_kafka(kafka, lacking.superseded),
            "dead_lettered": _in_kafka(kafka, lacking.dead_lettered),
            "expired": _in_kafka(kafka, lacking.expired),
        },
    )


def _lacking(kafka: Kafka, store: Store, unseen: Ints, progress: Progress) -> _Lacking:
    """`unseen`: places of the window's ids that no row near the window has."""
    known = kafka.known
    replaced = store.superseded(known, unseen)
    superseded, unseen = unseen[replaced], unseen[~replaced]
    matching = Matching(known.ids[unseen])
    if len(unseen):  # all rows once more: the store moves on, and a row may stand at another receipt
        for piece in _told(store, Window(), f"{store.name}: {kafka.part}, once more", progress):
            matching.count(piece)
    lacking = unseen[matching.seen == 0]
    dead = kafka.dead_letters.of(known.ids[lacking], store.name)
    dead_lettered, lacking = lacking[dead], lacking[~dead]
    expired = store.expired(known, lacking)
    return _Lacking(lacking[~expired], dead_lettered, superseded, lacking[expired])


def _surplus(unknown: Rows, window: Window, horizon_us: int, elsewhere: Elsewhere) -> _Surplus:
    inside = window.contains(unknown.received_us)
    old = unknown.received_us < horizon_us
    ids, received = unknown.ids[inside & ~old], unknown.received_us[inside & ~old]
    distinct, firsts = np.unique(ids, return_index=True)
    if len(distinct):
        nowhere = ~elsewhere(distinct)
        distinct, firsts = distinct[nowhere], firsts[nowhere]
    doubled = repeated(ids)
    return _Surplus(Rows(distinct, received[firsts]), doubled[np.isin(doubled, distinct)], int((inside & old).sum()))


def _told(store: Store, received: Window, what: str, progress: Progress) -> Iterator[Rows]:
    done = 0
    for piece in store.rows(received):
        yield piece
        done += len(piece.ids)
        progress(what, done, None)


def _by_minute(**minutes: Ints) -> list[dict[str, Any]]:
    """How many of each kind fall into each minute that has any, in order of time."""
    counts = {kind: Counter(times.tolist()) for kind, times in minutes.items()}
    return [
        {"minute": iso(minute * MINUTE_US), **{kind: count[minute] for kind, count in counts.items()}}
        for minute in sorted(set().union(*counts.values()))
    ]


def _in_kafka(kafka: Kafka, places: Ints) -> list[dict[str, Any]]:
    """Examples of ids and where in Kafka they are."""
    known = kafka.known
    return [{"event_id": text(known.ids[place]), **known.place(place)._asdict()} for place in places[:EXAMPLES]]
