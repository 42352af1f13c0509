"""`make bench-agents`: an agent's process alone, from a message to what is published of it.

Messages are as the gateway makes them under load, of 1,000 log records as in tests/bench/payload.py; they go to the
agent's process and what it makes comes back, as in production; Kafka's part is that of any writer. CPU is of both
processes.
"""

import json
import pathlib
import random
import resource
import time
from collections.abc import Iterator
from contextlib import closing

import psutil

from pipeline import otlp
from pipeline.agents import builtin
from pipeline.agents.isolated import Isolated
from pipeline.agents.load import load, settings_of
from pipeline.delivery import Message
from pipeline.record import schema
from pipeline.settings import Settings
from tests.bench import measured, payload
from tests.bench.measured import Row

COLUMNS = ("agent", "records/s", "records/s a core", "us CPU a record", "floor", "verdict")
RECORDS = 1000
SECONDS = 5.0
START_NS = 1_795_000_000 * 10**9
TOPICS: dict[schema.Signal, str] = {"logs": "logs_norm", "metrics": "metrics_norm", "traces": "traces_norm"}
FLOORS = {"one": 60_000, "batch": 150_000}
CODE = """
from pipeline.agents import LogRecord, agent, drop


@agent(reads="logs_raw", writes="logs_norm", version=1)
def one(record: LogRecord) -> LogRecord:
    return record


@agent(reads="logs_raw", writes="logs_norm", version=1, batch=True)
def batch(records: list[LogRecord]) -> list[LogRecord]:
    return records


@agent(reads="logs_raw", writes="logs_norm", version=1)
def body(record: LogRecord) -> LogRecord:
    return record.replace(body=record.body.upper())


@agent(reads="logs_raw", writes="logs_norm", version=1)
def attribute(record: LogRecord) -> LogRecord:
    return record.replace(attributes={**record.attributes, "team": "shop"})
"""


def run(home: pathlib.Path, *, as_json: bool) -> int:
    """Measure and print; 1 where a floor is missed."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "bench_agents.py").write_text(CODE)
    table = home / "services.csv"
    table.write_text("service,team\n" + "".join(f"service-{n:02d},payments\n" for n in range(20)))
    own = {f"enrich_{signal}": {"table": str(table)} for signal in TOPICS}
    files = [home / "bench_agents.py", *map(pathlib.Path, builtin.names())]
    found = list(measure(files, Settings(agents=own)))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        measured.show(found, COLUMNS)
    return int(any(row["verdict"] == "missed" for row in found))


def measure(files: list[pathlib.Path], settings: Settings) -> Iterator[Row]:
    """A row for each agent of the files; each reads a topic of the gateway's."""
    messages = {f"{signal}_raw": message(signal) for signal in TOPICS}
    for agent in load(files).agents.values():
        given = messages[agent.reads]
        own, _ = settings_of(agent, settings)
        with closing(Isolated(agent, own, settings, TOPICS)) as isolated:
            for _ in range(3):
                isolated.transform(given)
            [child] = psutil.Process().children()
            rounds, cpu_s, began = 0, _cpu_s(child), time.perf_counter()
            while time.perf_counter() - began < SECONDS:
                isolated.transform(given)
                rounds += 1
            wall_s = time.perf_counter() - began
            cpu_s = _cpu_s(child) - cpu_s
        records, floor = rounds * RECORDS, FLOORS.get(agent.name)
        a_core = records / cpu_s
        yield {
            "agent": agent.name, "records/s": round(records / wall_s), "records/s a core": round(a_core),
            "us CPU a record": round(cpu_s / records * 1e6, 1), "floor": f"{floor:,}/s a core" if floor else "",
            "verdict": "" if floor is None else "held" if a_core >= floor else "missed",
        }  # fmt: skip


def message(signal: schema.Signal) -> Message:
    """One as the gateway makes it under load."""
    body = payload.request(signal, RECORDS, START_NS, random.Random(1))
    [group] = otlp.encode(signal, body, otlp.Origin("default", "local", START_NS), partitions=1).groups
    headers = {
        "schema": schema.CURRENT[signal].encode(), "signal": signal.encode(), "records": b"%d" % group.records,
        "min_time": b"%d" % group.min_time, "max_time": b"%d" % group.max_time,
    }  # fmt: skip
    return Message(f"{signal}_raw", 0, 0, headers, group.value)


def _cpu_s(child: psutil.Process) -> float:
    own, its = resource.getrusage(resource.RUSAGE_SELF), child.cpu_times()
    return own.ru_utime + own.ru_stime + its.user + its.system
