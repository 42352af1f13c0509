"""What a process knows of the registered tables, asked of the registry again and again.

Writers use `get`, which blocks; the gateway `find`, and `refresh` in a thread where it finds nothing.
"""

import contextlib
import json
import os
import pathlib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from http.client import HTTPException
from typing import Any, NamedTuple

import structlog

from pipeline.errors import Rejected, Unavailable
from pipeline.settings import RegistrySettings
from pipeline.tables.model import Invalid, Table, parsed

log = structlog.get_logger()
ASK_WITHIN_S = 2.0
BETWEEN_S = 0.1  # two questions about unknown tables, at least
MAX_BYTES = 64 * 1024 * 1024


class UnknownTable(Rejected):
    """The registry answers, and has no such table or version."""


def no_such_table(name: str, known: Iterable[str]) -> UnknownTable:
    """The sentence about it, with names near it."""
    near = get_close_matches(name[:100], known, n=3)
    hint = f"near it are {', '.join(near)}" if near else "`pipeline registry list` shows those there are"
    return UnknownTable(f"There is no table {name[:100]!r}: {hint}.")


class Reply(NamedTuple):
    """What the registry answered, if not 5xx."""

    status: int
    etag: str
    body: bytes


def request(settings: RegistrySettings, method: str, path: str, *, document: object = None, etag: str = "") -> Reply:
    """Ask the registry; raise Unavailable where it does not answer, or says that it cannot."""
    headers = {"If-None-Match": etag} if etag else {}
    key = settings.api_key.get_secret_value()
    if key:
        headers["Authorization"] = f"Bearer {key}"
    body = None if document is None else json.dumps(document).encode()
    if body is not None:
        headers["Content-Type"] = "application/json"
    asked = urllib.request.Request(settings.address + path, body, headers, method=method)  # noqa: S310 - a setting
    try:
        with urllib.request.urlopen(asked, timeout=ASK_WITHIN_S) as response:  # noqa: S310
            return Reply(response.status, response.headers.get("ETag", ""), response.read(MAX_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            if error.code >= 500:
                raise _away(settings, f"it answers {error.code}") from None
            return Reply(error.code, "", error.read(MAX_BYTES))
    except (OSError, HTTPException, ValueError) as error:
        raise _away(settings, str(getattr(error, "reason", error)) or type(error).__name__) from None


def _away(settings: RegistrySettings, reason: str) -> Unavailable:
    return Unavailable(f"The registry at {settings.address} cannot be asked: {reason}.")


class Tables:
    """All registered tables, as of `registry.refresh_s` ago at most while the registry answers.

    While it does not, the last ones known go on: those of `file` too, where a process keeps them over its own end. All
    methods may be called from any thread.
    """

    def __init__(self, settings: RegistrySettings, *, file: pathlib.Path | None = None) -> None:
        self._settings = settings
        self._file = file
        self._known: dict[str, Table] = {}
        self._etag = ""
        self._asking = threading.Lock()
        self._answered_s = self._failed_s = -1.0  # when the last question of that end was put, monotonic
        self._reason = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="registered-tables", daemon=True)
        self._recall()

    def start(self) -> None:
        """Ask every `registry.refresh_s` from now on, until `close`."""
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(ASK_WITHIN_S + 1)

    def known(self) -> Mapping[str, Table]:
        """Every table by name, retired ones too, as far as we know. Never blocks."""
        return self._known

    def away(self) -> str:
        """Why the registry did not answer when it was last asked; nothing where it did."""
        return self._reason

    def find(self, name: str, version: int = 1) -> Table | None:
        """The table where we know it in this version or a later one. Never blocks."""
        table = self._known.get(name)
        return table if table and table.version >= version else None

    def get(self, name: str, version: int = 1) -> Table:
        """The table in this version or a later one, asking at once where we do not know it: blocks up to seconds.

        Raise UnknownTable where the registry, asked after this call began, does not know it, and Unavailable where it
        does not answer.
        """
        table = self.find(name, version)
        if table is None:
            self.refresh(time.monotonic())
            table = self.find(name, version)
        if table is None:
            raise self.unknown(name, version)
        return table

    def refresh(self, since_s: float) -> None:
        """Ask, unless an answer is here to a question put after `since_s` (monotonic); raise Unavailable.

        So any number of callers that wait for each other share one question.
        """
        with self._asking:
            if self._answered_s >= since_s:
                return
            if self._failed_s >= since_s:
                raise Unavailable(self._reason)
            pause_s = max(self._answered_s, self._failed_s) + BETWEEN_S - time.monotonic()
            if pause_s > 0:
                time.sleep(pause_s)
            put_s = time.monotonic()
            try:
                self._ask()
            except Unavailable as error:
                if not self._reason:
                    log.warning("the registry is away, the last known tables go on", reason=str(error))
                self._failed_s, self._reason = put_s, str(error)
                raise
            if self._reason:
                log.info("the registry answers")
            self._answered_s, self._reason = put_s, ""

    def unknown(self, name: str, version: int = 1) -> UnknownTable:
        """The sentence about a table that is not there, with names near it."""
        if name in self._known:
            return UnknownTable(
                f"The table {name} has no version {version}, the latest is {self._known[name].version}."
            )
        return no_such_table(name, self._known)

    def _follow(self) -> None:
        while True:
            with contextlib.suppress(Unavailable):
                self.refresh(time.monotonic())
            if self._stop.wait(self._settings.refresh_s):
                return

    def _ask(self) -> None:
        reply = request(self._settings, "GET", "/tables", etag=self._etag)
        if reply.status == 304:
            return
        try:
            if reply.status != 200:
                raise ValueError(f"it answers {reply.status}")
            self._learn(json.loads(reply.body))
        except (ValueError, KeyError, TypeError) as error:
            raise _away(self._settings, str(error)) from None
        self._etag = reply.etag
        self._remember(reply.body)

    def _learn(self, document: Any) -> None:
        """Take a `GET /tables`. A table that does not read is told and left as it was: its neighbours count."""
        known = {}
        for each in document["tables"]:
            name = each["name"]
            try:
                known[name] = parsed(each)
            except Invalid as error:
                log.error("a registered table does not read: is this process older than the registry?", table=name,
                          problems=[str(problem) for problem in error.problems])  # fmt: skip
                if name in self._known:
                    known[name] = self._known[name]
        self._known = known

    def _recall(self) -> None:
        if self._file is None:
            return
        try:
            self._learn(json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the tables that were known do not read", file=str(self._file), reason=str(error))

    def _remember(self, body: bytes) -> None:
        if self._file is None:
            return
        fresh = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(body)
            fresh.replace(self._file)
        except OSError as error:
            log.warning("the known tables cannot be kept", file=str(self._file), reason=str(error))
