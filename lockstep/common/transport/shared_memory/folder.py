"""A run's folder of shared memory: created by one process, joined by others of its user, and removed once its
creator is gone.

The creator holds a lock on it. The system releases that when the process ends, however it ends, so a process that
gets the lock knows that the creator is gone. A pid with its start time would show the same on one machine, but not
between containers that share the memory and not the pids, where each would remove the other's folder, or without /proc.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.common.errors import SharingError
from lockstep.common.transport.shared_memory.file_lock import FileLock
from lockstep.common.transport.shared_memory.segment import (
    NONCE_BYTES,
    Allocate,
    Segment,
    Shape,
    check_file,
    check_private,
    mapped,
    refusal,
    reserve,
)

#: `lockstep-UID-PID-RANDOM`: uid and pid show people whose it is.
NAME = re.compile(r"lockstep-(?P<uid>[0-9]{1,10})-[0-9]{1,10}-[0-9a-f]{16}")

#: Attempts to create a folder: each time, a sweep may be quicker than our lock.
_TRIES = 10

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def shared_root() -> Path:
    """Return the folder whose files are memory, or else that of temporary files."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


@dataclass
class SharedFolder:
    """An open folder of mode 0700, most often with files of mode 0600 that are mapped as vectors."""

    path: Path
    #: Known only to processes that can read the memory.
    nonce: bytes
    _descriptor: int = field(repr=False)

    @classmethod
    def create(cls, root: Path) -> "SharedFolder":
        """Create a folder in `root`, which is ours until `remove`; `SharingError` if that fails."""
        for _ in range(_TRIES):
            path = root / f"lockstep-{os.geteuid()}-{os.getpid()}-{secrets.token_hex(8)}"
            try:
                path.mkdir(mode=0o700)
                descriptor = _locked(path)
            except OSError as error:
                raise SharingError(f"{path} cannot be created: {error.strerror}") from None
            if descriptor is not None:
                return cls(path, secrets.token_bytes(NONCE_BYTES), descriptor)
        raise SharingError(f"{root} has no folder for us: each of {_TRIES} was swept at once")

    @classmethod
    def open_together(cls, root: Path, name: str) -> "SharedFolder":
        """Open a folder that is made if it is missing, and swept once no process has it open in this way."""
        path = root / name
        for _ in range(_TRIES):
            try:
                path.mkdir(mode=0o700, exist_ok=True)
                descriptor = _locked(path, fcntl.LOCK_SH)
            except OSError as error:
                raise SharingError(f"{path} cannot be opened here: {error.strerror}") from None
            if descriptor is not None:
                return cls._of(path, descriptor)
        raise SharingError(f"{path} cannot be opened here: each of {_TRIES} was swept at once")

    @classmethod
    def join(cls, root: Path, name: str) -> "SharedFolder":
        """Open a folder that another process created in `root`; `SharingError` if it is missing or another user's."""
        path = root / name
        if not NAME.fullmatch(name):
            raise SharingError(f"{name!r} is not the name of a shared folder")
        try:
            descriptor = os.open(path, _OPEN_FOLDER)
        except OSError as error:
            raise SharingError(f"{path} cannot be opened here: {error.strerror}") from None
        return cls._of(path, descriptor)

    @classmethod
    def _of(cls, path: Path, descriptor: int) -> "SharedFolder":
        """Return an open folder, which is closed if it is another user's."""
        try:
            check_private(path, os.fstat(descriptor))
        except SharingError:
            os.close(descriptor)
            raise
        return cls(path, b"", descriptor)

    @property
    def name(self) -> str:
        """The description by which another process joins it."""
        return self.path.name

    def make(self, name: str, shape: Shape, allocate: Allocate = reserve) -> Segment:
        """Create a file in it, headed by the nonce, and map it for writing.

        `SharingError`, with nothing left, if that fails.
        """
        path = self.path / name
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._descriptor)
        except OSError as error:
            raise SharingError(f"{path} cannot be created: {error.strerror}") from None
        try:
            allocate(descriptor, shape.total)
            os.pwrite(descriptor, self.nonce, 0)
            return mapped(descriptor, shape, is_writable=True)
        except OSError as error:
            os.unlink(name, dir_fd=self._descriptor)
            raise SharingError(refusal(path, shape, error)) from None
        finally:
            os.close(descriptor)

    def attach(self, name: str, shape: Shape, *, is_writable: bool = False) -> Segment:
        """Map a file in it that another process has created; `SharingError` if it is anything else."""
        path, flags = self.path / name, os.O_RDWR if is_writable else os.O_RDONLY
        try:
            # Not blocking, since opening a FIFO of that name would block for ever.
            descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._descriptor)
        except OSError as error:
            what = "is a symbolic link" if error.errno == errno.ELOOP else f"cannot be opened: {error.strerror}"
            raise SharingError(f"{path} {what}") from None
        try:
            check_file(path, os.fstat(descriptor), shape)
            return mapped(descriptor, shape, is_writable=is_writable)
        except OSError as error:
            raise SharingError(f"{path} cannot be mapped: {error.strerror}") from None
        finally:
            os.close(descriptor)

    def replace(self, name: str, by: str) -> None:
        """Give a file the name of another, which is removed; processes that have mapped that keep its memory."""
        os.rename(by, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def make_lock(self, name: str) -> FileLock:
        """Create an empty file in it, to be locked; `SharingError` if that fails."""
        return self._open_lock(name, os.O_CREAT | os.O_EXCL)

    def lock_of(self, name: str) -> FileLock:
        """Open a file in it to be locked; `SharingError` if it is missing."""
        return self._open_lock(name, os.O_NONBLOCK)

    def _open_lock(self, name: str, flags: int) -> FileLock:
        try:
            return FileLock(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, 0o600, dir_fd=self._descriptor))
        except OSError as error:
            raise SharingError(f"{self.path / name} cannot be locked: {error.strerror}") from None

    def drop(self, name: str) -> None:
        """Remove a file, if it is there; processes that have mapped it keep its memory."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def remove(self) -> None:
        """Remove the folder with its files, and close it."""
        _remove(self.path)
        self.close()

    def close(self) -> None:
        """Close the folder, which stays there; our lock on it is released."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def sweep(root: Path) -> list[Path]:
    """Remove the folders of this user in `root` whose creators are gone; return them. Never raises."""
    return [path for path in _ours(root) if _remove_if_abandoned(path)]


def _ours(root: Path) -> list[Path]:
    try:
        names = os.listdir(root)
    except OSError:
        return []
    found = ((name, NAME.fullmatch(name)) for name in names)
    return [root / name for name, match in found if match and int(match["uid"]) == os.geteuid()]


def _remove_if_abandoned(path: Path) -> bool:
    try:
        descriptor = _locked(path)
    except OSError:
        # Not a folder, not ours, or gone meanwhile.
        return False
    if descriptor is None:
        return False
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            return False
        return _remove(path)
    finally:
        os.close(descriptor)


def _locked(path: Path, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> int | None:
    """Return the descriptor of a folder that is now locked by us, None if another process has it, or has removed it."""
    try:
        descriptor = os.open(path, _OPEN_FOLDER)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, how)
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _remove(path: Path) -> bool:
    """Remove a folder of ours with all that is in it; return whether it is gone."""
    # Again if a process that has joined was just creating a file.
    for _ in range(_TRIES):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return True
    return False
