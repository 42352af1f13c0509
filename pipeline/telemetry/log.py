"""One JSON object a line on stderr."""

import contextlib
import io
import logging
import os
import sys
from typing import Any

import structlog
from aiohttp.http_exceptions import HttpProcessingError

AGAIN_AFTER_S = 10.0
MOST_LINES = 1000  # remembered at a time


def configure(process: str) -> None:
    """Send structlog's and the standard library's records (warnings and up) to stderr, tagged with `process`.

    The libraries repeat one line only after AGAIN_AFTER_S, with the count of those left out.
    From then on nothing that writes to stderr fails: a line for which the disk has no room, or that nobody reads, is
    lost, and the process goes on.
    """
    unfailing: Any = _Unfailing()
    sys.stderr = unfailing
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(process=process)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(_Seldom().passes)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("aiohttp.server").addFilter(_shows_no_header)


class _Unfailing(io.TextIOBase):
    """stderr, unbuffered: what could not be written is not tried again."""

    def __init__(self) -> None:
        self._descriptor = None if sys.stderr is None else sys.stderr.fileno()

    def fileno(self) -> int:
        return super().fileno() if self._descriptor is None else self._descriptor

    def write(self, text: str) -> int:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, text.encode(errors="backslashreplace"))
        return len(text)


class _Seldom:
    """aiokafka says 75 times a second that a broker is away: a gigabyte a day, of each process."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str, str], tuple[float, int]] = {}  # when it was shown, and how often not since

    def passes(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        line = record.name, message, repr(record.exc_info[1]) if record.exc_info else ""
        shown, left_out = self._since.get(line, (-AGAIN_AFTER_S, 0))
        if 0 <= record.created - shown < AGAIN_AFTER_S:
            self._since[line] = shown, left_out + 1
            return False
        if len(self._since) >= MOST_LINES:
            self._since.clear()
        self._since[line] = record.created, 0
        if left_out:
            record.msg, record.args = f"{message} ({left_out} more of these since the last)", ()
        return True


def _shows_no_header(record: logging.LogRecord) -> bool:
    """aiohttp logs a request that does not parse with the line where it failed, which may hold a key."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)
