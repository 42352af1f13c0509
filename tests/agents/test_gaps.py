"""What Kafka removed before a writer read it is never skipped in silence; against real servers."""

import json
import signal
import time

import psycopg
import pytest

from pipeline import topics
from pipeline.agents import gaps
from pipeline.kafka.admin import Cluster
from pipeline.kafka.groups import Committed, Groups
from pipeline.settings import KafkaSettings, Settings
from tests.agents.process import Process, remove_before, send, until
from tests.audit.conftest import remove_topics
from tests.contract.test_stores import gauges, new_service, one
from tests.otlp.requests import T0

FETCH_WAIT_S = 2.0  # Faust's is 1.5
EVERY = [("metrics_raw", partition) for partition in range(4)]


def test_a_gap_is_told_with_its_size_and_times() -> None:
    """Removed offsets with what is left, nothing left at all, and a topic that ends before the writer's place."""
    removed = gaps.Gap("ch_writer", "logs_raw", 1, position=10, start=25, end=30, first_ms=1_700_000_000_000)
    assert removed.offsets == 15
    assert "15 offsets, 10 to 24, were removed before they were read" in str(removed)
    assert "what is left begins 2023-11-14T22:13:20+00:00." in str(removed)
    emptied = gaps.Gap("ch_writer", "logs_raw", 1, position=10, start=25, end=25, first_ms=None)
    assert "nothing after them is left" in str(emptied)
    anew = gaps.Gap("ch_writer", "logs_raw", 1, position=10, start=0, end=4, first_ms=1_700_000_000_000)
    assert (anew.offsets, "ends at 4: the topic was made anew" in str(anew)) == (0, True)
    assert str(anew).endswith("all that is there would be read from the first.")
    assert anew.command == "pipeline agents accept_gap ch_writer --topic logs_raw --partition 1"


def test_a_gap_of_a_sandbox_is_accepted_in_its_own_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Live's group of the same writer stands where it stood."""
    moved = []

    class Groups:
        def __init__(self, _: KafkaSettings) -> None: ...

        def move(self, group: str, offsets: object) -> None:
            moved.append((group, offsets))

    monkeypatch.setattr(gaps, "Groups", Groups)
    gap = gaps.Gap("pg_writer", "sandbox_x_logs_raw", 1, position=10, start=25, end=30, first_ms=None)
    sandbox = Settings.model_construct(kafka=KafkaSettings(prefix="sandbox_x_"))
    gaps.accept([gap], sandbox)
    assert moved == [("sandbox_x_pg_writer", {("sandbox_x_logs_raw", 1): Committed(25)})]


