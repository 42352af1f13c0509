"""A consumer group as its coordinator sees it."""

import socket
import struct
from collections.abc import Iterable

from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient, ConsumerGroupDescription

REBALANCING = {ConsumerGroupState.PREPARING_REBALANCING, ConsumerGroupState.COMPLETING_REBALANCING}
LEAVE_GROUP = 13


class Group:
    """One group of one cluster."""

    def __init__(self, servers: str, name: str) -> None:
        self._servers, self._name = servers, name
        self._admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})

    def members(self) -> set[str]:
        """Ids of who consumes; a member that left and came back has another."""
        return {member.member_id for member in self._described().members}

    def rebalancing(self) -> bool:
        """Whether it waits for members to join, or for their assignment."""
        return self._described().state in REBALANCING

    def settled(self, members: int) -> bool:
        """Whether so many members consume, and know what."""
        found = self._described()
        return found.state == ConsumerGroupState.STABLE and len(found.members) == members

    def leave(self, members: Iterable[str]) -> None:
        """Say for each that it leaves: what the coordinator learns of a killed one when its session of 15 s ends.

        Source: Kafka protocol guide, LeaveGroup request, version 1.
        """
        host, _, port = self._servers.partition(":")
        for member in members:
            words = b"".join(
                struct.pack(">h", len(word)) + word for word in (b"test", self._name.encode(), member.encode())
            )
            body = struct.pack(">hhi", LEAVE_GROUP, 1, 1) + words
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(struct.pack(">i", len(body)) + body)
                connection.recv(64)

    def _described(self) -> ConsumerGroupDescription:
        found: ConsumerGroupDescription = self._admin.describe_consumer_groups([self._name])[self._name].result()
        return found
