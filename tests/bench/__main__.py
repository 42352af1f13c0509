"""`make bench`: gateway, ch_writer and pg_writer on a stack of their own, beside the numbers of design section 10.

`make bench-gateway` (`python -m tests.bench gateway`) looks at the gateway alone, closely: see tests/bench/gateway.py;
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
from pipeline.record import schema
from pipeline.settings import ROOT, Settings
from tests.bench import agents, gateway, measured, queries, writers
from tests.bench.measured import Row
from tests.conftest import settings_on_free_ports

COLUMNS = (
    "load", "records/s", "us CPU a record", "us CPU of the server", "p50 ms", "p99 ms", "RSS MB", "floor", "verdict",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["all", "gateway", "writers", "queries", "agents"], default="all")
    parser.add_argument("--short", action="store_true", help="gateway: a minute instead of five")
    parser.add_argument("--scale", type=float, help="writers and queries: of their records")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped
    settings = settings_on_free_ports(ROOT / ".local" / "bench")
    stack = Stack(settings, lambda line: print(line, file=sys.stderr))
    match options.what:
        case "gateway":
            sys.exit(gateway.run(stack, settings, short=options.short, as_json=options.json))
        case "writers":
            sys.exit(writers.run(stack, settings, scale=options.scale or 1.0, as_json=options.json))
        case "agents":
            sys.exit(agents.run(settings.local.home / "agents", as_json=options.json))
        case "queries":
            queries.run(stack, settings, scale=options.scale or 1.0, as_json=options.json)
            return
    found = list(measure(stack, settings, options.scale or 0.05))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    measured.show(found, COLUMNS)


def measure(stack: Stack, settings: Settings, scale: float) -> Iterator[Row]:
    yield from gateway.encoding(30)
    stack.wipe()
    try:
        stack.up()
        stack.stop(["pg_writer", "ch_writer"])
        ours = gateway.target(stack, settings)
        for protocol in ("http", "grpc"):
            for kind in schema.SIGNALS:
                row = gateway.under(gateway.Case(protocol, kind, 1000, 8), ours, 6)
                yield {**row, "floor": "40,000/s a core"}
    finally:
        stack.wipe()
    yield from writers.measure(stack, settings, scale)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path.cwd()))
    main()
