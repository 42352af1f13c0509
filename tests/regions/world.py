"""eu, us and central on free ports, and a load that both edges get."""

import json
import pathlib
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg

from pipeline import clickhouse
from pipeline.local import Regions
from pipeline.regions.topology import FILE, Region, parse, write
from pipeline.settings import Settings
from tests.conftest import free_ports, settings_on_free_ports

NUMBER = "drill.sequence"
BATCH, EVERY_S = 20, 0.2
BOTH = 20  # every so many requests goes to both regions: 5 %


def regions_on_free_ports(home: pathlib.Path) -> tuple[Regions, dict[str, Settings]]:
    """The shipped topology at addresses of its own, written to `home`; nothing runs yet."""
    shipped = parse(FILE)
    ports = {alias: settings_on_free_ports(home / alias) for alias in shipped.regions}
    topology = shipped.model_copy(
        update={"regions": {alias: _at(region, ports[alias]) for alias, region in shipped.regions.items()}}
    )
    path = home / "topology.yaml"
    write(topology, path)
    mirror_ports = dict(zip(ports, free_ports(len(ports)), strict=True))
    own = {
        alias: each.model_copy(
            update={
                "region": alias,
                "topology": path,
                "mirrored_regions": topology.mirrored_into(alias),
                "local": each.local.model_copy(update={"mirror_maker_port": mirror_ports[alias]}),
            }
        )
        for alias, each in ports.items()
    }
    return Regions(topology, own, print), own


def _at(region: Region, settings: Settings) -> Region:
    return region.model_copy(
        update={
            "bootstrap_servers": settings.kafka.bootstrap_servers,
            "clickhouse_url": settings.clickhouse.url,
            "postgres": settings.postgres.dsn.get_secret_value(),
        }
    )


class Load(threading.Thread):
    """Error logs with a number each, so that both stores keep them, to each of `gateways`; one request in twenty goes
    to all of them. `answered` has the numbers that were answered OK, by region, and when."""

    def __init__(self, gateways: dict[str, Settings], first: int = 0) -> None:
        super().__init__(daemon=True)
        self._gateways = gateways
        self._stop_now = threading.Event()
        self.next = first
        self.answered: dict[str, dict[int, float]] = {alias: {} for alias in gateways}

    def run(self) -> None:
        count = 0
        while not self._stop_now.is_set():
            for alias in self._gateways:
                count += 1
                self._send(list(self._gateways) if count % BOTH == 0 else [alias])
            self._stop_now.wait(EVERY_S)

    def finish(self) -> None:
        self._stop_now.set()
        self.join()

    @property
    def all_answered(self) -> set[int]:
        return set().union(*self.answered.values())

    def _send(self, aliases: Sequence[str]) -> None:
        numbers = range(self.next, self.next + BATCH)
        self.next += BATCH
        body = json.dumps(_request(numbers)).encode()
        for alias in aliases:
            url = f"http://127.0.0.1:{self._gateways[alias].gateway.http_port}/v1/logs"
            asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(asked, timeout=10) as answer:
                    refused = json.load(answer).get("partialSuccess")
            except (OSError, urllib.error.HTTPError):
                continue
            if not refused:
                self.answered[alias].update(dict.fromkeys(numbers, time.time()))


def _request(numbers: Iterable[int]) -> dict[str, Any]:
    now = time.time_ns()
    records = [
        {
            "timeUnixNano": str(now + place), "severityNumber": 17, "body": {"stringValue": "it failed"},
            "attributes": [{"key": NUMBER, "value": {"stringValue": str(number)}}],
        }
        for place, number in enumerate(numbers)
    ]  # fmt: skip
    service = {"key": "service.name", "value": {"stringValue": "checkout"}}
    return {"resourceLogs": [{"resource": {"attributes": [service]}, "scopeLogs": [{"logRecords": records}]}]}


def in_clickhouse(settings: Settings) -> Counter[int]:
    """How often readers see each number."""
    client = clickhouse.connect(settings.clickhouse)
    rows = client.query(
        f"SELECT toInt64(attributes['{NUMBER}']), count() FROM logs WHERE attributes['{NUMBER}'] != '' GROUP BY 1"
    ).result_rows
    client.close()
    return Counter(dict(rows))


def in_postgres(settings: Settings) -> Counter[int]:
    with psycopg.connect(settings.postgres.dsn.get_secret_value()) as connection:
        rows = connection.execute(
            f"SELECT (attributes->>'{NUMBER}')::int, count(*) FROM events WHERE attributes ? '{NUMBER}' GROUP BY 1"
        ).fetchall()
    return Counter(dict(rows))


def settled(wanted: set[int], settings: Settings, within_s: float) -> Counter[int]:
    """What readers of ClickHouse see once it is all of `wanted`, or after the time."""
    deadline = time.monotonic() + within_s
    while True:
        found = in_clickhouse(settings)
        if wanted <= found.keys() or time.monotonic() > deadline:
            return found
        time.sleep(0.5)
