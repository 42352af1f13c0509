"""Detached processes that outlive the command which started them, found again by pid files."""

import contextlib
import json
import os
import pathlib
import pwd
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from pipeline.errors import Misconfigured, Unavailable

LOG_TAIL_BYTES = 1500
LOG_BYTES = 100 * 1024 * 1024  # a process that starts puts a larger log aside
GONE_WITHIN_S = 10.0


@dataclass(frozen=True)
class Process:
    """How to run one process of the stack.

    `ready` raises (anything) until the process serves; `user` is who runs it, where that is not us; `stop` is the
    signal for an orderly end, within `stop_within_s`.
    """

    name: str
    command: Sequence[str | os.PathLike[str]]
    ready: Callable[[], None]
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    user: str | None = None
    stop: signal.Signals = signal.SIGTERM
    stop_within_s: float = 30.0
    ready_within_s: float = 90.0


class Runner:
    """Starts, finds and stops processes; their pid files and logs lie under `home`."""

    def __init__(self, home: pathlib.Path) -> None:
        self._run = home / "run"
        self._logs = home / "log"
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self.cancelled = threading.Event()

    def log(self, name: str) -> pathlib.Path:
        return self._logs / f"{name}.log"

    def find(self, name: str) -> psutil.Process | None:
        """The running process called `name`; a stranger that was given its old pid is not it."""
        try:
            noted = self._noted(name)
            process = psutil.Process(noted["pid"])
            if abs(process.create_time() - noted["create_time"]) > 1 or process.status() == psutil.STATUS_ZOMBIE:
                return None
        except (FileNotFoundError, json.JSONDecodeError, psutil.NoSuchProcess):
            return None
        return process

    def start(self, process: Process) -> float:
        """Start and wait until it is ready; return the seconds it took. Raise Unavailable with the end of its log."""
        self._run.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        path = self.log(process.name)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
        with path.open("ab") as log:
            child = subprocess.Popen(
                process.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=process.env,
                user=process.user,
                group=group_of(process.user),
                extra_groups=None if process.user is None else [],
                cwd="/" if process.user else None,
                start_new_session=True,
            )
        self._children[child.pid] = child
        noted = {
            "pid": child.pid,
            "create_time": psutil.Process(child.pid).create_time(),
            "stop": process.stop,
            "stop_within_s": process.stop_within_s,
        }
        (self._run / f"{process.name}.json").write_text(json.dumps(noted))
        self._await(process, child, started + process.ready_within_s)
        return time.monotonic() - started

    def stop(self, name: str) -> None:
        """Stop it and its children, where it runs. After its time for an orderly end: SIGKILL."""
        found = self.find(name)
        if found is None:
            return
        noted = self._noted(name)
        try:
            family = [found, *found.children(recursive=True)]
            found.send_signal(noted["stop"])
        except psutil.NoSuchProcess:
            return
        deadline = time.monotonic() + noted["stop_within_s"]
        while self.find(name) and time.monotonic() < deadline:
            time.sleep(0.05)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        if found.pid in self._children:
            self._children.pop(found.pid).wait()
        (self._run / f"{name}.json").unlink(missing_ok=True)

    def bury(self, name: str) -> None:
        """Wait until a killed predecessor is gone: until then it may hold ports, and PostgreSQL takes it for alive."""
        try:
            pid = self._noted(name)["pid"]
        except (FileNotFoundError, json.JSONDecodeError):
            return
        deadline = time.monotonic() + GONE_WITHIN_S
        while psutil.pid_exists(pid) and not self.find(name) and time.monotonic() < deadline:
            if pid in self._children:
                self._children[pid].poll()
            time.sleep(0.05)

    def _noted(self, name: str) -> dict[str, Any]:
        noted: dict[str, Any] = json.loads((self._run / f"{name}.json").read_text())
        return noted

    def _await(self, process: Process, child: "subprocess.Popen[bytes]", deadline: float) -> None:
        while True:
            if child.poll() is not None:
                raise Unavailable(
                    f"{process.name} ended at once with code {child.returncode}:\n{self._tail(process.name)}"
                )
            if self.cancelled.is_set():
                raise Unavailable(f"{process.name} was not waited for.")
            try:
                process.ready()
            except Exception as error:  # whatever a client library raises while its server comes up
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"{process.name} was not ready after {process.ready_within_s:.0f} s ({error}):\n"
                        f"{self._tail(process.name)}"
                    ) from None
                time.sleep(0.1)
            else:
                return

    def _tail(self, name: str) -> str:
        log = self.log(name)
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            return f"{file.read().decode(errors='replace')}\nwhole log: {log}"


def check_ports(wanted: Mapping[str, Sequence[int]]) -> None:
    """Raise Misconfigured naming each port, of those `wanted` by process, that somebody listens on, and who."""
    owners = {
        connection.laddr.port: connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr
    }
    taken = [(port, name, owners[port]) for name, ports in wanted.items() for port in ports if port in owners]
    if taken:
        raise Misconfigured([
            f"Port {port} for {name} is in use by {_owner(pid)}: stop that, or choose another port in the settings."
            for port, name, pid in taken
        ])  # fmt: skip


def _owner(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.NoSuchProcess:
        return f"pid {pid}"


def group_of(user: str | None) -> int | None:
    """The user's own group, or None for nobody in particular."""
    if user is None:
        return None
    return pwd.getpwnam(user).pw_gid
