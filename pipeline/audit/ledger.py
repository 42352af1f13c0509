"""What Kafka holds of one signal, in about 40 bytes a record (50 for metrics), while it is read and after."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.decode import KINDS, Signal
from pipeline.audit.sets import Bools, Ids, Ints, ids_of
from pipeline.kafka.reader import Message

# design, section 3: a record whose own time is missing, before 2000 or more than a day ahead stands at its receipt time
SANE_FROM_NS = 946_684_800 * 10**9
SANE_AHEAD_NS = 86_400 * 10**9
RECEIPT_NS = 10**6  # what is below tells the forms of an event apart, not when it was received
ERROR = 17  # OTLP SeverityNumber


class Place(NamedTuple):
    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic} [{self.partition}] @ {self.offset}"


@dataclass(frozen=True, slots=True)
class Points:
    """Of metric points: where PostgreSQL keeps them, beside their time; `kind` is an index into KINDS."""

    series_id: Ints
    kind: NDArray[np.uint8]

    def where(self, kept: Bools) -> "Points":
        return Points(self.series_id[kept], self.kind[kept])


@dataclass(frozen=True, slots=True)
class Known:
    """The distinct ids, sorted, and as much of each: arrays of one length. An id that came more than once is described
    by its copy of the latest receipt."""

    ids: Ids
    inside: Bools  # some copy's message lies in the window
    timeless: Bools  # some copy stands at its receipt time
    received_us: Ints
    time_us: Ints  # where stores file it: its own time, or the receipt where that is none
    minute: Ints  # since 1970, of the message's receipt
    topics: tuple[str, ...]
    topic: NDArray[np.uint16]  # index into topics
    partition: NDArray[np.int32]
    offset: Ints
    points: Points | None
    event: Bools | None  # of log records: errors, and those with an event_name

    def where(self, kept: Bools) -> "Known":
        """A part of the ids."""
        if kept.all():
            return self
        arrays: dict[str, Any] = {
            f.name: each[kept] for f in fields(self) if isinstance(each := getattr(self, f.name), np.ndarray)
        }
        return replace(self, **arrays, points=self.points.where(kept) if self.points else None)

    def place(self, index: int) -> Place:
        return Place(self.topics[self.topic[index]], int(self.partition[index]), int(self.offset[index]))


class Ledger:
    """Records of one signal as they are read."""

    def __init__(self, signal: Signal, topics: Sequence[str]) -> None:
        self._signal = signal
        self._topics = tuple(topics)
        self._ids = bytearray()
        self._timeless = bytearray()
        self._received_us = array("q")
        self._message = array("I")
        self._time_us = array("q")
        self._series_id, self._kind = array("q"), bytearray()
        self._event = bytearray()
        self._inside = bytearray()
        self._minute = array("q")
        self._topic, self._partition, self._offset = array("H"), array("i"), array("q")

    def add(self, message: Message, records: list[dict[str, Any]], inside: bool) -> None:
        """All records of a message; `inside`: it lies in the window, else only its ids matter."""
        number = len(self._offset)
        self._topic.append(self._topics.index(message.topic))
        self._partition.append(message.partition)
        self._offset.append(message.offset)
        self._inside.append(inside)
        self._minute.append(message.timestamp_ms // 60_000)
        self._ids += b"".join([record["event_id"] for record in records])
        self._message.extend([number] * len(records))
        received = [record["received_time"] for record in records]
        self._received_us.extend([time // 1000 for time in received])
        sent = _sent(records, self._signal)
        receipts = [time - time % RECEIPT_NS for time in received]
        sane = [SANE_FROM_NS <= time <= now + SANE_AHEAD_NS for time, now in zip(sent, receipts, strict=True)]
        self._timeless.extend([not is_sane for is_sane in sane])
        stands = [time if ok else now for time, ok, now in zip(sent, sane, receipts, strict=True)]
        self._time_us.extend([time // 1000 for time in stands])
        if self._signal == "metrics":
            self._series_id.extend([record["series_id"] for record in records])
            self._kind.extend([KINDS.index(record["type"]) for record in records])
        if self._signal == "logs":
            self._event.extend([record["severity_number"] >= ERROR or record["event_name"] != "" for record in records])

    def known(self) -> Known:
        ids = ids_of(self._ids)
        received, message = np.asarray(self._received_us), np.asarray(self._message, np.uint32)
        order = np.lexsort((received, ids))
        in_order = ids[order]
        last = np.ones(len(ids), bool)
        last[:-1] = in_order[1:] != in_order[:-1]
        latest = order[last]
        inside = np.frombuffer(self._inside, np.uint8)[message[order]]
        timeless = np.frombuffer(self._timeless, np.uint8)[order]
        firsts = np.flatnonzero(np.concatenate(([True], last[:-1]))) if len(ids) else np.empty(0, np.intp)
        points = event = None
        if self._signal == "logs":
            event = np.frombuffer(self._event, bool)[latest]
        if self._signal == "metrics":
            kind = np.frombuffer(self._kind, np.uint8)[latest]
            points = Points(np.asarray(self._series_id)[latest], kind)
        return Known(
            ids=in_order[last],
            inside=np.logical_or.reduceat(inside, firsts) if len(ids) else np.empty(0, bool),
            timeless=np.logical_or.reduceat(timeless, firsts) if len(ids) else np.empty(0, bool),
            received_us=received[latest],
            time_us=np.asarray(self._time_us)[latest],
            minute=np.asarray(self._minute)[message[latest]],
            topics=self._topics,
            topic=np.asarray(self._topic)[message[latest]],
            partition=np.asarray(self._partition)[message[latest]],
            offset=np.asarray(self._offset)[message[latest]],
            points=points,
            event=event,
        )


def _sent(records: list[dict[str, Any]], signal: Signal) -> list[int]:
    """The time that each record claims, ns."""
    if signal == "logs":
        return [record["time"] or record["observed_time"] for record in records]
    field = "start_time" if signal == "traces" else "time"
    return [record[field] for record in records]
