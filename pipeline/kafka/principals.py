"""Who may log in by SCRAM-SHA-512, and what an ACL lets them touch: names that begin with one prefix."""

from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its public names, which it does not list
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)

from pipeline.errors import Misconfigured
from pipeline.kafka.connection import Heard
from pipeline.settings import KafkaSettings

TIMEOUT_S = 10.0
ITERATIONS = 4096


class Principals:
    """The principals of one cluster. Every call raises Misconfigured where the cluster refuses or does not answer."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._servers = settings.bootstrap_servers
        self._client = Heard(settings).client(AdminClient)

    def make(self, name: str, password: str, prefix: str) -> None:
        """Let `name` log in, and do anything to topics, groups and transactions that begin with `prefix`."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, ITERATIONS)
        login = UserScramCredentialUpsertion(name, info, password.encode())
        self._ask(self._client.alter_user_scram_credentials, login)
        for kind in (ResourceType.TOPIC, ResourceType.GROUP):
            self._ask(
                self._client.create_acls,
                AclBinding(
                    kind, prefix, ResourcePatternType.PREFIXED, f"User:{name}", "*", AclOperation.ALL,
                    AclPermissionType.ALLOW,
                ),
            )  # fmt: skip

    def remove(self, name: str) -> None:
        """Take both away, as far as they are there."""
        everything: Any = None  # what its stubs do not know
        anything = AclBindingFilter(
            ResourceType.ANY, everything, ResourcePatternType.ANY, f"User:{name}", everything, AclOperation.ANY,
            AclPermissionType.ANY,
        )  # fmt: skip
        self._ask(self._client.delete_acls, anything)
        if name in self.names():
            deletion = UserScramCredentialDeletion(name, ScramMechanism.SCRAM_SHA_512)
            self._ask(self._client.alter_user_scram_credentials, deletion)

    def names(self) -> list[str]:
        """Who can log in."""
        try:
            asked: Any = self._client.describe_user_scram_credentials(request_timeout=TIMEOUT_S)
            return sorted(asked.result())
        except KafkaException as error:
            raise self._refused(error) from error

    def _ask(self, verb: Any, what: object) -> None:
        try:
            for future in verb([what], request_timeout=TIMEOUT_S).values():
                future.result()
        except KafkaException as error:
            raise self._refused(error) from error

    def _refused(self, error: KafkaException) -> Misconfigured:
        return Misconfigured(
            f"Kafka at {self._servers} keeps no principals: {str(error.args[0].str()).rstrip('.')}. Switch its "
            "authorizer on, or let sandboxes go without by an empty replay.kafka_servers."
        )
