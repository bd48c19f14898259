"""A standby's copy of a run: the files of one checkpoint, which are exchanged for those of a later one.

`mirror.json` names the files of the copy and their digests, and is replaced as a whole. The files are in `.mirror`,
each under its digest, so two versions of a file never mix. They are linked to their names in the folder, which is that
of a run as soon as `mirror.json` is removed. If the server has lost its folder, or shows less, the copy stays.
"""

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lockstep.common.errors import FileFormatError
from lockstep.common.files.atomic import Sync, sync_folder, write_atomically
from lockstep.common.files.reading import decode, read_regular
from lockstep.common.protocol.messages import NO_TERM, Term
from lockstep.common.protocol.standby_messages import FilePart, FilePartRequest, MirrorRequest, RunFile, RunFiles
from lockstep.ps.checkpoint.checkpoint import check_seal
from lockstep.ps.records.run_folder import CHECKPOINTS, CONVICTIONS, MOST_BYTES
from lockstep.ps.standby.source import LINES
from lockstep.ps.standby.terms import read_terms

#: The file that says that a folder is a mirror, until its standby takes over; and the folder of its files.
MIRROR, CONTENTS = "mirror.json", ".mirror"

#: The file that is coming, in that folder; and a link before it gets its name.
COMING, LINK = "coming", "link"

#: A function that writes, as `os.pwrite`: an argument so that a full disk can be tried.
WriteAt = Callable[[int, bytes, int], int]


