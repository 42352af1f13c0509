"""The stack on one machine: what comes up, what survives, and what is told."""

import contextlib
import fcntl
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import psycopg
import pytest
import trustme
from confluent_kafka import Consumer, Producer, TopicPartition
from pydantic import SecretStr

from pipeline import clickhouse as clickhouse_door
from pipeline.errors import Misconfigured
from pipeline.kafka.admin import Cluster
from pipeline.local import NAMES, Stack, processes
from pipeline.local.stack import SERVERS
from pipeline.settings import PREFIX, LocalSettings, PostgresSettings, Settings, as_environment
from pipeline.timescale import connection as timescale_door
from tests.conftest import free_ports, part, settings_on_free_ports


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a stack that only this module uses, its servers started: here things are killed."""
    settings = settings_on_free_ports(tmp_path_factory.mktemp("own"))
    stack = Stack(settings, print)
    with part(lambda: stack.start(SERVERS), stack.wipe):
        yield settings


@pytest.fixture
def idle(tmp_path: pathlib.Path) -> Iterator[Settings]:
    """Settings of a stack of which nothing runs yet."""
    settings = settings_on_free_ports(tmp_path)
    yield settings
    Stack(settings, print).wipe()


def command(settings: Settings, *words: str) -> "subprocess.Popen[str]":
    """`pipeline local …` as a person would start it."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "local", *words],
        env={**inherited, **as_environment(settings)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pids(settings: Settings) -> dict[str, int]:
    """The main process of each name that runs."""
    found: dict[str, int] = {}
    for row in Stack(settings, print).status()["processes"]:
        if row["pid"] is not None:
            found.setdefault(row["name"], row["pid"])
    return found


def kill(pid: int) -> None:
    """SIGKILL, and wait until the system has forgotten the process: started from here it is our child to bury."""
    psutil.Process(pid).kill()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 10)


def note(settings: Settings, name: str, pid: int, create_time: float) -> None:
    """A pid file as an earlier run would have left it."""
    run = settings.local.home / "run"
    run.mkdir(exist_ok=True)
    noted = {"pid": pid, "create_time": create_time, "stop": signal.SIGTERM, "stop_within_s": 1}
    (run / f"{name}.json").write_text(json.dumps(noted))


def write_kafka(settings: Settings) -> None:
    Cluster(settings.kafka).create("kept", partitions=1, replication_factor=1, config={})
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "acks": "all"})
    producer.produce("kept", b"here")
    assert producer.flush(10) == 0


def read_kafka(settings: Settings) -> object:
    consumer = Consumer({"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": "kept"})
    consumer.assign([TopicPartition("kept", 0, 0)])
    message = consumer.poll(20)
    consumer.close()
    return message and message.value()


def write_postgres(settings: Settings) -> None:
    with psycopg.connect(settings.postgres.dsn.get_secret_value()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 'here' AS value")


def read_postgres(settings: Settings) -> object:
    with psycopg.connect(settings.postgres.dsn.get_secret_value()) as connection:
        row = connection.execute("SELECT value FROM kept").fetchone()
    return row and str(row[0]).encode()


def write_clickhouse(settings: Settings) -> None:
    client = clickhouse_door.connect(settings.clickhouse)
    client.command("CREATE TABLE kept (value String) ORDER BY value")
    client.command("INSERT INTO kept VALUES ('here')")
    client.close()


def read_clickhouse(settings: Settings) -> object:
    client = clickhouse_door.connect(settings.clickhouse)
    rows = client.query("SELECT value FROM kept").result_rows
    client.close()
    return str(rows[0][0]).encode()


@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("kafka", write_kafka, read_kafka),
        ("postgres", write_postgres, read_postgres),
        ("clickhouse", write_clickhouse, read_clickhouse),
    ],
)
def test_a_server_killed_with_sigkill_starts_again_with_its_data(
    own: Settings, name: str, write: Callable[[Settings], None], read: Callable[[Settings], object]
) -> None:
    """What was acknowledged before kill -9 is there after `start`."""
    write(own)
    killed = pids(own)[name]
    kill(killed)
    assert name not in pids(own)
    Stack(own, print).start([name])
    assert pids(own)[name] != killed
    assert read(own) == b"here"


def test_postgres_starts_beside_a_stale_lock_file_of_a_recycled_pid(own: Settings) -> None:
    """A postmaster.pid whose number now belongs to another process does not keep PostgreSQL from starting."""
    server = psutil.Process(pids(own)["postgres"])
    lock = pathlib.Path(server.cwd(), "postmaster.pid")
    words = lock.read_text().split("\n")
    kill(server.pid)
    with subprocess.Popen(["sleep", "60"], user="nobody" if os.geteuid() == 0 else None) as stranger:
        try:
            lock.write_text("\n".join([str(stranger.pid), *words[1:]]))
            Stack(own, print).start(["postgres"])
        finally:
            stranger.kill()
            lock.unlink(missing_ok=True)
            Stack(own, print).start(["postgres"])


