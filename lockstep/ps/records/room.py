"""Whether the disk has room for what a run records: while it has none, the run makes no step. Knows no clock.

A run that went on would keep its lines in memory, without a checkpoint, and lose them all at its end.
"""

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Errors of a write that only room can end: no space, and more than the user's quota.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

#: Seconds between two looks whether there is room again.
LOOK_S = 1.0

KIB = 2**10


def free_bytes(path: Path) -> int:
    """Return the bytes that this user may still write next to `path`."""
    return shutil.disk_usage(path).free


@dataclass
class DiskRoom:
    """The room on the disk of a run's folder: full from a write that failed until one that succeeded."""

    path: Path
    #: An argument so that a full disk can be tried.
    free: Callable[[Path], int] = free_bytes
    #: Bytes of what could not be written, 0 if nothing failed.
    needed: int = 0

    @property
    def is_lacking(self) -> bool:
        return self.needed > 0

    def refuse(self, error: OSError, needed: int) -> bool:
        """Record that so many bytes could not be written; return False if that has another cause than a full disk."""
        if error.errno not in NO_ROOM:
            return False
        self.needed = max(self.needed, needed, 1)
        return True

    def try_again(self, write: Callable[[], object]) -> bool:
        """Call `write` if there seems to be room for it; return whether that is so, and it was not refused again."""
        needed = self.needed
        if self.free(self.path) < needed:
            return False
        self.needed = 0
        write()
        return not self.is_lacking

    @property
    def text(self) -> str:
        """What is missing where, for a person."""
        return (
            f"the run pauses: the disk of {str(self.path)!r} is full: it needs {-(-self.needed // KIB):,} KiB, and "
            f"{self.free(self.path) // KIB:,} KiB are free; make room, and it continues by itself"
        )
