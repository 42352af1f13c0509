"""A real TimescaleDB for tests, served by node; TEST_TIMESCALE_DSN puts any full server in its place."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import time

import psycopg

from pipeline.errors import Misconfigured, Unavailable
from pipeline.settings import ROOT

HERE = pathlib.Path(__file__).parent
INSTALLED = ROOT / ".local" / "parts" / "timescale"


class Server:
    """One server for one test session; its data is in memory."""

    def __init__(self, logs: pathlib.Path, port: int) -> None:
        self.dsn = os.environ.get("TEST_TIMESCALE_DSN") or f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
        self._port = port
        self._log = logs / "timescale.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raise Misconfigured or Unavailable where node, npm or the package is missing."""
        if "TEST_TIMESCALE_DSN" in os.environ:
            return
        _install()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["node", "server.mjs", f"--port={self._port}"], cwd=INSTALLED, stdout=log, stderr=log
            )
        for _ in range(300):
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.dsn).close()
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise Unavailable(f"TimescaleDB for tests did not start: {self._log.read_text()[-1000:]}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _install() -> None:
    missing = [command for command in ("node", "npm") if shutil.which(command) is None]
    if missing:
        raise Misconfigured(
            f"{' and '.join(missing)} missing for the TimescaleDB tests: install Node.js 18 or later, "
            "or set TEST_TIMESCALE_DSN to a server with TimescaleDB."
        )
    lock = HERE / "package-lock.json"
    installed = INSTALLED / lock.name
    if not (INSTALLED / "node_modules").exists() or installed.read_bytes() != lock.read_bytes():
        INSTALLED.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", lock.name):
            shutil.copy(HERE / name, INSTALLED / name)
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=INSTALLED, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Unavailable(f"npm could not fetch TimescaleDB for tests: {done.stderr.strip()[-300:]}")
    shutil.copy(HERE / "server.mjs", INSTALLED / "server.mjs")
