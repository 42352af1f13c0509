"""`pipeline agents`: what it says of agents that are not as they should be, and of those that are."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import pytest

from pipeline.agents import builtin, scaffold
from pipeline.agents.graph import Graph
from pipeline.agents.load import load, settings_of
from pipeline.errors import Misconfigured
from pipeline.record.schema import SIGNALS
from pipeline.settings import ROOT, RoutesSettings, Settings

HEAD = "from pipeline.agents import LogRecord, agent, drop\n\n"
ONE = '@agent(reads="logs_raw", writes="logs_norm", version=1)\n'
NO_NAME = 'is no name for an agent: write a text of 100 letters, digits, _, - and . at most, as "mask".'
NOWHERE = {"PIPELINE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
DECLARED = {
    name: signal
    for signal in ("logs", "metrics", "traces")
    for form in ("raw", "norm")
    for name in (f"{signal}_{form}", f"{signal}_{form}_dlq")
}


def command(*words: str, cwd: pathlib.Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    path = os.environ.get("PYTHONPATH", "")
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "agents", *words], capture_output=True, text=True, check=False, cwd=cwd,
        env={**os.environ, **NOWHERE, "PYTHONPATH": f"{ROOT}:{path}", **environment},
    )  # fmt: skip


def folder(at: pathlib.Path, **files: str) -> pathlib.Path:
    for name, code in files.items():
        (at / f"{name}.py").write_text(HEAD + textwrap.dedent(code))
    return at


@pytest.mark.timeout(300)
def test_laws(tmp_path: pathlib.Path) -> None:
    """Each broken law is named with the smallest record that breaks it, with file and line; the good agent has its
    speed."""
    code = f"""
{ONE}def good(record): return record.replace(body=record.body.strip())

{ONE}def hashes(record): return record.replace(body=str(hash("a")))

{ONE}def changes(record):
    record.attributes["a"] = "b"
    return record

{ONE}def picky(record): return 7 if record.body else record

