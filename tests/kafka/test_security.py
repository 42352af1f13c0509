"""SASL and TLS, against a broker that takes nothing else."""

import asyncio
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
import trustme
from aiokafka import AIOKafkaConsumer, TopicPartition
from cryptography.hazmat.primitives import serialization
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from pipeline import topics
from pipeline.agents import gaps, worker
from pipeline.errors import Misconfigured, Unavailable
from pipeline.kafka.admin import Cluster
from pipeline.kafka.connection import tls
from pipeline.kafka.groups import Groups
from pipeline.kafka.principals import Principals
from pipeline.kafka.producer import Publisher
from pipeline.kafka.reader import Reader
from pipeline.local import parts
from pipeline.local.servers import JVM
from pipeline.settings import KafkaSettings, Settings
from tests.conftest import free_ports, part

PASSWORD = 'a secret with spaces; and "quotes"'
JAAS = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_gateway="{}";'


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """A broker whose clients come with TLS and a password; its certificate is of an authority of its own."""
    home = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(home / "ca.pem")
    issued = authority.issue_cert("127.0.0.1", "localhost")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    pkcs8 = key.private_bytes(  # the one format that Kafka reads
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (home / "broker.pem").write_bytes(pkcs8 + b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    port, inside = free_ports(2)
    jaas = JAAS.format(PASSWORD.replace('"', '\\"')).replace("\\", "\\\\")
    (home / "server.properties").write_text(f"""
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{inside + 1}
listeners=SASL_SSL://127.0.0.1:{port},INSIDE://127.0.0.1:{inside},CONTROLLER://127.0.0.1:{inside + 1}
advertised.listeners=SASL_SSL://127.0.0.1:{port},INSIDE://127.0.0.1:{inside}
listener.security.protocol.map=SASL_SSL:SASL_SSL,INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=INSIDE
log.dirs={home / "data"}
offsets.topic.replication.factor=1
ssl.keystore.type=PEM
ssl.keystore.location={home / "broker.pem"}
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config={jaas}
""")
    settings = KafkaSettings(
        bootstrap_servers=f"127.0.0.1:{port}",
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="gateway",
        sasl_password=PASSWORD,
        ssl_ca_file=home / "ca.pem",
    )
    running: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        jars = parts.kafka_jars(Settings().local.parts, print)
        java = ["java", *JVM, "-cp", f"{jars}/*"]
        storage = [
            *java,
            "kafka.tools.StorageTool",
            "format",
            "-t",
            "AAAAAAAAAAAAAAAAAAAAAA",
            "-c",
            str(home / "server.properties"),
        ]
        subprocess.run(storage, check=True, stdout=subprocess.DEVNULL)
        with (home / "log").open("wb") as log:
            running.append(
                subprocess.Popen([*java, "kafka.Kafka", str(home / "server.properties")], stdout=log, stderr=log)
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                topics.apply_all(Settings(kafka=settings))
                return
            except Unavailable:
                if time.monotonic() > deadline or running[0].poll() is not None:
                    raise
                time.sleep(0.3)

    def stop() -> None:
        for process in running:
            process.kill()
            process.wait()

    with part(start, stop):
        yield settings


def test_every_client_of_ours_gets_in(secured: KafkaSettings) -> None:
    """Admin, producer and reader by librdkafka, and the client that Faust uses, with one set of settings."""

    async def publish() -> None:
        publisher = Publisher(secured, ["logs_raw"], within_s=10)
        while publisher.unready():
            await asyncio.sleep(0.05)
        assert await publisher.publish("logs_raw", 0, b"value", []) is None
        await asyncio.to_thread(publisher.close, 5)

    async def consume() -> bytes:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=secured.bootstrap_servers,
            security_protocol=secured.security_protocol,
            sasl_mechanism=secured.sasl_mechanism,
            sasl_plain_username=secured.sasl_username,
            sasl_plain_password=secured.sasl_password.get_secret_value(),
            ssl_context=tls(secured),
        )
        await consumer.start()
        try:
            consumer.assign([TopicPartition("logs_raw", 0)])
            await consumer.seek_to_beginning()
            return bytes((await asyncio.wait_for(consumer.getone(), 20)).value)
        finally:
            await consumer.stop()

    asyncio.run(asyncio.wait_for(publish(), 30))
    assert "logs_raw" in Cluster(secured).topics(["logs_raw"])
    reader = Reader(secured)
    assert [message.value for message in reader.read(reader.retained(["logs_raw"]))] == [b"value"]
    assert asyncio.run(consume()) == b"value"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"sasl_password": "wrong"}, "Authentication failed"),
        ({"security_protocol": "PLAINTEXT"}, "or kafka.security_protocol"),
        ({"ssl_ca_file": None}, "certificate verify failed"),
    ],
)
def test_who_is_not_let_in_hears_it_and_tells_no_secret(
    secured: KafkaSettings, wrong: dict[str, object], says: str
) -> None:
    """A wrong password, no TLS, or a broker whose certificate nobody vouches for."""
    own = KafkaSettings(**{**secured.model_dump(), **wrong})
    for ask in (lambda: Cluster(own).topics(["logs_raw"]), lambda: Reader(own).topics()):
        with pytest.raises(Unavailable, match=says) as caught:
            ask()
        assert "wrong" not in str(caught.value)
        assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("kind", [Cluster, Reader, Groups, Principals])
