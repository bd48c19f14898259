"""Writes a file so that its name always leads to a complete one, the old or the new."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

#: Makes the bytes written to a descriptor outlive a loss of power, as `os.fsync`: an argument so that a disk that fails
#: in this can be tried.
Sync = Callable[[int], None]


def write_atomically(path: Path, parts: Iterable[bytes | memoryview], sync: Sync = os.fsync) -> None:
    """Replace the file at `path` by the bytes of `parts`, which are C-contiguous, one after the other.

    When this returns, the file outlives a loss of power. A failure leaves only the old file; raises
    OSError if the folder cannot be written to or is full. Only if the last step fails, which makes the new name
    durable as well, the new file is there, complete.
    """
    # In the same folder: a rename is atomic within one file system only. The process id keeps two writers apart.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            sync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            # The system names no file if a write fails: its reader has to know which disk is full.
            error.filename = str(path)
        raise
    sync_folder(path.parent, sync)


def sync_folder(folder: Path, sync: Sync = os.fsync) -> None:
    """Make the new name itself durable: a rename lives in the folder, which is written back on its own."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
