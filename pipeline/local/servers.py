"""How each foreign server of the stack is prepared and run."""

import base64
import hashlib
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable
from urllib.parse import urlsplit

import psycopg
from confluent_kafka.admin import AdminClient

from pipeline.local import parts
from pipeline.local.processes import Process, group_of
from pipeline.settings import ClickHouseSettings, KafkaSettings, LocalSettings, PostgresSettings

Tell = Callable[[str], None]
ORDINARY_USER = "nobody"  # runs PostgreSQL where we are root, which it refuses
JVM = ["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]  # a fast start and a small heap, on a shared machine


def kafka(settings: KafkaSettings, local: LocalSettings, tell: Tell) -> Process:
    """One KRaft broker at settings.bootstrap_servers, its controller one port higher."""
    port = int(settings.bootstrap_servers.rpartition(":")[2])
    jars, home = parts.kafka_jars(local.parts, tell), local.home / "kafka"
    config = home / "server.properties"
    java = ["java", *JVM, f"-Dlog4j2.configurationFile={parts.DEPLOY / 'kafka' / 'log4j2.yaml'}", "-cp", f"{jars}/*"]
    home.mkdir(parents=True, exist_ok=True)
    template = (parts.DEPLOY / "kafka" / "server.properties").read_text()
    config.write_text(template.format(port=port, controller=port + 1, data=home / "data"))
    if not (home / "data" / "meta.properties").exists():
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        format_storage = [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config)]
        subprocess.run(format_storage, check=True, stdout=subprocess.DEVNULL)
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers, "log_level": 0})

    def ready() -> None:
        if not admin.list_topics(timeout=1).brokers:
            raise ConnectionError("no broker yet")

    return Process("kafka", [*java, "kafka.Kafka", str(config)], ready, [port, port + 1])


def postgres(settings: PostgresSettings, local: LocalSettings, tell: Tell) -> Process:
    """A server for settings.dsn: its user (superuser, no password, loopback only) and database are made."""
    dsn = psycopg.conninfo.conninfo_to_dict(settings.dsn.get_secret_value())
    user = ORDINARY_USER if os.geteuid() == 0 else None
    home = _enterable(local.home / "postgres")
    binaries, data = parts.postgres_binaries(_enterable(local.parts), tell), home / "data"
    if not data.exists():
        home.mkdir(parents=True, exist_ok=True)
        if user:
            who = pwd.getpwnam(user)
            os.chown(home, who.pw_uid, who.pw_gid)
        initdb: list[str | pathlib.Path] = [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            str(dsn["user"]),
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
        ]
        groups: list[str] | None = [] if user else None
        subprocess.run(
            initdb, check=True, stdout=subprocess.DEVNULL, user=user, group=group_of(user), extra_groups=groups, cwd="/"
        )
    port = int(str(dsn.get("port", 5432)))
    command: list[str | pathlib.Path] = [
        binaries / "postgres", "-D", data, "-p", str(port), "-k", "",
        "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=256MB", "-c", "max_wal_size=2GB",
    ]  # fmt: skip

    def ready() -> None:
        maintenance = psycopg.conninfo.make_conninfo("", **{**dsn, "dbname": "postgres", "connect_timeout": 2})
        with psycopg.connect(maintenance, autocommit=True) as connection:
            row = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [dsn["dbname"]]).fetchone()
            if row is None:
                name = psycopg.sql.Identifier(str(dsn["dbname"]))
                connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(name))

    return Process("postgres", command, ready, [port], user=user, stop=signal.SIGINT)


def _enterable(folder: pathlib.Path) -> pathlib.Path:
    """`folder`; or as root, below one that the ordinary user cannot enter, a folder of its own in /var/tmp."""
    if os.geteuid() or all(parent.stat().st_mode & 0o001 for parent in folder.parents if parent.exists()):
        return folder
    return pathlib.Path("/var/tmp") / f"pipeline-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"  # noqa: S108


def clickhouse(settings: ClickHouseSettings, local: LocalSettings) -> Process:
    """A server at settings.url."""
    port, home = urlsplit(settings.url).port or 8123, local.home / "clickhouse"
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.xml").write_text((parts.DEPLOY / "clickhouse.xml").read_text().format(port=port))

    def ready() -> None:
        urllib.request.urlopen(f"{settings.url}/ping", timeout=2).close()  # noqa: S310 - the address is ours

    command: list[str | pathlib.Path] = [sys.executable, "-m", "pipeline.local.clickhouse_server", home]
    return Process("clickhouse", command, ready, [port])


def wipe(local: LocalSettings) -> None:
    """Remove the data of all servers; what was fetched stays."""
    for folder in ("kafka", "clickhouse", "log", "run"):
        shutil.rmtree(local.home / folder, ignore_errors=True)
    shutil.rmtree(_enterable(local.home / "postgres"), ignore_errors=True)
