"""A worker that is several processes: the command of each, and the supervisor of a team that one command starts."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from lockstep.common.protocol.messages import PROCESSES_LIMIT
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.environment import cores, kept_to_core
from lockstep.launch.lifetime import uninterrupted
from lockstep.launch.supervision.channel import ChildReport
from lockstep.launch.supervision.child import GRACE_S, Crew, exit_message
from lockstep.launch.supervision.restarts import PlaceState, ProcessPlace, ProcessTable, Role
from lockstep.worker.team.meeting import MeetingPlace

#: Seconds between two looks whether a process has died: short, since its team waits for it at the next step.
POLL_S = 0.05

#: Restarts of a process that dies again and again: for hours, as long as its leader can compute without it.
MOST_RESTARTS = 1000


def default_processes() -> int:
    """Return how many processes a worker has by default: one per core that it may use."""
    return min(cores(), PROCESSES_LIMIT)


def team_arguments(folder: Path, process: int, processes: int) -> list[str]:
    """Return the flags of one process of a team, which meets in a folder and is led by process 0.

    The folder is made if it does not exist; its parent must be private.
    """
    if processes == 1:
        return ["--workers", "1"]
    if not folder.exists():
        folder.mkdir(mode=0o700)
        MeetingPlace.create(folder, processes)
    return ["--workers", str(processes), "--process", str(process), "--team", str(folder)]


def own_core(process: int, processes: int) -> AbstractContextManager[None]:
    """Keep a process of a team that has all cores on a core of its own, within the context."""
    # Otherwise one that is woken may share a core with another for milliseconds while a third is idle.
    return kept_to_core(process) if processes == cores() else nullcontext()


#: The place of the process that leads a team.
LEADER = ProcessPlace(Role.WORKER, 0)


@dataclass
class TeamSupervisor:
    """Starts the processes of one team, restarts those that die, and ends all with their leader."""

    crew: Crew
    processes: int
    clock: Clock
    say: Callable[[str], None]
    #: Passes on what the leader reports.
    forward: Callable[[ChildReport], None]
    #: Lets so many seconds pass.
    pause: Callable[[float], object] = field(default_factory=lambda: Event().wait)
    places: ProcessTable = field(default_factory=lambda: ProcessTable(MOST_RESTARTS))

    def run(self) -> int:
        """Return the exit code of the leader when it ends by itself. Nothing is left running in any case."""
        try:
            self._start(ProcessPlace(Role.WORKER, number) for number in range(self.processes))
            while (code := self._code()) is None:
                self.pause(POLL_S)
            return code
        finally:
            with uninterrupted():
                self.crew.end_all()

    def _start(self, places: Iterable[ProcessPlace]) -> None:
        for place in places:
            self.places.begin(place, self.clock.now())
            self.crew.begin(place)

    def _code(self) -> int | None:
        """Restart processes that are due; return the exit code once the team has ended."""
        ends, leader = self.crew.ends(), self.crew.processes[LEADER]
        has_ended = leader.has_ended()
        for report in leader.reports():
            self.forward(report)
        if has_ended and leader.code >= 0:
            return leader.code
        # If the run has ended or failed, the leader lets the others end first, a moment before it reports why.
        if any(end.code > 0 for end in ends.values()) and leader.wait(GRACE_S):
            return None
        for place, end in ends.items():
            self.places.end(place, end, self.clock.now())
            is_restarted = self.places.restart(place, self.clock.now()) is not None
            if end.code:
                outlook = "it is restarted" if is_restarted else "it is not restarted"
                self.say(f"{exit_message(self.crew.processes[place])}; {outlook}")
        if self.places.are_given_up([LEADER]):
            return 128 - leader.code  # as shells have it
        self._start(self.places.due(PlaceState.AWAITED, self.clock.now()))
        return None
