"""The shop: three instrumented services and the customers who keep them busy, until enough records were made.

    python deploy/demo/shop/run.py --records 2000 --otlp-http http://127.0.0.1:4318 --otlp-grpc 127.0.0.1:4317

`checkout` sends by OTLP/gRPC, `frontend` and `inventory` by OTLP/HTTP. Exit codes: 0 everything was answered OK;
1 records failed or were dropped, or a service died; 2 bad arguments; 130 interrupted.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from catalogue import PRODUCTS, TAX_PERCENT
from checkout import DECLINED_CARD
from rich.console import Console
from rich.progress import Progress
from telemetry import SIGNALS
from web import Client

SERVICES = ("frontend", "checkout", "inventory")
CUSTOMERS = 6
DECLINED_EVERY = 25  # orders of one customer, from the second on
LOCALES = ("de", "fr", "pl", "ja")
NAMES = ("Zoë", "Łukasz", "花子", "Jürgen", "Amélie", "O'Neill")
EXPORT_WITHIN_S = 180.0  # at the end: what waits, and a gateway that starts again meanwhile
EXPORT_WITHIN_S_INTERRUPTED = 10.0


class Services:
    """The child processes. Sockets are bound here, so addresses are known before a service is up."""

    def __init__(self, arguments: argparse.Namespace, counts: pathlib.Path) -> None:
        self._counts = counts
        sockets = {name: socket.create_server(("127.0.0.1", 0), backlog=64) for name in SERVICES}
        self.addresses = {name: f"127.0.0.1:{bound.getsockname()[1]}" for name, bound in sockets.items()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name, bound in sockets.items():
            otlp = arguments.otlp_grpc if name == "checkout" else arguments.otlp_http
            command = [
                sys.executable, str(pathlib.Path(__file__).with_name("service.py")), name,
                "--listening", str(bound.fileno()), "--otlp", otlp, "--seed", str(arguments.seed),
                "--checkout", self.addresses["checkout"], "--inventory", self.addresses["inventory"],
                "--counts", str(self._file(name)),
            ]  # fmt: skip
            self._processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[bound.fileno()])
            bound.close()

    def _file(self, name: str) -> pathlib.Path:
        return self._counts / f"{name}.json"

    def dead(self) -> list[str]:
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def stop(self, *, within_s: float) -> None:
        """Let each export what it holds; end what has not ended in time."""
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + within_s
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    def counts(self) -> list[dict[str, Any]]:
        """What each service wrote at its end; one that wrote nothing is left out."""
        return [json.loads(self._file(name).read_text()) for name in SERVICES if self._file(name).exists()]


class Customers:
    """A few clients in a closed loop: each asks for the next page when it has the last one."""

    def __init__(self, address: str, seed: int) -> None:
        self._frontend = Client(address)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._shop, args=(random.Random(seed + n),), daemon=True) for n in range(CUSTOMERS)
        ]
        for thread in self._threads:
            thread.start()

    def leave(self, *, within_s: float) -> None:
        self._stop.set()
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _shop(self, chance: random.Random) -> None:
        skus = list(PRODUCTS)
        for order in itertools.count():
            if self._stop.is_set():
                return
            locale = chance.choice(LOCALES)
            customer = {"id": f"c-{chance.randrange(5000)}", "name": chance.choice(NAMES), "locale": locale}
            cart = [(chance.choice(skus), chance.randint(1, 6)) for _ in range(chance.randint(3, 14))]
            card = DECLINED_CARD if order % DECLINED_EVERY == 1 else f"{chance.randrange(10**15, 10**16)}"
            visits: list[tuple[str, dict[str, Any] | None]] = [
                ("POST /cart/checkout", {"customer": customer, "cart": cart, "card": card})
            ]
            if chance.random() < 0.3:
                category = chance.choice(list(TAX_PERCENT))
                visits.insert(0, ("POST /products", {"category": category, "locale": locale}))
            if chance.random() < 0.1:
                visits.insert(0, ("GET /", None))
            for route, body in visits:
                try:
                    self._frontend.call(route, body)
                except (OSError, http.client.HTTPException):
                    if not self._stop.wait(0.2):  # a service is down or not yet up; the runner finds out which
                        continue
                    return


def run(arguments: argparse.Namespace, counts: pathlib.Path, stop: threading.Event) -> dict[str, Any]:
    """Run the shop until `arguments.records` were emitted or `stop` is set; return the totals."""
    started = time.monotonic()
    services = Services(arguments, counts)
    try:
        customers = Customers(services.addresses["frontend"], arguments.seed)
        died = _watch(services, arguments.records, stop)
        customers.leave(within_s=5.0 if stop.is_set() or died else EXPORT_WITHIN_S)
        loaded = time.monotonic()
        services.stop(within_s=EXPORT_WITHIN_S_INTERRUPTED if stop.is_set() or died else EXPORT_WITHIN_S)
    finally:
        services.kill()
    reported = services.counts()
    totals = {
        kind: {signal: sum(report[kind][signal] for report in reported) for signal in SIGNALS}
        for kind in ("emitted", "sent", "failed", "dropped")
    }
    return {
        "services": reported,
        **totals,
        "seconds": round(time.monotonic() - started, 3),
        "load_seconds": round(loaded - started, 3),
        "died": sorted({*died, *SERVICES} - {report["service"] for report in reported}),
    }


def _watch(services: Services, records: int, stop: threading.Event) -> list[str]:
    """Wait until the services have emitted `records` or our parent is gone; return those that died meanwhile."""
    parent = os.getppid()
    clients = [Client(address) for address in services.addresses.values()]
    with _progress(records) as show:
        while not stop.wait(0.1):
            if dead := services.dead():
                return dead
            if os.getppid() != parent:
                stop.set()
                break
            emitted = 0
            for client in clients:
                with contextlib.suppress(OSError, http.client.HTTPException):  # died: the next round says who
                    emitted += sum(client.call("GET /counts").body.values())
            show(emitted)
            if emitted >= records:
                break
    return []


@contextlib.contextmanager
def _progress(records: int) -> Iterator[Any]:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("shop: records", total=records)
        yield lambda emitted: progress.update(task, completed=min(emitted, records))


def _problems(totals: dict[str, Any]) -> list[str]:
    problems = [f"Service {name} ended without its counts: see what it wrote above." for name in totals["died"]]
    for signal_name in SIGNALS:
        if failed := totals["failed"][signal_name]:
            problems.append(f"{failed} {signal_name} records were given up by the exporters: was the gateway away?")
        if dropped := totals["dropped"][signal_name]:
            problems.append(f"{dropped} {signal_name} records were emitted but never exported: the SDK dropped them.")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000, help="Logs, spans and metric points together.")
    parser.add_argument("--otlp-http", default="http://127.0.0.1:4318", help="URL for OTLP/HTTP.")
    parser.add_argument("--otlp-grpc", default="127.0.0.1:4317", help="host:port for OTLP/gRPC.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path, help="Folder for each service's counts.")
    parser.add_argument("--json", action="store_true", help="One JSON document instead of lines.")
    arguments = parser.parse_args()
    if arguments.records < 1:
        parser.error("--records must be at least 1.")
    if not arguments.otlp_http.startswith("http://"):
        parser.error("--otlp-http must begin with http://.")
    arguments.otlp_http = arguments.otlp_http.rstrip("/")

    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    with contextlib.ExitStack() as cleanup:
        counts = arguments.out or pathlib.Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        counts.mkdir(parents=True, exist_ok=True)
        totals = run(arguments, counts, stop)
    if arguments.json:
        print(json.dumps(totals))
    else:
        for signal_name in SIGNALS:
            kinds = ", ".join(f"{totals[kind][signal_name]} {kind}" for kind in ("sent", "failed", "dropped"))
            print(f"{signal_name}: {kinds}")
        print(f"{sum(totals['sent'].values()) / totals['seconds']:.0f} records/s in {totals['seconds']:.1f} s")
    for problem in _problems(totals):
        print(problem, file=sys.stderr)
    if stop.is_set():
        return 130
    return 1 if _problems(totals) else 0


if __name__ == "__main__":
    sys.exit(main())
