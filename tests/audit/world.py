"""Container files by fastavro alone, and a small pipeline in which a test is every writer."""

import io
import json
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import fastavro
import psycopg
from confluent_kafka import Producer

from pipeline import clickhouse
from pipeline.audit import Report, audit
from pipeline.audit.window import Window
from pipeline.settings import ROOT, Settings

SCHEMAS = {
    signal: json.loads((ROOT / "schemas" / f"{name}.v1.avsc").read_text())
    for signal, name in {"logs": "log_record", "traces": "span", "metrics": "metric_point"}.items()
}
TABLES = {"logs": "logs_in", "traces": "spans_in", "metrics": "metrics_points_in"}
HOUR_AGO_NS = (time.time_ns() // 10**9 - 3600) // 60 * 60 * 10**9
MINUTE_NS = 60 * 10**9
Record = dict[str, Any]


def record(signal: str, name: object, **fields: Any) -> Record:
    """A record of empty fields, with an id made of `name`, of an hour ago."""
    blank = {field["name"]: _blank(field["type"]) for field in SCHEMAS[signal]["fields"]}
    own = {"event_id": blake2b(str(name).encode(), digest_size=16).digest(), "received_time": HOUR_AGO_NS}
    when = "start_time" if signal == "traces" else "time"
    return {**blank, **own, when: HOUR_AGO_NS - 5 * 10**6, **fields}


def _blank(kind: Any) -> Any:
    if isinstance(kind, list):
        return None
    if isinstance(kind, str):
        return {"string": "", "long": 0, "int": 0, "bytes": b"", "boolean": False, "double": 0.0}[kind]
    return {
        "map": dict, "array": list,
        "fixed": lambda: bytes(kind["size"]), "enum": lambda: kind["symbols"][0],
    }[kind["type"]]()  # fmt: skip


def file(signal: str, records: Sequence[Record]) -> bytes:
    """One container file."""
    return container(SCHEMAS[signal], records)


def container(schema: dict[str, Any], records: Sequence[Record]) -> bytes:
    """One of any schema."""
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(schema), records)
    return out.getvalue()


class World:
    """Topics and stores, written by hand."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "log_level": 0})
        self.clickhouse = clickhouse.connect(settings.clickhouse)
        self.postgres = psycopg.connect(settings.postgres.dsn.get_secret_value(), autocommit=True)

    def close(self) -> None:
        self._producer.flush(10)
        self.clickhouse.close()
        self.postgres.close()

    def send(
        self,
        to: str,
        value: bytes,
        headers: Mapping[str, str | None],
        *,
        partition: int = 0,
        time_ns: int = HOUR_AGO_NS,
    ) -> int:
        """Return the message's offset."""
        offsets: list[int] = []
        self._producer.produce(
            to,
            value,
            partition=partition,
            timestamp=time_ns // 10**6,
            headers=[(key, None if text is None else text.encode()) for key, text in headers.items()],
            on_delivery=lambda error, message: offsets.append(-1 if error else message.offset() or 0),
        )
        assert self._producer.flush(10) == 0
        assert offsets[0] >= 0
        return offsets[0]

    def publish(self, signal: str, records: Sequence[Record], **place: Any) -> int:
        """One message as a gateway sends it."""
        return self.send(f"{signal}_raw", file(signal, records), {"records": str(len(records))}, **place)

    def store(self, signal: str, records: Sequence[Record]) -> None:
        """Into ClickHouse."""
        self.clickhouse.raw_insert(TABLES[signal], insert_block=file(signal, records), fmt="Avro")

    def store_points(self, points: Sequence[Record]) -> None:
        """Gauges and sums into PostgreSQL."""
        epoch = "timestamptz 'epoch' + %s * interval '1 microsecond'"
        for point in points:
            self.postgres.execute(
                f"INSERT INTO metrics_points VALUES ({epoch}, %s, %s, '', {epoch}, 1)".encode(),
                (
                    point["time"] // 1000, point["series_id"], point["event_id"].hex(),
                    point["received_time"] // 1000,
                ),
            )  # fmt: skip

    def store_events(self, records: Sequence[Record]) -> None:
        """Log records into PostgreSQL."""
        epoch = "timestamptz 'epoch' + %s * interval '1 microsecond'"
        for one in records:
            self.postgres.execute(
                f"INSERT INTO events VALUES ({epoch}, %s, '', '', '', '', 17, '', '', '', '{{}}', '{{}}', '', '', {epoch})".encode(),
                (one["time"] // 1000, one["event_id"].hex(), one["received_time"] // 1000),
            )

    def audit(self, *signals: Any, start_ns: int | None = None, end_ns: int | None = None) -> Report:
        bounds = (None if bound is None else bound // 1000 for bound in (start_ns, end_ns))
        return audit(self.settings, signals=signals, window=Window(*bounds))

    def found(self, signal: str, store: str = "clickhouse", **window: Any) -> dict[str, Any]:
        """What an audit of one signal says of one store, and of Kafka."""
        report = self.audit(signal, **window).as_dict()
        about = report["signals"][signal]
        return {"verdict": report["verdict"], "kafka": about["kafka"], **about["stores"][store]}
