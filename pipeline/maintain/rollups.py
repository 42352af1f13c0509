"""Rollups of the plain PostgreSQL: hours whose points have changed since."""

import datetime

import psycopg
from psycopg import sql

from pipeline.maintain.change import Change

HOUR = datetime.timedelta(hours=1)
# An hour that has not ended is read from its points: to store it would be to store it again and again.
CHANGED_DAYS = """
    SELECT DISTINCT date_bin('1 day', hour, TIMESTAMPTZ '2000-01-01 00:00:00+00') FROM metrics_changed_hours
    WHERE hour < %s ORDER BY 1
"""
REFRESH = "CALL refresh_metrics_rollups({}, {})"


def plan(connected: psycopg.Connection, points_days: int, now: datetime.datetime) -> list[Change]:
    """A change for every day with such hours; needed where its points have expired and are to be dropped."""
    expired = now - datetime.timedelta(days=points_days)
    ended = now - (now - datetime.datetime.min.replace(tzinfo=datetime.UTC)) % HOUR
    return [
        Change(
            f"refresh metrics_1m, metrics_1h and metrics_1d of {day:%Y-%m-%d}: points have changed.",
            (sql.SQL(REFRESH).format(day, ended).as_string(),),
            needed=day < expired,
        )
        for (day,) in connected.execute(CHANGED_DAYS, (ended,)).fetchall()
    ]
