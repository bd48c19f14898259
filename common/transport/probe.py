"""Looks at an address as a person would: is there a way, does anybody listen, and what does he want to be shown."""

import socket
from contextlib import closing

from common.runtime.clock import SystemClock
from common.transport.address import IpcAddress, TcpAddress, parse
from common.transport.diagnosis import Found, Stage

#: Seconds that a look may take; a name that nobody answers for may take longer.
PATIENCE_S = 2.0

#: The beginning of a greeting by ZeroMQ's RFC 23: a signature, and the major version 3. A server answers by its own.
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03"

#: Of its 64 bytes, where the server's says what it wants to be shown.
_MECHANISM = slice(12, 32)


def look_at(address: str, patience_s: float = PATIENCE_S) -> Found:
    """Return what is found at `address`; raises AddressError where it is malformed."""
    try:
        with closing(_connected(parse(address), patience_s)) as connection:
            return Found(mechanism=_mechanism(_greeting(connection, patience_s)))
    except socket.gaierror as error:
        told = f"the host of {address} is not known here ({error.strerror}): is its name right?"
        return Found(obstacle=told, stage=Stage.NAME)
    except ConnectionRefusedError:
        told = f"nothing listens at {address}: is the server running, and is this its port?"
        return Found(obstacle=told, stage=Stage.PORT)
    except FileNotFoundError:
        return Found(obstacle=f"nothing listens at {address}: there is no such socket", stage=Stage.PORT)
    except TimeoutError:
        told = f"nothing answers at {address} within {patience_s:g} s: is a firewall in between?"
        return Found(obstacle=told, stage=Stage.FIREWALL)
    except OSError as error:
        return Found(obstacle=f"{address} cannot be reached: {error.strerror or error}", stage=Stage.ROUTE)


def _connected(address: TcpAddress | IpcAddress, patience_s: float) -> socket.socket:
    if isinstance(address, TcpAddress):
        return socket.create_connection((address.host, address.port), patience_s)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(patience_s)
        connection.connect(str(address.path))
    except BaseException:
        connection.close()
        raise
    return connection


def _greeting(connection: socket.socket, patience_s: float) -> bytes:
    """Return what a server says first, as much of it as comes in time."""
    clock, greeting = SystemClock(), b""
    end = clock.now() + patience_s
    try:
        connection.sendall(_GREETING)
        while len(greeting) < _MECHANISM.stop and (left := end - clock.now()) > 0.0:
            connection.settimeout(left)
            received = connection.recv(_MECHANISM.stop - len(greeting))
            if not received:
                break
            greeting += received
    except OSError:
        # It listens, and that is what it has to say.
        return greeting
    return greeting


def _mechanism(greeting: bytes) -> str:
    is_ours = len(greeting) == _MECHANISM.stop and greeting[0] == 0xFF and greeting[9] & 1
    return greeting[_MECHANISM].rstrip(b"\0").decode("ascii", "replace") if is_ours else ""
