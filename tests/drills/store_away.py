"""Each store away for fifteen minutes under load: nobody restarts, nobody rebalances, the lag grows and drains."""

import time

from pipeline.local import Stack
from pipeline.settings import Settings
from tests.agents.group import Group
from tests.bench import measured
from tests.drills.context import Context, Failed
from tests.drills.exporters import Exporters
from tests.drills.proof import audited, lag, read_once

AWAY_S, SHORT_AWAY_S = 900.0, 17.0  # longer than a session of 15 s: who left the group would be seen
BEFORE_S = 5.0
DRAINED_WITHIN_S, SHORT_DRAINED_WITHIN_S = 600.0, 120.0
ANSWERED_WITHIN_S = 60.0
STORES = {"clickhouse": "ch_writer", "postgres": "pg_writer"}


def drill(context: Context) -> str:
    """One store after the other; at the end the audit is clean and every number is read once."""
    with context.whole_stack() as (stack, settings):
        load = Exporters(settings)
        load.start()
        time.sleep(BEFORE_S)
        said = [_away(context, stack, settings, store) for store in STORES]
        load.finish(ANSWERED_WITHIN_S)
        within_s = SHORT_DRAINED_WITHIN_S if context.short else DRAINED_WITHIN_S
        audited(settings, within_s)
        read_once(settings, load)
        answered = sum(len(numbers) for numbers in load.answered.values())
    return f"{answered:,} records answered OK and stored once; {'; '.join(said)}; audit clean"


def _away(context: Context, stack: Stack, settings: Settings, store: str) -> str:
    writer = STORES[store]
    group = Group(settings.kafka.bootstrap_servers, writer)
    before, members = measured.process(stack, writer), group.members()

    def undisturbed(when: str) -> None:
        if not before.is_running() or measured.process(stack, writer) != before:
            raise Failed(f"{writer} was restarted {when}.")
        if group.members() != members or not group.settled(len(members)):
            raise Failed(f"{writer}'s group was rebalanced {when}.")

    undisturbed(f"before {store} was away")
    stack.stop([store])
    deadline, most = time.monotonic() + (SHORT_AWAY_S if context.short else AWAY_S), 0
    while time.monotonic() < deadline:
        most = max(most, lag(settings, writer))
        undisturbed(f"while {store} was away")
        context.tell_now_and_then(lambda: f"{store} is away, {writer} lags {most:,} messages")  # noqa: B023
        time.sleep(1)
    stack.start([store])
    within_s = SHORT_DRAINED_WITHIN_S if context.short else DRAINED_WITHIN_S
    if not measured.wait_until(lambda: lag(settings, writer) <= most // 20, within_s):
        raise Failed(f"{writer} lags {lag(settings, writer):,} messages {within_s:.0f} s after {store} came back.")
    undisturbed(f"when {store} came back")
    if most < 5:
        raise Failed(f"{writer} lagged {most} messages at most while {store} was away: the drill drilled nothing.")
    return f"{store} away, {writer} lagged {most:,} messages and drained"