@agent(reads="logs_raw", writes="logs_norm", version=1, batch=True)
def neighbours(records): return [each.replace(body=str(len(records))) for each in records]
"""
    done = command("test", str(folder(tmp_path, several=code)), "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    verdicts = {each["agent"]: each for each in json.loads(done.stdout)}
    assert {name: each["broken"] for name, each in verdicts.items()} == {
        "good": "", "hashes": "deterministic", "changes": "total", "picky": "total",
        "neighbours": "independent",
    }  # fmt: skip
    assert verdicts["good"]["records_per_s"] > 0
    assert verdicts["changes"]["how"].startswith(f"{tmp_path}/several.py:")
    assert "does not support item assignment" in verdicts["changes"]["how"]
    assert verdicts["changes"]["smallest"] == ["LogRecord()"]
    assert len(verdicts["picky"]["smallest"]) == 1
    assert len(verdicts["neighbours"]["smallest"]) == 2


@pytest.mark.timeout(300)
def test_new(tmp_path: pathlib.Path) -> None:
    """In an empty folder: an agent with a test that passes and the topics that nobody declared; it is well by itself."""
    shutil.copytree(ROOT / "topics", tmp_path / "topics")
    here = {"PIPELINE_TOPICS_DIRECTORY": str(tmp_path / "topics")}
    done = command("new", "mask_emails", "--writes", "logs_clean", cwd=tmp_path, **here)
    assert done.stdout.split() == [
        "my_agents/mask_emails.py", "my_agents/test_mask_emails.py", f"{tmp_path}/topics/logs_clean.yaml",
        f"{tmp_path}/topics/logs_clean_dlq.yaml",
    ]  # fmt: skip
    passed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "my_agents"], cwd=tmp_path, check=False
    )
    assert passed.returncode == 0
    unrouted = command("check", cwd=tmp_path, **here)
    assert (unrouted.returncode, unrouted.stderr.count("nobody stores logs_clean")) == (2, 1)
    assert command("check", cwd=tmp_path, **here, PIPELINE_ROUTES__LOGS='["logs_clean"]').returncode == 0
    again = command("new", "mask_emails", cwd=tmp_path, **here)
    assert (again.returncode, again.stderr.endswith("exist: choose another name.\n")) == (2, True)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gateway", "is a name of the platform's"),
        ("redact", "is a built-in agent"),
        ("class", "is a word or a module of Python's"),
        ("json", "is a word or a module of Python's"),
        ("test_x", "begins like what `pipeline agents` leaves out (test_, _, conftest)"),
    ],
)
def test_a_name_that_could_not_run_is_refused(name: str, why: str, tmp_path: pathlib.Path) -> None:
    """By what it is, before anything is written."""
    with pytest.raises(Misconfigured) as wrong:
        scaffold.files(name, "logs", ("logs_raw", "logs_norm"), tmp_path, tmp_path)
    assert str(wrong.value) == f"{name!r} cannot be an agent's name, for it {why}: choose another."


def test_a_file_of_no_text_is_named(tmp_path: pathlib.Path) -> None:
    """Python says where a syntax error is, but not of a NUL; and each release says that in other words."""
    folder(tmp_path, nul="\0")
    [problem] = load([tmp_path]).problems
    assert problem.startswith(f"{tmp_path}/nul.py:1: does not import: ")
    assert "null bytes" in problem


def test_a_link_that_goes_round_is_named(tmp_path: pathlib.Path) -> None:
    """One among good files, which are loaded; nobody else finds it among the modules."""
    folder(tmp_path, good=f"{ONE}def good(record): return record\n")
    (tmp_path / "round.py").symlink_to("round.py")
    found = load([tmp_path, tmp_path / "round.py"])
    assert list(found.agents) == ["good"]
    assert "agents_of_round" not in sys.modules
    assert f"{tmp_path}/round.py:1: does not import: OSError: [Errno 40] Too many" in found.problems[0]


def test_an_agent_that_remembers_is_told(tmp_path: pathlib.Path) -> None:
    """What it breaks, it breaks once: a sentence all the same, not a traceback."""
    code = f"seen = set()\n\n{ONE}def first_only(record):\n    if record.body in seen: return drop('seen')\n"
    folder(tmp_path, first_only=f"{code}    seen.add(record.body)\n    return record\n")
    done = command("test", str(tmp_path), cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "first_only is not " in done.stdout


def test_what_an_agent_prints_is_not_what_a_command_answers(tmp_path: pathlib.Path) -> None:
    """At its import and for each record: `--json` is JSON."""
    folder(tmp_path, prints=f'print("imported")\n{ONE}def prints(record):\n    print("seen")\n    return record\n')
    for verb, seen in ("list", "imported"), ("test", "seen"):
        done = command(verb, str(tmp_path), "--json", cwd=tmp_path)
        assert [each["agent"] for each in json.loads(done.stdout)] == ["prints"]
        assert seen in done.stderr


def test_bad_files_are_sentences_and_the_others_go_on(tmp_path: pathlib.Path) -> None:
    """A file that does not import, one without an agent, two of one name, a version or form that cannot be: each with
    file and line, and the good one is loaded."""
    folder(
        tmp_path,
        good=f"{ONE}def good(record): return record\n",
        broken="import nothing_of_this_name\n",
        syntax="def x(:\n",
        leaves="raise SystemExit(3)\n",
        empty="x = 1\n",
        twin_a=f"{ONE}def twin(record): return record\n",
        twin_b=f"{ONE}def twin(record): return record\n",
        version='@agent(reads="logs_raw", writes="logs_norm", version=0)\ndef v(record): return record\n',
        waits=f"{ONE}async def waits(record): return record\n",
        skips="class Skipped(BaseException): ...\nraise Skipped('no table')\n",
        topics="@agent(reads=5, writes=[7], version=1)\ndef topics(record): return record\n",
        no_topics='@agent(reads="logs_raw", writes=7, version=1)\ndef no_topics(record): return record\n',
        moved=f"{ONE}def moved(record): return record\nother = moved.between(3, reads='logs_raw', writes='logs_norm')\n",
        none_given=f"{ONE}def none_given(): return None\n",
        too_many=f"{ONE}def too_many(record, context, more): return None\n",
        yields=f"{ONE}def yields(record): yield record\n",
        nameless='no = agent(reads="logs_raw", writes="logs_norm", version=1)(lambda record: record)\n',
        long_name=f"{ONE}def {'n' * 101}(record): return record\n",
        a_settings='@agent(reads="a", writes="b", version=1, settings=dict)\ndef a_settings(record): return record\n',
    )
    found = load([tmp_path])
    assert list(found.agents) == ["good"]
    assert [problem.removeprefix(f"{tmp_path}/") for problem in found.problems] == [
        "a_settings.py:3: settings of a_settings are <class 'dict'>; they are a class derived from pydantic.BaseModel.",
        "broken.py:3: does not import: ModuleNotFoundError: No module named 'nothing_of_this_name'",
        "empty.py:1: has no agent: put @agent(reads=…, writes=…, version=1) over a function.",
        "leaves.py:3: does not import: SystemExit: 3",
        f"long_name.py:3: '{'n' * 101}' {NO_NAME}",
        f"moved.py:5: 3 {NO_NAME}",
        f"nameless.py:3: '<lambda>' {NO_NAME}",
        'no_topics.py:3: 7 of no_topics is no name of a topic: write a text, as "logs_raw".',
        "none_given.py:3: none_given takes neither a record nor a record and its context: write def none_given(record).",
        "skips.py:4: does not import: agents_of_skips.Skipped: no table",
        "syntax.py:3: does not import: invalid syntax.",
        "too_many.py:3: too_many takes neither a record nor a record and its context: write def too_many(record).",
        'topics.py:3: 5 of topics is no name of a topic: write a text, as "logs_raw".',
        'topics.py:3: 7 of topics is no name of a topic: write a text, as "logs_raw".',
        f"twin_b.py:3: twin is also the agent at {tmp_path}/twin_a.py:3: rename one.",
        "version.py:3: version of v is 0; it is 1 to 99.",
        "waits.py:3: waits is async; it has a process of its own and may just wait.",
        "yields.py:3: yields has a yield; let it return a list of records.",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        *(((verb, "nope"), "nope is neither a file nor a folder") for verb in ("list", "status", "graph", "test")),
        (("status", "nope", "--json"), "nope is neither a file nor a folder"),
        (("try", "some.json"), "some.json is no Python file"),
        (("graph", "some.py", "--svg", "nope/a.svg"), "nope/a.svg cannot be used: No such file"),
        (("new", "mask_emails", "--folder", "some.py/x"), "some.py/x cannot be used: Not a directory"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: pathlib.Path, words: tuple[str, ...], said: str) -> None:
    """Exit 2 and a sentence, whether agents are read or something of theirs is written."""
    folder(tmp_path, some=f"{ONE}def some(record): return record\n")
    (tmp_path / "some.json").write_text("{}")
    done = command(*words, cwd=tmp_path)
    assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (2, True, 1), done.stderr


def test_settings(tmp_path: pathlib.Path) -> None:
    """An agent's own settings are typed and come from `[agents.<name>]`, beside the platform's; unknown keys are
    errors, all at once."""
    folder(
        tmp_path,
        looks="""
        from pydantic import BaseModel

        class Own(BaseModel):
            limit: int = 3

        @agent(reads="logs_raw", writes="logs_norm", version=1, settings=Own)
        def looks(record, context): return record
        """,
    )
    looks = load([tmp_path]).agents["looks"]
    platform, own = settings_of(looks, Settings(agents={"looks": {"limit": "7", "workers": 2}}))
    assert (platform.workers, own.limit) == (2, 7)
    with pytest.raises(Misconfigured) as wrong:
        settings_of(looks, Settings(agents={"looks": {"limit": "x", "worker": 2, "workers": 0}}))
    assert [problem.partition(": ")[2].partition(":")[0] for problem in wrong.value.problems] == [
        "agents.looks.worker", "agents.looks.workers", "agents.looks.limit",
    ]  # fmt: skip


def test_agents_in_a_cycle_do_not_run(tmp_path: pathlib.Path) -> None:
    """What they made they would be given again, for ever, until Kafka's disk is full."""
    folder(tmp_path, a='@agent(reads="logs_norm", writes="logs_norm", version=1)\ndef round(record): return record\n')
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "agents", "run", str(tmp_path)], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "a cycle: round → logs_norm → round. Its agents do not run" in done.stderr


