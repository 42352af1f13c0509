"""Closed-loop OTLP load from a process of its own: `python -m tests.bench.load` prints one JSON line."""

import argparse
import http.client
import json
import queue
import random
import threading
import time

import grpc

from pipeline.gateway.grpc import SERVICES
from tests.bench import payload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", choices=["http", "grpc"], required=True)
    parser.add_argument("--signal", choices=["logs", "metrics", "traces"], required=True)
    parser.add_argument("--address", required=True, help="host:port")
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--records", type=int, default=1000, help="of a request")
    parser.add_argument("--connections", type=int, default=8)
    options = parser.parse_args()
    rng = random.Random(time.time_ns())
    start = time.time_ns() - 3600 * 10**9
    # Twenty different requests, sent again and again: the gateway's work does not depend on whether it saw one before.
    bodies = [payload.request(options.signal, options.records, start, rng) for _ in range(min(20, options.requests))]
    todo: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for n in range(options.requests):
        todo.put(bodies[n % len(bodies)])
    latencies: list[float] = []
    failures: list[str] = []
    send = {"http": _send_http, "grpc": _send_grpc}[options.protocol]
    workers = [
        threading.Thread(target=_work, args=(todo, latencies, failures, lambda: send(options)))
        for _ in range(options.connections)
    ]
    print(json.dumps({"ready": True}), flush=True)
    input()  # the bench reads the gateway's CPU before and after
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    latencies.sort()
    print(
        json.dumps(
            {
                "records": len(latencies) * options.records,
                "seconds": seconds,
                "p50_ms": latencies[len(latencies) // 2] * 1000 if latencies else None,
                "p99_ms": latencies[int(len(latencies) * 0.99) - 1] * 1000 if latencies else None,
                "failures": failures[:3],
            }
        ),
        flush=True,
    )


def _work(todo, latencies, failures, connect) -> None:  # type: ignore[no-untyped-def]
    send = connect()
    while True:
        try:
            body = todo.get_nowait()
        except queue.Empty:
            return
        started = time.perf_counter()
        try:
            send(body)
        except Exception as error:
            failures.append(repr(error))
        else:
            latencies.append(time.perf_counter() - started)


def _send_http(options):  # type: ignore[no-untyped-def]
    connection = http.client.HTTPConnection(options.address)
    path = f"/v1/{options.signal}"

    def send(body: bytes) -> None:
        connection.request("POST", path, body, {"Content-Type": "application/x-protobuf"})
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise ConnectionError(answer.status)

    return send


def _send_grpc(options):  # type: ignore[no-untyped-def]
    channel = grpc.insecure_channel(options.address, [("grpc.use_local_subchannel_pool", 1)])
    return channel.unary_unary(f"/{SERVICES[options.signal]}/Export")


if __name__ == "__main__":
    main()
