"""How old a record is when a reader first sees it: one log line and one gauge point every half second, watched for."""

import http.client
import json
import logging
import threading
import time
from collections.abc import Callable

from psycopg import sql

from pipeline import clickhouse
from pipeline.settings import Settings
from pipeline.timescale import connection

SERVICE = "freshness-probe"
METRIC = "probe.number"  # in milliseconds since 1970, or soon after: it counts on from when it began
EVERY_S = 0.5
LOOK_EVERY_S = 0.1  # what a measured age can be too high by, beside the query itself
SEND_WITHIN_S = 60.0

LOGS_SEEN = (
    "SELECT toInt64(attributes['probe.number']) AS number FROM logs WHERE service = 'freshness-probe' AND number > {}"
)
POINTS_SEEN = "SELECT value::bigint FROM metrics WHERE metric_name = 'probe.number' AND value > {}"


class Probes:
    """Sends from a thread of its own from `start` to `stop`; two more look for what was sent.

    `sent` and `failed` count records by signal; `ages_s` holds a number for each probe that was seen, by store.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._first = time.time_ns() // 1_000_000  # above all that were sent by others before
        self._sent_at: dict[str, dict[int, float]] = {"clickhouse": {}, "postgres": {}}
        self._stop_sending = threading.Event()
        self._stop_looking = threading.Event()
        self.sent = {"logs": 0, "traces": 0, "metrics": 0}
        self.failed = {"logs": 0, "traces": 0, "metrics": 0}
        self.ages_s: dict[str, list[float]] = {"clickhouse": [], "postgres": []}
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._lookers = [
            threading.Thread(target=self._look, args=args, daemon=True)
            for args in (("clickhouse", self._logs_seen), ("postgres", self._points_seen))
        ]

    def start(self) -> None:
        logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)  # a store that is away is asked again
        for thread in (self._sender, *self._lookers):
            thread.start()

    def stop(self, *, within_s: float) -> None:
        """Send no more; return when every probe was seen, or after `within_s`."""
        self._stop_sending.set()
        self._sender.join(SEND_WITHIN_S)
        deadline = time.monotonic() + within_s
        while any(self.unseen().values()) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
        self._stop_looking.set()
        for thread in self._lookers:
            thread.join(5.0)

    def unseen(self) -> dict[str, int]:
        """Probes that were sent and not seen yet, by store."""
        return {store: len(sent) for store, sent in self._sent_at.items()}

    def _send(self) -> None:
        number = self._first
        while not self._stop_sending.wait(EVERY_S):
            number += 1
            for signal, store, request in (
                ("logs", "clickhouse", _log(number)),
                ("metrics", "postgres", _gauge(number)),
            ):
                started = time.monotonic()
                self._sent_at[store][number] = started
                if self._post(f"/v1/{signal}", json.dumps(request).encode()):
                    self.sent[signal] += 1
                else:
                    self._sent_at[store].pop(number, None)
                    self.failed[signal] += 1

    def _post(self, path: str, body: bytes) -> bool:
        """Whether the gateway answered OK; the same bytes are sent again while it is away, as any exporter does."""
        deadline = time.monotonic() + SEND_WITHIN_S
        gateway = self._settings.gateway
        while True:
            connection = http.client.HTTPConnection(gateway.host, gateway.http_port, timeout=10)
            try:
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                status = connection.getresponse().status
            except (OSError, http.client.HTTPException):
                status = 503
            finally:
                connection.close()
            if status == 200:
                return True
            if status not in (429, 502, 503, 504) or time.monotonic() > deadline:
                return False
            time.sleep(1.0)

    def _look(self, store: str, connect: Callable[[], Callable[[], set[int]]]) -> None:
        seen: Callable[[], set[int]] | None = None
        sent_at = self._sent_at[store]
        while not self._stop_looking.wait(LOOK_EVERY_S):
            if not sent_at:
                continue
            try:
                seen = seen or connect()
                numbers = seen()
            except Exception:  # a store that starts again; whatever its client raises
                seen = None
                continue
            now = time.monotonic()
            for number in [number for number in list(sent_at) if number in numbers]:  # the sender adds meanwhile
                self.ages_s[store].append(now - sent_at.pop(number))

    def _logs_seen(self) -> Callable[[], set[int]]:
        client = clickhouse.connect(self._settings.clickhouse)
        return lambda: {row[0] for row in client.query(LOGS_SEEN.format(self._first)).result_rows}

    def _points_seen(self) -> Callable[[], set[int]]:
        postgres = connection.connect(self._settings.postgres)
        points = sql.SQL(POINTS_SEEN).format(self._first)
        return lambda: {row[0] for row in postgres.execute(points).fetchall()}


def percentile(values: list[float], percent: int) -> float | None:
    """The smallest value that at least `percent` of `values` do not exceed; None where there are none."""
    if not values:
        return None
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def _resource() -> dict[str, object]:
    return {"attributes": [{"key": "service.name", "value": {"stringValue": SERVICE}}]}


def _log(number: int) -> dict[str, object]:
    record = {
        "timeUnixNano": str(time.time_ns()),
        "severityNumber": 9,
        "severityText": "INFO",
        "body": {"stringValue": f"probe {number}"},
        "attributes": [{"key": "probe.number", "value": {"intValue": str(number)}}],
    }
    return {"resourceLogs": [{"resource": _resource(), "scopeLogs": [{"logRecords": [record]}]}]}


def _gauge(number: int) -> dict[str, object]:
    point = {"timeUnixNano": str(time.time_ns()), "asInt": str(number)}
    metric = {"name": METRIC, "gauge": {"dataPoints": [point]}}
    return {"resourceMetrics": [{"resource": _resource(), "scopeMetrics": [{"metrics": [metric]}]}]}