@dataclass
class Mirror:
    """The copy of one run in a folder. Methods that write raise OSError."""

    folder: Path
    write: WriteAt = os.pwrite
    sync: Sync = os.fsync
    #: The offer of which all files are here, from which the run can be led; None before the first.
    held: RunFiles | None = None
    #: The offer whose files are coming; None before the first, or if all of them are here.
    coming: RunFiles | None = None
    #: The missing files of that offer, and bytes of the first of them that are here.
    _wanted: deque[RunFile] = field(default_factory=deque)
    _received: int = 0
    #: Whether lines are fetched from their beginning: those that are here may be those of another server.
    _is_afresh: bool = False

    @classmethod
    def restored(cls, folder: Path, write: WriteAt = os.pwrite, sync: Sync = os.fsync) -> "Mirror":
        """Return the mirror that an earlier process left in a folder, if all of it is still right."""
        mirror = cls(folder, write, sync)
        try:
            held = decode(read_regular(folder / MIRROR, MOST_BYTES), RunFiles)
        except (OSError, msgspec.MsgspecError):
            return mirror
        missing = [file for file in held.files if not mirror._restore(file)]
        if not missing:
            mirror.held = held
            with suppress(OSError):
                mirror._show(held)
        return mirror

    def _restore(self, file: RunFile) -> bool:
        """Tell whether a file is here and right; one that is damaged is removed."""
        path, shown = self._content(file), self.folder / file.name
        if not path.exists() and shown.is_file() and not fault_in(shown, file):
            path.parent.mkdir(exist_ok=True)
            _link(shown, path)
        if path.exists() and fault_in(path, file):
            path.unlink()
        return path.exists()

    def _content(self, file: RunFile) -> Path:
        return self.folder / CONTENTS / file.digest

    @property
    def term(self) -> Term:
        """The term of the server whose files are here."""
        return NO_TERM if self.held is None else self.held.term

    def was_led_by(self, standby: MirrorRequest, term: Term) -> bool:
        """Tell whether a standby led the run last, in a term from which it has no more than is here."""
        if self.held is None or standby.step > self.step:
            return False
        terms = read_terms(self.folder).terms
        return bool(terms) and (terms[-1].number, terms[-1].address) == (term.number, standby.address)

    @property
    def step(self) -> int:
        """The step of the checkpoint that is here, 0 without a checkpoint."""
        return 0 if self.held is None else self.held.checkpoint

    @property
    def is_whole(self) -> bool:
        """True if all is here that the server has shown last, or more."""
        return self.held is not None and self.coming is None

    def obstacle(self, offer: RunFiles) -> str:
        """Return why the files of an offer may not replace those that are here; empty if they may.

        Nothing is given up but for something later. A run goes back after a conviction, with the weights in doubt.
        """
        held = self.held
        if held is None or not held.checkpoint:
            return ""
        if held.term.run != offer.term.run:
            return f"it is another run: the checkpoint of step {held.checkpoint} of run {held.run} stays"
        if offer.checkpoint < held.checkpoint and _convicted(offer) == _convicted(held):
            return f"its checkpoint is of step {offer.checkpoint}: that of step {held.checkpoint} stays"
        return ""

    def begin(self, offer: RunFiles) -> None:
        """Begin to get the files of an offer that are not here yet: all of them if the folder was deleted.

        A folder that is deleted while this process writes there may stay, with some of its files.
        """
        self.give_up()
        held = [] if self.held is None else self.held.files
        if held and not all(path.exists() for path in (self.folder / MIRROR, *map(self._content, held))):
            self.held = None
        if self.held is None or self.held.files != offer.files:
            wanted = {file.digest: file for file in offer.files if not self._content(file).exists()}
            self.coming, self._wanted = offer, deque(wanted.values())
            self._begin_file()
        if not self._wanted:
            self._exchange(offer)

    def _begin_file(self) -> None:
        """Begin with the next file: one of lines begins with those that are here."""
        self._received = 0
        place = self.folder / CONTENTS / COMING
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if not self._wanted or self.held is None or self._is_afresh or self._wanted[0].name not in LINES:
            return
        before = next((file for file in self.held.files if file.name == self._wanted[0].name), None)
        if before is not None and before.size <= self._wanted[0].size:
            shutil.copyfile(self._content(before), place)
            self._received = before.size

    def request(self) -> FilePartRequest | None:
        """Return the question for the next part, None if nothing is missing."""
        if not self._wanted:
            return None
        file = self._wanted[0]
        return FilePartRequest(name=file.name, digest=file.digest, start=self._received)

    def expects(self, part: FilePart) -> bool:
        """Tell whether a part is the next one."""
        return FilePartRequest(name=part.name, digest=part.digest, start=part.start) == self.request()

    def add(self, part: FilePart, data: bytes) -> str:
        """Write the part that is expected; return why a file is not what the server said, empty if all is well."""
        place, file = self.folder / CONTENTS / COMING, self._wanted[0]
        # A list of admitted keys is of no use if other users may write it.
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            rest, at = data[: part.size], part.start
            while rest:
                written = self.write(descriptor, rest, at)
                rest, at = rest[written:], at + written
            self._received += part.size
            if self._received < file.size and part.size:
                return ""
            self.sync(descriptor)
        finally:
            os.close(descriptor)
        return self._complete(place, file)

    def _complete(self, place: Path, file: RunFile) -> str:
        """Let a file of which all has come be one that is here, if it is right."""
        fault = fault_in(place, file)
        if fault:
            self._is_afresh = True
            self.give_up()
            return f"{file.name!r} is not as the server described it ({fault}): the part that is here stays"
        os.replace(place, self._content(file))
        self._wanted.popleft()
        self._begin_file()
        if not self._wanted and self.coming is not None:
            self._exchange(self.coming)
        return ""

    def _exchange(self, offer: RunFiles) -> None:
        """Let the files of an offer, all of which are here, be those from which the run is led."""
        self.coming, self._is_afresh = None, False
        if not offer.files:
            return
        if self.held is not None and self.held.files == offer.files:
            self.held = offer  # how far the run is, and which workers compute
            return
        sync_folder(self.folder / CONTENTS, self.sync)
        write_atomically(self.folder / MIRROR, [msgspec.json.encode(offer)], self.sync)
        before, self.held = self.held, offer
        self._show(offer, [] if before is None else before.files)

    def _show(self, held: RunFiles, before: Sequence[RunFile] = ()) -> None:
        """Let the names in the folder lead to the contents; remove files that are not needed any more."""
        for file in held.files:
            path, link = self.folder / file.name, self.folder / CONTENTS / LINK
            if not (path.exists() and (file in before or path.samefile(self._content(file)))):
                path.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                _link(self._content(file), link)
                os.replace(link, path)
        names, digests = {file.name for file in held.files}, {file.digest for file in held.files}
        for path in (self.folder / CHECKPOINTS).glob("*"):
            if path.is_file() and f"{CHECKPOINTS}/{path.name}" not in names:
                path.unlink()
        for path in (self.folder / CONTENTS).iterdir():
            if path.name not in digests:
                path.unlink()

    def give_up(self) -> None:
        """Leave missing files to the next offer: the disk may be full, or the server is another one."""
        self.coming, self._received = None, 0
        self._wanted.clear()

    def conclude(self) -> None:
        """Make a run's folder of the mirror, unless it is one already."""
        if self.held is None or not (self.folder / MIRROR).exists():
            return
        self._show(self.held)
        # In this order: contents that are gone are found under their names, as long as `mirror.json` lists them.
        shutil.rmtree(self.folder / CONTENTS)
        (self.folder / MIRROR).unlink()

    def discard_coming(self) -> None:
        """Remove a file that is not complete."""
        with suppress(OSError):
            (self.folder / CONTENTS / COMING).unlink()

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        assert self._received == 0 or self._wanted, "a part of a file is here that nothing wants"
        assert not self._wanted or self.coming is not None


def _convicted(offer: RunFiles) -> str:
    return next((file.digest for file in offer.files if file.name == CONVICTIONS), "")


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError:  # this file system has no links
        shutil.copyfile(source, place)


def fault_in(path: Path, file: RunFile) -> str:
    """Return how a file differs from what its server has; empty if it does not."""
    try:
        if file.name.startswith(f"{CHECKPOINTS}/"):
            return "" if check_seal(path) == file.digest else "it has another seal"
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return "" if digest == file.digest else f"its SHA-256 is {digest[:12]}…"
    except FileFormatError as error:
        return str(error)
    except OSError as error:
        return error.strerror or "it cannot be read"
