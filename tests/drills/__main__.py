"""`make drills`: what takes long. Seeded, resumable, and with a report at the end.

Progress and report lie in .local/drills. A run that was interrupted goes on with `--resume`: finished drills are not
run again, the fuzz goes on at its request number. `--only N` replays one request of the fuzz.

Exit codes: 0 all passed, 1 one failed, 2 misconfigured, 130 interrupted.
"""

import argparse
import json
import pathlib
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.errors import PipelineError
from pipeline.settings import ROOT
from tests.drills import (
    agents,
    fuzz_encoders,
    fuzz_gateway,
    kafka_away,
    killer,
    otlp_writer,
    regions,
    registry,
    replay,
    rewind,
    soak,
    spool_crashes,
    store_away,
)
from tests.drills.context import Context, Failed

Drill = Callable[[Context], str]
DRILLS: dict[str, Drill] = {
    "kafka_away": kafka_away.drill,
    "spool_crashes": spool_crashes.drill,
    "fuzz_encoders": fuzz_encoders.drill,
    "fuzz_gateway": fuzz_gateway.drill,
    "soak": soak.drill,
    "store_away": store_away.drill,
    "killer": killer.drill,
    "rewind": rewind.drill,
    "registry": registry.drill,
    "agents": agents.drill,
    "otlp_writer": otlp_writer.drill,
    "regions": regions.drill,
    "replay": replay.drill,
}
HOME = ROOT / ".local" / "drills"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="drill", help=f"default all: {', '.join(DRILLS)}")
    parser.add_argument("--short", action="store_true", help="the form that `make test` runs")
    parser.add_argument("--seed", type=int, help="default: a new one, which is told")
    parser.add_argument("--resume", action="store_true", help="go on where the last run was interrupted")
    parser.add_argument("--only", type=int, metavar="N", help="fuzz_gateway: replay request N of --seed")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in DRILLS]
    if unknown:
        parser.error(f"there is no drill {', '.join(unknown)}; there are {', '.join(DRILLS)}")
    if options.resume and (options.names or options.short or options.seed is not None):
        parser.error("--resume goes on with the drills, seed and form of the run that was interrupted")
    if options.only is not None and (options.names != ["fuzz_gateway"] or options.seed is None):
        parser.error("--only N needs fuzz_gateway and --seed")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A replay leaves the progress of a long run alone.
    progress = Progress(HOME if options.only is None else HOME / "replay", resume=options.resume)
    if not options.resume:
        seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
        progress.begin(options.names or list(DRILLS), seed, options.short)
    interrupted = False
    for name in progress.left():
        try:
            progress.run(name, options.only)
        except KeyboardInterrupt:
            print(f"interrupted; `--resume` goes on with {name}", file=sys.stderr)
            interrupted = True
            break
    report = progress.report()
    _show(report)
    failed = any(row["verdict"] == "failed" for row in report)
    sys.exit(130 if interrupted else 1 if failed else 0)


class Progress:
    """What is done and where each drill is, in `home`/progress.json after every step."""

    def __init__(self, home: pathlib.Path, *, resume: bool) -> None:
        self._home = home
        self._file = home / "progress.json"
        self._state: dict[str, Any] = {"names": [], "seed": 0, "short": False, "at": {}, "done": {}}
        if resume:
            try:
                self._state = json.loads(self._file.read_text())
            except FileNotFoundError:
                sys.exit("There is no run to resume: start one without --resume.")

    def begin(self, names: list[str], seed: int, short: bool) -> None:
        self._state = {"names": names, "seed": seed, "short": short, "at": {}, "done": {}}
        self.write()

    def left(self) -> list[str]:
        return [name for name in self._state["names"] if name not in self._state["done"]]

    def run(self, name: str, only: int | None = None) -> None:
        """Run one drill and note its verdict; an interruption passes, and leaves the drill to be resumed."""
        state = self._state
        at = state["at"].setdefault(name, {})
        context = Context(name, self._home / name, state["seed"], state["short"], at, self.write, only)
        context.home.mkdir(parents=True, exist_ok=True)
        context.tell(f"seed {state['seed']}{', short form' if state['short'] else ''}")
        started = time.monotonic()
        row = {"drill": name, "seed": state["seed"], "short": state["short"]}
        try:
            said, verdict = DRILLS[name](context), "passed"
        except (Failed, PipelineError) as failure:
            said, verdict = str(failure), "failed"
        finally:
            at["seconds"] = at.get("seconds", 0.0) + time.monotonic() - started
            self.write()
        state["done"][name] = {**row, "seconds": round(at["seconds"], 1), "verdict": verdict, "said": said}
        context.tell(f"{verdict}: {said}")
        self.write()

    def report(self) -> list[dict[str, Any]]:
        """A row for each drill that ended, also written to report.json."""
        rows = list(self._state["done"].values())
        (self._home / "report.json").write_text(json.dumps(rows, indent=2) + "\n")
        return rows

    def write(self) -> None:
        self._home.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(self._state, indent=2) + "\n")
        fresh.replace(self._file)


def _show(report: list[dict[str, Any]]) -> None:
    table = Table("drill", "seed", "minutes", "verdict", "it says")
    for row in report:
        table.add_row(
            row["drill"],
            str(row["seed"]),
            f"{row['seconds'] / 60:.1f}",
            row["verdict"],
            textwrap.shorten(row["said"], 400),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main()
