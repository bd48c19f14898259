"""Follows a file of lines that another process writes: returns new lines, and notices when the file was cut."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lockstep.common.files.reading import known_lines

#: Most bytes that are read at once, so that a long file never fills memory.
CHUNK_BYTES = 2**24

#: Bytes before the place that was reached by which a file that was cut and has grown again is recognised.
MARK_BYTES = 256


class NewLines(msgspec.Struct, frozen=True):
    """The lines that came since the last call."""

    #: Whole lines, each with its end; empty if none is complete.
    data: bytes
    #: Whether this is the beginning of another file, or of one that was cut: what came before is void.
    is_restarted: bool = False
    #: Whether there is more to read at once.
    has_more: bool = False

    @property
    def is_news(self) -> bool:
        """True if anything has changed."""
        return bool(self.data) or self.is_restarted


@dataclass
class LineFollower:
    """Reads one file from its beginning on, as far as it has come."""

    path: Path
    most_bytes: int = CHUNK_BYTES
    #: Lines that are damaged, or of another version.
    unread: int = 0
    #: Bytes that were returned, and the last of them.
    _offset: int = 0
    _mark: bytes = b""

    def read(self) -> NewLines:
        """Return the lines that are new; none if the file is missing, or cannot be read for now."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return self._restart(b"") if self._offset else NewLines(b"")
        try:
            return self._read(descriptor)
        except OSError:
            return NewLines(b"")
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int) -> NewLines:
        size = os.fstat(descriptor).st_size
        is_same = size >= self._offset and self._has_mark(descriptor)
        if is_same and size == self._offset:
            return NewLines(b"")
        start = self._offset if is_same else 0
        data = os.pread(descriptor, self.most_bytes, start)
        # A last line without its end is still being written; one longer than a chunk is not a line of ours.
        end = data.rfind(b"\n") + 1 or (len(data) if len(data) == self.most_bytes else 0)
        lines = data[:end]
        if not is_same:
            return self._restart(lines, has_more=size > end)
        self._advance(lines)
        return NewLines(lines, has_more=bool(lines) and size > self._offset and len(data) == self.most_bytes)

    def _has_mark(self, descriptor: int) -> bool:
        return os.pread(descriptor, len(self._mark), self._offset - len(self._mark)) == self._mark

    def _restart(self, lines: bytes, *, has_more: bool = False) -> NewLines:
        self._offset, self._mark = 0, b""
        self._advance(lines)
        return NewLines(lines, is_restarted=True, has_more=has_more and bool(lines))

    def _advance(self, lines: bytes) -> None:
        self._offset += len(lines)
        self._mark = (self._mark + lines[-MARK_BYTES:])[-MARK_BYTES:]

    def read_records(self, kind: Any) -> tuple[NewLines, list[Any]]:
        """Return the lines that are new, and the records of this kind in them."""
        new = self.read()
        self.unread = 0 if new.is_restarted else self.unread
        # One bad line costs no other.
        records = list(known_lines(new.data, kind))
        self.unread += new.data.count(b"\n") - len(records)
        return new, records
