"""The forms of an address, those that are open to this machine only, and the file of a unix socket.

The file is guarded, because libzmq deletes whatever is at the path that it binds to, live or not.
"""

import errno
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from lockstep.common.errors import AddressError

#: Bytes of a path that fit into a socket address with the zero that ends it.
MAX_IPC_PATH_BYTES = 107

_EXPECTED = "expected 'tcp://HOST:PORT', as 'tcp://127.0.0.1:5555' or 'tcp://[::1]:5555', or 'ipc://PATH'"
_HOST_AND_PORT = re.compile(r"(?P<host>\[[^\]\s]+\]|[^:/\[\]\s;]+):(?P<port>\*|[0-9]{1,5})")


class TcpAddress(msgspec.Struct, frozen=True):
    """A host, as it was written, and a port; port 0 is any free one."""

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host

    @property
    def is_loopback(self) -> bool:
        """True if only processes of this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            # A name may resolve to anything.
            return False

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.is_ipv6 else self.host
        return f"tcp://{host}:{self.port}"

    def connect(self, timeout_s: float) -> socket.socket:
        """Return a system socket that is connected; OSError if nothing accepts it in time."""
        return socket.create_connection((self.host, self.port), timeout_s)

    def free_address(self) -> "TcpAddress":
        """Return where another process of this machine can listen."""
        return TcpAddress("::1" if self.is_ipv6 else "127.0.0.1", 0)


class IpcAddress(msgspec.Struct, frozen=True):
    """A socket file."""

    path: Path

    #: Only processes of this machine can connect.
    is_loopback = True

    def __str__(self) -> str:
        return f"ipc://{self.path}"

    def connect(self, timeout_s: float) -> socket.socket:
        """Return a system socket that is connected; OSError if nothing accepts it in time."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            connection.connect(str(self.path))
        except BaseException:
            connection.close()
            raise
        return connection

    def free_address(self) -> "IpcAddress":
        """Return where another process of this machine can listen."""
        return IpcAddress(self.path.with_name(f"{self.path.name}.{os.getpid()}"))


Address = TcpAddress | IpcAddress


def parse(text: str) -> Address:
    """Parse an address; raises AddressError."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme in _PARSERS:
        return _PARSERS[scheme](text, rest)
    match = _HOST_AND_PORT.fullmatch(text)
    if match is not None:
        _parse_tcp(text, text)  # raises if it is more than the scheme that is wrong
    advice = f"; did you mean {f'tcp://{text}'!r}?" if match is not None else ""
    raise AddressError(f"address {text!r} is malformed: {_EXPECTED}{advice}")


def _parse_tcp(text: str, rest: str) -> TcpAddress:
    match = _HOST_AND_PORT.fullmatch(rest)
    if match is None:
        raise AddressError(f"address {text!r} is malformed: {_EXPECTED}")
    host = match["host"].strip("[]")
    port = 0 if match["port"] == "*" else int(match["port"])
    if port > 65535:
        raise AddressError(f"address {text!r} has port {port}: expected 1 to 65535, or 0 for any free one")
    if match["host"].startswith("[") and not _is_ipv6(host):
        raise AddressError(f"address {text!r} has {host!r} in brackets: expected an IPv6 address there, as '[::1]'")
    return TcpAddress(host, port)


def _parse_ipc(text: str, rest: str) -> IpcAddress:
    # libzmq reads "@name" as an abstract socket and "*" as any free path: neither has a file that we could guard.
    if not rest or rest[0] in "@*" or rest.endswith("/") or not rest.isprintable():
        raise AddressError(f"address {text!r} is malformed: expected 'ipc://PATH' with the path of a file")
    length = len(rest.encode())
    if length > MAX_IPC_PATH_BYTES:
        raise AddressError(
            f"address {text!r} has a path of {length} bytes: expected at most {MAX_IPC_PATH_BYTES}; choose another"
        )
    return IpcAddress(Path(rest))


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


#: By the beginning of an address.
_PARSERS: dict[str, Callable[[str, str], Address]] = {"tcp": _parse_tcp, "ipc": _parse_ipc}


#: Seconds that a live server may take to accept; a local connect is refused or accepted at once.
_PROBE_S = 2.0


def free_path(path: Path) -> None:
    """Remove the socket file that a dead server left at `path`.

    Raises AddressError if a live server listens there, or if it is not a socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise AddressError(f"address 'ipc://{path}' cannot be used ({error.strerror}): choose another path") from None
    if not stat.S_ISSOCK(mode):
        raise AddressError(f"address 'ipc://{path}' is the path of something else: expected a free path or a socket's")
    if _is_live(path):
        raise AddressError(f"address 'ipc://{path}' is in use by another server: stop that one or choose another path")
    path.unlink(missing_ok=True)


@contextmanager
def private_files() -> Iterator[None]:
    """Let only this user access files created within: a user that may write to a socket's file may connect to it."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


class SocketFile:
    """The file of a socket that was just bound, to be removed with it: libzmq leaves it."""

    def __init__(self, path: Path) -> None:
        # The working folder may change before the end.
        self._path = path.absolute()
        self._made = self._path.lstat()

    def remove(self) -> None:
        """Remove the file, unless another has taken its place."""
        try:
            if os.path.samestat(self._path.lstat(), self._made):
                self._path.unlink()
        except FileNotFoundError:
            return


def _is_live(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        # Refused: no process listens. A full backlog or a lack of permission does not prove a dead server.
        return probe.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT)
