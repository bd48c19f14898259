"""What the system knows of a connection of which we have but the number: ZeroMQ opened it, and will close it."""

import socket
import struct
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Where Linux keeps the bytes received in its `struct tcp_info`, and how much of that is asked for.
_BYTES_RECEIVED = struct.Struct("=128xQ")


def _with(descriptor: int, do: Callable[[socket.socket], T]) -> T:
    connection = socket.socket(fileno=descriptor)
    try:
        return do(connection)
    finally:
        # Not ours to close.
        connection.detach()


def other_end(descriptor: int) -> tuple[str, int]:
    """Return the host and port at the other end, none for a local socket; `OSError` where there is no connection."""
    name = _with(descriptor, lambda connection: connection.getpeername())
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else ("", 0)


def shut(descriptor: int) -> None:
    """End a connection both ways; whoever opened it is told, and closes it. `OSError` where there is none."""
    _with(descriptor, lambda connection: connection.shutdown(socket.SHUT_RDWR))


def received_bytes(descriptor: int) -> int | None:
    """Return the bytes that came over a connection by tcp, None where the system does not count them.

    `OSError` where there is no connection.
    """
    if sys.platform != "linux":
        return None

    def ask(connection: socket.socket) -> int | None:
        if connection.family == socket.AF_UNIX:
            return None
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
        return int(_BYTES_RECEIVED.unpack(told)[0]) if len(told) == _BYTES_RECEIVED.size else None

    return _with(descriptor, ask)
