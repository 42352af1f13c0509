"""Agents as users run them: a folder of files, `pipeline agents run`, and what lies in Kafka after."""

import io
import os
import pathlib
import subprocess
import sys
from typing import Any

import fastavro

from pipeline.kafka.reader import Message as Found
from pipeline.kafka.reader import Reader
from pipeline.settings import Settings, as_environment

IDENTITY = """
from pipeline.agents import agent, LogRecord


@agent(reads="logs_raw", writes="logs_norm", version=1)
def keep(record: LogRecord) -> LogRecord:
    return record
"""


AWAY_TWICE = """
from pipeline.agents import agent, LogRecord
from pipeline.errors import Unavailable

tried = []


@agent(reads="logs_raw", writes="logs_norm", version=1)
def keep(record: LogRecord) -> LogRecord:
    tried.append(record)
    if len(tried) <= 2:
        raise Unavailable("the table is away")
    return record
"""


class Agents:
    """`pipeline agents run` over `folder`."""

    def __init__(self, folder: pathlib.Path, settings: Settings, *, workers: int = 1) -> None:
        self._command = [sys.executable, "-m", "pipeline", "agents", "run", str(folder), "--workers", str(workers)]
        self._environment = {**os.environ, **as_environment(settings)}
        self._child: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._child = subprocess.Popen(self._command, env=self._environment, text=True, stderr=subprocess.PIPE)

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def stop(self) -> tuple[int, str]:
        """Exit code, and what all of them said on stderr."""
        assert self._child is not None
        self._child.terminate()
        _, said = self._child.communicate(timeout=60)
        return self._child.returncode, said

    def close(self) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait()


def read(settings: Settings, topic: str) -> list[Found]:
    """Every message of a topic."""
    reader = Reader(settings.kafka)
    return list(reader.read(reader.retained([topic])))


def records(value: bytes) -> list[Any]:
    """Those of a container file."""
    return list(fastavro.reader(io.BytesIO(value)))
