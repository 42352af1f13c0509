"""The process in which an agent's function runs, and what it says to the one that asks.

It is started by `isolated.Isolated` with descriptors: of a connection, of a page that both see, and of a pipe whose
other end says that the one that asks is there. It ends with it, however that ends.
"""

import contextlib
import fcntl
import gc
import mmap
import os
import pathlib
import select
import signal
import struct
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

from pipeline import allocator, native
from pipeline.agents.api import Topics
from pipeline.agents.load import of_file, settings_of
from pipeline.agents.transform import Made, Progress, Running, transform, why
from pipeline.delivery import Message
from pipeline.errors import Misconfigured, PipelineError, Rejected, Unavailable
from pipeline.settings import Settings

NUMBER = struct.Struct("<q")
NO_RECORD = -1
KEPT_BYTES = 16 * 1024 * 1024  # a message, what is made of it, and both on their way
OBJECTS = 50_000  # until the collector looks for cycles: records have none, and a message makes thousands


class Task(NamedTuple):
    """A message, the records that the function is not to see, and whether it is to see one at a time."""

    message: Message
    known_bad: dict[int, str]
    alone: bool


class Failure(NamedTuple):
    """Instead of an answer: one of ours, and its text."""

    kind: type[PipelineError]
    reason: str


def main(connection: Connection, page: mmap.mmap) -> None:
    """Answer tasks until the other end is closed."""
    allocator.keep(below=KEPT_BYTES, at_most=KEPT_BYTES)
    gc.set_threshold(OBJECTS)
    file, name, settings, topics = connection.recv()
    native.choose(settings.implementation)
    try:
        running, stop = _opened(file, name, settings, topics)
    except PipelineError as error:
        connection.send(Failure(type(error), str(error)))
        return
    connection.send(None)
    os.register_at_fork(after_in_child=connection.close)  # or its answers would be taken for ours, and its life
    function = running.function
    alone = running._replace(function=lambda records: [function([record])[0] for record in records])

    def progress(number: int) -> None:
        _end_a_copy(connection)
        NUMBER.pack_into(page, 0, number)

    try:
        while True:
            task: Task = connection.recv()
            answer = _answer(alone if task.alone else running, task, progress)
            _end_a_copy(connection)
            connection.send(answer)
            progress(NO_RECORD)
    except (EOFError, ConnectionError):
        stop()


def _opened(file: str, name: str, settings: Settings, topics: Topics) -> tuple[Running, Callable[[], None]]:
    agent = next((each for each in of_file(pathlib.Path(file)) if each.name == name), None)
    if agent is None:
        raise Misconfigured(f"{file} has no agent {name} any more.")
    _, own = settings_of(agent, settings)
    try:
        function, stop = agent.opened(own)
    except Misconfigured:
        raise
    except Exception as error:
        raise Unavailable(f"{name} could not start: {why(agent, error)}") from error
    return Running(agent, function, topics), stop


def _answer(running: Running, task: Task, progress: Progress) -> Made | Failure:
    try:
        return transform(running, task.message, known_bad=task.known_bad, progress=progress)
    except (Rejected, Unavailable) as error:  # what an agent derives from one is not known at the other end
        return Failure(Rejected if isinstance(error, Rejected) else Unavailable, str(error))


def run() -> None:
    """The process; imported to be run, since what is pickled as `__main__`'s nobody else finds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent says when it ends
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with_parent(int(sys.argv[3]))
    with mmap.mmap(int(sys.argv[2]), mmap.PAGESIZE) as seen, contextlib.suppress(EOFError, ConnectionError):
        main(Connection(int(sys.argv[1])), seen)
    sys.stdout.flush()
    os._exit(0)  # whatever threads the agent left


def _end_a_copy(connection: Connection) -> None:
    """Of this process, which the function has forked and which came back from it, as by an exception."""
    if connection.closed:
        print("A process that an agent's function forked came back from it: let it end by os._exit.", file=sys.stderr)
        os._exit(1)


def _end_with_parent(pipe: int) -> None:
    """By a signal to us and what the function has started, when the other end is closed: a function that never ends, or
    holds the interpreter, reads no end of a connection."""
    fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO: nothing is ever sent
    if select.select([pipe], [], [], 0)[0]:  # it was closed before
        os._exit(0)
