"""What a standby has of a run's folder, and what it asks for next. Pure: no socket, clock, file or digest.

It works in rounds. In each, the server says what there is, and the standby gets what it lacks: first the lines, since a
checkpoint refers to those before it, then the other files. A file is there only once all of it has come and has been
checked. What a server has removed is removed at the end of a round, when what replaces it is there.

A mirror from which the run could be led stays one, also if its standby is killed while it gets more: what is to be
replaced or removed is written down before.
"""

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from lockstep.common.protocol.messages import NO_TERM, Term
from lockstep.common.protocol.standby_messages import FilePart, FilePartRequest, RunFile, RunFiles
from lockstep.ps.records.run_folder import CHECKPOINTS

# Effects


class AskFor(Struct, frozen=True, kw_only=True):
    """Ask the server for a part of a file."""

    request: FilePartRequest


class StorePart(Struct, frozen=True, kw_only=True):
    """Write the array that came with the part just handled; answered by `PartStored` or `StoringFailed`.

    That of a file of lines goes to its place, that of another file to a place beside it.
    """

    part: FilePart


class CompleteFile(Struct, frozen=True, kw_only=True):
    """Check a file of which all parts are there, and give it its name; answered by `FileCompleted`."""

    file: RunFile


class RemoveFiles(Struct, frozen=True, kw_only=True):
    """Remove files."""

    names: tuple[str, ...]


class CutLines(Struct, frozen=True, kw_only=True):
    """Cut a file of lines off after so many bytes."""

    name: str
    size: int


class KeepRecord(Struct, frozen=True, kw_only=True):
    """Write down what is here, for a standby that is started again."""

    record: "MirrorRecord"


class MirrorRecord(Struct, frozen=True, kw_only=True):
    """What `mirror.json` says about a mirror from which the run could be led: it is there once it has been whole."""

    #: By file of lines, how many bytes of it are right.
    lines: dict[str, int]
    #: By name, the versions in one of which another file is here: two while the second takes the place of the first.
    files: dict[str, tuple[str, ...]]
    offer: RunFiles


MirrorEffect = AskFor | StorePart | CompleteFile | RemoveFiles | CutLines | KeepRecord


