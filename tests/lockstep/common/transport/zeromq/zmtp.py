"""A client of ZeroMQ's wire protocol (RFC 23) by hand, for what no honest library sends."""

import select
import socket
from collections.abc import Iterable
from contextlib import ExitStack

from lockstep.common.transport.address import TcpAddress, parse

#: Seconds that no test waits unless it fails.
TIMEOUT_S = 20.0

MORE, LONG, COMMAND = 1, 2, 4


def frame(data: bytes, flags: int = 0) -> bytes:
    """Return the bytes of one frame."""
    if len(data) > 255:
        return bytes([flags | LONG]) + len(data).to_bytes(8, "big") + data
    return bytes([flags, len(data)]) + data


def message(frames: list[bytes]) -> bytes:
    """Return the bytes of a message."""
    return b"".join(frame(data, MORE) for data in frames[:-1]) + frame(frames[-1])


def command(name: bytes, data: bytes = b"") -> bytes:
    return frame(bytes([len(name)]) + name + data, COMMAND)


def greeting(mechanism: bytes, major: int = 3) -> bytes:
    return b"\xff" + bytes(8) + b"\x7f" + bytes([major, 0]) + mechanism.ljust(20, b"\0") + bytes(32)


#: What a DEALER says of itself.
READY = command(b"READY", b"\x0bSocket-Type\x00\x00\x00\x06DEALER")


def connected(address: str) -> socket.socket:
    """Return a connection over which nothing has been said."""
    parsed = parse(address)
    assert isinstance(parsed, TcpAddress)
    return socket.create_connection((parsed.host, parsed.port), TIMEOUT_S)


def shaken(address: str, mechanism: bytes = b"NULL") -> socket.socket:
    """Return a connection after the greeting, and with NULL after the whole handshake."""
    with ExitStack() as stack:
        connection = stack.enter_context(connected(address))
        connection.sendall(greeting(mechanism))
        read(connection, 64)
        if mechanism == b"NULL":
            connection.sendall(READY)
            _, size = read(connection, 2)
            read(connection, size)
        stack.pop_all()
    return connection


def read(connection: socket.socket, size: int) -> bytes:
    """Return so many bytes."""
    data = b""
    while len(data) < size:
        received = connection.recv(size - len(data))
        if not received:
            raise ConnectionError(f"closed after {len(data)} of {size} bytes")
        data += received
    return data


def is_closed(connection: socket.socket) -> bool:
    """Wait for the end of a connection, whatever comes before it; tell whether it came in time."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def send_all(connection: socket.socket, pieces: Iterable[bytes]) -> int:
    """Send until the end or until the connection is cut; return how many pieces were taken."""
    sent = 0
    try:
        for piece in pieces:
            connection.sendall(piece)
            sent += 1
    except (ConnectionError, TimeoutError):
        return sent
    return sent


def send_until_closed(connection: socket.socket, piece: bytes, most: int) -> int:
    """Send a piece again and again, `most` bytes in all, until the other end has closed; return how many were taken.

    Who only sends may not hear of the end: there may be no room any more for the byte that would be answered by it.
    """
    connection.setblocking(False)
    sent = 0
    try:
        while sent < most:
            readable, writable, _ = select.select([connection], [connection], [], TIMEOUT_S)
            if readable and not connection.recv(65536):
                break
            if writable:
                sent += connection.send(memoryview(piece)[sent % len(piece) :])
    except ConnectionError:
        return sent
    finally:
        connection.settimeout(TIMEOUT_S)
    return sent
