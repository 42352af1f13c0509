"""An agent's function in its process, when it does what no function should."""

import contextlib
import mmap
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Pipe
from typing import Any

import psutil
import pytest

from pipeline.agents import isolated
from pipeline.agents.isolated import Isolated
from pipeline.agents.load import of_file, settings_of
from pipeline.delivery import Message
from pipeline.errors import Rejected, Unavailable
from pipeline.record.records import LogRecord
from pipeline.settings import Settings
from pipeline.telemetry import metrics
from tests.agents.builtin.run import of_records
from tests.agents.process import until
from tests.agents.test_transform import emitted

MIB = 1024 * 1024
Start = Callable[..., Isolated]


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[Start]:
    """An agent `odd` with that body, what stands behind it, and what the settings say of it."""
    running: list[Isolated] = []

    def started(body: str, behind: str = "", **own: Any) -> Isolated:
        head = "import re, time\nfrom pipeline.agents import agent\nheld = []\n\n"
        code = '@agent(reads="logs_raw", writes="logs_norm", version=1)\ndef odd(record):\n'
        code += textwrap.indent(textwrap.dedent(body), "    ")
        (tmp_path / "odd.py").write_text(f"{head}{code}\n{textwrap.dedent(behind)}")
        [agent] = of_file(tmp_path / "odd.py")
        settings = Settings(agents={"odd": own})
        running.append(Isolated(agent, settings_of(agent, settings)[0], settings, {"logs": "logs_norm"}))
        return running[-1]

    yield started
    for each in running:
        each.close()


@pytest.mark.parametrize("failure", ["Unavailable", "Away"])
def test_an_agent_says_that_the_world_is_away(start: Start, failure: str) -> None:
    """`Unavailable`, or what its file derives from it, comes as it was said, in the same process each time."""
    away = "from pipeline.agents import Unavailable\nclass Away(Unavailable): ...\nheld.append(1)\n"
    odd = start(f'{away}raise {failure}(f"the table is away: {{len(held)}}")')
    for number in (1, 2):
        with pytest.raises(Unavailable, match=f"^the table is away: {number}$"):
            odd.transform(bodies("a"))


def test_a_start_that_fails_is_the_world_away(start: Start) -> None:
    """With file and line, each time that it is tried."""
    odd = start("return record", "@odd.start\ndef begin(settings): return 1 // 0\n")
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"^odd could not start: .*odd\.py:\d+: ZeroDivisionError"):
            odd.transform(bodies("a"))


def test_what_does_not_decode_is_rejected(start: Start) -> None:
    """A message cut short is the data's fault, in a sentence; the next one is answered by the same process."""
    odd = start("return record")
    whole = bodies("x" * 300)
    with pytest.raises(Rejected):
        odd.transform(whole._replace(value=whole.value[:-20]))
    assert [each["body"] for each in emitted(odd.transform(bodies("a")), "logs_norm")] == ["a"]


def bodies(*texts: str) -> Message:
    return of_records(*(LogRecord(body=text) for text in texts))


@pytest.mark.parametrize(
    "body",
    [
        'if record.body == "bad": time.sleep(3600)\nreturn record',
        'if record.body == "bad": re.match("(a+)+$", "a" * 60 + "b")\nreturn record',
    ],
)
def test_a_record_that_takes_for_ever_is_given_up_alone(start: Start, body: str) -> None:
    """A function that sleeps for an hour, or matches by a pattern that blows up: the record is told in a sentence with
    file and line, the process is stopped and counted, its neighbours are emitted."""
    stopped = metrics.AGENT_KILLED.labels("odd")._value
    before = stopped.get()
    began = time.monotonic()
    made = start(body, record_within_s=0.5).transform(bodies("a", "bad", "c"))
    assert time.monotonic() - began < 60
    assert [each["body"] for each in emitted(made, "logs_norm")] == ["a", "c"]
    [failed] = made.failed
    assert failed.number == 1
    assert failed.reason.endswith("odd.py:5: odd at record 1: it took longer than 0.5 s (record_within_s).")
    assert stopped.get() == before + 1


def test_a_process_that_ends_at_another_record_each_time_is_given_up(start: Start) -> None:
    """No record is to blame: the message is rejected after some processes, and does not hold its topic for ever."""
    odd = start(
        """
        import os, pathlib
        held.append(1)
        if len(held) == len(starts().read_bytes()): os._exit(3)
        return record
        """,
        """
        def starts():
            import pathlib
            return pathlib.Path(__file__).with_name("starts")

        @odd.start
        def begin(settings):
            with starts().open("ab") as file: file.write(b".")
        """,
    )
    with pytest.raises(Rejected, match="its process ended with exit code 3"):
        odd.transform(bodies(*"abcdefghijkl"))


def test_a_leak_is_a_new_process_counted_and_nothing_else(start: Start) -> None:
    """Each message leaves 30 MB behind: once its process is over its memory a new one is started, and no record is
    lost."""
    counters = [metric.labels("odd")._value for metric in (metrics.AGENT_RECYCLED, metrics.AGENT_KILLED)]
    before = sum(each.get() for each in counters)
    leaks = start(f"held.append(b'1' * {30 * MIB})\nreturn record", memory_bytes=200 * MIB)
    for number in range(5):
        [went] = emitted(leaks.transform(bodies(str(number))), "logs_norm")
        assert went["body"] == str(number)
        time.sleep(0.3)  # its memory is looked at four times a second
    assert sum(each.get() for each in counters) > before


