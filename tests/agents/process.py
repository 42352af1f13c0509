"""A writer as a process, with real servers behind it."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.delivery import Message
from pipeline.settings import ROOT, Settings, as_environment

MAX_MESSAGE_BYTES = 32 * 1024 * 1024  # what a topic takes is its own setting


def until(true: Callable[[], object], what: str, within_s: float = 90.0) -> None:
    """Return when `true` is; fail with `what` after `within_s`."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"after {within_s:.0f} s: {what}"
        time.sleep(0.05)


class Process:
    """Our commands at these settings; `name` is the writer that `start` starts, `code` the folder that holds the
    package and what lies beside it, `module` what stands in for the command, `environment` what says the settings."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        code: pathlib.Path = ROOT,
        module: str = "pipeline",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.settings = name, settings
        self._code, self._command = code, [sys.executable, "-m", module]
        self._child: subprocess.Popen[str] | None = None
        self._environment = {**os.environ, **(environment or as_environment(settings))}

    def start(self) -> None:
        self._child = subprocess.Popen(
            [*self._command, self.name], env=self._environment, text=True, cwd=self._code,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    @property
    def child(self) -> "subprocess.Popen[str]":
        assert self._child is not None
        return self._child

    def ended(self, within_s: float = 40) -> tuple[int, str]:
        """Exit code and what it said on stderr."""
        _, said = self.child.communicate(timeout=within_s)
        return self.child.returncode, said

    def stop(self) -> tuple[int, str]:
        """The same after SIGTERM."""
        self.child.terminate()
        return self.ended()

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            if self._child.stderr and not self._child.stderr.closed:
                print(self._child.stderr.read())

    def run(self, command: str) -> tuple[int, str]:
        """Exit code and output of `pipeline <command>`."""
        done = subprocess.run(
            [*self._command, *command.split()], env=self._environment, capture_output=True, text=True,
            timeout=60, check=False, cwd=self._code,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


def send(settings: Settings, *messages: Message) -> list[int]:
    """Publish to each message's topic and partition; return the offsets."""
    offsets: list[int] = []
    producer = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap_servers, "log_level": 0, "message.max.bytes": MAX_MESSAGE_BYTES}
    )
    for message in messages:
        producer.produce(
            message.topic, message.value, partition=message.partition,
            headers=list(message.pairs or message.headers.items()),
            on_delivery=lambda error, sent: offsets.append(-1 if error else sent.offset() or 0),
        )  # fmt: skip
    assert producer.flush(10) == 0
    assert -1 not in offsets
    return offsets


def remove_before(settings: Settings, topic: str, partition: int, offset: int) -> None:
    """What retention does."""
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers, "log_level": 0})
    [removed] = admin.delete_records([TopicPartition(topic, partition, offset)]).values()
    removed.result()
