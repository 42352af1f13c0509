"""What a topic file may say."""

import pathlib

import pytest

from pipeline import topics
from pipeline.errors import Misconfigured
from pipeline.settings import Environment
from pipeline.topics.declared import DIRECTORY, json_schema

GOOD = """\
name: logs_raw
signal: logs
description: d
owner: platform
partitions: 4
replication_factor: 3
min_insync_replicas: 2
retention_hours: 168
max_message_bytes: 1048576
"""


def problems_of(directory: pathlib.Path, environment: Environment = "local", **files: str) -> list[str]:
    folder = directory / "topics"
    folder.mkdir(exist_ok=True)
    (folder / "environments.yaml").write_text((DIRECTORY / "environments.yaml").read_text())
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    with pytest.raises(Misconfigured) as caught:
        topics.load(folder, environment=environment)
    return caught.value.problems


def test_the_shipped_files_declare_a_raw_and_a_dead_letter_topic_a_signal() -> None:
    """Every signal has its topic and its dead-letter topic, and poison of any size that fits one fits the other."""
    declared = {topic.name: topic for topic in topics.load()}
    for signal in ("logs", "metrics", "traces", "events"):
        raw, dlq = declared[f"{signal}_raw"], declared[f"{signal}_raw_dlq"]
        assert raw.signal == dlq.signal == signal
        assert dlq.max_message_bytes >= 4 * raw.max_message_bytes


def test_all_problems_of_all_files_are_told_at_once(tmp_path: pathlib.Path) -> None:
    """An unknown key, a wrong type, a missing field and a bad name in three files are one report of at least four."""
    problems = problems_of(
        tmp_path,
        logs_raw=GOOD + "retention_days: 7\n",
        metrics_raw=GOOD.replace("logs", "metrics").replace("partitions: 4\n", "").replace("168", "a week"),
        traces_raw=GOOD.replace("name: logs_raw", "name: traces.raw"),
    )
    for file, field in (
        ("logs_raw", "retention_days"), ("metrics_raw", "partitions"), ("metrics_raw", "retention_hours"),
        ("traces_raw", "name"),
    ):  # fmt: skip
        assert any(problem.startswith(f"topics/{file}.yaml: {field}: ") for problem in problems), problems


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("name: logs_raw", "name: metrics_raw"), "name: is metrics_raw"),
        (GOOD.replace("min_insync_replicas: 2", "min_insync_replicas: 4"), "min_insync_replicas: 4 of 3 replicas"),
        (GOOD + "schema: log_record/99\n", "schema: log_record/99 is no file"),
        ("name: [", "is not YAML"),
        ("", "name: Field required"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: pathlib.Path, text: str, said: str) -> None:
    """What is well formed but impossible is named too."""
    assert said in problems_of(tmp_path, logs_raw=text)[0]


def test_a_directory_without_topics_is_not_an_empty_plan(tmp_path: pathlib.Path) -> None:
    """A lost directory is an error, not a cluster that needs nothing."""
    assert "declares no topic" in problems_of(tmp_path)[0]


def test_an_environment_fills_in_and_demands(tmp_path: pathlib.Path) -> None:
    """The same files mean one replica on a laptop and three in production, where fewer are refused by name."""
    replicas = {
        environment: {
            (topic.replication_factor, topic.min_insync_replicas) for topic in topics.load(environment=environment)
        }
        for environment in ("local", "production")
    }
    assert replicas == {"local": {(1, 1)}, "production": {(3, 2)}}
    weak = GOOD.replace("factor: 3", "factor: 2").replace("replicas: 2", "replicas: 1").replace("168", "48")
    told = problems_of(tmp_path, "production", logs_raw=weak)
    assert [problem.split(": ")[1] for problem in told] == [
        "replication_factor", "min_insync_replicas", "retention_hours",
    ]  # fmt: skip
    assert "replayed" in told[-1]


def test_a_lost_or_broken_environments_file_is_told(tmp_path: pathlib.Path) -> None:
    """Missing, unknown key, not YAML: each a problem beside those of the topics, never a default."""
    folder = tmp_path / "topics"
    folder.mkdir()
    (folder / "logs_raw.yaml").write_text(GOOD)
    for text, said in ((None, "is missing"), ("local: {}\nstaging: {}\n", "staging"), ("[", "is not YAML")):
        if text:
            (folder / "environments.yaml").write_text(text)
        with pytest.raises(Misconfigured, match=r"topics/environments\.yaml") as caught:
            topics.load(folder)
        assert said in str(caught.value)


def test_editors_are_given_the_schema_of_today() -> None:
    """The shipped JSON Schema is what the code accepts, and every topic file names it."""
    assert (DIRECTORY / "topic.schema.json").read_text() == json_schema()
    files = [path for path in DIRECTORY.glob("*.yaml") if path.name not in ("environments.yaml", "topology.yaml")]
    assert all("$schema=topic.schema.json" in path.read_text().splitlines()[0] for path in files)