ASKS = """
import pathlib, sys
from pipeline.agents.isolated import Isolated
from pipeline.agents.load import of_file
from pipeline.settings import AgentSettings, Settings
from tests.agents.test_isolated import bodies

[agent] = of_file(pathlib.Path(sys.argv[1]))
own = AgentSettings(record_within_s=float(sys.argv[2]))
print(Isolated(agent, own, Settings(), {"logs": "logs_norm"}).transform(bodies("a")).failed, flush=True)
"""


@pytest.mark.parametrize("body", ["while True: pass", 're.match("(a+)+$", "a" * 60 + "b")'])
def test_a_function_that_never_ends_does_not_outlive_who_asked_it(
    start: Start, tmp_path: pathlib.Path, body: str
) -> None:
    """kill -9 of the one is the end of the other, also where it holds the interpreter."""
    start(f'open(__file__ + ".began", "x").close()\n{body}')
    asking = subprocess.Popen([sys.executable, "-c", ASKS, str(tmp_path / "odd.py"), "3600"])
    until((tmp_path / "odd.py.began").exists, "the function runs")
    [child] = psutil.Process(asking.pid).children()
    asking.kill()
    asking.wait()
    try:
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "its process ends", 10)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def test_who_asks_may_end_before_the_process_has_begun(tmp_path: pathlib.Path) -> None:
    """Then it ends in silence."""
    (ours, theirs), (lives, alive) = Pipe(), Pipe(duplex=False)
    ours.close()
    alive.close()
    with (tmp_path / "page").open("wb+") as page:
        page.truncate(mmap.PAGESIZE)
        descriptors = theirs.fileno(), page.fileno(), lives.fileno()
        done = subprocess.run(
            [sys.executable, "-c", "from pipeline.agents.child import run; run()", *map(str, descriptors)],
            pass_fds=descriptors, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_machine_that_stands_still_is_no_records_fault(start: Start, tmp_path: pathlib.Path) -> None:
    """Time in which nobody ran is not the function's."""
    start('open(__file__ + ".began", "x").close()\nfor _ in range(15): time.sleep(0.1)\nreturn record')
    command = [sys.executable, "-c", ASKS, str(tmp_path / "odd.py"), "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as asking:
        until((tmp_path / "odd.py.began").exists, "the function runs")
        time.sleep(0.5)
        groups = asking.pid, psutil.Process(asking.pid).children()[0].pid
        for what, pause_s in ((signal.SIGSTOP, 6), (signal.SIGCONT, 0)):
            for group in groups:
                os.killpg(group, what)
            time.sleep(pause_s)
        assert asking.communicate()[0] == b"[]\n"


def test_a_copy_that_a_function_forked_answers_nothing(start: Start) -> None:
    """It comes back from the function, as after an exception, and ends there: the next message gets its own answer."""
    odd = start('import os\nif record.body == "fork" and not os.fork(): raise ValueError("in the copy")\nreturn record')
    for texts in (["fork", "fork", "a"], ["b"], ["c", "d"]):
        made = odd.transform(bodies(*texts))
        assert [each["body"] for each in emitted(made, "logs_norm")] == texts
        assert not made.failed


@pytest.mark.parametrize("end", ["close", "kill -9", "exit", "in time"])
def test_what_a_function_starts_ends_with_its_process(start: Start, tmp_path: pathlib.Path, end: str) -> None:
    """Programs that it left behind, however its process ends."""
    body = 'import subprocess, os\nchild = subprocess.Popen(["sleep", "3600"])\n'
    body += 'open(__file__ + ".pid", "a").write(f"{child.pid} ")\n'
    odd = start(
        body + {"exit": "os._exit(3)", "in time": "time.sleep(3600)"}.get(end, "return record"), record_within_s=1
    )
    if end == "kill -9":
        code = ASKS + "\nimport time; time.sleep(3600)"
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "odd.py"), "3600"], stdout=subprocess.PIPE
        ) as asking:
            assert asking.stdout is not None
            assert asking.stdout.readline() == b"[]\n"
            asking.kill()
    else:
        odd.transform(bodies("a"))
        odd.close()
    left = [int(pid) for pid in (tmp_path / "odd.py.pid").read_text().split()]
    assert left
    try:
        until(lambda: not any(_runs(pid) for pid in left), "what it started ends", 10)
    finally:
        for pid in filter(_runs, left):
            os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    "body",
    [
        "import os; os.closerange(3, 1000); time.sleep(3600)",
        "import os, signal, threading\n"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGSTOP)).start()\n"
        "return record",
    ],
)
def test_a_process_that_answers_no_more_is_stopped(start: Start, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """One that closed its connection, or stands still with a large message on its way: told, and never waited for."""
    monkeypatch.setattr(isolated, "STOP_WITHIN_S", 1.0)
    odd = start(f'if record.body != "bad": return record\n{body}', record_within_s=1.0)
    large = ["x" * 400_000] * 2
    for texts in (["a", "bad"], large, ["b"]):
        try:
            made = odd.transform(bodies(*texts))
        except Rejected as reason:
            assert "answered no more" in str(reason)  # noqa: PT017 - or it is answered
        else:
            assert {each.number for each in made.failed} <= {texts.index("bad") if "bad" in texts else None}
        time.sleep(0.5)  # the timer stops it between two messages
