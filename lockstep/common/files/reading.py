"""Opens regular files up to a given length for reading, and decodes JSON, with one kind of error.

A path may come from a job, and a job from another machine: a device never ends, a pipe holds its reader for ever.
"""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from lockstep.common.errors import nearest
from lockstep.common.files.sanitize import one_line

T = TypeVar("T")


@overload
def decode(data: bytes | memoryview | str, kind: type[T]) -> T: ...
@overload
def decode(data: bytes | memoryview | str, kind: object) -> Any: ...
def decode(data: bytes | memoryview | str, kind: Any) -> Any:
    """Decode JSON as a value of that kind; raises `msgspec.DecodeError`, in one line.

    By itself msgspec raises three more: for bytes that are not UTF-8, for lone surrogates, and for objects nested
    deeper than Python's recursion limit.
    """
    decoder = _decoder(kind)
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, BufferError) as error:
        raise msgspec.DecodeError(one_line(str(error))) from error


def known_lines(data: bytes, kind: Any) -> Iterator[Any]:
    """Yield the values in lines of JSON, without those that are damaged or of another version."""
    try:
        yield from _decoder(kind).decode_lines(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        for line in data.splitlines():
            with suppress(msgspec.DecodeError):
                yield decode(line, kind)


def convert(value: object, kind: type[T]) -> T:
    """Return a value that was decoded as one of that kind; errors as of `decode`."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise msgspec.DecodeError(one_line(str(error))) from error


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    # Created once per kind, since a ledger has many lines.
    return msgspec.json.Decoder(kind)


def near_file(path: Path) -> str:
    """Return ` (did you mean 'x'?)` for a path of nothing with a file or folder of nearly that name next to it."""
    try:
        names = sorted(each.name for each in path.expanduser().parent.iterdir())
    except OSError:
        return ""
    return nearest(path.name, names)


def open_regular(path: Path, most_bytes: int) -> io.BufferedReader:
    """Return a regular file, open for reading; OSError if it is not one or is longer than that."""
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "its name has a null in it", str(path))
    # Not blocking, since to open a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(path, os.fstat(descriptor), most_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    # Out of the `try`: if an interrupt ends this, the file has closed the descriptor, and a second time would be an
    # error that hides the interrupt.
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return the content of a regular file, as long as it was when it was opened; OSError as `open_regular`."""
    with open_regular(path, most_bytes) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def _check_regular(path: Path, found: os.stat_result, most_bytes: int) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if found.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, above {most_bytes}", str(path))
