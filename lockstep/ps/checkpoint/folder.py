"""The checkpoints of a run: the newest few and the best one; a damaged one is named, and the one before it is used.

If a checkpoint cannot be written, that is reported, and those before stay as they are. If that is for lack of room, the
run waits for it; otherwise it costs the run nothing else.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lockstep.common.errors import FileFormatError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.runtime.notice import warning
from lockstep.ps.checkpoint.checkpoint import Checkpoint, read_checkpoint
from lockstep.ps.records.room import DiskRoom

#: Writes a file whole or not at all, as `write_atomically`: an argument so that a full disk can be tried.
Writer = Callable[[Path, Iterable[bytes | memoryview]], None]

#: How the names of checkpoints end that are set aside since their weights depend on results in doubt.
DOUBTFUL = "doubtful"

_NAME = re.compile(r"step-(\d{8,})\.safetensors")


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint by the name of its file, None if that is not one."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


def is_doubtful(name: str) -> bool:
    """Tell whether a file is a checkpoint whose weights depend on results in doubt: nothing is resumed from it."""
    return step_of(name.removesuffix(f".{DOUBTFUL}")) is not None and name.endswith(f".{DOUBTFUL}")


@dataclass
class CheckpointFolder:
    """The folder of one run's checkpoints; `say` reports what cannot be written or read."""

    path: Path
    say: Callable[[str], None]
    #: How many are kept next to the best one.
    keep: int = 2
    write: Writer = write_atomically
    #: Learns that the disk is full; None: nobody waits for room.
    room: DiskRoom | None = None

    def save(self, step: int, parts: Iterable[bytes | memoryview], best: int | None, size: int = 0) -> bool:
        """Write the checkpoint of a step and remove those that are not kept; return whether it was written.

        `best` is the step whose checkpoint, if there is one, stays. `size` is how many bytes it takes, about.
        """
        path = self.file_of(step)
        try:
            self.path.mkdir(exist_ok=True)
            self.write(path, parts)
        except OSError as error:
            if self.room is not None and self.room.refuse(error, size):
                return False
            kept = self.steps()
            stays = f"that of step {kept[-1]} stays" if kept else "there is none yet"
            why = f"cannot write checkpoint {str(path)!r}: {error.strerror}"
            self.say(warning(f"{why}: the run continues without it, and {stays}"))
            return False
        self._prune(best)
        return True

    def _prune(self, best: int | None) -> None:
        for step in self.steps()[: -self.keep]:
            if step != best:
                try:
                    self.file_of(step).unlink(missing_ok=True)
                except OSError as error:
                    self.say(warning(f"cannot remove old checkpoint {str(self.file_of(step))!r}: {error.strerror}"))

    def steps(self) -> list[int]:
        """Return the steps of which there is a file, in order."""
        if not self.path.is_dir():
            return []
        found = (step_of(path.name) for path in self.path.iterdir())
        return sorted(step for step in found if step is not None)

    def file_of(self, step: int) -> Path:
        return self.path / f"step-{step:08d}.safetensors"

    def sweep(self) -> None:
        """Remove what a process that was killed has left half written; no other may be writing."""
        for path in self.path.glob(".*.partial"):
            path.unlink()

    def set_aside(self, behind: int, mark: str = "damaged") -> None:
        """Rename the files of later steps than `behind`, so that they neither count nor are lost; `mark` says why."""
        for step in self.steps():
            if step > behind:
                path = self.file_of(step)
                path.replace(path.with_name(f"{path.name}.{mark}"))

    def back_from(self, step: int) -> Iterator[Checkpoint]:
        """Yield the whole checkpoints up to a step, the last one first; damaged ones are reported."""
        for at in reversed([at for at in self.steps() if at <= step]):
            try:
                yield read_checkpoint(self.file_of(at))
            except FileFormatError as error:
                self.say(warning(f"{error}: using the one before it"))
