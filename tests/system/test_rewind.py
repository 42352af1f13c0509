"""The short form of the drill `rewind`, on the servers that all tests share."""

import pathlib
from collections.abc import Iterator

import pytest

from pipeline.settings import Settings, WriterSettings
from tests.agents.process import Process
from tests.conftest import free_ports
from tests.drills import rewind
from tests.drills.context import Context


@pytest.fixture
def writers(world: Settings) -> Iterator[list[Process]]:
    """Both, running."""
    ports = free_ports(len(rewind.WRITERS))
    own = {
        name: WriterSettings(health_port=port, batch_bytes=1 << 22)
        for name, port in zip(rewind.WRITERS, ports, strict=True)
    }
    made = [Process(name, world.model_copy(update=own)) for name in rewind.WRITERS]
    for one in made:
        one.start()
    yield made
    for one in made:
        one.close()


@pytest.mark.timeout(300)
def test_rewound_by_an_hour_nobody_sees_a_duplicate(
    world: Settings, writers: list[Process], tmp_path: pathlib.Path
) -> None:
    """Under load, while readers look at every view all the time; at the end all is stored once and the audit clean."""

    def stop() -> None:
        for one in writers:
            one.child.terminate()
        assert [one.ended()[0] for one in writers] == [0, 0]

    def start() -> None:
        for one in writers:
            one.start()

    context = Context("rewind", tmp_path, seed=1, short=True)
    assert "audit clean" in rewind.rewound(context, world, stop, start)
