"""`make bench-peers`: the OpenTelemetry Collector and our gateway in turn, under the same load, into the same Kafka.

Both promise the same, acks=all before OK without a queue of their own; ours gives every record its id beside. The
Collector is built from Go modules where it has not been yet, which takes minutes.
"""

import contextlib
import itertools
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import psutil
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.local import Stack
from pipeline.record import schema
from pipeline.settings import ROOT, Settings
from tests.bench import gateway, measured
from tests.bench.gateway import Case, Target
from tests.bench.measured import Row
from tests.conftest import free_ports

COLUMNS = (
    "load", "records/s", "us CPU a record", "records a core-second", "p50 ms", "p99 ms", "RSS MB", "ratio", "floor",
    "verdict",
)  # fmt: skip
BUILDER = "go.opentelemetry.io/collector/cmd/builder@v0.161.0"
PARTS = "tests/bench/collector.yaml"  # builds into .local/otelcol
FLOOR = 2.0
CONNECTIONS = 8
PROTOCOLS = ("http", "grpc")


def run(stack: Stack, settings: Settings, *, short: bool, as_json: bool) -> int:
    """Measure, print, and return the exit code: 1 where a ratio is under the floor, 3 where there is no Collector."""
    binary = ROOT / ".local" / "otelcol" / "otelcol"
    if not binary.exists():
        missing = _build()
        if missing:
            print(missing, file=sys.stderr)
            return 3
    rows: list[Row] = []
    with gateway.started(stack, settings) as ours, collector(binary, settings) as peer:
        for protocol, signal in itertools.product(PROTOCOLS, schema.SIGNALS):
            pair = []
            for target in (peer, ours):
                row = gateway.under(Case(protocol, signal, 1000, CONNECTIONS), target, 2 if short else 6)
                pair.append({**row, "records a core-second": gateway.a_core(row)})
                gateway.tell(pair[-1])
            ratio = gateway.a_core(pair[1]) / gateway.a_core(pair[0])
            verdict = "held" if ratio >= FLOOR else "MISSED"
            rows += [pair[0], {**pair[1], "ratio": ratio, "floor": f"{FLOOR} times the Collector", "verdict": verdict}]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        measured.show(rows, COLUMNS)
    return 1 if any(row.get("verdict") == "MISSED" for row in rows) else 0


def _build() -> str | None:
    """Build the Collector; return why that is not possible, in a sentence."""
    if not shutil.which("go"):
        return "Go is missing and builds the Collector from its modules: install it, with go on the PATH."
    print("the Collector is built, which takes minutes", file=sys.stderr)
    if subprocess.run(["go", "run", BUILDER, "--config", PARTS], cwd=ROOT, check=False).returncode:
        return f"The Collector could not be built: what Go said stands above; the parts are in {PARTS}."
    return None


@contextlib.contextmanager
def collector(binary: pathlib.Path, settings: Settings) -> Iterator[Target]:
    """A Collector that does what our gateway does: Kafka's acks=all before OK, no queue of its own."""
    http, grpc = free_ports(2)
    servers = settings.kafka.bootstrap_servers
    admin = AdminClient({"bootstrap.servers": servers})
    signals = {signal: f"peer_{signal}" for signal in schema.SIGNALS}
    for created in admin.create_topics([NewTopic(topic, 4, 1) for topic in signals.values()]).values():
        created.result(30)
    exporter = {
        "brokers": [servers],
        "producer": {"required_acks": -1, "compression": "zstd", "max_message_bytes": 1_000_000},
        "sending_queue": {"enabled": False},
        "retry_on_failure": {"enabled": False},
        **{signal: {"topic": topic} for signal, topic in signals.items()},
    }
    config = {
        "receivers": {"otlp": {"protocols": {
            "http": {"endpoint": f"127.0.0.1:{http}"},
            "grpc": {"endpoint": f"127.0.0.1:{grpc}", "max_recv_msg_size_mib": 64},
        }}},
        "exporters": {"kafka": exporter},
        "service": {
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "error"}},
            "pipelines": {signal: {"receivers": ["otlp"], "exporters": ["kafka"]} for signal in signals},
        },
    }  # fmt: skip
    home = settings.local.home
    (home / "collector.yaml").write_text(json.dumps(config))  # JSON is YAML
    with (home / "collector.log").open("wb") as log:
        peer = subprocess.Popen([binary, "--config", home / "collector.yaml"], stdout=log, stderr=log)
    try:
        addresses = {"http": f"127.0.0.1:{http}", "grpc": f"127.0.0.1:{grpc}"}
        process = psutil.Process(peer.pid)
        if not measured.wait_until(lambda: _listens(process, http), 20):
            raise RuntimeError(f"The Collector does not listen: {(home / 'collector.log').read_text()[-500:]}")
        yield Target("Collector", process, addresses, lambda: (0.0, 0.0))
    finally:
        peer.terminate()
        peer.wait()


def _listens(process: psutil.Process, port: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(one.laddr and one.laddr.port == port for one in process.net_connections("tcp"))
    return False
