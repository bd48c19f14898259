"""The disk of a simulation: real files, written by processes that may be killed meanwhile, and possibly full."""

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lockstep.checking.simulation.world import Process
from lockstep.common.files.atomic import write_atomically
from lockstep.runs.session import RunSession


@dataclass
class Disk:
    """The disk that all servers of a run write to, one after the other."""

    is_full: bool = False

    def check(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass
class DiskWriter:
    """The access of one process to the disk."""

    disk: Disk
    process: Process
    #: Whether the process has ended: what it still had in its memory is lost.
    is_over: bool = False

    def attach(self, session: RunSession) -> None:
        """Write what a run's session has to write."""
        checkpointer = session.checkpointer
        checkpointer.folder.write = self.write_file
        for lines in (checkpointer.run.metrics, checkpointer.run.ledger):
            lines.write = self.write_lines

    def write_lines(self, descriptor: int, lines: bytes) -> int:
        """Write to an open file, as `os.write` does, in two parts, between which the process may be killed."""
        if self.is_over:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.process.tick()
        self.disk.check()
        half = os.write(descriptor, lines[: len(lines) // 2])
        self.process.tick()
        return half + os.write(descriptor, lines[half:])

    def write_file(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        """Write a file, as `write_atomically` does."""
        self.process.tick()
        self.disk.check()
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        held = [bytes(part) for part in parts]
        partial.write_bytes(held[0])
        # A process that is killed here leaves a part next to the old file.
        self.process.tick()
        write_atomically(path, held)
        self.process.tick()
