"""How each foreign server of the stack is prepared and run."""

import base64
import hashlib
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable
from urllib.parse import urlsplit

import psutil
import psycopg
from confluent_kafka.admin import AdminClient

from pipeline import digits
from pipeline.errors import Misconfigured
from pipeline.local import parts
from pipeline.local.processes import Process, group_of
from pipeline.settings import ClickHouseSettings, LocalSettings, PostgresSettings, Settings
from pipeline.timescale.connection import parameters

Tell = Callable[[str], None]
ORDINARY_USER = "nobody"  # runs PostgreSQL where we are root, which it refuses
MIRROR_PROPERTIES = pathlib.Path("mirror_maker") / "mm2.properties"
JVM = ["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]  # a fast start and a small heap, on a shared machine


def kafka(settings: Settings, tell: Tell) -> Process:
    """One KRaft broker at kafka.bootstrap_servers, its controller one port higher; sandboxes log in at
    replay.kafka_servers."""
    port, controller, sandboxes = kafka_ports(settings)
    local = settings.local
    jars, home = parts.kafka_jars(local.parts, tell), local.home / "kafka"
    config = home / "server.properties"
    java = ["java", *JVM, f"-Dlog4j2.configurationFile={parts.DEPLOY / 'kafka' / 'log4j2.yaml'}", "-cp", f"{jars}/*"]
    home.mkdir(parents=True, exist_ok=True)
    template = (parts.DEPLOY / "kafka" / "server.properties").read_text()
    config.write_text(template.format(port=port, controller=controller, sandboxes=sandboxes, data=home / "data"))
    if not (home / "data" / "meta.properties").exists():
        # A first byte of 0, since an id that begins with "-" is taken for an option.
        cluster = base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
        format_storage = [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config)]
        subprocess.run(format_storage, check=True, stdout=subprocess.DEVNULL)
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers, "log_level": 0})

    def ready() -> None:
        if not admin.list_topics(timeout=1).brokers:
            raise ConnectionError("no broker yet")

    return Process("kafka", [*java, "kafka.Kafka", str(config)], ready)


def kafka_ports(settings: Settings) -> tuple[int, int, int]:
    """The broker's port, its controller's one higher, and the one at which sandboxes log in."""
    if not settings.replay.kafka_servers:
        raise Misconfigured("The local Kafka serves sandboxes at replay.kafka_servers: name a port there.")
    port = port_of(settings.kafka.bootstrap_servers, "kafka.bootstrap_servers")
    sandboxes = port_of(settings.replay.kafka_servers, "replay.kafka_servers")
    if sandboxes in (port, port + 1):
        raise Misconfigured(
            f"replay.kafka_servers cannot be port {sandboxes}: the local Kafka is at {port} itself and its controller "
            f"at {port + 1}. Name another port."
        )
    return port, port + 1, sandboxes


def port_of(server: str, setting: str) -> int:
    """Where a server of the stack is to listen; raises Misconfigured where the setting does not say."""
    port = digits.number(server.rpartition(":")[2], 5, 0)
    if not 0 < port < 1 << 16:
        raise Misconfigured(f"{setting}: {server!r} names no port that the local stack could listen on: add one.")
    return port


def mirror_maker(properties: str, local: LocalSettings, tell: Tell) -> Process:
    """MirrorMaker 2 in dedicated mode with these properties; ready when its workers answer each other."""
    jars, config = parts.kafka_jars(local.parts, tell), local.home / MIRROR_PROPERTIES
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(properties)
    java = ["java", *JVM, f"-Dlog4j2.configurationFile={parts.DEPLOY / 'kafka' / 'log4j2.yaml'}", "-cp", f"{jars}/*"]

    def ready() -> None:
        socket.create_connection(("127.0.0.1", local.mirror_maker_port), timeout=1).close()

    return Process("mirror_maker", [*java, "org.apache.kafka.connect.mirror.MirrorMaker", str(config)], ready)


def mirror_properties(local: LocalSettings) -> str:
    """Those that it was last started with; empty where it never was."""
    config = local.home / MIRROR_PROPERTIES
    return config.read_text() if config.is_file() else ""


