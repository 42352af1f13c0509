"""One JSON object a line on stderr."""

import contextlib
import io
import logging
import os
import sys
from typing import Any

import structlog
from aiohttp.http_exceptions import HttpProcessingError


def configure(process: str) -> None:
    """Send structlog's and the standard library's records (warnings and up) to stderr, tagged with `process`.

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


def _shows_no_header(record: logging.LogRecord) -> bool:
    """aiohttp logs a request that does not parse with the line where it failed, which may hold a key."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)
