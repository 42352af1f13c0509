"""What the processes of a sandbox are told."""

import pathlib
import shutil
import subprocess

import pytest

from pipeline.errors import Misconfigured
from pipeline.replay.changed import changed, environment
from pipeline.replay.described import describe
from pipeline.replay.folder import Folder, Way
from pipeline.replay.names import Sandbox
from pipeline.settings import PREFIX, ROOT, PostgresSettings, ReplaySettings, Settings
from tests.replay.test_bad_input import planned


def test_a_sandbox_is_told_only_what_is_not_as_ever(tmp_path: pathlib.Path) -> None:
    """So `--against` runs revisions that do not know every setting of today."""
    own = Settings.model_construct(postgres=PostgresSettings(dsn="host=elsewhere"), replay=ReplaySettings(nice=3))
    said = {key: value for key, value in environment(own, tmp_path).items() if key.startswith(PREFIX)}
    assert said == {f"{PREFIX}POSTGRES__DSN": "host=elsewhere", f"{PREFIX}REPLAY__NICE": "3"}


def test_agents_write_what_the_folder_of_topics_declares(tmp_path: pathlib.Path) -> None:
    """That of `topics_directory`, also where it is said from the folder in which the user stands."""
    own = Sandbox.called("x-1").settings(Settings(topics_directory=pathlib.Path("topics")), Settings(), "secret")
    assert own.topics_directory == pathlib.Path.cwd() / "topics"
    shutil.copytree(ROOT / "topics", tmp_path / "topics")
    audit = (ROOT / "topics" / "logs_norm.yaml").read_text().replace("logs_norm", "logs_audit")
    (tmp_path / "topics" / "logs_audit.yaml").write_text(audit)
    file = tmp_path / "keep.py"
    file.write_text(
        "from pipeline.agents import LogRecord, agent\n\n\n"
        "@agent(reads='logs_raw', writes='logs_audit', version=1)\ndef keep(record: LogRecord): return record\n"
    )
    env = environment(Settings(topics_directory=tmp_path / "topics"), ROOT)
    assert describe(file, env, ROOT)["keep"].writes == {"logs": "logs_audit"}


def test_an_agent_does_not_write_into_what_is_replayed(tmp_path: pathlib.Path) -> None:
    """What is copied and what an agent makes would be in one topic, and no run could go on: both are named before."""
    file = tmp_path / "keep.py"
    file.write_text(
        "from pipeline.agents import LogRecord, agent\n\n\n"
        "@agent(reads='logs_raw', writes='logs_norm', version=1)\ndef keep(record: LogRecord): return record\n"
    )
    live = Settings(replay=ReplaySettings(directory=tmp_path / "replay"))
    plan = planned("both-1")
    made = plan.model_copy(update={"slices": (plan.slices[0].model_copy(update={"topic": "logs_norm"}),)})
    with pytest.raises(Misconfigured, match=r"both-1 replays logs_norm, which keep writes too"):
        changed(Folder.made(made, live), live, Way(agents=file, records_per_s=1))
    changed(Folder.made(planned("raw-1"), live), live, Way(agents=file, records_per_s=1))


def test_a_run_that_was_refused_leaves_no_code_to_the_next(tmp_path: pathlib.Path) -> None:
    """Until something has run, another revision may be named, and is what runs; then a run goes on with what it has,
    also where its revision's name has moved."""
    live = Settings(replay=ReplaySettings(directory=tmp_path / "replay"))
    folder = Folder.made(planned("code-1"), live)
    way = Way(against="git:HEAD", records_per_s=1)
    there = folder.path / "code" / "there"
    try:
        with pytest.raises(Misconfigured, match="neither a file nor a folder"):
            changed(folder, live, way.model_copy(update={"agents": tmp_path / "none.py"}))
        there.touch()
        assert changed(folder, live, way).code == there.parent
        assert not there.exists()
        folder.keep_way(way)
        there.touch()
        changed(folder, live, way)
        assert there.exists()
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(there.parent)], check=True)
