"""By which of this machine's addresses another one reaches it."""

import socket

from common.errors import UnreachableError

#: Any port: nothing is sent to it.
PORT = 9


def address_towards(host: str) -> str:
    """Return the address of the interface that leads to `host`; `UnreachableError` where none does.

    The system is asked for the way, by a UDP socket that sends nothing. The own host name would say less: it often
    leads to loopback, or to another of several networks.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as asking:
            asking.connect(target)
            return str(asking.getsockname()[0])
    except OSError as error:
        raise UnreachableError(
            f"no interface of this machine leads to {host!r} ({error.strerror or error}): expected one network that "
            "all machines of the run are on"
        ) from None


def bracketed(host: str) -> str:
    """Return a host as addresses have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