@dataclass
class Mirror:
    """The mirror of one run."""

    #: The term of the lines that are here.
    term: Term = NO_TERM
    #: By file of lines, how many bytes are here, each part of which was what its digest says.
    lines: dict[str, int] = field(default_factory=dict)
    #: By name, the versions of the other files that are here, each of which was checked.
    files: dict[str, str] = field(default_factory=dict)
    #: What the server offered last; None before the first time.
    offer: RunFiles | None = None
    #: What is still to come of that offer.
    wanted: deque[RunFile] = field(default_factory=deque)
    #: Bytes of the first of these that are here.
    received: int = 0
    #: Whether the mirror has once had all that was offered.
    has_been_whole: bool = False
    #: What was written down last.
    _recorded: MirrorRecord | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all that was offered is here."""
        return self.offer is not None and not any(self._lacks(file) for file in self.offer.files)

    def begin_round(self, offer: RunFiles) -> list[MirrorEffect]:
        """Begin to get what is here in another version, or not yet."""
        is_new, dropped = offer.term != self.term, self._adopt(offer)
        self.offer, self.received = offer, 0
        self.wanted = deque(file for file in offer.files if self._lacks(file))
        is_replacing = is_new or any(file.name in self.files for file in self.wanted)
        kept = self._keep(offer) if self.has_been_whole and is_replacing else []
        return [*kept, *dropped, *self._go_on()]

    def _lacks(self, file: RunFile) -> bool:
        if not file.version:
            return file.size > self.lines.get(file.name, 0)
        return self.files.get(file.name) != file.version

    def _adopt(self, offer: RunFiles) -> list[MirrorEffect]:
        """Drop what another server may have replaced: checkpoints first, which would refer to lines that are gone.

        What else there is stays until it is replaced: without it, nothing could be led from here.
        """
        if offer.term == self.term:
            return []
        offered, folder = {file.name: file.version for file in offer.files}, f"{CHECKPOINTS}/"
        known = [(name, version) for name, version in self.files.items() if name.startswith(folder)]
        gone = tuple(name for name, version in known if offered.get(name) != version)
        for name in gone:
            del self.files[name]
        effects: list[MirrorEffect] = [RemoveFiles(names=gone)] if gone else []
        for name, size in self.lines.items():
            kept = min(size, offer.kept.get(name, 0))
            if kept < size:
                self.lines[name] = kept
                effects.append(CutLines(name=name, size=kept))
        self.term = offer.term
        return effects

    def _go_on(self) -> list[MirrorEffect]:
        """Ask for the next part; at the end of a round, remove what the server no longer has."""
        if not self.wanted:
            return self._end_round()
        file = self.wanted[0]
        start = self.received if file.version else self.lines.get(file.name, 0)
        return [AskFor(request=FilePartRequest(name=file.name, version=file.version, start=start))]

    def _end_round(self) -> list[MirrorEffect]:
        if self.offer is None or not self.is_whole:
            return []  # something was damaged: until it has come again, what it replaces stays
        self.has_been_whole = True
        offered = {file.name for file in self.offer.files}
        folder = f"{CHECKPOINTS}/"
        # A server whose folder was emptied under its feet takes no checkpoint from here.
        has_any = any(name.startswith(folder) for name in offered)
        gone = tuple(name for name in self.files if name not in offered and (has_any or not name.startswith(folder)))
        for name in gone:
            del self.files[name]
        removed: list[MirrorEffect] = [RemoveFiles(names=gone)] if gone else []
        return [*self._keep(self.offer), *removed]

    def _keep(self, offer: RunFiles) -> list[MirrorEffect]:
        """Write down what is here, and what may take its place until this is written again."""
        offered = {file.name: file.version for file in offer.files}
        files = {name: (version, offered.get(name, version)) for name, version in self.files.items()}
        record = MirrorRecord(
            lines=dict(self.lines), files={name: tuple(dict.fromkeys(one)) for name, one in files.items()}, offer=offer
        )
        if record == self._recorded:
            return []
        self._recorded = record
        return [KeepRecord(record=record)]

    @classmethod
    def of(cls, record: MirrorRecord, lines: Collection[str], files: Mapping[str, str]) -> "Mirror":
        """Return the mirror that was written down, of which these lines are still right, and files in these versions.

        The run can be led from it if that is all that was written down: what was offered since may be missing.
        """
        right = {name: size for name, size in record.lines.items() if name in lines}
        is_all = right == record.lines and files.keys() == record.files.keys()
        return cls(record.offer.term, right, dict(files), record.offer, has_been_whole=is_all)

    def ask_again(self) -> list[MirrorEffect]:
        """Ask again for the part that is to come next, whose answer did not come or was damaged."""
        return self._go_on()

    def expects(self, part: FilePart) -> bool:
        """Tell whether this part was asked for."""
        if not self.wanted or part.term != self.term:
            return False
        file = self.wanted[0]
        start = self.received if file.version else self.lines.get(file.name, 0)
        return (part.name, part.version, part.start) == (file.name, file.version, start)

    def on_stored(self, part: FilePart) -> list[MirrorEffect]:
        """Record that a part is here that was expected, and intact."""
        file = self.wanted[0]
        if not file.version:
            self.lines[file.name] = part.start + part.size
            # Without a part, the last line is not complete yet.
            if part.size == 0 or not self._lacks(file):
                self.wanted.popleft()
            return self._go_on()
        self.received += part.size
        if self.received < file.size and part.size:
            return self._go_on()
        return [CompleteFile(file=file)]

    def on_completed(self, file: RunFile, *, is_intact: bool) -> list[MirrorEffect]:
        """Record that a file has its name, or that it is not what its version says: then the next round gets it."""
        self.received = 0
        self.wanted.popleft()
        if is_intact:
            self.files[file.name] = file.version
        return self._go_on()

    def give_up(self) -> None:
        """Leave the rest of the round to the next one."""
        self.wanted.clear()
        # It may not have been written: the disk may be full.
        self.offer, self.received, self._recorded = None, 0, None

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        assert self.received == 0 or self.wanted, "a part of a file is here that nobody wants"
        assert self.offer is None or self.offer.term == self.term
