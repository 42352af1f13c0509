"""The main job on real input, from nothing to the proof: what `make demo` runs.

Starts a clean stack of its own, runs the shop, watches how fresh the stores are, waits until they have caught up,
prints four example queries and the closing table, and stops everything.

Exit codes: 0 nothing missing, nothing doubled; 1 a difference; 2 misconfigured, a port in use, another stack or demo;
3 the world is away; 130 interrupted. Result on standard output, progress on standard error.
"""

import argparse
import contextlib
import fcntl
import json
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any

import closing
import examples
from freshness import Probes, percentile
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from pipeline import audit, clickhouse, errors, settings
from pipeline.cli.common import progress_bars
from pipeline.local import Stack
from pipeline.settings import Settings
from pipeline.timescale import connection

SHOP = pathlib.Path(__file__).parent / "shop" / "run.py"
SHOP_STOPS_WITHIN_S = 20.0
CATCH_UP_WITHIN_S = 120.0
PROBES_SEEN_WITHIN_S = 15.0
ACCEPTED = "pipeline_gateway_accepted_records"
POINT_TABLES = ("metrics_points", "metrics_histograms", "metrics_exponential_histograms", "metrics_summaries")
POINTS = " + ".join(f"(SELECT count(*) FROM {table})" for table in POINT_TABLES)
EVENTS = "SELECT count() FROM logs WHERE severity_number >= 17 OR event_name != ''"  # what PostgreSQL keeps of them

stderr = Console(stderr=True, highlight=False)


