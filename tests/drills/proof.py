"""What every drill proves at its end: a clean audit, and each number that was answered OK read once."""

import collections
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

import psycopg

from pipeline import clickhouse
from pipeline.agents.gaps import STORE_WRITERS, topics
from pipeline.kafka.groups import Groups
from pipeline.kafka.reader import Reader
from pipeline.record.schema import Signal
from pipeline.settings import PREFIX, Settings, as_environment
from tests.drills.context import Failed
from tests.drills.exporters import ATTRIBUTE, METRIC, Exporters


def pipeline(settings: Settings, *command: str) -> str:
    """Run a command as an operator would; raise Failed where it does not end with 0."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)} | as_environment(settings)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *command], capture_output=True, text=True, env=env, check=False
    )
    if done.returncode:
        raise Failed(
            f"`pipeline {' '.join(command)}` ended with {done.returncode}: {(done.stderr or done.stdout)[-600:]}"
        )
    return done.stdout


def lag(settings: Settings, writer: str) -> int:
    """Messages that the writer's group has not committed."""
    retained = Reader(settings.kafka).retained(topics(writer, settings))
    committed = Groups(settings.kafka).committed(writer, [(each.topic, each.partition) for each in retained])
    places = {place: each.offset for place, each in committed.items()}
    return sum(each.end - max(each.start, places.get((each.topic, each.partition), 0)) for each in retained)


def stored(settings: Settings, within_s: float) -> None:
    """Return once the writers have committed all that there is."""
    deadline = time.monotonic() + within_s
    while behind := {writer: lag(settings, writer) for writer in STORE_WRITERS if lag(settings, writer)}:
        if time.monotonic() > deadline:
            raise Failed(f"{within_s:.0f} s after the load the writers still lag {behind} messages.")
        time.sleep(0.5)


def audited(settings: Settings, within_s: float, *options: str) -> None:
    """Return once `pipeline audit` with these options is clean; raise Failed with what it says, and how far the writers
    are, where it is not within the time."""
    deadline = time.monotonic() + within_s
    with contextlib.suppress(Failed):  # told below, with more
        stored(settings, within_s)  # an audit reads everything
    while True:
        try:
            report = json.loads(pipeline(settings, "audit", "--json", *options))
            break
        except Failed:
            if time.monotonic() > deadline:
                raise Failed(f"{within_s:.0f} s after the load {_differences(settings, *options)}") from None
            time.sleep(1)
    for name, part in report["signals"].items():
        for store, findings in part["stores"].items():
            counts = {key: findings[key] for key in ("missing", "duplicates")}
            if any(counts.values()):
                raise Failed(f"The audit calls {name} in {store} clean with {counts}.")


def _differences(settings: Settings, *options: str) -> str:
    behind = {writer: lag(settings, writer) for writer in STORE_WRITERS}
    try:
        said = pipeline(settings, "audit", *options)
    except Failed as failure:
        said = str(failure)
    return f"the writers lag {behind} messages and the audit is not clean: {said}"


def read_once(settings: Settings, load: Exporters) -> None:
    """Raise Failed where a number that was answered OK is not read exactly once, or any other more than once."""
    client = clickhouse.connect(settings.clickhouse)

    def in_clickhouse(query: str) -> Iterable[Any]:
        return client.query(query).result_columns[0] if client.query(query).row_count else []

    attribute = f"SELECT toUInt64(attributes['{ATTRIBUTE}']) FROM"
    where = f"WHERE metric_name = '{METRIC}'"
    with psycopg.connect(settings.postgres.dsn.get_secret_value()) as postgres:
        points = [row[0] for row in postgres.execute(f"SELECT value FROM metrics {where}")]
    found: dict[tuple[Signal, str], Iterable[Any]] = {
        ("logs", "ClickHouse"): in_clickhouse(f"{attribute} logs"),
        ("traces", "ClickHouse"): in_clickhouse(f"{attribute} traces"),
        ("metrics", "ClickHouse"): in_clickhouse(f"SELECT value FROM metrics {where}"),
        ("metrics", "PostgreSQL"): points,
    }
    for (name, store), values in found.items():
        counts = collections.Counter(int(value) for value in values)
        missing = sorted(load.answered[name] - counts.keys())
        doubled = sorted(number for number, count in counts.items() if count > 1)
        if missing or doubled:
            raise Failed(
                f"{name} in {store}: {len(missing)} numbers answered OK are missing {missing[:5]}, {len(doubled)} are doubled {doubled[:5]}."
            )
        if not counts:
            raise Failed(f"{name} in {store}: nothing was stored.")


def counted(what: Iterable[str]) -> str:
    counts = what if isinstance(what, collections.Counter) else collections.Counter(what)
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common(12))
