"""What reads topics: the writers, and the agents that teams add. Agents are thin: take a batch, deliver, acknowledge in
order.

An agent's file needs no more than this: `from pipeline.agents import agent, drop, LogRecord`.
"""

from pipeline.agents.api import Agent, Answer, Context, Drop, agent, drop
from pipeline.errors import Unavailable
from pipeline.record.records import (
    Exemplar,
    LogRecord,
    MetricPoint,
    Quantile,
    Record,
    Span,
    SpanEvent,
    SpanLink,
)

__all__ = [
    "Agent", "Answer", "Context", "Drop", "Exemplar", "LogRecord", "MetricPoint", "Quantile", "Record", "Span",
    "SpanEvent", "SpanLink", "Unavailable", "agent", "drop",
]  # fmt: skip
