"""Sets of event_ids as sorted numpy arrays: 16 bytes an id, never a Python object.

numpy compares `S16` as unsigned bytes and pads with zeros, so ids of one width are ordered and told apart exactly.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.bytes_]  # dtype S16
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
ID = np.dtype("S16")


class Rows(NamedTuple):
    """What a store shows: an id and a receipt time (us since 1970) a row."""

    ids: Ids
    received_us: Ints


NO_ROWS = Rows(np.empty(0, ID), np.empty(0, np.int64))


def ids_of(data: bytes | bytearray) -> Ids:
    """16 bytes an id, one after the other."""
    return np.frombuffer(data, dtype=ID)


def text(event_id: np.bytes_) -> str:
    """32 lower-case hex digits; numpy drops trailing zeros of a single id."""
    return bytes(event_id).ljust(16, b"\0").hex()


def locate(known: Ids, ids: Ids) -> tuple[NDArray[np.intp], Bools]:
    """Of each of `ids`: where it stands in sorted, distinct `known`, and whether it is there at all."""
    if not len(known):
        return np.zeros(len(ids), np.intp), np.zeros(len(ids), bool)
    places = np.minimum(known.searchsorted(ids), len(known) - 1)
    return places, known[places] == ids


def repeated(ids: Ids) -> Ids:
    """Those that are there more than once."""
    distinct, counts = np.unique(ids, return_counts=True)
    return distinct[counts > 1]


def joined(parts: Iterable[Rows]) -> Rows:
    ids, received_us = zip(NO_ROWS, *parts, strict=True)
    return Rows(np.concatenate(ids), np.concatenate(received_us))


class Matching:
    """How often each of the sorted, distinct `known` was among a store's rows."""

    def __init__(self, known: Ids) -> None:
        self._known = known
        self.seen = np.zeros(len(known), np.uint32)

    def count(self, rows: Rows) -> Rows:
        """Count the rows of known ids; return the others."""
        places, found = locate(self._known, rows.ids)
        np.add.at(self.seen, places[found], 1)
        return Rows(rows.ids[~found], rows.received_us[~found])