def tell(line: str) -> None:
    stderr.print(line, style="dim", markup=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000, help="Logs, spans and metric points together.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="One JSON document instead of tables.")
    arguments = parser.parse_args()
    if arguments.records < 1:
        parser.error("--records must be at least 1.")
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, _interrupt)
    try:
        loaded = settings.load()
        with _only_demo(loaded):
            _refuse_beside(loaded)
            home = _home(loaded)
            own = {"local": {"home": home}, "spool": {"directory": home / "spool"}}
            demo = loaded.model_copy(update={name: getattr(loaded, name).model_copy(update=own[name]) for name in own})
            report = run(demo, arguments.records, arguments.seed)
    except errors.Misconfigured as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    except errors.Unavailable as error:
        print(error, file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("Interrupted; everything is stopped.", file=sys.stderr)
        return 130
    if arguments.json:
        print(json.dumps(report.as_json(), indent=2, default=str))
    else:
        report.show(Console(width=None if sys.stdout.isatty() else 160))
    return 1 if report.differences() else 0


def run(demo: Settings, records: int, seed: int) -> closing.Report:
    """Start a clean stack, do the job, and stop the stack however that ends."""
    started = time.monotonic()
    stack = Stack(demo, tell)
    try:
        stack.wipe()  # what a demo that was killed has left
        stack.up()
        with clickhouse.translated(), connection.translated():
            return _job(demo, records, seed, started)
    finally:
        _ignore_signals()
        stack.wipe()


def _job(demo: Settings, records: int, seed: int, started: float) -> closing.Report:
    probes = Probes(demo)
    probes.start()
    load_started = time.monotonic()
    shop = _shop(demo, records, seed)
    tell(f"shop: {sum(shop['sent'].values())} records sent in {shop['seconds']:.1f} s")
    probes.stop(within_s=PROBES_SEEN_WITHIN_S)
    sent = {name: shop["sent"][name] + probes.sent[name] for name in closing.SIGNALS}
    failed = {name: shop["failed"][name] + shop["dropped"][name] + probes.failed[name] for name in closing.SIGNALS}
    _catch_up(demo, sent)
    visible_s = time.monotonic() - load_started
    accepted = _accepted(demo)
    tell("comparing Kafka with the stores, id by id …")
    proof = _audit(demo)
    unseen = probes.unseen()
    return closing.Report(
        table=closing.rows(sent, failed, accepted, proof["signals"]),
        verdict=proof["verdict"],
        freshness_s={
            store: {
                "p50": percentile(ages, 50),
                "p99": percentile(ages, 99),
                "probes": len(ages) + unseen[store],
                "unseen": unseen[store],
            }
            for store, ages in probes.ages_s.items()
        },
        examples=examples.ask(demo),
        records_per_s=sum(sent.values()) / visible_s,
        seconds=time.monotonic() - started,
    )


def _shop(demo: Settings, records: int, seed: int) -> dict[str, Any]:
    """What the shop counted: sent, failed and dropped by signal, and its seconds."""
    http, grpc = (f"{demo.gateway.host}:{port}" for port in (demo.gateway.http_port, demo.gateway.grpc_port))
    command = [
        sys.executable, str(SHOP), "--json", "--records", str(records), "--seed", str(seed),
        "--otlp-http", f"http://{http}", "--otlp-grpc", grpc,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE) as shop:
        try:
            output, _ = shop.communicate()
        except BaseException:
            shop.terminate()
            try:
                shop.wait(SHOP_STOPS_WITHIN_S)
            except subprocess.TimeoutExpired:
                shop.kill()  # its services see that, and end
            raise
    try:
        counted: dict[str, Any] = json.loads(output)
    except json.JSONDecodeError:
        raise errors.Unavailable(
            f"The shop ended with code {shop.returncode} and without its counts: see what it wrote above."
        ) from None
    return counted


def _catch_up(demo: Settings, sent: closing.Counts) -> None:
    """Return once the stores have as many records as were sent, or after CATCH_UP_WITHIN_S: the audit tells then."""
    client = clickhouse.connect(demo.clickhouse)
    deadline = time.monotonic() + CATCH_UP_WITHIN_S
    with (
        connection.connect(demo.postgres) as postgres,
        stderr.status("writers: catching up") as status,
    ):
        unchanged_since, before = time.monotonic(), -1
        while True:
            left = {
                f"{name} in ClickHouse": sent[name] - client.query(f"SELECT count() FROM {name}").result_rows[0][0]
                for name in closing.SIGNALS
            }
            stored = postgres.execute(f"SELECT {POINTS}").fetchone()
            left["metrics in PostgreSQL"] = sent["metrics"] - (stored[0] if stored else 0)
            kept = postgres.execute("SELECT count(*) FROM events").fetchone()
            left["events in PostgreSQL"] = client.query(EVENTS).result_rows[0][0] - (kept[0] if kept else 0)
            waiting = sum(max(0, number) for number in left.values())
            if waiting == 0:
                tell("writers: caught up")
                return
            if waiting != before:
                unchanged_since, before = time.monotonic(), waiting
            # Superseded points never arrive: no news for a while is the end too.
            if time.monotonic() > deadline or time.monotonic() - unchanged_since > 10:
                tell(f"writers: no longer waiting, behind by {left}")
                return
            status.update("writers: still to come: " + ", ".join(f"{n} {what}" for what, n in left.items() if n > 0))
            time.sleep(0.2)


def _accepted(demo: Settings) -> Counter[str]:
    """Records by signal that the gateway answered OK, all tenants."""
    url = f"http://{demo.gateway.host}:{demo.gateway.http_port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    except OSError as error:
        raise errors.Unavailable(f"The gateway does not answer at {url} ({error}): see its log.") from None
    accepted: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{ACCEPTED}_total":
                accepted[sample.labels["signal"]] += int(sample.value)
    return accepted


def _audit(demo: Settings) -> dict[str, Any]:
    """The audit's finding, from Kafka and the stores alone."""
    with progress_bars() as progress:
        return audit.audit(demo, progress=progress).as_dict()


def _home(loaded: Settings) -> pathlib.Path:
    return loaded.local.home / "demo"


@contextlib.contextmanager
def _only_demo(loaded: Settings) -> Iterator[None]:
    """Raise Misconfigured where another demo runs; hold the place until it ends."""
    loaded.local.home.mkdir(parents=True, exist_ok=True)
    with (loaded.local.home / "demo.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.Misconfigured("Another demo is running on this machine: wait until it has ended.") from None
        yield


def _refuse_beside(loaded: Settings) -> None:
    """Raise Misconfigured where the stack of `make up` runs: it has the ports, and data that the demo would count."""
    running = {row["name"] for row in Stack(loaded, tell).status()["processes"] if row["state"] == "running"}
    if running:
        raise errors.Misconfigured(
            f"The stack of `make up` is running ({', '.join(sorted(running))}) on the demo's ports: "
            "stop it with `make down`, then run the demo again."
        )


def _interrupt(_: int, __: FrameType | None) -> None:
    _ignore_signals()
    print("Stopping everything …", file=sys.stderr, flush=True)
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    """From now on: a second Ctrl-C must not leave processes behind."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
