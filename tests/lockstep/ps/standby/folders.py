"""A folder of a run, its server's view of it, and a mirror that is carried out by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from lockstep.common.aggregation.tree import Vector
from lockstep.common.protocol.messages import Term
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.standby_messages import FilePart, RunFiles
from lockstep.ps.checkpoint.folder import CheckpointFolder
from lockstep.ps.standby.mirror import (
    AskFor,
    CompleteFile,
    CutLines,
    KeepRecord,
    Mirror,
    MirrorEffect,
    RemoveFiles,
    StorePart,
)
from lockstep.ps.standby.source import MirrorSource
from lockstep.ps.standby.storage import MirrorStorage, is_intact
from lockstep.ps.standby.terms import TermHistory

Damage = Callable[[FilePart, Vector], Vector]


def untouched(part: FilePart, data: Vector) -> Vector:
    return data


@dataclass
class MirroredFolder:
    """The folder of a server, and that of its standby."""

    root: Path
    history: TermHistory = field(init=False)
    mirror: Mirror = field(default_factory=Mirror)
    #: What is wrong with files that came.
    faults: list[str] = field(default_factory=list)
    #: Names in the order in which they were asked for.
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.here.mkdir()
        self.there.mkdir()
        self.source, self.storage = MirrorSource(self.here), MirrorStorage(self.there)
        self.history = TermHistory().begin("a", least=1, step=0, metrics_bytes=0, ledger_bytes=0)

    @property
    def here(self) -> Path:
        return self.root / "run"

    @property
    def there(self) -> Path:
        return self.root / "mirror"

    def write(self, name: str, text: bytes) -> None:
        path = self.here / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(text)

    def checkpoint(self, step: int, seal: str) -> Path:
        """Write what has a seal as a checkpoint has one, right or wrong."""
        path = CheckpointFolder(self.here / "checkpoints", print).file_of(step)
        path.parent.mkdir(exist_ok=True)
        header = msgspec.json.encode({"__metadata__": {"sha256": seal}})
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        return path

    def offer(self) -> RunFiles:
        return RunFiles(
            term=self.history.last,
            run="run",
            step=3,
            steps=9,
            files=self.source.files(),
            kept=dict(self.history.kept(self.mirror.term)),
            electors=[0],
            standbys=(),
            options=RunOptions(),
        )

    def mirror_once(
        self, damage: Damage = untouched, offer: RunFiles | None = None, killed_after: int | None = None
    ) -> bool:
        """Get what there is, as far as it goes, or until so many effects are carried out; return whether that is all.

        The answer to a part that is written is one with its effect: it changes nothing on the disk.
        """
        pending: list[MirrorEffect] = self.mirror.begin_round(offer or self.offer())
        array = np.empty(0, np.float32)
        carried_out = 0
        while pending:
            if carried_out == killed_after:
                return False
            carried_out += 1
            match pending.pop(0):
                case AskFor(request=request):
                    self.asked.append(request.name)
                    found = self.source.part(request, self.history.last)
                    if found is None:
                        self.mirror.give_up()
                        return True
                    part, data = found
                    array = damage(part, data)
                    assert self.mirror.expects(part)
                    if not is_intact(part, array):
                        self.faults.append(part.name)
                        return True
                    pending.append(StorePart(part=part))
                case StorePart(part=part):
                    self.storage.store(part, array)
                    pending += self.mirror.on_stored(part)
                case CompleteFile(file=file):
                    fault = self.storage.complete(file)
                    self.faults += [fault] if fault else []
                    pending += self.mirror.on_completed(file, is_intact=not fault)
                case RemoveFiles(names=names):
                    self.storage.remove(names)
                case CutLines(name=name, size=size):
                    self.storage.cut(name, size)
                case KeepRecord(record=record):
                    self.storage.keep(record)
            self.mirror.validate()
        return True

    def again(self, server: str, ledger_bytes: int) -> Term:
        """Let another server resume the run, which cuts its lines."""
        self.history = self.history.begin(server, least=1, step=0, metrics_bytes=0, ledger_bytes=ledger_bytes)
        with (self.here / "ledger.jsonl").open("r+b") as file:
            file.truncate(ledger_bytes)
        return self.history.last

    def files(self, folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