class Points:
    """Messages of one point each, into partition 0, and which of them are stored."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._service = new_service()
        self._sent = 0

    def send(self, count: int) -> list[int]:
        several = []
        for _ in range(count):
            self._sent += 1
            message = one("metrics", gauges(self._service, ("m", T0 + self._sent * 10**9, float(self._sent))))
            several.append(message._replace(topic="metrics_raw", partition=0))
        return send(self._settings, *several)

    def stored(self) -> list[int]:
        with psycopg.connect(self._settings.postgres.dsn.get_secret_value()) as connection:
            return [int(value) for (value,) in connection.execute("SELECT value FROM metrics_points ORDER BY value")]


def committed(settings: Settings) -> list[int | None]:
    found = Groups(settings.kafka).committed("pg_writer", EVERY)
    return [found[place].offset if place in found else None for place in EVERY]


def test_a_gap_stops_the_writer_until_it_is_accepted(writer: Process) -> None:
    """A new group starts at the first message; what is then removed unread is told by size and time, and given up only
    by the command that the sentence names."""
    settings, points = writer.settings, Points(writer.settings)
    points.send(3)
    remove_before(settings, "metrics_raw", 0, 1)
    writer.start()
    until(lambda: points.stored() == [2, 3], "a new group did not start at the first message")
    until(lambda: committed(settings) == [3, 0, 0, 0], "a new group did not say where it began")
    assert writer.stop()[0] == 0
    assert (gaps.find("pg_writer", gaps.topics("pg_writer", settings), settings), writer.run("agents gaps")) == (
        [],
        (0, ""),
    )

    points.send(5)
    remove_before(settings, "metrics_raw", 0, 6)
    writer.start()
    code, said = writer.ended()
    assert code == 2
    assert "metrics_raw [0]: pg_writer is to read offset 3 next, but Kafka begins at 6: 3 offsets, 3 to 5," in said
    assert "what is left begins 20" in said
    command = "agents accept_gap pg_writer --topic metrics_raw --partition 0"
    assert f"pipeline {command}" in said
    code, found = writer.run("agents gaps --json")
    [gap] = json.loads(found)
    assert (code, gap["offsets"], gap["position"], gap["start"], gap["end"]) == (1, 3, 3, 6, 8)
    assert committed(settings)[0] == 3
    for slip in (command.replace("pg_", "pg-"), command.replace("partition 0", "partition 9")):
        code, said = writer.run(f"{slip} --yes")
        assert (code, "has read nothing of metrics_raw [" in said) == (2, True), said
    code, said = writer.run(f"{command} --yes")
    assert (code, "3 offsets, 3 to 5" in said) == (0, True), said
    assert committed(settings) == [6, 0, 0, 0]
    writer.start()
    until(lambda: points.stored() == [2, 3, 7, 8], "the writer did not go on after the gap")
    assert writer.stop()[0] == 0


def test_what_was_read_is_stored_before_a_gap_stops_the_writer(writer: Process) -> None:
    """A gap that opens under a running writer: what it holds is stored and committed, then it stops; a topic made anew
    is read from its first message."""
    settings, points = writer.settings, Points(writer.settings)
    points.send(5)
    writer.start()
    until(lambda: len(points.stored()) == 5, "the first messages were not stored")
    with psycopg.connect(settings.postgres.dsn.get_secret_value()) as lock:
        lock.execute("LOCK TABLE metrics_points IN ACCESS EXCLUSIVE MODE")
        points.send(3)
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'metrics_points'::regclass"
        until(lambda: lock.execute(waiting).fetchone() == (1,), "no insert came")
        writer.child.send_signal(signal.SIGSTOP)
        time.sleep(FETCH_WAIT_S)  # or the fetch that is under way takes the next messages
        points.send(3)
        remove_before(settings, "metrics_raw", 0, 10)
        writer.child.send_signal(signal.SIGCONT)
        assert '"gap":' in _line(writer, "storing what was read")
        assert writer.child.poll() is None
    code, said = writer.ended()
    assert code == 2
    assert "pg_writer is to read offset 8 next, but Kafka begins at 10: 2 offsets, 8 to 9, were removed" in said
    assert points.stored() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert committed(settings)[0] == 8
    remove_topics(settings.kafka.bootstrap_servers)
    topics.apply_all(settings)
    points.send(1)
    writer.start()
    until(lambda: points.stored()[8:] == [12], "the new topic was not read from its first message")
    assert writer.stop()[0] == 0


@pytest.mark.timeout(240)
def test_partitions_that_a_topic_grows_by_are_read_within_a_minute(writer: Process) -> None:
    """From their first message on, by a writer that runs and is not told."""
    settings, points = writer.settings, Points(writer.settings)
    points.send(1)
    writer.start()
    until(lambda: points.stored() == [1], "the first message was not stored")
    Cluster(settings.kafka).grow("metrics_raw", 5)
    grown = one("metrics", gauges(new_service(), ("m", T0 + 9 * 10**9, 9.0)))
    send(settings, grown._replace(topic="metrics_raw", partition=4))
    until(lambda: points.stored() == [1, 9], "the new partition was not read", within_s=60)
    assert writer.stop()[0] == 0


def _line(writer: Process, text: str) -> str:
    """The next line of the writer's log that holds `text`."""
    assert writer.child.stderr is not None
    for line in writer.child.stderr:
        if text in line:
            return line
    return ""
