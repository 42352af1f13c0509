"""Runners in processes of their own, which can be killed; forked from a clean server, so that one costs no imports."""

import multiprocessing
import os
import pathlib
import signal
from collections.abc import Callable
from typing import Any

from pipeline import migrations
from pipeline.migrations import files
from pipeline.migrations.files import Statement
from pipeline.migrations.stores import ClickHouse, Postgres
from pipeline.settings import Settings

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


class MortalPostgres(Postgres):
    """Kills its process when the server has answered for a statement, before that is recorded."""

    last: Statement

    def _execute(self, statement: Statement) -> None:
        super()._execute(statement)
        if statement == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class MortalClickHouse(ClickHouse):
    """Dies in the same way."""

    last: Statement

    def _execute(self, statement: Statement) -> None:
        super()._execute(statement)
        if statement == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_at(last: Statement, settings: Settings, only: migrations.StoreName) -> None:
    """`up` that dies of SIGKILL after that statement."""
    mortal = (
        MortalPostgres.opened(settings.postgres) if only == "postgres" else MortalClickHouse.opened(settings.clickhouse)
    )
    with mortal as store:
        store.last = last
        migrations.up(migrations.plan([store]), [store])


def up(settings: Settings, only: migrations.StoreName | None, directory: pathlib.Path = files.DIRECTORY) -> None:
    with migrations.opened(settings, only) as stores:
        migrations.up(migrations.plan(stores, directory), stores)


def up_when(start: Any, settings: Settings) -> None:
    """Plan, wait for the others, and go."""
    with migrations.opened(settings) as stores:
        planned = migrations.plan(stores)
        start.wait()
        migrations.up(planned, stores)


def hold(settings: Settings, held: Any) -> None:
    """Take the locks of both stores and keep them."""
    with migrations.opened(settings) as stores, stores[0].locked(), stores[1].locked():
        held.set()
        signal.pause()


def started(target: Callable[..., None], *arguments: Any) -> Any:
    process = _FORKS.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def event() -> Any:
    return _FORKS.Event()


def barrier(parties: int) -> Any:
    return _FORKS.Barrier(parties)
