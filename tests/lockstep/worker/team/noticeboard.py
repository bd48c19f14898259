"""Where the processes of a team meet without files and pipes: nobody waits, and a test says what happens meanwhile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.common.data.dataset import TrainTest
from lockstep.common.protocol.messages import Welcome
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.setup import open_run
from lockstep.worker.team.meeting import Session
from lockstep.worker.team.member import TeamMember
from lockstep.worker.team.progress import CROWDED
from lockstep.worker.team.session import TeamContext
from tests.simulation.small import digits, job_of


@dataclass
class Noticeboard:
    """What all processes of a team see."""

    session: Session | None = None
    #: For which processes somebody has rung, one after the other.
    rung: list[int] = field(default_factory=list)


@dataclass
class BoardMeeting:
    """The board as one process uses it: a `Meeting`."""

    board: Noticeboard
    process: int
    processes: int = 2
    #: What happens while it waits; and for how many seconds it would have waited each time.
    meanwhile: Callable[[], None] = lambda: None
    waited: list[float] = field(default_factory=list)
    is_closed: bool = False

    def ring(self, process: int) -> None:
        self.board.rung.append(process)

    def wait(self, timeout_s: float) -> bool:
        assert timeout_s > 0.0
        self.waited.append(timeout_s)
        before = len(self.board.rung)
        self.meanwhile()
        return self.process in self.board.rung[before:]

    def publish(self, session: Session) -> None:
        self.board.session = session

    def session(self) -> Session | None:
        return self.board.session

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Recorder:
    """What a process said, and which data it loaded."""

    said: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def load(self, name: str) -> TrainTest:
        self.loaded.append(name)
        return digits()


def context(
    meeting: BoardMeeting | None,
    roots: Sequence[Path],
    recorder: Recorder,
    *,
    root: Path | None = None,
    kind: type[TeamMember] = TeamMember,
    clock: ManualClock | None = None,
) -> TeamContext:
    """Return the surroundings of one process whose team's memory may be in `roots`, and the server's in `root`."""
    return TeamContext(
        clock=clock or ManualClock(),
        say=recorder.said.append,
        patience=CROWDED,
        root=root,
        roots=tuple(roots),
        meeting=meeting,
        kind=kind,
    )


def welcome_to(run: str = "run") -> Welcome:
    """Return what the server tells a team that joins a run on a few digits, whose memory is not shared."""
    return open_run(run, job_of(), digits(), RunOptions()).info.welcome(0)
