"""Power failures, damage and full disks at every write: nothing that was acknowledged is lost, nothing is made up.

DRILL_EXAMPLES says how many runs of the state machine; a few by default.
"""

import contextlib
import os
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.errors import Unavailable
from pipeline.spool.spool import ADOPT_EVERY_S, Spool
from tests.spool.disk import Disk
from tests.spool.world import Clock, everything, message, number_of, spool

EXAMPLES = int(os.environ.get("DRILL_EXAMPLES", "40"))
SIZES = st.sampled_from([0, 10, 2_000, 20_000, 60_000])


class Crashes(RuleBasedStateMachine):
    """Acknowledged and not deleted is there byte for byte; what was never put is not; deleted stays deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        directory = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.stack.callback(shutil.rmtree, directory, ignore_errors=True)
        self.disk = Disk(directory)
        self.stack.enter_context(self.disk.installed())
        self.clock = Clock()
        self.chance = random.Random(0)
        self.count = 0
        self.sizes: dict[int, int] = {}  # of everything that was ever put
        self.kept: set[int] = set()
        self.unknown: set[int] = set()  # put or deleted without acknowledgement
        self.spools = [self.start()]

    def start(self) -> Spool:
        return spool(self.disk.directory, clock=self.clock, vfs=self.disk.vfs)

    @rule(sizes=st.lists(SIZES, min_size=1, max_size=6), which=st.integers(0, 1))
    def put(self, sizes: list[int], which: int) -> None:
        into = self.spools[which % len(self.spools)]
        numbers = range(self.count, self.count + len(sizes))
        self.count += len(sizes)
        self.sizes.update(zip(numbers, sizes, strict=True))
        futures = [into.put(message(number, self.sizes[number])) for number in numbers]
        for number, future in zip(numbers, futures, strict=True):
            acknowledged = future.exception(30) is None
            (self.kept if acknowledged else self.unknown).add(number)
        self.come_back()

    @rule(limit=st.integers(1, 10), which=st.integers(0, 1))
    def drain(self, limit: int, which: int) -> None:
        from_ = self.spools[which % len(self.spools)]
        with contextlib.suppress(Unavailable):
            stored = from_.oldest(limit, 100_000)
            numbers = {number_of(each.message) for each in stored}
            assert numbers <= self.kept | self.unknown
            self.kept -= numbers
            self.unknown |= numbers
            from_.delete([each.id for each in stored])
            self.unknown -= numbers
        self.come_back()

    @rule()
    def drain_all(self) -> None:
        for _ in range(1000):
            self.drain(1000, 0)
            if not self.spools[0].level().messages or self.disk.full:
                break

    @rule(seconds=st.sampled_from([0.5, ADOPT_EVERY_S]))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule()
    def another_process(self) -> None:
        if len(self.spools) == 1:
            self.spools.append(self.start())
        self.come_back()

    @rule()
    def a_process_ends(self) -> None:
        self.spools.pop(0).close()
        if not self.spools and not self.disk.dead:
            self.spools.append(self.start())
        self.come_back()

    @rule(operations=st.integers(0, 60), seed=st.integers(0, 2**32))
    def power_fails_after(self, operations: int, seed: int) -> None:
        self.disk.fuse = operations
        self.chance = random.Random(seed)

    @rule(operations=st.integers(0, 30))
    def one_operation_fails_after(self, operations: int) -> None:
        self.disk.failing = operations

    @rule(full=st.booleans())
    def disk_is_full(self, full: bool) -> None:
        self.disk.full = full

    @rule(seed=st.integers(0, 2**32))
    def power_fails(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.disk.dead = True
        self.come_back()

    def come_back(self) -> None:
        """After a power failure: everything that must be there is, and nothing else; then begin anew."""
        while self.disk.dead:
            for each in self.spools:
                each.close()
            self.disk.crash(self.chance)
            self.clock.now_s += ADOPT_EVERY_S + 1
            self.spools = [self.start()]
            self.check()

    def check(self) -> None:
        only = self.spools[0]
        self.clock.now_s += ADOPT_EVERY_S + 1
        only.oldest(1, 1)  # adopts
        found = [each.message for each in everything(only)]
        numbers = [number_of(each) for each in found]
        assert len(numbers) == len(set(numbers)), "stored twice"
        assert self.kept <= set(numbers), f"lost {self.kept - set(numbers)}"
        assert set(numbers) <= self.kept | self.unknown, f"came back {set(numbers) - self.kept - self.unknown}"
        assert all(each == message(number_of(each), self.sizes[number_of(each)]) for each in found)
        assert only.losses == (0, 0)
        self.kept = set(numbers)
        self.unknown = set()

    @invariant()
    def level_is_what_is_kept(self) -> None:
        level = sum(each.level().messages for each in self.spools)
        assert level <= len(self.kept | self.unknown)

    def teardown(self) -> None:
        if not self.disk.dead:
            self.disk.dead = True
            self.come_back()
        for each in self.spools:
            each.close()
        self.stack.close()


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
