"""Keeps a part of all traces, whole, and all errors and slow spans; totals can still be told.

    [agents.sample]
    ratio = 0.1                 # of traces, kept (default)
    slow_ms = 1000              # a span that takes longer is kept (default)
    key = "sampling.adjusted_count"

    [agents.sample.services]
    checkout = 1.0              # another ratio for a service

Reads `traces_raw`, writes `traces_norm`. A span is chosen by its trace's randomness alone, as OpenTelemetry's
consistent probability sampling says: every sampler with that ratio, here, in another region or in a Collector, keeps
the same traces, and one with a larger ratio keeps these too. The threshold that was used goes into tracestate
(`ot=th:…`), and how many spans one stands for into an attribute: the sum of it estimates how many there were:

    SELECT service, sum(toFloat64OrDefault(attributes['sampling.adjusted_count'], 1.0)) FROM traces GROUP BY service

A span that an earlier sampler chose with a smaller ratio keeps that one's threshold. A span that is kept because it
failed or was slow stands for itself alone, so its trace may be incomplete. Dropped spans are counted as `not sampled`.
"""

import re
from typing import Annotated, NamedTuple

from pydantic import BaseModel, Field

from pipeline.agents import Context, Drop, Span, agent, drop

BITS = 56
ALL = 1 << BITS
ERROR = 2  # StatusCode
THRESHOLD = re.compile(r"[0-9a-f]{1,14}")
RANDOM_VALUE = re.compile(r"[0-9a-f]{14}")
Ratio = Annotated[float, Field(gt=2**-BITS, le=1)]


class Settings(BaseModel):
    ratio: Ratio = 0.1
    slow_ms: Annotated[float, Field(gt=0)] = 1000.0
    key: Annotated[str, Field(min_length=1)] = "sampling.adjusted_count"
    services: dict[str, Ratio] = {}


class State(NamedTuple):
    """What tracestate says to samplers. Source: OpenTelemetry, "TraceState Handling" and "Probability Sampling".

    `threshold` is T, of 56 bits: kept where the randomness R >= T; None where no sampler said so. `random` is an
    explicit R. `own` are the other parts of `ot`, `others` the other members of the list.
    """

    threshold: int | None
    random: int | None
    own: list[str]
    others: list[str]

    def written(self, threshold: int) -> str:
        """The tracestate with that threshold."""
        digits = f"{threshold:014x}".rstrip("0") or "0"
        return ",".join([f"ot={';'.join([f'th:{digits}', *self.own])}", *self.others])


@agent(reads="traces_raw", writes="traces_norm", version=1, settings=Settings)
def sample(span: Span, context: Context[Settings, None]) -> Span | Drop:
    settings = context.settings
    state = parsed(span.trace_state)
    randomness = int.from_bytes(span.trace_id[-BITS // 8 :], "big") if state.random is None else state.random
    before = 0 if state.threshold is None or randomness < state.threshold else state.threshold
    wanted = max(before, threshold_of(settings.services.get(span.service, settings.ratio)))
    if span.status_code == ERROR or span.end_time - span.start_time > settings.slow_ms * 1e6:
        threshold = before  # also in a trace that is chosen: it is kept for sure
    elif randomness >= wanted:
        threshold = wanted
    else:
        return drop("not sampled")
    return span.replace(
        trace_state=state.written(threshold),
        attributes={**span.attributes, settings.key: f"{ALL / (ALL - threshold):.10g}"},
    )


def threshold_of(ratio: float) -> int:
    """T of a ratio."""
    return ALL - round(ratio * ALL)


def parsed(trace_state: str) -> State:
    """What is malformed counts as not there, and is left out."""
    members = [each.strip() for each in trace_state.split(",") if each.strip()]
    own = next((each[3:].split(";") for each in members if each.startswith("ot=")), [])
    threshold = random = None
    rest = []
    for part in own:
        name, _, value = part.partition(":")
        if name == "th":
            threshold = int(value.ljust(14, "0"), 16) if THRESHOLD.fullmatch(value) else None
        elif name == "rv" and RANDOM_VALUE.fullmatch(value):
            random = int(value, 16)
            rest.append(part)
        elif part and name != "rv":
            rest.append(part)
    return State(threshold, random, rest, [each for each in members if not each.startswith("ot=")])
