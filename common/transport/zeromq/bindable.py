"""From the host that a person wrote to the address that is bound to: ZeroMQ binds to digits and interfaces only."""

import socket
from dataclasses import replace

from common.transport.address import TcpAddress


def bindable(address: TcpAddress) -> TcpAddress:
    """Return the address with its host's name looked up, so that what is judged by it is what is bound to.

    An interface's name stays, and so does one that nobody knows: ZeroMQ says so.
    """
    host = address.host
    if host == "localhost":
        # On either loopback; the other may be switched off.
        return replace(address, host="127.0.0.1")
    if host == "*" or host in {name for _, name in socket.if_nameindex()}:
        return address
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return address
    return replace(address, host=str(found[0][4][0]))
