"""How every client of the cluster connects and says who it is."""

import ssl
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, Message

from pipeline.errors import Misconfigured, PipelineError, Unavailable
from pipeline.settings import KafkaSettings

RIGHTS = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)  # fmt: skip
OURS = RIGHTS | frozenset(
    {
        KafkaError.TOPIC_ALREADY_EXISTS, KafkaError.TOPIC_EXCEPTION, KafkaError.INVALID_PARTITIONS,
        KafkaError.INVALID_REPLICATION_FACTOR, KafkaError.INVALID_REPLICA_ASSIGNMENT, KafkaError.INVALID_CONFIG,
        KafkaError.INVALID_REQUEST, KafkaError.POLICY_VIOLATION, KafkaError.UNSUPPORTED_VERSION,
        KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._AUTHENTICATION, KafkaError._INVALID_ARG,
    }
)  # fmt: skip
NO_ANSWER = frozenset({KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN})
Client = TypeVar("Client", bound=Any)


def configuration(settings: KafkaSettings) -> dict[str, Any]:
    """librdkafka's properties for these settings."""
    sasl = settings.security_protocol.startswith("SASL")
    wanted = {
        "bootstrap.servers": settings.bootstrap_servers,
        "security.protocol": settings.security_protocol,
        "sasl.mechanism": settings.sasl_mechanism if sasl else None,
        "sasl.username": settings.sasl_username if sasl else None,
        "sasl.password": settings.sasl_password.get_secret_value() if sasl else None,
        "ssl.ca.location": settings.ssl_ca_file,
        "ssl.certificate.location": settings.ssl_certificate_file,
        "ssl.key.location": settings.ssl_key_file,
    }
    return {name: str(value) for name, value in wanted.items() if value is not None}


class Heard:
    """Why a client got no answer, which librdkafka says beside it: of a wrong password too the answer itself is no more
    than `Broker transport failure`. Quiet: it prints nothing."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._last: KafkaError | None = None

    def client(self, kind: Callable[[dict[str, Any]], Client], **more: Any) -> Client:
        """A client for these settings; raise Misconfigured where they make none."""
        try:
            return kind({**configuration(self._settings), **more, "log_level": 0, "error_cb": self._hear})
        except KafkaException as error:
            check(self._settings)
            raise Misconfigured(f"kafka: {error.args[0].str()}.") from error

    def failure(self, what: str, raised: KafkaException, client: Any) -> PipelineError:
        """What `client` raised when it should `what`: Misconfigured where Kafka refuses, else Unavailable."""
        error: KafkaError = raised.args[0]
        settings, reason = self._settings, error
        way = "Start it, or correct kafka.bootstrap_servers or kafka.security_protocol."
        if error.code() in NO_ANSWER:
            polled = client.poll(0)
            told = polled.error() if isinstance(polled, Message) else None  # a consumer's own way of saying it
            reason = told or self._last or error
        said = str(reason.str()).rstrip(".")
        if reason.code() in OURS - {KafkaError._AUTHENTICATION}:  # which may be in force only a moment later
            rights = f" Grant {who(settings)} the right to." if reason.code() in RIGHTS else ""
            return Misconfigured(f"Kafka at {settings.bootstrap_servers} refused to {what}: {said}.{rights}")
        if reason.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            way = "Correct kafka.security_protocol, sasl_… or ssl_…."
        return Unavailable(f"Kafka at {settings.bootstrap_servers} could not {what}: {said}. {way}")

    def _hear(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._last = error


def who(settings: KafkaSettings) -> str:
    """As whom ACLs know us."""
    return f"User:{settings.sasl_username}" if settings.security_protocol.startswith("SASL") else "this client"


def unseen(settings: KafkaSettings, topics: Sequence[str]) -> str:
    """Said of topics that are not in the cluster's list."""
    return f"missing in Kafka: {', '.join(topics)}; run `pipeline topics apply`{hidden(settings)}"


def hidden(settings: KafkaSettings) -> str:
    """Another way out, where what is not in the cluster's list may be there: it leaves out what a client may not
    describe."""
    return "" if settings.security_protocol == "PLAINTEXT" else f", or let {who(settings)} describe them"


def tls(settings: KafkaSettings) -> ssl.SSLContext | None:
    """The same for clients in Python: a context where the protocol has TLS."""
    if not settings.security_protocol.endswith("SSL"):
        return None
    context = ssl.create_default_context(cafile=settings.ssl_ca_file)
    if settings.ssl_certificate_file:
        context.load_cert_chain(settings.ssl_certificate_file, settings.ssl_key_file)
    return context


def check(settings: KafkaSettings) -> None:
    """Raise Misconfigured with every file of the settings that is not there, or does not fit."""
    names = ("ssl_ca_file", "ssl_certificate_file", "ssl_key_file")
    files = {name: getattr(settings, name) for name in names}
    problems = [f"kafka.{name} {file} is not a file." for name, file in files.items() if file and not file.is_file()]
    if not problems:
        try:
            tls(settings)
        except (OSError, ssl.SSLError) as error:
            problems = [f"kafka.ssl_…_file: {error.strerror or error}."]
    if problems:
        raise Misconfigured(problems)
