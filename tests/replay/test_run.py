"""When a replay is over."""

import pathlib
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.replay import run

LOOKS = [(100, 100), (100, 130), (130, 130), (160, 160), (160, 160), (990, 990)]  # committed and written, at each look


def test_a_replay_is_stored_when_nothing_came_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All may be committed at every look, while each agent of a chain commits and writes on between them."""
    looks = iter(LOOKS)
    at: list[tuple[int, int]] = []

    class Kafka:
        def __init__(self, _: Any) -> None: ...

        def retained(self, _: Any) -> list[Any]:
            at.append(next(looks))
            return [SimpleNamespace(topic="t", partition=0, end=at[-1][1])]

        def committed(self, _: Any, places: Any) -> dict[Any, Any]:
            return {place: SimpleNamespace(offset=at[-1][0]) for place in places}

    monkeypatch.setattr(run, "Reader", Kafka)
    monkeypatch.setattr(run, "Groups", Kafka)
    monkeypatch.setattr(run, "POLL_S", 0)
    monkeypatch.setattr(run.gaps, "STORE_WRITERS", ("ch_writer",))
    monkeypatch.setattr(run.gaps, "topics", lambda *_: ("t",))
    folder: Any = SimpleNamespace(note=lambda _: None)
    made: Any = SimpleNamespace(settings=SimpleNamespace(kafka=SimpleNamespace(named=str)), agents={})
    run._store(folder, made, run._Running(pathlib.Path(), 0), lambda *_: None)
    assert at == LOOKS[:5]
