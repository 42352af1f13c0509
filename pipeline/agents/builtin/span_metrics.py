"""Makes calls, errors and durations of spans, by service and operation, metrics of their own.

Reads `traces_raw`, writes the topic `span_metrics`, which the setting `routes.metrics` must name beside others:

    [routes]
    metrics = ["metrics_raw", "span_metrics"]

    [agents.span_metrics]
    bounds_s = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]    # of the histogram (default)

Two metrics, named and labelled as by the Collector's span metrics connector (`service.name`, `span.name`, `span.kind`,
`status.code`), both deltas: the sum `traces.span.metrics.calls` and the histogram `traces.span.metrics.duration` in
seconds. They add up over time, services and regions:

    SELECT date_trunc('minute', time), sum(value) FROM metrics WHERE metric_name = 'traces.span.metrics.calls'
        AND labels ->> 'status.code' = 'STATUS_CODE_ERROR' GROUP BY 1

A span counts in the minute in which it ended. The spans that one request sent to one partition make a point each series
and minute. It is a function of them alone, and so are its id and its time, so that what is delivered, sent or replayed
again is stored once. Which microsecond of its second a point gets is told by its first span's id: ClickHouse keeps all
points; PostgreSQL, which keeps one of a series and microsecond, loses of 100 points of one series in one second one in
20,000, and counts it as superseded. Sampled spans are counted as they come: read what is not sampled yet.
"""

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, field_validator

from pipeline.agents import Context, MetricPoint, Span, agent
from pipeline.record.times import SANE_AHEAD_NS, SANE_FROM_NS, receipt_ns

SECOND_NS = 10**9
MINUTE_NS = 60 * SECOND_NS
KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
STATUSES = ("UNSET", "OK", "ERROR")


class Settings(BaseModel):
    bounds_s: tuple[float, ...] = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

    @field_validator("bounds_s")
    @classmethod
    def _ascend(cls, bounds: tuple[float, ...]) -> tuple[float, ...]:
        if not bounds or any(low >= high for low, high in itertools.pairwise(bounds)):
            raise ValueError("bounds must be one or more, each larger than the one before")
        return bounds


class Series(NamedTuple):
    """What the spans of a point have in common."""

    minute: int
    service: str
    name: str
    kind: str
    status: str


@agent(reads="traces_raw", writes="span_metrics", version=2, batch=True, aggregates=True, settings=Settings)
def span_metrics(spans: Sequence[Span], context: Context[Settings, None]) -> list[list[MetricPoint]]:
    ended = [_ended(span) for span in spans]
    members: dict[Series, list[int]] = {}
    for number, span in enumerate(spans):
        series = Series(
            ended[number] // MINUTE_NS,
            span.service,
            span.name,
            KINDS[span.kind] if 0 <= span.kind < len(KINDS) else KINDS[0],
            STATUSES[span.status_code] if 0 <= span.status_code < len(STATUSES) else STATUSES[0],
        )
        members.setdefault(series, []).append(number)
    answers: list[list[MetricPoint]] = [[] for _ in spans]
    for series, numbers in members.items():
        first = numbers[0]
        second = max(ended[number] for number in numbers) // SECOND_NS
        time = second * SECOND_NS + int.from_bytes(spans[first].event_id[:8], "big") % 10**6 * 1000
        answers[first] = _points(series, [_duration_s(spans[number]) for number in numbers], time, context.settings)
    return answers


def _points(series: Series, durations_s: list[float], time: int, settings: Settings) -> list[MetricPoint]:
    counts = [0] * (len(settings.bounds_s) + 1)
    for duration_s in durations_s:
        counts[bisect_left(settings.bounds_s, duration_s)] += 1
    attributes = {
        "span.name": series.name,
        "span.kind": f"SPAN_KIND_{series.kind}",
        "status.code": f"STATUS_CODE_{series.status}",
    }
    common = MetricPoint(
        service=series.service,
        resource_attributes={"service.name": series.service},
        attributes=attributes,
        temporality="delta",
        start_time=series.minute * MINUTE_NS,
        time=time,
    )
    return [
        common.replace(
            metric_name="traces.span.metrics.calls", type="sum", monotonic=True, int_value=len(durations_s), unit="1",
            description="Spans that ended.",
        ),
        common.replace(
            metric_name="traces.span.metrics.duration", type="histogram", unit="s", count=len(durations_s),
            sum=sum(durations_s), min=min(durations_s), max=max(durations_s), explicit_bounds=settings.bounds_s,
            bucket_counts=tuple(counts), description="How long they took.",
        ),
    ]  # fmt: skip


def _ended(span: Span) -> int:
    """When it ended, or else began, or else was received: the first of these that can be, ns."""
    received = receipt_ns(span.received_time)
    for time in (span.end_time, span.start_time):
        if SANE_FROM_NS <= time <= received + SANE_AHEAD_NS - SECOND_NS:
            return time
    return received


def _duration_s(span: Span) -> float:
    return max(0, span.end_time - span.start_time) / 1e9 if span.start_time > 0 else 0.0
