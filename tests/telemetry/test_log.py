"""What reaches a log."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SAYS = """
import logging
from aiohttp.http_exceptions import BadStatusLine
from pipeline.telemetry import log
log.configure("query")
for error in BadStatusLine("Bearer hunter2"), ValueError("a bug"):
    try:
        raise error
    except Exception:
        logging.getLogger("aiohttp.server").exception("Error handling request")
"""


def test_a_request_that_does_not_parse_is_not_quoted() -> None:
    """The line where it failed may hold a key; a bug in a handler is still told."""
    said = subprocess.run([sys.executable, "-c", SAYS], capture_output=True, text=True, check=True).stderr
    assert "hunter2" not in said
    assert "a bug" in said


REPEATS = """
import logging, time
from pipeline.telemetry import log
log.AGAIN_AFTER_S = 0.5
log.configure("pg_writer")
for _ in range(100):
    logging.getLogger("aiokafka").error("Unable connect to node with id %s: %s", 1, "refused")
logging.getLogger("aiokafka").error("Unable connect to node with id %s: %s", 2, "refused")
time.sleep(0.6)
logging.getLogger("aiokafka").error("Unable connect to node with id %s: %s", 1, "refused")
"""


def test_a_library_that_repeats_itself_does_not_fill_the_disk() -> None:
    """A client says a hundred times that its broker is away: one line now, one later with the count of the others."""
    said = subprocess.run([sys.executable, "-c", REPEATS], capture_output=True, text=True, check=True).stderr
    assert [json.loads(line)["event"] for line in said.splitlines()] == [
        "Unable connect to node with id 1: refused",
        "Unable connect to node with id 2: refused",
        "Unable connect to node with id 1: refused (99 more of these since the last)",
    ]


LOGS = """
import sys, structlog
from pipeline.telemetry import log
log.configure("gateway")
structlog.get_logger().warning("Kafka is away")
print("on its way", file=sys.stderr, flush=True)
structlog.get_logger().warning("Kafka is back")
print("went on")
"""


@pytest.mark.parametrize("where", ["a full disk", "nobody", "closed"])
def test_a_log_that_cannot_be_written_ends_nothing(where: str) -> None:
    """A full disk, a reader that is gone, no stderr at all: lines are lost, and the process goes on."""
    read, unread = os.pipe()
    os.close(read)
    with pathlib.Path("/dev/full").open("w") as full:
        stderr = {"a full disk": full.fileno(), "nobody": unread, "closed": subprocess.DEVNULL}[where]
        shell = ["sh", "-c", 'exec "$0" "$@" 2>&-'] if where == "closed" else []
        done = subprocess.run(
            [*shell, sys.executable, "-c", LOGS], stdout=subprocess.PIPE, stderr=stderr, text=True, check=False
        )
    os.close(unread)
    assert (done.returncode, done.stdout) == (0, "went on\n")
