"""What both ports ask of the kernel for a client's connection."""

import asyncio
import socket
import sys

UNREAD_S = 75.0  # then a client that does not read our answers is cut off


def cut_off_unread(transport: asyncio.BaseTransport) -> None:
    """End the connection when what was written to it has not been taken for that long. On Linux only."""
    if sys.platform == "linux":
        own = transport.get_extra_info("socket")
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_S * 1000))
