"""Kafka → any OTLP back end: messages joined into export requests, each acknowledged before the next is sent."""

import time
from collections.abc import Iterator, Sequence

import structlog

from pipeline.agents.batch import checked, known
from pipeline.backend import Backend, Later
from pipeline.delivery import Message
from pipeline.errors import Rejected
from pipeline.otlp.export import export_request
from pipeline.record.layout import layout
from pipeline.record.records import TYPES, read
from pipeline.record.schema import Signal
from pipeline.settings import OtlpWriterSettings
from pipeline.telemetry import metrics

log = structlog.get_logger()
Place = tuple[str, int, int]  # topic, partition, offset


class OtlpWriter:
    """Writer of one signal; for one thread at a time.

    What a back end has taken is not sent again while the rest of its batch is tried again; after a crash it is.
    """

    def __init__(self, settings: OtlpWriterSettings, signal: Signal, to: Backend) -> None:
        self.name = "otlp_writer"
        self._settings, self._signal, self._to = settings, signal, to
        self._batch: set[Place] = set()
        self._taken: set[Place] = set()
        self._not_before_s = 0.0

    def write(self, batch: Sequence[Message]) -> int:
        """Send the batch, and wait first where the back end asked for it; return how many records it holds."""
        places = set(map(_place, batch))
        if not places <= self._batch:
            self._batch, self._taken = places, set()
        counts = [self._records(message) for message in batch]
        for part in self._requests(batch):
            self._send(part)
        self._taken -= places
        return sum(counts)

    def _records(self, message: Message) -> int:
        try:
            return checked(message, known(self._signal))[1]
        except Rejected as reason:
            raise Rejected(f"{message.place}: {reason}") from None

    def _requests(self, batch: Sequence[Message]) -> Iterator[list[Message]]:
        """Whole messages that fit into a request together."""
        part: list[Message] = []
        records = size = 0
        for message in batch:
            if _place(message) in self._taken:
                continue
            more = int(message.headers["records"])
            too_many = records + more > self._settings.request_records
            if part and (too_many or size + len(message.value) > self._settings.request_bytes):
                yield part
                part, records, size = [], 0, 0
            part.append(message)
            records += more
            size += len(message.value)
        if part:
            yield part

    def _send(self, part: Sequence[Message]) -> None:
        of = TYPES[self._signal]
        try:
            records = [
                read(raw, laid, of)
                for message in part
                if (laid := layout(message.headers["schema"].decode()))
                for raw in laid.records(message.value)
            ]
            request = export_request(self._signal, records)
        except (ValueError, IndexError) as error:  # fields are read where they are asked for
            raise Rejected(f"The records do not decode: {str(error) or 'a value goes on past its end'}.") from error
        time.sleep(max(0.0, self._not_before_s - time.monotonic()))
        try:
            rejected, reason = self._to.send(self._signal, request.SerializeToString())
        except Later as later:
            self._not_before_s = time.monotonic() + later.wait_s
            raise
        self._taken.update(map(_place, part))
        metrics.OTLP_SENT.labels(self._signal).inc(max(0, len(records) - rejected))
        metrics.OTLP_REJECTED.labels(self._signal).inc(rejected)
        if rejected or reason:
            log.warning(
                "the back end took a request in part", signal=self._signal, first=part[0].place, records=len(records),
                rejected=rejected, reason=reason,
            )  # fmt: skip


def _place(message: Message) -> Place:
    return message.topic, message.partition, message.offset
