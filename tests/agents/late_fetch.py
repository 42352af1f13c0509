"""`pipeline`, of which a writer's fetches are answered after the next rebalance, once the file of LATE_FETCH is there;
where the file of EARLY_FETCH is there, one is answered before the writer hears of the rebalance that it came after.

So does a process find them that gets no CPU for a while.
"""

import asyncio
import os
import pathlib
from typing import Any

from pipeline import cli
from pipeline.agents import worker

TOGETHER = 10  # fetches
RESUMED_S = 1.0  # from the assignment to the first fetch after it

watch_offsets = worker._Agents._watch_offsets


def watch_late_offsets(self: worker._Agents, consumer: Any) -> None:
    getmany, assigned = consumer._getmany, asyncio.Event()
    late, early = (pathlib.Path(os.environ[name]) for name in ("LATE_FETCH", "EARLY_FETCH"))

    @self._app.on_partitions_assigned.connect(weak=False)
    async def on_assigned(*_: Any, **__: Any) -> None:
        assigned.set()

    async def getmany_late(active_partitions: Any, timeout: float) -> Any:
        records = dict(await getmany(active_partitions, timeout))
        if records and late.exists():
            for _ in range(TOGETHER):
                for place, more in (await getmany(active_partitions, 0.1)).items():
                    records[place] = [*records.get(place, ()), *more]
            assigned.clear()
            late.unlink()
            await assigned.wait()
            await asyncio.sleep(RESUMED_S)
        if records and early.exists():
            early.unlink()
            self._assignments += 1
        return records

    consumer._getmany = getmany_late
    watch_offsets(self, consumer)


if __name__ == "__main__":
    worker._Agents._watch_offsets = watch_late_offsets  # type: ignore[method-assign]
    cli.main()