def test_up_starts_only_what_is_missing(own: Settings) -> None:
    """A second `up` leaves what runs alone, and brings back what was stopped or killed."""
    stack = Stack(own, print)
    stack.up()
    before = pids(own)
    stack.stop(["ch_writer"])
    kill(before["gateway"])
    stack.up()
    after = pids(own)
    assert list(after) == list(NAMES)
    assert {name for name in NAMES if after[name] != before[name]} == {"gateway", "ch_writer"}


def test_status_as_json_has_every_address_and_process(own: Settings) -> None:
    """`status --json` prints one document of the promised shape, and exit code 0 when all runs."""
    Stack(own, print).up()
    asked = command(own, "status", "--json")
    document = json.loads(asked.communicate(timeout=30)[0])
    assert asked.returncode == 0
    processes = document.pop("processes")
    assert document == {
        "otlp_http": f"http://127.0.0.1:{own.gateway.http_port}",
        "otlp_grpc": f"127.0.0.1:{own.gateway.grpc_port}",
        "kafka": own.kafka.bootstrap_servers,
        "postgres": timescale_door.shown(own.postgres),
        "clickhouse": own.clickhouse.url,
        "registry": own.registry.address,
    }
    assert [row["name"] for row in processes] == list(NAMES)
    for row in processes:
        assert list(row) == ["name", "pid", "state", "since", "rss_mb"]
        assert row["state"] == "running"
        assert psutil.pid_exists(row["pid"])
        assert row["rss_mb"] > 0


def test_ctrl_c_leaves_nothing_behind_that_this_up_started(own: Settings) -> None:
    """Interrupted while the gateway starts, `up` ends the servers it had started too."""
    Stack(own, print).down()
    up = command(own, "up")
    while not (own.local.home / "run" / "gateway.json").exists() and up.poll() is None:
        time.sleep(0.02)
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=60)
    assert up.returncode == 130
    assert pids(own) == {}


def test_up_tells_of_every_taken_port_before_it_starts_anything(own: Settings) -> None:
    """Ports of servers and of our own processes that are taken are told at once, and nothing is started."""
    stack = Stack(own, print)
    stack.down()
    clickhouse = int(own.clickhouse.url.rpartition(":")[2])
    with listening(clickhouse), listening(own.gateway.grpc_port), pytest.raises(Misconfigured) as refused:
        stack.up()
    for port in (clickhouse, own.gateway.grpc_port):
        assert any(str(port) in problem for problem in refused.value.problems)
    assert pids(own) == {}


def listening(port: int) -> socket.socket:
    stranger = socket.socket()
    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is still warm
    stranger.bind(("127.0.0.1", port))
    stranger.listen()
    return stranger


def test_a_taken_port_is_told_by_number_and_owner(idle: Settings) -> None:
    """All taken ports of what is to be started are told, each with its owner's name and pid; nothing is started."""
    with listening(idle.gateway.http_port), listening(idle.gateway.grpc_port), pytest.raises(Misconfigured) as refused:
        Stack(idle, print).start(["gateway"])
    for port in (idle.gateway.http_port, idle.gateway.grpc_port):
        [problem] = [problem for problem in refused.value.problems if str(port) in problem]
        assert f"(pid {os.getpid()})" in problem
        assert psutil.Process().name() in problem
    assert pids(idle) == {}


@pytest.mark.parametrize("higher", [0, 1])
def test_sandboxes_need_a_port_of_their_own(idle: Settings, higher: int) -> None:
    """At the broker's port or its controller's the setting is named with the ports that are taken; nothing is started."""
    port = int(idle.kafka.bootstrap_servers.rpartition(":")[2])
    replay = idle.replay.model_copy(update={"kafka_servers": f"127.0.0.1:{port + higher}"})
    with pytest.raises(Misconfigured, match=rf"^replay\.kafka_servers cannot be port {port + higher}: .*{port + 1}"):
        Stack(idle.model_copy(update={"replay": replay}), print).start(["kafka"])
    assert pids(idle) == {}


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("kafka", {"bootstrap_servers": "localhost"}, r"^kafka\.bootstrap_servers: 'localhost' names no port"),
        ("replay", {"kafka_servers": "localhost:x"}, r"^replay\.kafka_servers: 'localhost:x' names no port"),
        ("postgres", {"dsn": SecretStr("host=localhost dbname=a")}, r"^postgres\.dsn: names no user"),
        (
            "postgres",
            {"dsn": SecretStr("host=localhost user=a dbname=a port=1,2")},
            r"^postgres\.dsn: '1,2' names no port",
        ),
    ],
)
def test_settings_from_which_no_server_can_be_made_are_named(
    idle: Settings, part: str, change: dict[str, object], said: str
) -> None:
    """In a sentence, before anything is started."""
    own = getattr(idle, part).model_copy(update=change)
    server = "postgres" if part == "postgres" else "kafka"
    with pytest.raises(Misconfigured, match=said):
        Stack(idle.model_copy(update={part: own}), print).start([server])
    assert pids(idle) == {}


