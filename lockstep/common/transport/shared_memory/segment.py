"""A file that processes map as vectors of float32; does not know their use, or the order of writers.

Memory for every byte is reserved before anything is mapped: a write to a page without memory would be a SIGBUS.
"""

import errno
import mmap
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import SharingError

#: Bytes before the first vector, and the multiple that each occupies: the largest page of the supported systems.
PAGE_BYTES = 16_384

#: Bytes at the head by which a process proves that it sees this very memory.
NONCE_BYTES = 16

#: Errors of a file system that cannot reserve space, if the C library does not write zeros by itself.
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)

#: No space; more than the user's quota.
_TOO_MUCH = (errno.ENOSPC, errno.EDQUOT)

#: Reserves memory for so many bytes of an open, empty file; `OSError` if there is not enough. An argument for tests.
Allocate = Callable[[int, int], None]


class Shape(msgspec.Struct, frozen=True):
    """So many vectors of so many values."""

    vectors: int
    size: int

    @property
    def stride(self) -> int:
        """Bytes from one vector to the next: whole pages, so that no two vectors share one."""
        return -(-self.size * 4 // PAGE_BYTES) * PAGE_BYTES

    @property
    def total(self) -> int:
        """Bytes of the file."""
        return PAGE_BYTES + self.vectors * self.stride


class Segment(msgspec.Struct, frozen=True):
    """A mapped file. It stays mapped while one of its vectors is in use, whatever happens to the file."""

    nonce: bytes
    vectors: tuple[Vector, ...]


def reserve(descriptor: int, size: int, start: int = 0) -> None:
    """Reserve memory for `size` bytes of an open file from `start` on; `OSError` if there is not enough.

    The content stays, and the rest is zeros.
    """
    if sys.platform != "darwin":
        try:
            os.posix_fallocate(descriptor, start, size)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
        else:
            return
    write_again(descriptor, size, start)


def write_again(descriptor: int, size: int, start: int = 0) -> None:
    """Do the same on systems without a call for it: write what can be read, and zeros after that."""
    stop = start + size
    while start < stop:
        length = min(stop - start, 2**20)
        start += os.pwrite(descriptor, os.pread(descriptor, length, start).ljust(length, b"\0"), start)


def check_private(path: Path, found: os.stat_result) -> None:
    """Raise `SharingError` unless a file or folder belongs to this user and is not open to others."""
    if found.st_uid != os.geteuid():
        raise SharingError(f"{path} belongs to user {found.st_uid}: expected {os.geteuid()}, as this process")
    if found.st_mode & 0o077:
        raise SharingError(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: expected it to be open to its user only"
        )


def check_file(path: Path, found: os.stat_result, shape: Shape) -> None:
    """Raise `SharingError` unless a file is one of ours, of that shape."""
    if not stat.S_ISREG(found.st_mode):
        raise SharingError(f"{path} is not a regular file")
    check_private(path, found)
    if found.st_size != shape.total:
        raise SharingError(f"{path} has {found.st_size} bytes: expected {shape.total}")


def mapped(descriptor: int, shape: Shape, *, is_writable: bool) -> Segment:
    """Map an open file; without `is_writable`, writing into the vectors is a `ValueError`."""
    access = mmap.ACCESS_WRITE if is_writable else mmap.ACCESS_READ
    mapping = mmap.mmap(descriptor, shape.total, access=access)
    starts = (PAGE_BYTES + number * shape.stride for number in range(shape.vectors))
    vectors = tuple(np.frombuffer(mapping, dtype=np.float32, count=shape.size, offset=start) for start in starts)
    return Segment(mapping[:NONCE_BYTES], vectors)


def refusal(path: Path, shape: Shape, error: OSError) -> str:
    """Return why there is no memory for a file."""
    if error.errno == errno.EFBIG:
        return (
            f"{path.parent.parent} has no room for {shape.total / 2**20:.1f} MiB ({error.strerror!r}, a limit of this "
            "process): start it after `ulimit -f unlimited`, or use --transport ipc"
        )
    if error.errno not in _TOO_MUCH:
        return f"{path} cannot be created: {error.strerror}"
    space = os.statvfs(path.parent.parent)
    free = space.f_bavail * space.f_frsize
    return (
        f"{path.parent.parent} has no room for {shape.total / 2**20:.1f} MiB ({free / 2**20:.1f} MiB are free, "
        f"{error.strerror!r}): make it larger (for a container, --shm-size) or use --transport ipc"
    )