@pytest.mark.parametrize("there", [False, True])
def test_files_of_tls_that_are_none_are_told(
    tmp_path: pathlib.Path, kind: Callable[[KafkaSettings], object], there: bool
) -> None:
    """By the setting that names them, whoever of us reads them first."""
    file = tmp_path / "ca.pem"
    if there:
        file.write_text("nothing that a certificate is made of")
    with pytest.raises(Misconfigured, match=r"kafka\.ssl_"):
        kind(KafkaSettings(bootstrap_servers="127.0.0.1:1", security_protocol="SSL", ssl_ca_file=file))


def test_a_right_that_is_missing_is_told(kafka: str, session_settings: Settings) -> None:
    """Topics that may not be seen are not said to be missing alone, and a refusal says who is to be granted what."""
    by_all = KafkaSettings(bootstrap_servers=kafka)
    topics.apply_all(Settings(kafka=by_all))
    Principals(by_all).make("poor", "pass", "poor_")
    poor = KafkaSettings(
        bootstrap_servers=session_settings.replay.kafka_servers, security_protocol="SASL_PLAINTEXT",
        sasl_username="poor", sasl_password="pass",
    )  # fmt: skip
    with pytest.raises(Misconfigured, match=r"`pipeline topics apply`, or let User:poor describe them"):
        gaps.find("pg_writer", ["logs_raw"], Settings(kafka=poor))
    for refused in (
        lambda: Groups(poor).committed("pg_writer", [("logs_raw", 0)]),
        lambda: worker._demand_rights(Settings(kafka=poor), "pg_writer", ["logs_raw"]),
        lambda: worker._demand_rights(Settings(kafka=poor), "poor_writer", ["logs_raw"]),
        lambda: Cluster(poor).create("other", partitions=1, replication_factor=1, config={}),
    ):
        with pytest.raises(Misconfigured, match=r"refused to .* Grant User:poor the right"):
            refused()


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_SSL", "SASL_PLAINTEXT"])
def test_writers_connect_by_the_same_settings(protocol: str) -> None:
    """What Faust hands to its client says who we are, and uses TLS where the protocol does."""
    kafka = KafkaSettings(security_protocol=protocol, sasl_username="writer", sasl_password=PASSWORD)
    handed = credentials_to_aiokafka_auth(worker._credentials(kafka))
    assert handed["security_protocol"] == protocol
    assert (handed.get("ssl_context") is not None) == protocol.endswith("SSL")
    if protocol.startswith("SASL"):
        assert (handed["sasl_mechanism"], handed["sasl_plain_username"]) == ("SCRAM-SHA-512", "writer")
        assert handed["sasl_plain_password"] == PASSWORD
