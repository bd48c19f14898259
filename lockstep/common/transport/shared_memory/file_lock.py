"""A lock on a file between processes, which the system releases at their end; does not know what it guards."""

import fcntl
import os
from dataclasses import dataclass


@dataclass
class FileLock:
    """A lock on a file that one process at most has; the system releases it when that process ends, however it ends.

    When a process gets it, no other process has it any more, and everything that the other wrote before is there.
    """

    _descriptor: int

    def acquire(self) -> bool:
        """Lock, without waiting; return whether it is ours now."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Let others lock."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release it, and close the file; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
