"""The files of a run that its server shows to standbys: those from which the run can be led. Reads only.

These are the files of the last checkpoint: the job, the model's own files, the weights that the run began with, the
receipt, the terms, the convictions, the checkpoints, and the lines of the records before the last of these. Later steps
are computed again by a server that resumes from it. At the end, they are all files of the run, with its result.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import FileFormatError, LockstepError
from lockstep.common.files.reading import open_regular
from lockstep.common.model.initial import INITIAL
from lockstep.common.protocol.standby_messages import FILES_LIMIT, PART_BYTES, FilePart, FilePartRequest, RunFile
from lockstep.ps.checkpoint.checkpoint import head_of, step_of
from lockstep.ps.records.metrics import METRICS
from lockstep.ps.records.run_folder import AVERAGE_WEIGHTS, CHECKPOINTS, CONVICTIONS, LEDGER, RECEIPT, RESULT, WEIGHTS
from lockstep.ps.standby.terms import TERMS

JOB, MODEL = "job.toml", "model"

#: The files that grow by lines.
LINES = (METRICS, LEDGER)

#: The other files, next to checkpoints and the files of the model.
FILES = (JOB, TERMS, RECEIPT, CONVICTIONS, INITIAL, "data.npz", "examples.npz")

#: The files of a run that is over.
ENDS = (WEIGHTS, AVERAGE_WEIGHTS, RESULT)

#: The name under which a standby gets the list of admitted keys.
ALLOWED = "allowed"

#: Bytes of a file that is kept in memory while it is shown, since it may be replaced at any moment.
MOST_KEPT = 2**20

#: Bytes that are read at most before an answer, to find digests: it takes about a tenth of a second.
MOST_READ = 2**26


class FileSet(NamedTuple):
    """Files from which a run can be led, and the step of their last checkpoint."""

    step: int = 0
    files: tuple[RunFile, ...] = ()

    def names(self) -> set[str]:
        """Return the names of all that stays as long as the run does."""
        return {file.name for file in self.files if not file.name.startswith(f"{CHECKPOINTS}/")}


@dataclass
class _Digest:
    """The SHA-256 of the first bytes of a file, as far as these were read."""

    #: The file, by its place on the disk; and its time and length, unless it grows.
    stamp: tuple[int, ...]
    hasher: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    read: int = 0
    #: Its bytes, if it is short.
    kept: bytes = b""


@dataclass
class MirrorSource:
    """The folder of one run."""

    folder: Path
    #: Returns the names of admitted processes by public key; None if the run has no keys.
    allowed: Callable[[], Mapping[str, str]] | None = None
    #: The last whole set. A later one never lacks what it has: the folder of a run that lasts may be deleted.
    shown: FileSet = field(default_factory=FileSet)
    #: Whether the folder lacks files that are shown.
    is_damaged: bool = False
    _digests: dict[str, _Digest] = field(default_factory=dict)
    #: By digest, the content of short files that are shown.
    _contents: dict[str, bytes] = field(default_factory=dict)
    _budget: int = 0

    def files(self, *, is_over: bool = False) -> FileSet:
        """Return the files of the last checkpoint, or all if the run is over; none before they can be read."""
        self._budget = MOST_READ
        found = self._find(is_over=is_over)
        if found is not None:
            is_whole = {JOB, TERMS, *self.shown.names()} <= found.names() and found.step >= self.shown.step
            self.is_damaged = not is_whole
            if is_whole and found != self.shown:
                self.shown = found
                shown = {file.digest for file in found.files}
                self._contents = {digest: data for digest, data in self._contents.items() if digest in shown}
        return self.shown

    def _find(self, *, is_over: bool) -> FileSet | None:
        """Return the files that there are; None while a digest is not known yet."""
        step, sizes, checkpoints = 0, dict[str, int | None](), list[RunFile]()
        for name in self._checkpoints():
            with suppress(OSError, FileFormatError):
                head, size = head_of(self.folder / name), (self.folder / name).stat().st_size
                checkpoints.append(RunFile(name=name, size=size, digest=head.seal))
                sizes = {METRICS: head.metrics_bytes, LEDGER: head.ledger_bytes}
                step = step_of(name.removeprefix(f"{CHECKPOINTS}/")) or 0
        if is_over:
            sizes = dict.fromkeys((*LINES, *ENDS))
        found = []
        for name, length in {**sizes, **dict.fromkeys((*FILES, *self._of_model()))}.items():
            with suppress(OSError):
                file = self._file(name, length)
                if file is None:
                    return None
                found.append(file)
        return FileSet(step, (*self._of_keys(), *found, *checkpoints)[:FILES_LIMIT])

    def _checkpoints(self) -> list[str]:
        with suppress(OSError):
            names = sorted(os.listdir(self.folder / CHECKPOINTS))
            return [f"{CHECKPOINTS}/{name}" for name in names if step_of(name) is not None]
        return []

    def _of_model(self) -> Iterator[str]:
        model = self.folder / MODEL
        for path in sorted(model.rglob("*")):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(model).parts):
                yield path.relative_to(self.folder).as_posix()

    def _file(self, name: str, size: int | None) -> RunFile | None:
        """Return a file, or so many first bytes of it; None if its digest is not known yet. OSError if it is short."""
        with open_regular(self.folder / name, 2**62) as file:
            found = os.fstat(file.fileno())
            end = found.st_size if size is None else size
            stamp = (found.st_ino,) if name in LINES else (found.st_ino, found.st_mtime_ns, found.st_size)
            known = self._digests.get(name)
            if known is None or known.stamp != stamp or known.read > end:
                known = self._digests[name] = _Digest(stamp)
            file.seek(known.read)
            while known.read < end and self._budget > 0:
                data = file.read(min(PART_BYTES, end - known.read))
                if not data:
                    raise OSError(f"{name} has {known.read} bytes: expected {end}")
                known.hasher.update(data)
                known.read += len(data)
                self._budget -= len(data)
                known.kept = known.kept + data if end <= MOST_KEPT and name not in LINES else b""
        if known.read < end:
            return None
        digest = known.hasher.hexdigest()
        if known.kept:
            self._contents[digest] = known.kept
        return RunFile(name=name, size=end, digest=digest)

    def _of_keys(self) -> list[RunFile]:
        """Return the list of admitted keys, as a file of keys has it; nothing if the run has no keys."""
        if self.allowed is None:
            return []
        try:
            allowed = self.allowed()
        except LockstepError:
            # Its authenticator reports that as well. The list that is shown stays.
            return [file for file in self.shown.files if file.name == ALLOWED]
        text = "".join(f"{public} {name}\n" for public, name in allowed.items()).encode()
        digest = hashlib.sha256(text).hexdigest()
        self._contents[digest] = text
        return [RunFile(name=ALLOWED, size=len(text), digest=digest)]

    def part(self, asked: FilePartRequest) -> tuple[FilePart, Vector] | None:
        """Return a part of a file that is shown; None if it is not, or has another content by now."""
        shown = {(file.name, file.digest): file.size for file in self.shown.files}
        size, kept = shown.get((asked.name, asked.digest)), self._contents.get(asked.digest)
        if size is None:
            return None
        wanted = max(0, min(PART_BYTES, size - asked.start))
        if kept is not None:
            return _part(asked, kept[asked.start : asked.start + wanted])
        path = self.folder / asked.name
        with suppress(OSError, FileFormatError), open_regular(path, 2**62) as file:
            file.seek(asked.start)
            data = file.read(wanted)
            # The last step of an epoch has a checkpoint before its evaluation, and another one of that length after it.
            is_replaced = asked.name.startswith(f"{CHECKPOINTS}/") and head_of(path).seal != asked.digest
            return _part(asked, data) if len(data) == wanted and not is_replaced else None
        return None


def _part(asked: FilePartRequest, data: bytes) -> tuple[FilePart, Vector]:
    part = FilePart(name=asked.name, digest=asked.digest, start=asked.start, size=len(data))
    # An array has whole values.
    return part, np.frombuffer(data + bytes(-len(data) % 4), "<f4")
