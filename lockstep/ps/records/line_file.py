"""A file of lines that grows during a run. A full disk costs no line: they wait in memory, and the run for room."""

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.common.errors import UsageError
from lockstep.common.files.atomic import Sync
from lockstep.common.runtime.notice import warning
from lockstep.ps.records.room import DiskRoom

#: Lines that wait for the next write.
BUFFER_LINES = 500

#: What writes, as `os.write`: an argument so that a full disk can be tried.
Write = Callable[[int, bytes], int]


@dataclass
class LineFile:
    """Appends to a file, which is made at the first write; `say` reports when that fails, and when it works again."""

    path: Path
    say: Callable[[str], None] = lambda text: None
    write: Write = os.write
    #: Makes what was written outlive a loss of power: an argument so that a disk that fails in this can be tried.
    fsync: Sync = os.fsync
    #: Learns that the disk is full; None: nobody waits for room.
    room: DiskRoom | None = None
    _waiting: list[bytes] = field(default_factory=list)
    _written_bytes: int = 0
    _descriptor: int = -1
    _is_failing: bool = False

    def open(self) -> None:
        """Open for this process alone, until it closes or ends; `UsageError` if another one has the file."""
        if self._descriptor >= 0:
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise UsageError(
                f"run folder {str(self.path.parent)!r} is in use by a run that is not over: wait for its end, or "
                "interrupt it"
            ) from error
        self._descriptor, self._written_bytes = descriptor, os.fstat(descriptor).st_size

    def append(self, line: bytes) -> None:
        """Add a line, which comes without its end; it is written when enough have come, or by `flush`."""
        self._waiting.append(line + b"\n")
        if len(self._waiting) >= BUFFER_LINES and not self._is_failing:
            self.flush()

    def size(self) -> int:
        """Return the bytes of the file, with what waits to be written."""
        return self._written_bytes + sum(map(len, self._waiting))

    def flush(self) -> None:
        """Write the lines that wait, if any do; if that fails, the rest waits for the next call."""
        if not self._waiting:
            return  # a file without a line is not made
        try:
            self.open()
            self._catch_up()
            while self._waiting:
                self.write(self._descriptor, b"".join(self._waiting))
                self._catch_up()
        except OSError as error:
            is_full = self.room is not None and self.room.refuse(error, sum(map(len, self._waiting)))
            if not is_full and not self._is_failing:
                why = f"cannot write to {str(self.path)!r}: {error.strerror}"
                self.say(warning(f"{why}: the run continues, and its lines wait in memory"))
            self._is_failing = self._is_failing or not is_full
            return
        if self._is_failing:
            self.say(f"{str(self.path)!r} can be written to again")
        self._is_failing = False

    def _catch_up(self) -> None:
        """Forget what is written, by the file's length: an interrupt may have come before we could."""
        size = os.fstat(self._descriptor).st_size
        taken = size - self._written_bytes
        if taken:
            rest = b"".join(self._waiting)[taken:]
            self._waiting, self._written_bytes = [rest] if rest else [], size

    def is_written(self) -> bool:
        """Tell whether nothing waits."""
        return not self._waiting

    def sync(self) -> None:
        """Make what was flushed outlive a loss of power. Raises OSError."""
        if self._descriptor >= 0:
            self.fsync(self._descriptor)

    def cut(self, size: int) -> bytes:
        """Cut off what follows the first `size` bytes, and return it; nothing may wait to be written."""
        self.open()
        behind = self.path.read_bytes()[size:]
        self._written_bytes = min(size, self._written_bytes)
        os.truncate(self.path, self._written_bytes)
        return behind

    def close(self) -> None:
        """Flush and close; appending again would reopen the file."""
        self.flush()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
