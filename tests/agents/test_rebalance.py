"""What a writer that keeps a partition through a rebalance does with what it had fetched before."""

import pathlib

import psycopg
import pytest

from pipeline.delivery import Message
from pipeline.kafka.groups import Groups
from pipeline.settings import Settings, WriterSettings
from tests.agents.group import Group
from tests.agents.process import Process, send, until
from tests.conftest import free_ports
from tests.contract.test_stores import gauges, new_service, one
from tests.otlp.requests import T0

PARTITIONS = range(4)
HELD = 60  # messages of a partition: more than the agents take before one is stored


def some(first: int, count: int) -> list[Message]:
    """So many in each partition."""
    service = new_service()
    return [
        one("metrics", gauges(f"{service}-{partition}", ("m", T0 + n * 10**9, 1.0)))._replace(partition=partition)
        for n in range(first, first + count)
        for partition in PARTITIONS
    ]


def test_what_was_fetched_before_a_rebalance_leaves_no_gap_after_it(
    writer: Process, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages that waited in its buffers, which a rebalance empties, are stored, though later ones were on their way."""
    late = tmp_path / "late"
    monkeypatch.setenv("LATE_FETCH", str(late))
    monkeypatch.setenv("EARLY_FETCH", str(tmp_path / "never"))
    first, second = (
        Process("pg_writer", _one_message_a_batch(writer.settings, port), module=module)
        for port, module in zip(free_ports(2), ("tests.agents.late_fetch", "pipeline"), strict=True)
    )
    group = Group(writer.settings.kafka.bootstrap_servers, "pg_writer")
    with psycopg.connect(writer.settings.postgres.dsn.get_secret_value(), autocommit=True) as store:

        def stored(each: int) -> bool:
            return store.execute("SELECT count(*) FROM metrics_points").fetchone() == (each * len(PARTITIONS),)

        try:
            first.start()
            send(first.settings, *some(0, 5))
            until(lambda: stored(5), "the first messages were not stored")
            with store.transaction():
                store.execute("LOCK TABLE metrics_points IN SHARE MODE")
                send(first.settings, *some(5, HELD))
                waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'metrics_points'::regclass"
                until(lambda: store.execute(waiting).fetchone() == (1,), "no insert came")
                late.touch()
                send(first.settings, *some(5 + HELD, 5))
                until(lambda: not late.exists(), "nothing was fetched")
                second.start()
                until(lambda: group.settled(2), "the second did not join")
            until(lambda: stored(10 + HELD), "messages are missing")
        finally:
            first.close()
            second.close()


def test_what_was_fetched_too_early_is_fetched_again_from_the_first_message(
    writer: Process, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch that a rebalance overtook is thrown away, and nothing of it is lost where the group stands at 0."""
    early = tmp_path / "early"
    early.touch()
    monkeypatch.setenv("LATE_FETCH", str(tmp_path / "never"))
    monkeypatch.setenv("EARLY_FETCH", str(early))
    process = Process("pg_writer", writer.settings, module="tests.agents.late_fetch")
    groups, places = Groups(writer.settings.kafka), [("metrics_raw", partition) for partition in PARTITIONS]

    def committed() -> set[int]:
        return {each.offset for each in groups.committed("pg_writer", places).values()}

    with psycopg.connect(writer.settings.postgres.dsn.get_secret_value(), autocommit=True) as store:
        try:
            process.start()
            until(lambda: len(groups.committed("pg_writer", places)) == len(places), "it has not begun")
            send(process.settings, *some(0, 5))
            until(lambda: not early.exists(), "nothing was fetched")
            send(process.settings, *some(5, 5))
            until(lambda: committed() == {10}, "it did not come to the end")
            assert store.execute("SELECT count(*) FROM metrics_points").fetchone() == (10 * len(PARTITIONS),)
        finally:
            process.close()


def _one_message_a_batch(settings: Settings, port: int) -> Settings:
    own = WriterSettings(health_port=port, batch_bytes=1 << 20, batch_records=1)
    return settings.model_copy(update={"pg_writer": own})
