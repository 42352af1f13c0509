"""Mutated requests through both implementations of the encoder, by the million: the same bytes and the same sentences.

The extension may take at most a multiple of a request's and its result's size in memory, and none may be left behind.
What differed lies in .local/drills/fuzz_encoders/failures.
"""

import os
import random
import time

import psutil
from hypothesis import HealthCheck, Phase, given, settings

from pipeline.record import schema
from tests.drills.context import Context, Failed
from tests.native.both import alike, built, rules
from tests.otlp.requests import ONE_OF_EVERYTHING, REQUESTS
from tests.otlp.scramble import mutate, scramble

REQUESTS_OF_DRILL, SHORT_REQUESTS = 1_000_000, 3_000
SEEDS = 150  # generated requests a signal that are mutated
SLOW_S = 1.0  # of CPU: a busy machine is no hang
KEEP_EVERY = 1_000
GROWTH_MB = 64.0


def drill(context: Context) -> str:
    """All of them, or from where an interrupted run had come; each is made of the seed and its number alone."""
    if not built():
        raise Failed("The extension was not built: install Rust (cargo), then the project again.")
    pool = {signal: _requests(signal) for signal in schema.SIGNALS}
    total = SHORT_REQUESTS if context.short else REQUESTS_OF_DRILL
    outcomes: dict[str, int] = context.at.setdefault("outcomes", {})
    process, before = psutil.Process(os.getpid()), 0.0
    first = context.at.get("next", 0)
    for number in range(first, total):
        if number == first + min(KEEP_EVERY, total // 10):
            before = process.memory_info().rss / 1e6
        outcome = _one(context, pool, number)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        context.at["next"] = number + 1
        if number % KEEP_EVERY == 0:
            context.keep()
            context.tell_now_and_then(lambda: f"{context.at['next']:,} of {total:,}: {outcomes}")
    grown = process.memory_info().rss / 1e6 - before
    if grown > GROWTH_MB:
        raise Failed(f"{total:,} requests left {grown:.0f} MB behind.")
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
    return f"{total:,} mutated requests, the same of both: {told}; {grown:.0f} MB left behind"


def _one(context: Context, pool: dict[schema.Signal, list[tuple[bytes, object]]], number: int) -> str:
    rng = random.Random(f"{context.seed}/{number}")
    signal = rng.choice(schema.SIGNALS)
    body, message = rng.choice(pool[signal])
    if rng.random() < 0.6:
        body = scramble(body, message.DESCRIPTOR, rng)  # type: ignore[attr-defined]
    if rng.random() < 0.7:
        body = mutate(body, rng)
    started = time.process_time()
    try:
        outcome = alike(signal, body, rules(rng))
    except BaseException as error:  # a panic is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        failures = context.home / "failures"
        failures.mkdir(exist_ok=True)
        (failures / f"{number}.{signal}.binpb").write_bytes(body)
        raise Failed(
            f"Request {number} of seed {context.seed} ({signal}): {type(error).__name__}; {failures}"
        ) from error
    if time.process_time() - started > SLOW_S:
        raise Failed(
            f"Request {number} of seed {context.seed} ({signal}) of {len(body)} bytes took more than {SLOW_S} s of CPU."
        )
    return outcome[0] if isinstance(outcome, tuple) else "taken"


def _requests(signal: schema.Signal) -> list[tuple[bytes, object]]:
    """The same ones in every run."""
    found: list[tuple[bytes, object]] = [(ONE_OF_EVERYTHING[signal].SerializeToString(), ONE_OF_EVERYTHING[signal])]

    @settings(
        max_examples=SEEDS, database=None, derandomize=True, phases=[Phase.generate], deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(REQUESTS[signal])
    def collect(message: object) -> None:
        found.append((message.SerializeToString(), message))  # type: ignore[attr-defined]

    collect()
    return found
