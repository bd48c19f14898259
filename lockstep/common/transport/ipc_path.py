"""Guards the file of a unix socket, since libzmq deletes whatever is at the path that it binds to, live or not."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lockstep.common.errors import AddressError

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
