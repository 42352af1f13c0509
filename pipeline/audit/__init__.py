"""Promise 2: proof from Kafka and the stores alone that nothing is missing and nothing doubled.

Trusts no writer and shares no code with those that count and encode. What the writers have not stored yet counts as
missing: on a running pipeline let the window end a moment ago.
"""

from collections.abc import Sequence
from contextlib import closing
from functools import partial

import numpy as np

from pipeline.audit import agents, stores, topics
from pipeline.audit.decode import SIGNALS, Signal
from pipeline.audit.findings import Elsewhere, Findings, compare
from pipeline.audit.report import InKafka, Report, SignalReport
from pipeline.audit.sets import Bools, Ids
from pipeline.audit.topics import Kafka, Progress
from pipeline.audit.window import Window
from pipeline.kafka.reader import Reader
from pipeline.settings import Settings

__all__ = ["SIGNALS", "Report", "Signal", "Window", "audit"]

EVER = Window()


def audit(
    settings: Settings,
    *,
    signals: Sequence[Signal] = SIGNALS,
    window: Window = EVER,
    progress: Progress = lambda what, done, total: None,
    stores_of: Settings | None = None,
) -> Report:
    """Compare the event_ids in Kafka with what readers of each store see, for receipts in `window`.

    With `stores_of` the stores, and the dead letters of their writers, are another region's. They hold more than what
    came from this Kafka: that is not extra.

    Nothing is written anywhere, no consumer group is touched. Raises Misconfigured where a topic or table is missing,
    Unavailable where Kafka or a store is away.
    """
    reader = Reader(settings.kafka)
    sources = [topics.source(signal, settings) for signal in signals]
    topics.demand(reader.topics(), sources, settings.kafka)
    found: dict[str, SignalReport] = {}
    for source in sources:
        kept_by = stores.of(source.signal, stores_of or settings)
        read = topics.read(reader, source, kept_by, window, progress)
        if stores_of:
            letters = topics.dead_letters(Reader(stores_of.kafka), topics.source(source.signal, stores_of), window)
            read = {part: kafka.given_up(letters.get(part)) for part, kafka in read.items()}
        for part, kafka in read.items():
            tell = partial(topics.elsewhere, reader, source, kafka, progress=progress)
            judged = _judged(kafka, kept_by[part], window, _anywhere if stores_of else tell, progress)
            found[part] = SignalReport(InKafka.of(kafka), judged)
    routes = {each.signal: each.routed for each in sources}
    return Report(window, found, *agents.audit(reader, routes, window, progress))


def _judged(
    kafka: Kafka, kept_by: Sequence[stores.Open], window: Window, elsewhere: Elsewhere, progress: Progress
) -> dict[str, Findings]:
    found = {}
    for connect in kept_by:
        with closing(connect()) as store:
            found[store.name] = compare(kafka, store, window, elsewhere, progress)
    return found


def _anywhere(ids: Ids) -> Bools:
    """What no region's Kafka alone can tell: any row may be another's."""
    return np.ones(len(ids), bool)