@pytest.mark.parametrize("name", builtin.names())
def test_a_built_in_agent_is_in_no_cycle(name: str) -> None:
    """Also one that is called as the topic that it writes; what it makes is drawn up to the stores."""
    agents = list(load([pathlib.Path(name)]).agents.values())
    declared = DECLARED | {"span_metrics": "metrics", "service_calls": "logs"}
    stored = {signal: tuple(t for a in agents for t in a.writes if declared[t] == signal) for signal in SIGNALS}
    graph = Graph(agents, declared, RoutesSettings(**stored))
    assert graph.cycles() == {}
    for each in agents:
        ways = [f"gateway → {each.reads} → {each.name} → {topic} → ch_writer" for topic in each.writes]
        assert all(any(line.startswith(way) for line in graph.text()) for way in ways)


def test_graph(tmp_path: pathlib.Path) -> None:
    """Unknown topics, cycles, two owners of one topic, topics that nobody stores and two forms of one event are told;
    what is well is drawn."""
    folder(
        tmp_path,
        a=f"{ONE}def first(record): return record\n",
        b='@agent(reads="logs_norm", writes="logs_raw", version=1)\ndef back(record): return record\n',
        c='@agent(reads="logs_nowhere", writes="logs_norm", version=1)\ndef lost(record): return record\n',
    )
    agents = load([tmp_path]).agents
    routed = RoutesSettings(logs=("logs_norm",))
    assert Graph([agents["first"]], DECLARED, routed).problems() == []
    assert Graph([agents["first"]], DECLARED, routed).text() == [
        "gateway → logs_raw → first → logs_norm → ch_writer, pg_writer",
        "gateway → metrics_raw → ch_writer, pg_writer",
        "gateway → traces_raw → ch_writer",
    ]
    assert Graph([agents["first"]], DECLARED, routed).svg().count("<rect") == 8
    assert "nobody stores logs_norm of first" in Graph([agents["first"]], DECLARED, RoutesSettings()).problems()[0]
    both = RoutesSettings(logs=("logs_raw", "logs_norm"))
    assert "two forms" in Graph([agents["first"]], DECLARED, both).problems()[0]
    assert "is written by no agent" in Graph([], DECLARED, routed).problems()[0]
    told = "\n".join(Graph(list(agents.values()), DECLARED, routed).problems())
    assert "logs_nowhere of lost is no declared topic" in told
    assert "logs_norm has more than one owner: first" in told
    assert "back writes logs_raw, which is the gateway's" in told
    assert "a cycle: back → logs_raw → first → logs_norm → back" in told
