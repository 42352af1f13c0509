"""One service of the shop as a process: serve until SIGTERM, export everything, write the counts.

It ends at once when standard input ends: whoever started it is gone.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import socket
import threading

from checkout import Checkout
from frontend import Frontend
from inventory import Inventory
from telemetry import Telemetry
from web import Client, Server

FINISH_WITHIN_S = 10  # requests that run when SIGTERM comes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["frontend", "checkout", "inventory"])
    parser.add_argument("--listening", type=int, required=True, help="Descriptor of the listening socket.")
    parser.add_argument("--otlp", required=True, help="http:// URL for OTLP/HTTP, host:port for gRPC.")
    parser.add_argument("--checkout", required=True, help="host:port")
    parser.add_argument("--inventory", required=True, help="host:port")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--counts", type=pathlib.Path, required=True, help="File for the counts.")
    arguments = parser.parse_args()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the runner decides
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    telemetry = Telemetry(arguments.name, arguments.otlp)
    checkout, inventory = Client(arguments.checkout), Client(arguments.inventory)
    service: Frontend | Checkout | Inventory
    if arguments.name == "frontend":
        service = Frontend(telemetry, checkout=checkout, inventory=inventory)
    elif arguments.name == "checkout":
        service = Checkout(telemetry, inventory=inventory)
    else:
        service = Inventory(telemetry, chance=random.Random(arguments.seed))
    server = Server(socket.socket(fileno=arguments.listening), telemetry, service.routes())
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    stop.wait()
    server.stop(within_s=FINISH_WITHIN_S)
    telemetry.shutdown()
    counts = telemetry.tally.counts()
    arguments.counts.write_text(
        json.dumps(
            {
                "service": arguments.name,
                "emitted": {signal: count.emitted for signal, count in counts.items()},
                "sent": {signal: count.sent for signal, count in counts.items()},
                "failed": {signal: count.failed for signal, count in counts.items()},
                "dropped": {signal: count.waiting for signal, count in counts.items()},
            }
        )
    )


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(70)


if __name__ == "__main__":
    main()
