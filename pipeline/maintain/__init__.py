"""Upkeep of both stores: retention, pieces of tables, tiers of disks and rollups, as the settings say.

    plan(settings, now) → run(planned, settings, now)

ClickHouse and TimescaleDB are told once, and their own jobs do the work. In a plain PostgreSQL the work itself is
planned: partitions made ahead of time and dropped when they have expired, rollups of changed hours refreshed; so it
must be run again and again.
"""

import datetime
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from pipeline import clickhouse
from pipeline.errors import Misconfigured, Rejected, Unavailable
from pipeline.maintain import graph, partitions, policies, registered, rollups, tiers
from pipeline.maintain.change import Change, StoreName
from pipeline.settings import Settings
from pipeline.timescale import connection

__all__ = ["Change", "plan", "run", "run_all"]

ADVISORY_LOCK = int.from_bytes(b"maintain")  # any constant that is nobody else's
LOCK_WITHIN = "SET LOCAL lock_timeout = '10s'"  # writers wait behind who waits for a lock


def plan(settings: Settings, now: datetime.datetime, only: StoreName | None = None) -> list[Change]:
    """What is to be done in both stores, or in the one that is named, in that order; empty where all is as it should
    be."""
    changes: list[Change] = []
    if only != "clickhouse":
        changes += _plan_postgres(settings, now)
    if only != "postgres":
        with closing(clickhouse.connect(settings.clickhouse)) as client:
            changes += tiers.plan(client, settings.retention)
    return changes


def run(planned: Sequence[Change], settings: Settings, now: datetime.datetime) -> list[Change]:
    """Carry out what was planned, but for what has been done since; return what was carried out. In PostgreSQL each
    change is a transaction of its own.

    Raise Unavailable where another runner is at work; where a change is refused, for the want of a right too, or a lock
    is not had in time, raise Rejected, Misconfigured or Unavailable once all others are done.
    """
    done: list[Change] = []
    failures: list[Misconfigured | Rejected | Unavailable] = []
    of_postgres = [change for change in planned if change.store == "postgres"]
    if of_postgres:
        done += _run_postgres(of_postgres, settings, now, failures)
    of_clickhouse = [change for change in planned if change.store == "clickhouse"]
    if of_clickhouse:
        with closing(clickhouse.connect(settings.clickhouse)) as client:
            done += tiers.run(client, of_clickhouse, settings.retention)
    if failures:
        raise type(failures[0])("\n".join(map(str, failures)))
    return done


def run_all(settings: Settings, now: datetime.datetime, only: StoreName | None = None) -> list[Change]:
    """Plan and carry out at once, for a stack that is nobody else's."""
    return run(plan(settings, now, only), settings, now)


def _plan_postgres(settings: Settings, now: datetime.datetime) -> list[Change]:
    with connection.connect(settings.postgres) as connected, connection.translated():
        if connected.execute("SELECT to_regclass('table_registry')").fetchone() == (None,):
            raise Misconfigured("PostgreSQL has no tables to maintain: run `pipeline migrate up` first.")
        own = registered.tables(connected)
        if connected.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'").fetchone():
            changes = policies.plan(connected, settings.retention, own)
        else:
            made, expired = partitions.plan(connected, settings.retention, own, now)
            changes = [*made, *rollups.plan(connected, settings.retention.points_days, now), *expired]
        return [*changes, *graph.plan(connected)]


def _run_postgres(
    planned: Sequence[Change],
    settings: Settings,
    now: datetime.datetime,
    failures: list[Misconfigured | Rejected | Unavailable],
) -> list[Change]:
    done = []
    with _alone(settings):
        still = set(_plan_postgres(settings, now))
        with connection.connect(settings.postgres) as connected:
            for change in planned:
                if change not in still:
                    continue
                try:
                    with connection.translated(), connected.transaction():
                        connected.execute(LOCK_WITHIN)
                        for statement in change.statements:
                            connected.execute(statement.encode())
                    done.append(change)
                except (Misconfigured, Rejected, Unavailable) as error:
                    if connected.closed:
                        raise
                    waits = "What comes after it waits" if change.needed else "No other change waits"
                    way_out = f"{waits} for it: correct what it names and run this again."
                    failures.append(type(error)(f"Could not {change} {error} {way_out}"))
                    if change.needed:
                        break
    return done


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Keep other runners away, until the connection ends; raise Unavailable where one is at work."""
    with connection.connect(settings.postgres) as held:
        with connection.translated():
            free = held.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_LOCK,)).fetchone() == (True,)
        if not free:
            raise Unavailable("Another runner is at work on this PostgreSQL: wait until it is done and run this again.")
        try:
            yield
        finally:
            with connection.translated():
                held.execute("SELECT pg_advisory_unlock(%s)", (ADVISORY_LOCK,))
