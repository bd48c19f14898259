"""The meeting place of a team's processes: the leader's messages to the others, and the pipes that wake them.

It is a private folder, made by the process that starts the team. The leader writes into it which run it has joined, and
where the team's memory is; each process has a pipe with a name there, through which the others wake it.
"""

import fcntl
import os
import select
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec.structs import replace

from lockstep.common.errors import SharingError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.protocol.messages import Welcome

_SESSION = "session"

#: Bytes that are read of a pipe at once: as many as there may be.
_ALL = 65_536


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """The run that the leader has joined, for the other processes."""

    #: Rises with each session that is announced.
    number: int = 0
    #: Which run it is; None once there will be none any more, with the code and the reason of the leader's end.
    welcome: Welcome | None = None
    code: int = 0
    reason: str = ""
    #: The folder of the team's memory, empty until it is made; and where that of the server is, if that is shared.
    folder: str = ""
    shared_root: str = ""
    #: As in the shape of that memory.
    makers: int = 0


class Meeting(Protocol):
    """The meeting place of a team, as one of its processes uses it."""

    process: int
    processes: int

    def ring(self, process: int) -> None:
        """Wake a process."""

    def wait(self, timeout_s: float) -> bool:
        """Wait to be woken, for so many seconds at most."""

    def publish(self, session: Session) -> None:
        """Let the others find this session from now on."""

    def session(self) -> Session | None:
        """Return the newest session, None before the first."""

    def close(self) -> None:
        """Leave."""


def announce(meeting: Meeting, session: Session) -> int:
    """Tell the others of the next session, and return its number.

    It is announced before its memory is made, so that all processes build the model and load the data together.
    """
    before = meeting.session()
    number = 1 if before is None else before.number + 1
    meeting.publish(replace(session, number=number))
    for process in range(meeting.processes):
        if process != meeting.process:
            meeting.ring(process)
    return number


@dataclass
class MeetingPlace:
    """The folder as one process of the team uses it."""

    path: Path
    process: int
    processes: int
    _pipes: list[int] = field(default_factory=list)

    @classmethod
    def create(cls, path: Path, processes: int) -> None:
        """Make what processes need in a folder that only this user can read."""
        for process in range(processes):
            with suppress(FileExistsError):
                os.mkfifo(path / _pipe(process), 0o600)

    @classmethod
    def open(cls, path: Path, process: int, processes: int) -> "MeetingPlace":
        """Join the others, once no other process is this one of theirs; `SharingError` if no team meets there."""
        place = cls(path, process, processes)
        try:
            # Every process opens all pipes for reading too, so that no byte is lost while none of them reads.
            place._pipes = [os.open(path / _pipe(one), os.O_RDWR | os.O_NONBLOCK) for one in range(processes)]
            # The one before, whose supervisor was killed, may write into the team's memory until it has ended.
            fcntl.flock(place._pipes[process], fcntl.LOCK_EX)
        except OSError as error:
            raise SharingError(f"{path} is not where a team of {processes} meets: {error.strerror}") from None
        return place

    def ring(self, process: int) -> None:
        """Wake a process."""
        with suppress(BlockingIOError):  # the pipe is full: the process has not read it yet, and will
            os.write(self._pipes[process], b"\0")

    def wait(self, timeout_s: float) -> bool:
        """Wait to be woken, for so many seconds at most; return whether another process did."""
        pipe = self._pipes[self.process]
        if not select.select([pipe], [], [], max(0.0, timeout_s))[0]:
            return False
        with suppress(BlockingIOError):
            os.read(pipe, _ALL)
        return True

    def publish(self, session: Session) -> None:
        """Let the others find this session from now on."""
        write_atomically(self.path / _SESSION, [msgspec.msgpack.encode(session)])

    def session(self) -> Session | None:
        """Return the newest session, None before the first."""
        return session_in(self.path)

    def close(self) -> None:
        """Close the pipes."""
        for pipe in self._pipes:
            os.close(pipe)
        self._pipes = []


def session_in(path: Path) -> Session | None:
    """Return the newest session of the team that meets in a folder, None before the first."""
    try:
        return msgspec.msgpack.decode((path / _SESSION).read_bytes(), type=Session)
    except FileNotFoundError:
        return None


def _pipe(process: int) -> str:
    return f"bell-{process}"
