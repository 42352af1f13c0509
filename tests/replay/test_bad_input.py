"""What a user may get wrong before anything is copied: one sentence and an exit code each."""

import datetime
import errno
import pathlib
import shutil
from collections.abc import Sequence

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.errors import Misconfigured
from pipeline.maintain.change import Change
from pipeline.replay import drop, into_live, place
from pipeline.replay import plan as planning
from pipeline.replay.folder import Folder, every
from pipeline.replay.names import Sandbox
from pipeline.replay.plan import Plan, Slice, window
from pipeline.replay.where import Where
from pipeline.settings import ROOT, KafkaSettings, PostgresSettings, ReplaySettings, RoutesSettings, Settings
from tests.replay.world import World

NOW = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        ("2026-11-20T11:00", "2026-11-20T10:00", "is not before"),
        ("2026-11-20T10:00", "2026-11-20T10:00", "is not before"),
        ("2026-11-20T11:00", "2026-11-20T13:00", "in the future"),
        ("yesterday", "11:00", "--from: 'yesterday' is not ISO 8601"),
        ("2026-11-20T10:00", "25:00", "--to: '2026-11-20T25:00' is not ISO 8601"),
        ("0001-01-01T00:00+14:00", "11:00", "--from: '0001-01-01T00:00+14:00' is not ISO 8601"),
    ],
)
def test_a_wrong_window_is_told(start: str, end: str, said: str) -> None:
    """Reversed, empty, in the future, or no time at all: a sentence that names the option."""
    with pytest.raises(Misconfigured) as refused:
        window(start, end, NOW)
    assert [said in problem for problem in refused.value.problems] == [True]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-11-20T10:00", "11:00"),
        ("2026-11-20T10:00Z", "2026-11-20T11:00Z"),
        ("2026-11-20T11:00+01:00", "12:00"),
        ("2026-11-20T09:00-01:00", "2026-11-20T11:00"),
    ],
)
def test_times_have_a_zone_or_are_utc(start: str, end: str) -> None:
    """With a zone and without, and with the time of day alone as the end: the same hour."""
    ten = NOW.replace(hour=10)
    assert window(start, end, NOW) == (ten, ten + datetime.timedelta(hours=1))


@pytest.mark.parametrize("end", ["9:30", "09:30", "9:30:00", "09:30:00"])
def test_a_time_of_day_may_be_short(end: str) -> None:
    """With one digit of the hour or two, with seconds or without."""
    assert window("2026-11-20", end, NOW)[1] == NOW.replace(hour=9, minute=30)


@pytest.mark.parametrize("name", ["", "Rule", "rule_42", "rule--1", "-rule", "42", "a" * 33, "logs.raw", "x; DROP"])
def test_a_wrong_name_is_told(name: str) -> None:
    """Whatever could spell something else in Kafka or SQL is no name."""
    with pytest.raises(Misconfigured, match="no name for a sandbox"):
        Sandbox.called(name)


@pytest.mark.parametrize("said", [["service"], ["body=x"], ["=x"]])
def test_a_wrong_condition_is_told(said: Sequence[str]) -> None:
    """Without a value, or of a field that cannot be asked for."""
    with pytest.raises(Misconfigured, match="--where"):
        Where.parse(said)


def test_settings_that_leave_the_sandbox_are_refused() -> None:
    """A prefix with somebody else's database or role never becomes settings."""
    with pytest.raises(ValueError, match=r"kafka\.prefix is sandbox_x"):
        Settings(
            kafka=KafkaSettings(prefix="sandbox_x_"), postgres=PostgresSettings(dsn="host=h user=pipeline dbname=d")
        )
    with pytest.raises(ValueError, match="prefix"):
        KafkaSettings(prefix="logs_")


def planned(name: str) -> Plan:
    part = Slice(topic="logs_raw", partition=0, start=0, end=1, records=1, bytes=1, exact=True)
    return Plan(name=name, created=NOW, expires=NOW, start=NOW, end=NOW, slices=(part,))


