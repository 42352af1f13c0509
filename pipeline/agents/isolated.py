"""An agent's function in a process of its own.

A function that never ends, holds the interpreter, eats memory or kills its process harms one record: the process is
killed and started again, and the record that it was at is told.
"""

import contextlib
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, Pipe

import psutil
import structlog

from pipeline.agents.api import Agent, Topics
from pipeline.agents.child import NO_RECORD, NUMBER, Failure, Task
from pipeline.agents.transform import Made
from pipeline.delivery import Message
from pipeline.errors import Rejected, Unavailable
from pipeline.settings import AgentSettings, Settings
from pipeline.telemetry import metrics

log = structlog.get_logger()
LOOK_S = 0.25  # how often time and memory are looked at
START_WITHIN_S = 60.0
STOP_WITHIN_S = 5.0
IN_VAIN = 5  # processes that a message may cost without a record to blame


class _Gone(Exception):
    """The process had to be killed, or died by itself, at record `number`."""

    def __init__(self, number: int, reason: str, *, surely: bool) -> None:
        super().__init__(reason)
        self.number, self.reason, self.surely = number, reason, surely


class Isolated:
    """`transform` of one agent, elsewhere; for one thread at a time."""

    def __init__(self, agent: Agent, own: AgentSettings, settings: Settings, topics: Topics) -> None:
        self._agent, self._own, self._settings, self._topics = agent, own, settings, topics
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        self._file.truncate(mmap.PAGESIZE)
        self._page = mmap.mmap(self._file.fileno(), mmap.PAGESIZE)
        self._theirs, self._ours = Pipe(duplex=False)  # closed where this process dies: see child.py
        self._child: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._looked_s = 0.0

    def transform(self, message: Message) -> Made:
        """As `transform.transform`; raises Rejected too, where the process ends again and again and no record is to
        blame, Unavailable, where the agent says that the world is away or its `start` fails, and Misconfigured where
        its file or settings are not good."""
        known_bad: dict[int, str] = {}
        alone = False
        tried, in_vain = NO_RECORD, 0
        while True:
            try:
                return self._ask(Task(message, known_bad, alone))
            except _Gone as gone:
                metrics.AGENT_KILLED.labels(self._agent.name).inc()
                log.error("an agent's function was stopped", agent=self._agent.name, reason=gone.reason)
                if self._agent.aggregates:
                    raise Rejected(gone.reason) from None
                if self._agent.batch and not alone:
                    alone = True
                elif (gone.surely or gone.number == tried) and gone.number not in known_bad:
                    known_bad[gone.number] = gone.reason
                    in_vain = 0
                elif in_vain == IN_VAIN:
                    raise Rejected(gone.reason) from None
                else:
                    tried = gone.number  # it may have been what came before; a new process will tell
                    in_vain += 1

    def close(self) -> None:
        """Let the agent stop; a record that it is at is given up."""
        if self._child is None:
            return
        process, connection = self._child
        self._child = None
        connection.close()
        _left(process)

    def _ask(self, task: Task) -> Made:
        process, connection = self._child = self._child or self._start()
        NUMBER.pack_into(self._page, 0, NO_RECORD)
        try:
            connection.send(task)
            self._wait(process, connection)
            answer: Made | Failure = connection.recv()
        except (EOFError, OSError):
            self._child = None
            connection.close()
            raise self._gone(f"its process {_left(process)}", surely=False) from None
        if time.monotonic() - self._looked_s > LOOK_S and self._too_large(process):
            metrics.AGENT_RECYCLED.labels(self._agent.name).inc()
            log.warning("an agent's process is over its memory, starting it anew", agent=self._agent.name)
            self.close()
        if isinstance(answer, Failure):
            raise answer.kind(answer.reason)
        return answer

    def _wait(self, process: "subprocess.Popen[bytes]", connection: Connection) -> None:
        """Return when there is an answer."""
        at, taken_s, looked_s = None, 0.0, time.monotonic()
        while not connection.poll(LOOK_S):
            now, number = time.monotonic(), self._number()
            # A look that took longer than looks take: nobody ran, as on a machine that stands still.
            taken_s = taken_s + min(now - looked_s, 2 * LOOK_S) if number == at else 0.0
            at, looked_s = number, now
            limit = self._own.record_within_s
            if taken_s > limit:
                self._kill()
                raise self._gone(f"it took longer than {limit:g} s (record_within_s)", surely=True)
            if self._too_large(process):
                self._kill()
                raise self._gone(f"its process took more than {self._own.memory_bytes:,} bytes", surely=False)

    def _gone(self, what: str, *, surely: bool) -> _Gone:
        number = max(0, self._number())
        return _Gone(number, f"{self._agent.where}: {self._agent.name} at record {number}: {what}.", surely=surely)

    def _number(self) -> int:
        number: int = NUMBER.unpack_from(self._page, 0)[0]
        return number

    def _too_large(self, process: "subprocess.Popen[bytes]") -> bool:
        self._looked_s = time.monotonic()
        try:
            return bool(psutil.Process(process.pid).memory_info().rss > self._own.memory_bytes)
        except psutil.Error:
            return False

    def _kill(self) -> None:
        if self._child is not None:
            process, connection = self._child
            self._child = None
            _kill(process)
            connection.close()

    def _start(self) -> "tuple[subprocess.Popen[bytes], Connection]":
        ours, theirs = Pipe()
        _give_up_after(self._own.record_within_s, ours)
        descriptors = theirs.fileno(), self._file.fileno(), self._theirs.fileno()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", "from pipeline.agents.child import run; run()", *map(str, descriptors)],
                pass_fds=descriptors, env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL, stdout=sys.stderr,  # our own stdout may be somebody's JSON
                process_group=0,  # with what the function starts
            )  # fmt: skip
        try:
            ours.send((self._agent.file, self._agent.name, self._settings, self._topics))
            failure: Failure | None = (
                ours.recv()
                if ours.poll(START_WITHIN_S)
                else Failure(Unavailable, f"{self._agent.name} did not start within {START_WITHIN_S:.0f} s.")
            )
        except (EOFError, OSError):
            failure = Failure(Unavailable, f"{self._agent.name} {_left(process)} while it started.")
        if failure is not None:
            _kill(process)
            ours.close()
            raise failure.kind(failure.reason)
        return process, ours


def _give_up_after(seconds: float, connection: Connection) -> None:
    """Reading and writing fail where the other end does neither for so long: a whole message is not sent at once."""
    time_s = struct.pack("@ll", int(seconds) + 1, 0)
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            same.setsockopt(socket.SOL_SOCKET, option, time_s)


def _left(process: "subprocess.Popen[bytes]") -> str:
    """How a process ends that speaks no more; one that goes on all the same is killed."""
    try:
        code = process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        return "answered no more"
    else:
        return f"ended with signal {-code}" if code < 0 else f"ended with exit code {code}"
    finally:
        _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """The process, and what the function has started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
