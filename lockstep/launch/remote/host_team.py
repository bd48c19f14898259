"""The processes that a launcher has started on one host, as one team: their folder, and the process that leads them."""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.common.errors import UsageError
from lockstep.launch.remote.launcher import LauncherPlace
from lockstep.worker.team.meeting import MeetingPlace

#: Seconds for the first process of a host to make the folder, after which another one no longer counts on it: in a
#: container of its own it would wait for ever.
FIRST_S, POLL_S = 30.0, 0.05

#: The file whose lock the leader's process has until it ends, in whatever way.
LEADER = "leader"

#: Locks an open file, as `fcntl.flock`: an argument, so that a test can let another process act just before it.
LockFile = Callable[[int, int], None]


@dataclass
class HostTeam:
    """A team whose first process makes the folder, leads it, and removes the folder in the end.

    If it is killed, the process that sees that first leads the team in its place.
    """

    place: LauncherPlace
    folder: Path
    #: The number of the user that all of its processes belong to.
    user: int = field(default_factory=os.getuid)
    lock_file: LockFile = fcntl.flock
    #: The lock's file, while this process leads.
    _lock: int = field(default=-1, init=False)

    @classmethod
    def of(cls, place: LauncherPlace, root: Path) -> "HostTeam":
        """Return the team of a host, whose folder is in `root`: named after its user and the run's server."""
        text = f"{place.launcher} {place.host} {place.port} {place.local_size}"
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cls(place, root / f"lockstep-{os.getuid()}-{name}")

    @property
    def leads(self) -> bool:
        """Tell whether this process leads the team."""
        return self._lock >= 0

    @contextmanager
    def led(self) -> Iterator[None]:
        """Lead the team within the context, and remove its folder in the end; `UsageError` if another process leads."""
        if not self._is_there():
            self._make()
        if not self._is_there() or not self.take_lead():
            raise UsageError(f"{str(self.folder)!r} is used by another run of this address: end that one first")
        try:
            yield
        finally:
            # Before the lock is released: a process that finds no folder knows that there is nothing left to do.
            shutil.rmtree(self.folder, ignore_errors=True)
            self.let_go()

    def is_made(self, pause: Callable[[float], object]) -> bool:
        """Wait until the folder is there; return whether it came in time."""
        for _ in range(round(FIRST_S / POLL_S)):
            if self._is_there():
                return True
            pause(POLL_S)
        return False

    def is_left(self) -> bool:
        """Return whether the process that leads has ended; if it could not remove the folder, this one now leads."""
        return self.take_lead() or not self.folder.exists()

    def take_lead(self) -> bool:
        """Lead the team if no process does; return whether this one leads it."""
        if self.leads:
            return True
        try:
            lock = os.open(self.folder / LEADER, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            return False
        try:
            self.lock_file(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        if not self.folder.exists():
            # It was removed since the file was opened: by a leader that has ended in an orderly way.
            os.close(lock)
            return False
        self._lock = lock
        return True

    def let_go(self) -> None:
        """Lead the team no longer, as if this process had ended."""
        if self.leads:
            os.close(self._lock)
            self._lock = -1

    def _make(self) -> None:
        """Make the folder, whole from its first moment; one that is left of a process that was killed will do."""
        made = Path(tempfile.mkdtemp(prefix="lockstep-", dir=self.folder.parent))
        try:
            MeetingPlace.create(made, self.place.local_size)
            made.rename(self.folder)
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            # Another process was the first, or has put something else there: it is looked at next.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise

    def _is_there(self) -> bool:
        """Return whether the folder is there; `UsageError` if another user may have made it.

        Its files control the computation. It is looked at once: it may be removed at any time.
        """
        try:
            found = os.lstat(self.folder)
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != self.user or stat.S_IMODE(found.st_mode) != 0o700:
            raise UsageError(
                f"{str(self.folder)!r} is not a private folder of this user: expected none, or one of an earlier run"
            )
        return True
