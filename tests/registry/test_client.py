"""What a process knows of the tables while the registry comes and goes."""

import pathlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import Unavailable
from pipeline.settings import PostgresSettings, RegistrySettings
from pipeline.tables.client import Tables, UnknownTable
from tests.conftest import free_ports
from tests.registry.served import Registry, serving
from tests.tables import made

ADDED = {"name": "region_name", "type": "string", "default": ""}


def until(fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_change_is_seen_within_the_stated_time(registry: Registry) -> None:
    """Who follows sees tables, versions and retirements by itself."""
    tables = Tables(registry.settings)
    tables.start()
    try:
        until(lambda: tables._etag)
        registry.register(made.deployments())
        until(lambda: tables.find("deployments"))
        registry.evolve("deployments", 1, schema=made.with_fields(made.deployments(), ADDED))
        until(lambda: tables.find("deployments", 2))
        registry.retire("deployments", 2)
        until(lambda: tables.known()["deployments"].state == "retired")
    finally:
        tables.close()


def test_an_unknown_table_is_asked_for_at_once(registry: Registry) -> None:
    """Nobody has to wait: a table, and a version, is there with the first question; what is not is UnknownTable."""
    tables = Tables(registry.settings)
    with pytest.raises(UnknownTable, match="no table 'deployments'"):
        tables.get("deployments")
    registry.register(made.deployments())
    assert tables.get("deployments").version == 1
    with pytest.raises(UnknownTable, match="no version 2, the latest is 1"):
        tables.get("deployments", 2)
    registry.evolve("deployments", 1, schema=made.with_fields(made.deployments(), ADDED))
    assert tables.get("deployments", 2).version == 2
    with pytest.raises(UnknownTable, match="near it are deployments"):
        tables.get("deployment")


def test_many_who_wait_share_one_question(registry: Registry) -> None:
    """However many ask at the same time for what is not there, the registry hears few of them."""
    tables = Tables(registry.settings)
    asked = []
    ask = tables._ask
    tables._ask = lambda: asked.append(ask())  # type: ignore[method-assign, func-returns-value]
    now_s = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: tables.refresh(now_s), range(50)))
    assert len(asked) == 1


def test_while_the_registry_is_away_the_last_known_go_on(database: PostgresSettings, tmp_path: pathlib.Path) -> None:
    """What was known is known, in the next process too; of all else nobody can tell; and it comes back by itself."""
    own = RegistrySettings(port=free_ports(1)[0], refresh_s=0.2)
    file = tmp_path / "spool" / "tables.json"
    tables = Tables(own, file=file)
    with pytest.raises(Unavailable, match="cannot be asked"):
        tables.get("audit_log")
    with serving(database, own) as registry:
        registry.register(made.audit_log())
        assert tables.get("audit_log").owner == "security"
    assert tables.get("audit_log").owner == "security"
    with pytest.raises(Unavailable):
        tables.get("other")
    assert "cannot be asked" in tables.away()
    again = Tables(own, file=file)
    assert again.find("audit_log") == tables.find("audit_log")
    with serving(database, own), pytest.raises(UnknownTable):
        again.get("other")
    assert again.away() == ""
    file.write_text('{"tables": [{"name": "a"}')
    assert Tables(own, file=file).known() == {}


def test_a_table_that_does_not_read_keeps_no_other_away(tmp_path: pathlib.Path) -> None:
    """One document of a newer registry is told and left out; its neighbours are known."""
    file = tmp_path / "tables.json"
    good = made.table(made.deployments()).model_dump_json(by_alias=True)
    file.write_text(f'{{"tables": [{{"name": "newer", "colour": 1}}, {good}]}}')
    assert list(Tables(RegistrySettings(), file=file).known()) == ["deployments"]


def test_who_else_answers_there_is_no_registry(registry: Registry) -> None:
    """A wrong key, and an address of something else, are Unavailable with the reason."""
    elsewhere = registry.settings.model_copy(update={"url": f"{registry.settings.address}/other"})
    with pytest.raises(Unavailable, match="it answers 404"):
        Tables(elsewhere).get("deployments")