def postgres(settings: PostgresSettings, local: LocalSettings, tell: Tell) -> Process:
    """A server for settings.dsn: its user (superuser, no password, loopback only) and database are made."""
    dsn = parameters(settings)
    missing = [name for name in ("user", "dbname") if not dsn.get(name)]
    if missing:
        raise Misconfigured(
            f"postgres.dsn: names no {' and no '.join(missing)}, which the local PostgreSQL is to make."
        )
    user = ORDINARY_USER if os.geteuid() == 0 else None
    home = _enterable(local.home / "postgres")
    binaries, data = parts.postgres_binaries(_enterable(local.parts), tell), home / "data"
    if not data.exists():
        _initdb(binaries, data, user, str(dsn["user"]))
    _drop_stale_lock(data)
    command: list[str | pathlib.Path] = [
        binaries / "postgres", "-D", data, "-p", str(postgres_port(settings)), "-k", "",
        "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=256MB", "-c", "max_wal_size=2GB",
    ]  # fmt: skip

    def ready() -> None:
        maintenance = psycopg.conninfo.make_conninfo("", **{**dsn, "dbname": "postgres", "connect_timeout": 2})
        with psycopg.connect(maintenance, autocommit=True) as connection:
            row = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [dsn["dbname"]]).fetchone()
            if row is None:
                name = psycopg.sql.Identifier(str(dsn["dbname"]))
                connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(name))

    return Process("postgres", command, ready, user=user, stop=signal.SIGINT)


def postgres_port(settings: PostgresSettings) -> int:
    return port_of(str(parameters(settings).get("port", 5432)), "postgres.dsn")


def _initdb(binaries: pathlib.Path, data: pathlib.Path, user: str | None, superuser: str) -> None:
    fresh = data.with_name("fresh")  # renamed when it is whole: a killed initdb leaves nothing that counts as data
    shutil.rmtree(fresh, ignore_errors=True)
    data.parent.mkdir(parents=True, exist_ok=True)
    if user:
        who = pwd.getpwnam(user)
        os.chown(data.parent, who.pw_uid, who.pw_gid)
    subprocess.run(
        [binaries / "initdb", "-D", fresh, "-U", superuser, "-A", "trust", "-E", "UTF8", "--no-locale"],
        check=True, stdout=subprocess.DEVNULL, cwd="/",
        user=user, group=group_of(user), extra_groups=[] if user else None,
    )  # fmt: skip
    fresh.rename(data)


def _drop_stale_lock(data: pathlib.Path) -> None:
    """Remove postmaster.pid where its process is no server of this data: after kill -9 the number may be anybody's."""
    lock = data / "postmaster.pid"
    try:
        owner = psutil.Process(int(lock.read_text().split("\n")[0]))
        if str(data) in owner.cmdline():
            return
    except (psutil.NoSuchProcess, ValueError):
        pass
    except FileNotFoundError:
        return
    lock.unlink()


def _enterable(folder: pathlib.Path) -> pathlib.Path:
    """`folder`, made; or as root, below one that the ordinary user cannot enter, one of the same name in /var/tmp."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() or all(one.stat().st_mode & 0o001 for one in folder.parents):
        folder.chmod(0o755)
        return folder
    own = pathlib.Path("/var/tmp") / f"pipeline-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"  # noqa: S108
    own.mkdir(exist_ok=True)
    if own.is_symlink() or own.stat().st_uid != os.geteuid():
        raise Misconfigured(f"{own} belongs to somebody else: remove it, or set local.home to a folder all may enter.")
    own.chmod(0o755)
    return own / folder.name


def clickhouse(settings: ClickHouseSettings, local: LocalSettings) -> Process:
    """A server at settings.url, with settings.database made."""
    home = local.home / "clickhouse"
    home.mkdir(parents=True, exist_ok=True)
    config = (parts.DEPLOY / "clickhouse" / "config.xml").read_text()
    (home / "config.xml").write_text(config.format(port=clickhouse_port(settings)))
    shutil.copy(parts.DEPLOY / "clickhouse" / "users.xml", home)
    make_database = (
        f"CREATE DATABASE IF NOT EXISTS {settings.database}"  # the setting's pattern leaves nothing to escape
    )

    def ready() -> None:
        urllib.request.urlopen(settings.url, make_database.encode(), timeout=2).close()  # noqa: S310 - our own address

    command: list[str | pathlib.Path] = [sys.executable, "-m", "pipeline.local.clickhouse_server", home]
    return Process("clickhouse", command, ready)


def clickhouse_port(settings: ClickHouseSettings) -> int:
    return urlsplit(settings.url).port or 8123


def wipe(local: LocalSettings) -> None:
    """Remove the data of all servers; what was fetched stays."""
    for folder in ("kafka", "clickhouse", "mirror_maker", "spool", "replay", "log", "run"):
        shutil.rmtree(local.home / folder, ignore_errors=True)
    postgres_home = _enterable(local.home / "postgres")
    shutil.rmtree(postgres_home, ignore_errors=True)
    if postgres_home.parent != local.home:
        postgres_home.parent.rmdir()
