"""A worker that is several processes: the command of each, and who keeps them going if a person starts them by one."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from lockstep.common.protocol.messages import PROCESSES_LIMIT
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.environment import cores, kept_to_core
from lockstep.launch.lifetime import uninterrupted
from lockstep.launch.supervision.channel import ChildReport
from lockstep.launch.supervision.child import GRACE_S, WatchedProcess, exit_message
from lockstep.launch.supervision.crew import Crew
from lockstep.launch.supervision.supervisor import ProcessPlace, Role
from lockstep.launch.supervision.worker_supervisor import WorkerSupervisor
from lockstep.worker.team.meeting import MeetingPlace

#: Seconds between two looks whether a process has died: short, since its team waits for it at the next step.
POLL_S = 0.05

#: Restarts of a process that dies again and again: for hours, as long as its leader can compute without it.
MOST_RESTARTS = 1000


def default_processes() -> int:
    """Return how many processes a worker has if nobody says: one per core that it may use."""
    return min(cores(), PROCESSES_LIMIT)


def team_arguments(folder: Path, process: int, processes: int) -> list[str]:
    """Return what makes `lockstep worker` one process of a team, which meets in a folder; process 0 leads it.

    The folder is made if it is not there; the one that it is in must be private.
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


@dataclass
class TeamSupervisor:
    """Starts the processes of one team, again if they die, shows what their leader reports, and ends all with it."""

    crew: Crew
    processes: int
    clock: Clock
    say: Callable[[str], None]
    #: Passes on what the leader reports.
    forward: Callable[[ChildReport], None]
    #: Lets so many seconds pass.
    pause: Callable[[float], object] = field(default_factory=lambda: Event().wait)
    supervisor: WorkerSupervisor = field(init=False)

    def __post_init__(self) -> None:
        self.supervisor = WorkerSupervisor(MOST_RESTARTS, self.processes)

    def run(self) -> int:
        """Return the exit code of the leader when it ends by itself. Nothing is left running in any case."""
        try:
            self.crew.begin(map(place_of, self.supervisor.start_all(self.processes, self.clock.now())))
            while (code := self._code()) is None:
                self.pause(POLL_S)
            return code
        finally:
            with uninterrupted():
                self.crew.end_all()

    def _code(self) -> int | None:
        """Do what is due; return the exit code if there is nothing left to do."""
        leader = self.crew.processes[LEADER]
        # Before its last words are read.
        ends, has_ended = self.crew.ends(), leader.has_ended()
        self._relay(leader)
        if has_ended and leader.code >= 0:
            return leader.code
        # Where the run is over, or failed, the leader lets the others end first, a moment before it says why.
        if any(end.code > 0 for end in ends.values()) and leader.wait(GRACE_S):
            return None
        for place, end in ends.items():
            is_restarted = self.supervisor.ended(place.number, end, self.clock.now())
            if end.code:
                outlook = "it is restarted" if is_restarted else "it is not restarted"
                self.say(f"{exit_message(self.crew.processes[place])}; {outlook}")
        if self.supervisor.are_given_up():
            return 128 - leader.code  # as shells have it
        self.crew.begin(map(place_of, self.supervisor.start_due(self.clock.now())))
        return None

    def _relay(self, leader: WatchedProcess) -> None:
        for report in leader.reports():
            self.forward(report)
        for line in leader.log.new_lines():
            self.say(line)
        for process in self.crew.processes.values():
            process.take()


def place_of(process: int) -> ProcessPlace:
    """Return the place of a process of the team."""
    return ProcessPlace(Role.WORKER, process)


#: The place of the process that leads a team.
LEADER = place_of(0)
