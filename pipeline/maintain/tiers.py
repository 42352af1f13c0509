"""TTL and storage policy of ClickHouse's tables, registered ones among them: its own background work moves and removes
their rows.

A server without the policy of deploy/clickhouse/hot_warm_cold.xml keeps all rows where they are, as long.
"""

import re
from typing import NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline import clickhouse
from pipeline.errors import Misconfigured
from pipeline.maintain.change import Change
from pipeline.settings import RetentionSettings

POLICY = "hot_warm_cold"
HAS_POLICY = "SELECT count() > 0 FROM system.storage_policies WHERE policy_name = {policy:String}"
LIVE = """
    SELECT name, storage_policy, engine_full FROM system.tables
    WHERE database = currentDatabase()
        AND (name IN {names:Array(String)} OR endsWith(name, '__rows') AND startsWith(comment, 'Registered, version '))
    ORDER BY name
"""
KEPT = re.compile(r".*toIntervalDay\((\d+)\)$", re.DOTALL)
TTL = re.compile(r" TTL (.*?)(?= SETTINGS |$)", re.DOTALL)


class Move(NamedTuple):
    days: int
    volume: str


class Table(NamedTuple):
    """A table, its time as TTL takes it, where its rows move, and the days that it keeps them."""

    name: str
    time: str
    moves: tuple[Move, ...]
    kept_days: int

    def moved(self) -> "Table":
        """Without the moves that come too late."""
        return self._replace(moves=tuple(move for move in self.moves if move.days < self.kept_days))

    def ttl(self) -> str:
        """As ClickHouse prints it."""
        moves = [f"{self.time} + toIntervalDay({move.days}) TO VOLUME '{move.volume}'" for move in self.moves]
        return ", ".join([*moves, f"{self.time} + toIntervalDay({self.kept_days})"])

    def __str__(self) -> str:
        moves = "".join(f"move rows of {self.name} to {move.volume} after {move.days} days, " for move in self.moves)
        return f"{moves}remove rows of {self.name} after {self.kept_days} days."


def tables(retention: RetentionSettings) -> list[Table]:
    """Records from volume to volume; of a rollup, which is small, the old part alone."""
    warm, cold = _moves(retention)
    kept_days = {
        "logs_events": retention.logs_days,
        "spans": retention.traces_days,
        "span_events": retention.traces_days,
        "span_links": retention.traces_days,
        "metrics_points": retention.clickhouse_points_days,
    }
    return [
        *(Table(name, "toDateTime(timestamp)", (warm, cold), days) for name, days in kept_days.items()),
        Table("metrics_1m_computed", "minute", (cold,), retention.clickhouse_metrics_1m_days),
    ]


def _moves(retention: RetentionSettings) -> tuple[Move, Move]:
    return Move(retention.warm_after_days, "warm"), Move(retention.cold_after_days, "cold")


def plan(client: Client, retention: RetentionSettings) -> list[Change]:
    """Where policy and TTL of a table are not as the settings say."""
    wanted = tables(retention)
    with clickhouse.translated():
        tiered = client.query(HAS_POLICY, parameters={"policy": POLICY}).result_rows == [(True,)]
        found = client.query(LIVE, parameters={"names": [table.name for table in wanted]}).result_rows
    live = {name: (policy, TTL.search(engine)) for name, policy, engine in found}
    known = {table.name for table in wanted}
    for name, (_, ttl) in live.items():
        kept = KEPT.match(ttl[1]) if ttl and name not in known else None
        if kept:  # registered; how long it is kept its own declaration says
            wanted.append(Table(name, "toDateTime(timestamp)", _moves(retention), int(kept[1])))
    changes: list[Change] = []
    for table in (each.moved() if tiered else each._replace(moves=()) for each in wanted):
        if table.name not in live:
            raise Misconfigured(f"ClickHouse has no table {table.name} to maintain: run `pipeline migrate up` first.")
        policy, ttl = live[table.name]
        alter = f"ALTER TABLE {table.name} MODIFY"
        if tiered and policy != POLICY:
            what = f"put {table.name} under the storage policy {POLICY}."
            changes.append(Change(what, (f"{alter} SETTING storage_policy = '{POLICY}'",), "clickhouse"))
        if ttl is None or ttl[1] != table.ttl():
            changes.append(Change(str(table), (f"{alter} TTL {table.ttl()}",), "clickhouse"))
    return changes


def run(client: Client, planned: list[Change], retention: RetentionSettings) -> list[Change]:
    """Carry out what was planned, but for what has been done since; return what was carried out."""
    still = set(plan(client, retention))
    todo = [change for change in planned if change in still]
    with clickhouse.translated():
        for change in todo:
            for statement in change.statements:
                client.command(statement)
    return todo
