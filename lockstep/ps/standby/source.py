"""What a server shows its standbys of the folder of its run: which files there are, and parts of them. Reads only.

What a run resumes from: the job, the model's own files, the weights that it began with, the receipt, the terms, who was
evicted for good, the checkpoints, the files of lines; and at the end the result with its weights. Logs and pictures
stay where they are.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import FileFormatError, LockstepError
from lockstep.common.files.reading import open_regular
from lockstep.common.model.initial import INITIAL
from lockstep.common.protocol.messages import Term
from lockstep.common.protocol.standby_messages import FILES_LIMIT, PART_BYTES, FilePart, FilePartRequest, RunFile
from lockstep.ps.checkpoint.checkpoint import seal_of
from lockstep.ps.checkpoint.folder import is_doubtful, step_of
from lockstep.ps.records.convictions import CONVICTIONS
from lockstep.ps.records.metrics import METRICS
from lockstep.ps.records.run_folder import AVERAGE_WEIGHTS, CHECKPOINTS, LEDGER, RECEIPT, RESULT, WEIGHTS
from lockstep.ps.standby.terms import TERMS

#: The files that grow by lines.
LINES = (METRICS, LEDGER)

#: The other files, next to checkpoints and what is in these folders.
JOB, MODEL = "job.toml", "model"
FILES = (JOB, TERMS, RECEIPT, CONVICTIONS, INITIAL, "data.npz", WEIGHTS, AVERAGE_WEIGHTS)

#: The name under which a standby gets the list of who is admitted.
ALLOWED = "allowed"

#: Bytes of a file at most whose version is the digest of what is in it: of a longer one, it is the file's identity.
MOST_DIGESTED = 2**20

#: What tells whether a file has changed.
Stamp = tuple[int, int, int]


@dataclass
class MirrorSource:
    """The folder of one run."""

    folder: Path
    #: Who is admitted: names by public key; None if the run has no keys.
    allowed: Callable[[], Mapping[str, str]] | None = None
    #: Returns, by name, the public keys of signatures.
    signers: Callable[[], Mapping[str, str]] = dict
    #: By name, the version of a file, and of what state of it that was taken.
    _versions: dict[str, tuple[Stamp, str]] = field(default_factory=dict)

    def files(self) -> list[RunFile]:
        """Return what there is now: files of lines first, since a checkpoint refers to those before it."""
        lines = [RunFile(name=name, size=self._size(name)) for name in LINES]
        # The result last: who has it has everything.
        names = [*FILES, *self._in_folders(), RESULT]
        self._versions = {name: known for name, known in self._versions.items() if name in names}
        return [*lines, *self._of_keys(), *(found for name in names if (found := self._file(name)) is not None)][
            :FILES_LIMIT
        ]

    def _of_keys(self) -> list[RunFile]:
        text = self._admitted()
        return [] if text is None else [RunFile(name=ALLOWED, size=len(text), version=hashlib.sha256(text).hexdigest())]

    def _admitted(self) -> bytes | None:
        """Return who is admitted, as a file of keys has it; None if the run has no keys."""
        if self.allowed is None:
            return None
        try:
            allowed, signers = self.allowed(), self.signers()
        except LockstepError:
            return None  # its authenticator reports that as well
        lines = [" ".join(filter(None, (public, name, signers.get(name)))) for public, name in allowed.items()]
        return "".join(f"{line}\n" for line in lines).encode()

    def _size(self, name: str) -> int:
        with suppress(OSError):
            return (self.folder / name).stat().st_size
        return 0

    def _in_folders(self) -> Iterator[str]:
        model = self.folder / MODEL
        for path in sorted(model.rglob("*")):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(model).parts):
                yield path.relative_to(self.folder).as_posix()
        checkpoints = self.folder / CHECKPOINTS
        if checkpoints.is_dir():
            yield from sorted(f"{CHECKPOINTS}/{name}" for name in os.listdir(checkpoints) if _is_checkpoint(name))

    def _file(self, name: str) -> RunFile | None:
        """Return a file with its version, None if there is none or it cannot be read."""
        try:
            found = (self.folder / name).stat()
            if not stat.S_ISREG(found.st_mode):
                return None
            stamp = found.st_ino, found.st_mtime_ns, found.st_size
            known = self._versions.get(name)
            if known is None or known[0] != stamp:
                known = self._versions[name] = stamp, self._version(name, stamp)
        except (OSError, FileFormatError):
            return None
        return RunFile(name=name, size=found.st_size, version=known[1])

    def _version(self, name: str, stamp: Stamp) -> str:
        if name.startswith(f"{CHECKPOINTS}/"):
            return seal_of(self.folder / name)
        if stamp[2] > MOST_DIGESTED:
            return "-".join(map(str, stamp))
        return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()

    def part(self, asked: FilePartRequest, term: Term) -> tuple[FilePart, Vector] | None:
        """Return a part of a file; None if there is no such version of it, or nothing of it is to be seen."""
        if asked.name == ALLOWED:
            text = self._admitted() or b""
            is_same = hashlib.sha256(text).hexdigest() == asked.version
            return _part(asked, text[asked.start : asked.start + PART_BYTES], term) if is_same else None
        if asked.name not in LINES:
            found = self._file(asked.name) if self._is_offered(asked.name) else None
            if found is None or found.version != asked.version:
                return None
        try:
            with open_regular(self.folder / asked.name, 2**62) as file:
                file.seek(asked.start)
                data = file.read(PART_BYTES)
        except OSError:
            return None
        if asked.name in LINES:
            # Whole lines only: the last one may be half written.
            data = data[: data.rfind(b"\n") + 1]
        return _part(asked, data, term)

    def _is_offered(self, name: str) -> bool:
        folder, _, rest = name.partition("/")
        if folder == CHECKPOINTS:
            return _is_checkpoint(rest)
        return name in (*FILES, RESULT) or (folder == MODEL and bool(rest))


def _is_checkpoint(name: str) -> bool:
    """Tell whether a file of that folder is mirrored; one in doubt shows the standby that it is not to be led from."""
    return step_of(name) is not None or is_doubtful(name)


def _part(asked: FilePartRequest, data: bytes, term: Term) -> tuple[FilePart, Vector]:
    part = FilePart(
        name=asked.name,
        version=asked.version,
        start=asked.start,
        size=len(data),
        digest=hashlib.sha256(data).hexdigest(),
        term=term,
    )
    # An array has whole values.
    return part, np.frombuffer(data + bytes(-len(data) % 4), "<f4")
