"""Up, down, status, start, stop, restart."""

import contextlib
import datetime
import fcntl
import os
import socket
import ssl
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import psutil

from pipeline import maintain, migrations, settings, topics
from pipeline.errors import Misconfigured
from pipeline.local import servers
from pipeline.local.processes import Process, Runner, check_ports
from pipeline.settings import Settings
from pipeline.timescale.connection import shown

SERVERS = ("kafka", "postgres", "clickhouse")
WRITERS = ("pg_writer", "ch_writer")
OURS = ("registry", "gateway", *WRITERS)
NAMES = SERVERS + OURS
MIRROR_MAKER = "mirror_maker"


class Mirror(NamedTuple):
    """What MirrorMaker 2 brings into a stack's Kafka: the topics that it needs there, and its properties."""

    topics: Sequence[topics.Topic]
    properties: str


class Stack:
    """The processes that these settings describe; it listens where the settings point.

    `tell` hears one line a step. Every changing method holds a lock on the home folder and raises Misconfigured where
    another command holds it. With a `mirror` there is one process more, which `up` leaves alone: what it mirrors from
    must run first.
    """

    def __init__(self, stack_settings: Settings, tell: Callable[[str], None], mirror: Mirror | None = None) -> None:
        self._settings = stack_settings
        self._mirror = mirror
        self.names = (*NAMES, MIRROR_MAKER) if mirror else NAMES
        self._tell = tell
        self._runner = Runner(stack_settings.local.home)

    def up(self) -> None:
        """Start what does not run, servers first; then topics, migrations, and our own processes."""
        with self._changing():
            missing = self._missing(NAMES)
            with self._undone_if_cut_off(missing):
                self._start([name for name in SERVERS if name in missing])
                self.prepare()
                self._start([name for name in OURS if name in missing])

    def down(self) -> None:
        """Stop everything: our own processes, then the servers."""
        with self._changing():
            self._stop(self.names)

    def wipe(self) -> None:
        """Stop everything and remove all data; what was fetched stays."""
        with self._changing():
            self._stop(self.names)
            servers.wipe(self._settings.local)
            self._tell("data removed")

    def start(self, names: Sequence[str]) -> None:
        """Start those of `names` that do not run, and wait until each is ready."""
        with self._changing():
            missing = self._missing(self._known(names))
            with self._undone_if_cut_off(missing):
                self._start(missing)

    def stop(self, names: Sequence[str]) -> None:
        """Stop those of `names` that run."""
        with self._changing():
            self._stop(self._known(names))

    def restart(self, names: Sequence[str]) -> None:
        """Stop and start."""
        with self._changing():
            self._stop(self._known(names))
            missing = self._missing(names)
            with self._undone_if_cut_off(missing):
                self._start(missing)

    def mirror(self) -> None:
        """Start MirrorMaker; where it runs without some of its links, anew, and the writers, who may not know them."""
        assert self._mirror
        known = servers.mirror_properties(self._settings.local).splitlines()
        links = [line for line in self._mirror.properties.splitlines() if line.endswith(".enabled = true")]
        if self._runner.find(MIRROR_MAKER) and not set(links) <= set(known):
            self.prepare()
            self.restart([*WRITERS, MIRROR_MAKER])
        self.start([MIRROR_MAKER])

    def status(self) -> dict[str, Any]:
        """Every address, without its secrets, and a row for every process; worker processes are rows under their
        supervisor's name."""
        own = self._settings
        return {
            "otlp_http": f"http{'s' if own.gateway.tls_certificate_file else ''}://{own.gateway.host}:{own.gateway.http_port}",
            "otlp_grpc": f"{own.gateway.host}:{own.gateway.grpc_port}",
            "kafka": own.kafka.bootstrap_servers,
            "postgres": shown(own.postgres),
            "clickhouse": own.clickhouse.url,
            "registry": own.registry.address,
            "processes": [row for name in self.names for row in self._rows(name)],
        }

    def _rows(self, name: str) -> list[dict[str, Any]]:
        found = self._runner.find(name)
        if found is None:
            return [{"name": name, "pid": None, "state": "stopped", "since": None, "rss_mb": None}]
        family = [found]
        if name in OURS:
            with contextlib.suppress(psutil.NoSuchProcess):
                family += found.children()
        return [
            {
                "name": name,
                "pid": one.pid,
                "state": "running",
                "since": datetime.datetime.fromtimestamp(one.create_time(), datetime.UTC).isoformat(timespec="seconds"),
                "rss_mb": round(one.memory_info().rss / 1e6, 1),
            }
            for one in family
            if one.is_running()
        ]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        home = self._settings.local.home
        home.mkdir(parents=True, exist_ok=True)
        with (home / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Misconfigured(
                    f"Another command is changing the stack in {home}: wait until it has ended."
                ) from None
            yield

    def _known(self, names: Sequence[str]) -> Sequence[str]:
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise Misconfigured(
                [f"There is no process {name!r}; there are {', '.join(self.names)}." for name in unknown]
            )
        return names

    def _missing(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that do not run, in order, once it is sure that nobody else holds their ports."""
        missing = [name for name in self.names if name in names and not self._runner.find(name)]
        for name in missing:
            self._runner.bury(name)
        check_ports({name: self._ports(name) for name in missing})
        return missing

    @contextlib.contextmanager
    def _undone_if_cut_off(self, names: Sequence[str]) -> Iterator[None]:
        """Whatever ends the block early, Ctrl-C included, stops `names` again."""
        try:
            yield
        except BaseException:
            self._stop(names)
            raise

    def _start(self, names: Sequence[str]) -> None:
        """Start side by side."""
        if not names:
            return
        with ThreadPoolExecutor(len(names)) as pool:
            try:
                list(pool.map(self._start_one, names))
            except BaseException:
                self._runner.cancelled.set()  # or the pool would wait for the others to become ready
                raise

    def _start_one(self, name: str) -> None:
        took_s = self._runner.start(self._process(name))
        self._tell(f"{name}: ready after {took_s:.1f} s")

    def _stop(self, names: Sequence[str]) -> None:
        for tier in ((*OURS, MIRROR_MAKER), SERVERS):
            running = [name for name in tier if name in names and self._runner.find(name)]
            with ThreadPoolExecutor(len(tier)) as pool:
                list(pool.map(self._stop_one, running))

    def _stop_one(self, name: str) -> None:
        started = time.monotonic()
        self._runner.stop(name)
        self._tell(f"{name}: stopped after {time.monotonic() - started:.1f} s")

    def prepare(self) -> None:
        """Topics, mirrored ones among them, migrations and upkeep, once the servers run."""
        changes = topics.apply_all(self._settings)
        if self._mirror:
            cluster = topics.cluster_of(self._settings)
            mirrored = topics.plan(self._mirror.topics, cluster)
            topics.apply(mirrored, cluster)
            changes += mirrored
        applied = migrations.up_all(self._settings)
        upkeep = maintain.run_all(self._settings, datetime.datetime.now(datetime.UTC))
        self._tell(
            f"topics: {len(changes)} changed; migrations: {len(applied)} applied; "
            f"PostgreSQL: {len(upkeep)} steps of upkeep"
        )

    def _process(self, name: str) -> Process:
        own = self._settings
        match name:
            case "kafka":
                return servers.kafka(own, self._tell)
            case "postgres":
                return servers.postgres(own.postgres, own.local, self._tell)
            case "clickhouse":
                return servers.clickhouse(own.clickhouse, own.local)
            case "mirror_maker":
                assert self._mirror
                return servers.mirror_maker(self._mirror.properties, own.local, self._tell)
            case _:
                return self._own(name)

    def _own(self, name: str) -> Process:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(settings.PREFIX)}
        env = {**inherited, **settings.as_environment(self._settings)}
        return Process(name, [sys.executable, "-m", "pipeline", name], self._ready(name), env)

    def _ready(self, name: str) -> Callable[[], None]:
        """What raises until one of our own serves."""
        port, gateway = self._ports(name)[0], self._settings.gateway
        if name != "gateway" or gateway.health_port or not gateway.tls_certificate_file:
            return lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).close()
        if gateway.tls_client_ca_file:  # it asks for a certificate, and we have none
            return lambda: socket.create_connection(("127.0.0.1", port), timeout=2).close()
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # its own process, on loopback
        return lambda: urllib.request.urlopen(f"https://127.0.0.1:{port}/readyz", timeout=2, context=context).close()

    def _ports(self, name: str) -> list[int]:  # noqa: PLR0911 - a table
        """Where a process listens; of our own, health comes first."""
        own = self._settings
        match name:
            case "kafka":
                return [*servers.kafka_ports(own)]
            case "postgres":
                return [servers.postgres_port(own.postgres)]
            case "clickhouse":
                return [servers.clickhouse_port(own.clickhouse)]
            case "mirror_maker":
                return [own.local.mirror_maker_port]
            case "registry":
                return [own.registry.port]
            case "gateway":
                health = [own.gateway.health_port] if own.gateway.health_port else []
                return [*health, own.gateway.http_port, own.gateway.grpc_port]
            case _:
                writer: settings.WriterSettings = getattr(own, name)
                return [writer.health_port + number for number in range(writer.workers)]
