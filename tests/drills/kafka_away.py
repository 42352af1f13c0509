"""Kafka away for ten minutes, the gateway killed five times meanwhile: what was answered OK is stored once."""

import time

from pipeline.local import Stack
from pipeline.settings import Settings
from tests.bench import measured
from tests.drills.context import Context, Failed
from tests.drills.exporters import Exporters
from tests.drills.proof import audited, counted, pipeline, read_once

AWAY_S, SHORT_AWAY_S = 600.0, 15.0
KILLS, SHORT_KILLS = 5, 2
AROUND_S, SHORT_AROUND_S = 20.0, 3.0  # of load before and after
ANSWERED_WITHIN_S = 120.0
STORED_WITHIN_S, SHORT_STORED_WITHIN_S = 600.0, 60.0
RECONNECT_S = 2.5  # until clients know that a new gateway is there
SHED_FROM = 0.8  # of the spool

Windows = list[tuple[float, float]]


def drill(context: Context) -> str:
    """(a) the audit is clean, (b) every number answered OK is read once, (c) no answer but allowed ones, (d) no shedding."""
    with context.whole_stack() as (stack, settings):
        load = Exporters(settings)
        load.start()
        watch = Watch(context, settings, load)
        watch.for_s(SHORT_AROUND_S if context.short else AROUND_S)
        stack.stop(["kafka"])
        windows = _outage(context, stack, settings, watch)
        stack.start(["kafka"])
        context.tell("Kafka is back")
        watch.for_s(SHORT_AROUND_S if context.short else AROUND_S)
        load.finish(ANSWERED_WITHIN_S)
        within_s = SHORT_STORED_WITHIN_S if context.short else STORED_WITHIN_S
        if not measured.wait_until(watch.drained, within_s):
            raise Failed(f"The spool is not drained {within_s:.0f} s after Kafka came back: {watch.said()}")
        audited(settings, within_s)
        read_once(settings, load)
        _allowed(load, windows)
        if not watch.oldest_s:
            raise Failed("Nothing was seen in the spool: the drill drilled nothing.")
        if load.partial and watch.level <= SHED_FROM:
            raise Failed(
                f"partial_success {len(load.partial)} times while the spool was {watch.level:.0%} full at most."
            )
        if load.unanswered:
            raise Failed(f"{load.unanswered:,} records were never answered.")
        down_s = sum(end - start for start, end in windows)
        answered = sum(len(numbers) for numbers in load.answered.values())
        return (
            f"{answered:,} of {load.offered:,} records answered OK and stored once ({load.dropped:,} dropped by full queues of clients); "
            f"{len(windows)} kills, {down_s:.1f} s without a gateway; {watch.said()}; audit clean; heard: {counted(load.heard)}"
        )


class Watch:
    """Reads the gateway's metrics; a gateway that is killed starts counting anew, so the most is kept."""

    def __init__(self, context: Context, settings: Settings, load: Exporters) -> None:
        self._context = context
        self._url = f"http://127.0.0.1:{settings.gateway.http_port}/metrics"
        self._load = load
        self.level = 0.0
        self.oldest_s = 0.0

    def for_s(self, seconds: float) -> None:
        """Watch for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                self.level = max(self.level, measured.counted(self._url, "pipeline_spool_level_ratio"))
                self.oldest_s = max(self.oldest_s, measured.counted(self._url, "pipeline_spool_oldest_seconds"))
            except OSError:
                pass
            answered = sum(len(numbers) for numbers in self._load.answered.values())
            self._context.tell_now_and_then(
                lambda answered=answered: f"{self._load.offered:,} offered, {answered:,} answered OK; {self.said()}"
            )
            time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))

    def drained(self) -> bool:
        """Whether nothing waits in the spool."""
        try:
            return not any(
                measured.counted(self._url, f"pipeline_spool_{name}") for name in ("messages", "oldest_seconds")
            )
        except OSError:
            return False

    def said(self) -> str:
        return f"spool at most {self.level:.2%} full, its oldest {self.oldest_s:.0f} s"


def _outage(context: Context, stack: Stack, settings: Settings, watch: Watch) -> Windows:
    """Kill and start the gateway at even distances while Kafka is away; return when it was not there."""
    away_s, kills = (SHORT_AWAY_S, SHORT_KILLS) if context.short else (AWAY_S, KILLS)
    started, windows = time.monotonic(), []
    for kill in range(kills):
        watch.for_s(started + away_s * (kill + 1) / (kills + 1) - time.monotonic())
        gateway = measured.process(stack, "gateway")
        killed = time.monotonic()
        gateway.kill()
        gateway.wait()  # where it is our own child, or its successor would wait for the zombie to go
        pipeline(settings, "local", "start", "gateway")
        windows.append((killed, time.monotonic()))
        context.tell(f"kill -9 {kill + 1} of {kills}: a new gateway serves after {windows[-1][1] - killed:.1f} s")
    watch.for_s(started + away_s - time.monotonic())
    return windows


def _allowed(load: Exporters, windows: Windows) -> None:
    """Raise Failed where a client heard what the specification does not allow while a gateway was there."""
    faults = [
        fault for fault in load.faults if not any(start <= fault.at <= end + RECONNECT_S for start, end in windows)
    ]
    if faults:
        raise Failed(
            f"{len(faults)} answers that the specification does not allow: {counted(fault.what for fault in faults)}"
        )
