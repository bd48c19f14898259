"""A standby's copy of a run's folder: parts are written beside a file's name, which it gets once all of it is right."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import FileFormatError
from lockstep.common.files.atomic import Sync, sync_folder, write_atomically
from lockstep.common.files.reading import decode, read_regular
from lockstep.common.protocol.standby_messages import FilePart, RunFile
from lockstep.ps.checkpoint.checkpoint import check_seal, seal_of
from lockstep.ps.records.run_folder import CHECKPOINTS, MOST_BYTES
from lockstep.ps.standby.mirror import Mirror, MirrorRecord
from lockstep.ps.standby.source import MOST_DIGESTED

#: The file that says that a folder is a mirror, until its standby takes over.
MIRROR = "mirror.json"

#: Ends the name of a file that is not complete.
PARTIAL = ".partial"

#: What writes, as `os.pwrite`: an argument so that a full disk can be tried.
WriteAt = Callable[[int, bytes, int], int]


@dataclass
class MirrorStorage:
    """The folder of a mirror."""

    folder: Path
    write: WriteAt = os.pwrite
    sync: Sync = os.fsync

    def store(self, part: FilePart, data: Vector) -> None:
        """Write a part whose digest is right; raises OSError. A part of lines goes to the file itself."""
        path = self._place(part.name) if part.version else self.folder / part.name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A list of who is admitted is of no use if others may write it.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if part.start == 0:
                os.ftruncate(descriptor, 0)
            rest, place = bytes_of(part, data), part.start
            while rest:
                written = self.write(descriptor, rest, place)
                rest, place = rest[written:], place + written
        finally:
            os.close(descriptor)

    def _place(self, name: str) -> Path:
        path = self.folder / name
        return path.with_name(f".{path.name}{PARTIAL}")

    def complete(self, file: RunFile) -> str:
        """Check a file of which all parts are there, and give it its name; return what is wrong, and remove it then."""
        place, path = self._place(file.name), self.folder / file.name
        fault = self._fault(file.name, file.version, place, file.size)
        if fault:
            place.unlink(missing_ok=True)
            return f"{file.name!r} is not what the server said that it is ({fault}): what is here of it stays"
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(place, path)
        sync_folder(path.parent, self.sync)
        return ""

    def fault_in(self, name: str, version: str) -> str:
        """Return how a file that has its name differs from a version; empty if it does not."""
        path = self.folder / name
        return self._fault(name, version, path, path.stat().st_size) if path.exists() else "it is not there"

    def _fault(self, name: str, version: str, place: Path, size: int) -> str:
        """Return how a file differs from what its version says."""
        try:
            if name.startswith(f"{CHECKPOINTS}/"):
                check_seal(place)
                return "" if seal_of(place) == version else "it has another seal"
            if size > MOST_DIGESTED:
                there = place.stat().st_size
                return "" if there == size else f"it has {there} bytes, not {size}"
            digest = hashlib.sha256(place.read_bytes()).hexdigest()
            return "" if digest == version else f"its SHA-256 is {digest[:12]}…"
        except FileFormatError as error:
            return str(error)

    def remove(self, names: tuple[str, ...]) -> None:
        """Remove files."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def cut(self, name: str, size: int) -> None:
        """Cut a file off after so many bytes; one that is shorter stays as it is."""
        path = self.folder / name
        if _size(path) > size:
            os.truncate(path, size)

    def keep(self, record: MirrorRecord) -> None:
        """Write down what is here; raises OSError."""
        write_atomically(self.folder / MIRROR, [msgspec.json.encode(record)], lambda descriptor: None)

    def restore(self) -> Mirror:
        """Return what a standby had here that is started again: an empty mirror if nothing was written down.

        Carries out what was written down and may not have been done: lines are cut, and other checkpoints removed. They
        would refer to lines that are not here.
        """
        try:
            record = decode(read_regular(self.folder / MIRROR, MOST_BYTES), MirrorRecord)
        except (OSError, msgspec.MsgspecError):
            return Mirror()
        for name, size in record.lines.items():
            self.cut(name, size)
        for path in (self.folder / CHECKPOINTS).glob("*"):
            if path.is_file() and f"{CHECKPOINTS}/{path.name}" not in record.files:
                path.unlink()
        lines = {name for name, size in record.lines.items() if _size(self.folder / name) == size}
        found = {name: self._version_here(name, versions) for name, versions in record.files.items()}
        return Mirror.of(record, lines, {name: version for name, version in found.items() if version})

    def _version_here(self, name: str, versions: tuple[str, ...]) -> str:
        """Return which of these versions of a file is here, empty if none is."""
        return next((version for version in versions if not self.fault_in(name, version)), "")

    def discard_partial(self) -> None:
        """Remove what is not complete: of a checkpoint, say, that the server has removed meanwhile."""
        for path in self.folder.rglob(f".*{PARTIAL}"):
            path.unlink()

    def conclude(self, lines: Mapping[str, int]) -> None:
        """Make a run's folder of the mirror: without what is not complete, or not known to be right."""
        self.discard_partial()
        for name, size in lines.items():
            self.cut(name, size)
        (self.folder / MIRROR).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def bytes_of(part: FilePart, data: Vector) -> bytes:
    """Return the bytes of a part, without those that fill up the last value of its array."""
    return data.tobytes()[: part.size]


def is_intact(part: FilePart, data: Vector) -> bool:
    """Tell whether the bytes of a part are those of which the server took the digest."""
    return data.nbytes >= part.size and hashlib.sha256(bytes_of(part, data)).hexdigest() == part.digest