def test_a_recycled_pid_is_not_taken_for_ours(idle: Settings) -> None:
    """A process that was given the pid of a dead one is shown as stopped, and never signalled."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            note(idle, "kafka", stranger.pid, psutil.Process(stranger.pid).create_time() - 3600)
            stack = Stack(idle, print)
            assert stack.status()["processes"][0]["state"] == "stopped"
            stack.stop(["kafka"])
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_wipe_removes_data_and_keeps_what_was_fetched(idle: Settings) -> None:
    """After `wipe` a server starts empty, and no sandbox is left of it; the parts are still there."""
    stack = Stack(idle, print)
    (idle.replay.directory / "rule-42").mkdir(parents=True)
    stack.start(["clickhouse"])
    write_clickhouse(idle)
    parts = set(idle.local.parts.glob("*"))
    stack.wipe()
    assert pids(idle) == {}
    assert not idle.replay.directory.exists()
    assert set(idle.local.parts.glob("*")) == parts
    stack.start(["clickhouse"])
    client = clickhouse_door.connect(idle.clickhouse)
    assert client.query("SHOW TABLES").result_rows == []
    client.close()


def test_a_log_that_has_grown_is_begun_anew(idle: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts puts a large log aside, in the place of the one before it, and adds to a smaller one."""
    monkeypatch.setattr(processes, "LOG_BYTES", 10)
    runner = processes.Runner(idle.local.home)
    log = runner.log("said")
    for text in ("first, long", "second", "third, long", "fourth"):
        child = processes.Process(
            "said", ["sh", "-c", f"echo {text}; exec sleep 60"], lambda text=text: said(text, log)
        )
        runner.start(child)
        runner.stop("said")
    assert log.read_text() == "fourth\n"
    assert log.with_name("said.log.1").read_text() == "second\nthird, long\n"


def said(text: str, log: pathlib.Path) -> None:
    assert text in log.read_text()


@pytest.mark.parametrize("how", ["TLS", "TLS, health_port", "TLS, client certificates"])
def test_a_gateway_with_tls_starts(idle: Settings, tmp_path: pathlib.Path, how: str) -> None:
    """It is found ready on the port where it says so, and its address is https."""
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    changed = {
        "tls_certificate_file": tmp_path / "server.pem",
        "tls_key_file": tmp_path / "server.pem",
        "health_port": free_ports(1)[0] if "health_port" in how else None,
        "tls_client_ca_file": tmp_path / "ca.pem" if "client" in how else None,
    }
    stack = Stack(idle.model_copy(update={"gateway": idle.gateway.model_copy(update=changed)}), print)
    try:
        stack.start(["gateway"])
        assert stack.status()["otlp_http"] == f"https://127.0.0.1:{idle.gateway.http_port}"
    finally:
        stack.stop(["gateway"])


def test_two_commands_at_once_are_told(idle: Settings) -> None:
    """While one command changes the stack, another says so and changes nothing."""
    with (idle.local.home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Misconfigured, match="Another command is changing the stack"):
            Stack(idle, print).start(["clickhouse"])
    assert pids(idle) == {}


def test_status_of_a_stopped_stack_still_prints_addresses(idle: Settings) -> None:
    """With nothing running, every process is a row with pid null and the exit code is 1."""
    asked = command(idle, "status", "--json")
    document = json.loads(asked.communicate(timeout=30)[0])
    assert asked.returncode == 1
    assert document["clickhouse"] == idle.clickhouse.url
    stopped = {"pid": None, "state": "stopped", "since": None, "rss_mb": None}
    assert document["processes"] == [{"name": name, **stopped} for name in NAMES]


@pytest.mark.parametrize(
    "dsn",
    [
        "host=h port=1 user=u dbname=d password='sesame' sslpassword=sesame",
        "postgresql://u:sesame@h:1/d?sslpassword=sesame",
    ],
)
def test_status_shows_a_dsn_without_its_secrets(tmp_path: pathlib.Path, dsn: str) -> None:
    """Whoever may read the screen may not log in; the rest of the DSN is all there."""
    own = Settings(postgres=PostgresSettings(dsn=SecretStr(dsn)), local=LocalSettings(home=tmp_path))
    shown = Stack(own, print).status()["postgres"]
    assert psycopg.conninfo.conninfo_to_dict(shown) == {"host": "h", "port": "1", "user": "u", "dbname": "d"}


def test_a_dsn_that_is_none_is_not_quoted(idle: Settings) -> None:
    """By no command of the stack: half of it may be a password."""
    broken = idle.model_copy(update={"postgres": PostgresSettings(dsn=SecretStr("host=127.0.0.1 sesame"))})
    for words in (("status",), ("start", "postgres")):
        asked = command(broken, *words)
        said = "".join(asked.communicate(timeout=30))
        assert asked.returncode == 2
        assert "postgres.dsn" in said
        assert "sesame" not in said


def test_an_unknown_process_is_told_with_those_there_are(idle: Settings) -> None:
    """A misspelt name ends with exit code 2 and a sentence."""
    asked = command(idle, "start", "kafak")
    said = asked.communicate(timeout=30)[1]
    assert asked.returncode == 2
    assert "'kafak'" in said
    assert "kafka" in said