def test_a_disk_that_takes_no_plan_is_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is named, and nothing half made is left behind."""

    def full(path: pathlib.Path, text: str) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    live = Settings(replay=ReplaySettings(directory=tmp_path))
    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(Misconfigured, match=r"No space left on device.*replay\.directory"):
        Folder.made(planned("rule-42"), live)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "text", "kept"),
    [
        ("plan.json", b"garbage", ["whole-1"]),
        ("plan.json", b"\xff\xfe", ["whole-1"]),
        ("way.json", b"{}", ["whole-1"]),
        ("state.json", b"[1]", ["hurt-1", "whole-1"]),
        ("state.json", b"\xff", ["hurt-1", "whole-1"]),
    ],
)
def test_a_damaged_sandbox_hides_no_other(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], file: str, text: bytes, kept: list[str]
) -> None:
    """Upkeep goes on with the others, and what cannot be read is told with its file."""
    live = Settings(replay=ReplaySettings(directory=tmp_path))
    hurt = Folder.made(planned("hurt-1"), live)
    Folder.made(planned("whole-1"), live)
    (hurt.path / file).write_bytes(text)
    assert sorted(one.plan.name for one in every(live)) == kept
    assert (str(hurt.path / file) in capsys.readouterr().err) == (len(kept) == 1)
    steps = [each.as_json() for each in (*drop.expired(live, NOW), Change("refresh", ()))]
    assert {tuple(step) for step in steps} == {("store", "what", "statements")}
    assert len(steps) == len(kept) + 1


def test_a_plan_in_another_sandboxs_folder_is_told(tmp_path: pathlib.Path) -> None:
    """A copied folder neither runs nor drops the sandbox that it was copied from: it is told, and dropped alone."""
    live = Settings(replay=ReplaySettings(directory=tmp_path))
    shutil.copytree(Folder.made(planned("first-1"), live).path, tmp_path / "second1")
    copied = Folder.of("second-1", live)
    with pytest.raises(Misconfigured, match=r"second1/plan\.json is the plan of first-1.*drop second1"):
        _ = copied.plan
    assert copied.sandbox.owner == "sandbox_second1"
    assert [one.plan.name for one in every(live)] == ["first-1"]


@pytest.mark.timeout(300)
def test_a_damaged_plan_can_be_dropped(world: World) -> None:
    """As its sentence says: `drop` takes everything of that name away, and another can be planned before."""
    world.plan("replay-1", "logs_raw")
    folder = Folder.of("replay-1", world.live)
    (folder.path / "plan.json").write_text("garbage")
    code, said = world.replay("status", "replay-1")
    assert (code, "drop the sandbox and plan again" in said) == (2, True), said
    code, said = world.replay("plan", "--topics", "logs_raw", *world.window)
    assert (code, "replay-2: received" in said) == (0, True), said
    code, said = world.replay("drop", "replay-1", "--yes")
    assert (code, place.left(Sandbox.called("replay-1"), world.live)) == (0, []), said
    assert world.replay("list")[0] == 0
    assert world.replay("drop", "replay-2", "--yes")[0] == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("plan --topics log_raw --from 2026-11-20T10:00 --to 11:00", 2, "There is no topic log_raw to replay; there are logs_raw"),
        ("plan --topics logs_raw --from 2020-01-01T10:00 --to 11:00", 2, "There are no messages in logs_raw"),
        ("plan --topics logs_raw_dlq --from 2020-01-01T10:00 --to 11:00", 2, "There is no topic logs_raw_dlq to replay"),
        ("run nobody", 2, "There is no sandbox nobody"),
        ("run nobody --rate fast", 2, "There is no sandbox nobody"),
        ("compare nobody", 2, "There is no sandbox nobody"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_told(world: World, words: str, code: int, said: str) -> None:
    """Unknown topics with near names, a slice of nothing, a sandbox that is not there."""
    ended, told = world.replay(*words.split())
    assert (ended, said in told) == (code, True), told


@pytest.mark.timeout(300)
def test_what_a_run_cannot_take_is_told(world: World, tmp_path: pathlib.Path) -> None:
    """Settings with unknown keys, agents that do not import, code that is not there: nothing of the sandbox is made."""
    world.plan("wrong-1", "logs_raw")
    (tmp_path / "s.toml").write_text('kafak = "x"')
    (tmp_path / "a.py").write_text("import nothing_such")
    for options, said in (
        (("--settings", str(tmp_path / "s.toml")), "kafak is no setting"),
        (("--agents", str(tmp_path / "a.py")), "does not import"),
        (("--against", "git:no-such-revision"), "git has no revision"),
        (("--rate", "fast"), "is no rate"),
    ):
        found = world.replay("run", "wrong-1", *options)
        assert (found[0], said in found[1]) == (2, True), found
    code, found_said = world.replay("compare", "wrong-1")
    assert (code, "not done" in found_said) == (2, True)
    assert world.replay("pause", "wrong-1")[0] == 2
    assert world.replay("drop", "wrong-1", "--yes")[0] == 0


@pytest.mark.timeout(300)
def test_topics_are_those_of_their_folder(world: World, tmp_path: pathlib.Path) -> None:
    """A run makes what `topics_directory` declares: where that has no file for what is replayed, it is told."""
    for file in ("environments.yaml", "agent_drops.yaml"):
        shutil.copy(ROOT / "topics" / file, tmp_path)
    world.plan("folder-1", "logs_raw")
    elsewhere = World(world.live.model_copy(update={"topics_directory": tmp_path}), world.home)
    code, said = elsewhere.replay("run", "folder-1")
    elsewhere.close()
    assert (code, "No file declares logs_raw" in said) == (2, True), said
    assert world.replay("drop", "folder-1", "--yes")[0] == 0


def test_a_slice_over_its_quota_is_refused(world: World) -> None:
    """What would copy more than replay.max_bytes is no plan."""
    small = world.live.model_copy(update={"replay": world.live.replay.model_copy(update={"max_bytes": 1000})})
    between = window(*world.window[1::2], datetime.datetime.now(datetime.UTC))
    with pytest.raises(Misconfigured, match=r"replay\.max_bytes"):
        planning.make(small, "big-1", topics=["logs_raw"], between=between, where=Where(), rate=1)


def test_a_back_fill_brings_only_what_the_stores_hold() -> None:
    """What agents stand before, or another region stores, is refused: it would come past redaction, or twice."""
    plan = planned("fill-1")
    mirror = plan.slices[0].model_copy(update={"topic": "eu.logs_raw"})
    for live, each in (
        (Settings(routes=RoutesSettings(logs=("logs_norm",))), plan),
        (Settings(), plan.model_copy(update={"slices": (mirror,)})),
    ):
        with pytest.raises(Misconfigured, match=rf"not filled from {each.slices[0].topic} but from logs_"):
            into_live.lines(each, live)
    into_live.lines(plan, Settings())
    into_live.lines(plan.model_copy(update={"slices": (mirror,)}), Settings(mirrored_regions=("eu",)))


@pytest.mark.timeout(300)
def test_what_is_not_there_as_planned_is_told(world: World) -> None:
    """Messages that retention has removed since, or another cluster at the address: a run and a back-fill name them and
    the way out, and copy nothing."""
    world.plan("gone-1", "traces_raw")
    folder = Folder.of("gone-1", world.live)
    first = folder.plan.slices[0]
    until = TopicPartition(first.topic, first.partition, first.start + 2)
    admin = AdminClient({"bootstrap.servers": world.live.kafka.bootstrap_servers})
    admin.delete_records([until])[until].result(30)
    removed = f"{first.topic} [{first.partition}]: retention has removed offsets {first.start} to {first.start + 1}"
    both = (("run", "gone-1"), ("into-live", "gone-1", "--approve", "gone-1"))
    for words in both:
        code, said = world.replay(*words)
        assert (code, removed in said, "`pipeline replay drop gone-1`, and plan it again" in said) == (2, True, True), (
            said
        )
    assert folder.state.get("copied_records", 0) == 0
    moved = folder.plan.model_copy(update={"cluster_id": "another"})
    (folder.path / "plan.json").write_text(moved.model_dump_json())
    for words in both:
        code, said = world.replay(*words)
        assert (code, "gone-1 was planned over cluster another" in said) == (2, True), said
    assert world.replay("drop", "gone-1", "--yes")[0] == 0
