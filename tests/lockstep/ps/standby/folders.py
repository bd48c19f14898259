"""A folder of a run, its server's view of it, and a mirror of it that is filled by hand."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lockstep.common.protocol.messages import Term
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.standby_messages import FilePart, RunFiles
from lockstep.ps.checkpoint.checkpoint import CheckpointFolder
from lockstep.ps.standby.mirror import CONTENTS, MIRROR, Mirror
from lockstep.ps.standby.source import MirrorSource

TERM = Term(run="r", number=4, server="s")

Damage = Callable[[FilePart, bytes], bytes]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def untouched(part: FilePart, data: bytes) -> bytes:
    return data


@dataclass
class MirroredFolder:
    """The folder of a server, and that of its standby."""

    root: Path
    mirror: Mirror = field(init=False)
    #: What is wrong with files that came, and names in the order in which they were asked for.
    faults: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.here.mkdir()
        self.there.mkdir()
        self.source, self.mirror = MirrorSource(self.here), Mirror(self.there)
        for name in ("job.toml", "terms.json"):
            self.write(name, name.encode())

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

    def checkpoint(self, step: int, *, lines: tuple[int, int] = (0, 0), seal: str = "") -> Path:
        """Write what has a seal as a checkpoint has one, and refers to so many bytes of metrics and ledger."""
        path = CheckpointFolder(self.here / "checkpoints", print).file_of(step)
        path.parent.mkdir(exist_ok=True)

        def text(digits: str) -> bytes:
            metadata = {"metrics_bytes": str(lines[0]), "ledger_bytes": str(lines[1]), "sha256": digits}
            header = msgspec.json.encode({"__metadata__": metadata})
            return len(header).to_bytes(8, "little") + header

        path.write_bytes(text(seal or sha256(text("0" * 64))))
        return path

    def offer(self, term: Term = TERM, *, is_over: bool = False) -> RunFiles:
        step, files = self.source.files(is_over=is_over)
        return RunFiles(
            term=term,
            run="run",
            step=9,
            steps=99,
            checkpoint=step,
            files=[*files],
            electors=[0],
            standbys=(),
            options=RunOptions(),
        )

    def mirror_once(self, damage: Damage = untouched, offer: RunFiles | None = None) -> None:
        """Get what there is, as far as it goes."""
        offer = offer or self.offer()
        if self.mirror.obstacle(offer):
            return
        self.mirror.begin(offer)
        while (request := self.mirror.request()) is not None:
            self.asked.append(request.name)
            found = self.source.part(request)
            if found is None:
                return
            part, data = found
            assert self.mirror.expects(part)
            for other in ({"name": "x"}, {"digest": "0" * 64}, {"start": part.start + 1}):
                assert not self.mirror.expects(msgspec.structs.replace(part, **other))
            fault = self.mirror.add(part, damage(part, data.tobytes()[: part.size]))
            self.faults += [fault] if fault else []
            self.mirror.validate()

    def mirrored(self) -> dict[str, bytes]:
        """Return the files of the mirror by their names, without what only a mirror has."""
        found = files_in(self.there)
        return {name: data for name, data in found.items() if name != MIRROR and not name.startswith(f"{CONTENTS}/")}


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the files in a folder, by their names."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
