"""`make bench`: gateway, ch_writer and pg_writer on a stack of their own, beside the numbers of design section 10.

`python -m tests.bench goals` prints the part of it that is the encoder and the gateway;
`make bench-gateway` (`python -m tests.bench gateway`) looks at the gateway alone, closely: see tests/bench/gateway.py;
`make bench-peers` (`python -m tests.bench peers`) at a Collector beside it: see tests/bench/peers.py;
`make bench-writers` (`python -m tests.bench writers`) at the writers: see tests/bench/writers.py;
`make bench-agents` (`python -m tests.bench agents`) at an agent's process: see tests/bench/agents.py;
`python -m tests.bench queries` at what readers pay: see tests/bench/queries.py.
"""

import argparse
import json
import pathlib
import signal
import sys
from collections.abc import Iterator

from pipeline.local import Stack
from pipeline.settings import ROOT, Settings
from tests.bench import agents, gateway, measured, peers, queries, writers
from tests.bench.measured import Row
from tests.conftest import settings_on_free_ports

COLUMNS = (
    "load", "records/s", "us CPU a record", "us CPU of the server", "p50 ms", "p99 ms", "RSS MB", "floor", "verdict",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    rooms = ["all", "goals", "gateway", "peers", "writers", "queries", "agents"]
    parser.add_argument("what", nargs="?", choices=rooms, default="all")
    parser.add_argument("--short", action="store_true", help="goals, gateway, peers: a minute instead of five")
    parser.add_argument("--scale", type=float, help="writers and queries: of their records")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped
    settings = settings_on_free_ports(ROOT / ".local" / "bench")
    stack = Stack(settings, lambda line: print(line, file=sys.stderr))
    match options.what:
        case "gateway":
            sys.exit(gateway.run(stack, settings, short=options.short, as_json=options.json))
        case "peers":
            sys.exit(peers.run(stack, settings, short=options.short, as_json=options.json))
        case "writers":
            sys.exit(writers.run(stack, settings, scale=options.scale or 1.0, as_json=options.json))
        case "agents":
            sys.exit(agents.run(settings.local.home / "agents", as_json=options.json))
        case "queries":
            queries.run(stack, settings, scale=options.scale or 1.0, as_json=options.json)
            return
        case "goals":
            found = list(hot_path(stack, settings, short=options.short))
        case _:
            found = list(measure(stack, settings, options.scale or 0.5))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    measured.show(found, COLUMNS)


def hot_path(stack: Stack, settings: Settings, *, short: bool) -> Iterator[Row]:
    """The encoder, and the gateway with nothing beside it but Kafka."""
    yield from gateway.encoding(10 if short else 30)
    with gateway.started(stack, settings) as ours:
        yield from gateway.goals(ours, 2 if short else 6)


def measure(stack: Stack, settings: Settings, scale: float) -> Iterator[Row]:
    yield from gateway.encoding(30)
    stack.wipe()
    try:
        stack.up()
        stack.stop(["pg_writer", "ch_writer"])
        yield from gateway.goals(gateway.target(stack, settings), 6)
    finally:
        stack.wipe()
    yield from writers.measure(stack, settings, scale)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path.cwd()))
    main()
