"""The disk of a simulation: real files in memory, written by a process that may be killed meanwhile, or full."""

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.files.atomic import write_atomically
from lockstep.runs.session import RunSession
from lockstep.simulation.world import Process


@dataclass
class Disk:
    """What all servers of a run write to, one after the other."""

    is_full: bool = False

    def empty(self) -> None:
        self.is_full = False

    def check(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass
class Writing:
    """How one process writes to it."""

    disk: Disk
    process: Process
    #: After which nothing is written any more, as what a killed process still had in its memory.
    is_over: bool = False

    def take_over(self, session: RunSession) -> None:
        """Write what a run's session has to write."""
        checkpointer = session.checkpointer
        checkpointer.folder.write = self.whole
        for lines in (checkpointer.run.metrics, checkpointer.run.ledger):
            lines.write = self.lines

    def end(self) -> None:
        self.is_over = True

    def lines(self, descriptor: int, lines: bytes) -> int:
        """Write to an open file, as `os.write`: a full disk takes a part."""
        if self.is_over:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.process.tick()
        self.disk.check()
        # A process may be killed when a part is written.
        half = os.write(descriptor, lines[: len(lines) // 2])
        self.process.tick()
        return half + os.write(descriptor, lines[half:])

    def whole(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        """Write a file, as `write_atomically`."""
        self.process.tick()
        self.disk.check()
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        held = [bytes(part) for part in parts]
        partial.write_bytes(held[0])
        # Killed here, it leaves a part beside the old file.
        self.process.tick()
        write_atomically(path, held)
        self.process.tick()
