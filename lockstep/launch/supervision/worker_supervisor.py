"""When a process that has died is restarted, and when that is hopeless. Pure: time is an argument."""

import math
import signal
from dataclasses import dataclass, field
from enum import Enum

from msgspec import Struct

from lockstep.common.runtime.backoff import backoff_s

#: The exit code of a process that could not begin, was refused, or cannot do what was asked: the next would end alike.
USAGE = 2

#: The exit code of a process that was interrupted by SIGINT or SIGTERM.
INTERRUPTED = 130

#: Seconds that a process has to live for its earlier deaths not to count any more.
STEADY_S = 60.0

#: Seconds after which a process has begun its work, so that it was not its start that has ended it: what is killed from
#: outside again and again is back at once each time, and only what dies at its start is started ever more seldom.
BEGUN_S = 2.0

#: Seconds before the first restart at most, and before any: a process that was killed is soon back in its team.
FIRST_S, MOST_S = 0.1, 10.0

#: The signals by which a processor or a library ends a process that computes: the next one would crash alike.
CRASHES = frozenset({signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP})


class ProcessEnd(Struct, frozen=True, kw_only=True):
    """How a process has ended."""

    #: The exit code, negative for a signal.
    code: int
    #: Whether it has reported an error.
    has_reported: bool = False
    #: Whether it was killed on purpose, or its machine is gone, so that its death says nothing about it.
    is_excused: bool = False

    @property
    def is_from_outside(self) -> bool:
        """Whether a signal ended it; one of ours would have come after an interrupt of this process."""
        return self.code < 0 or self.code == INTERRUPTED

    @property
    def is_crash(self) -> bool:
        """Whether the signal was one that a process brings upon itself."""
        return -self.code in CRASHES

    @property
    def was_killed(self) -> bool:
        """Whether it ended without a reason of its own."""
        return self.is_from_outside or (self.code == 1 and not self.has_reported)


@dataclass
class Restarts:
    """The deaths of one process and of those that took its place."""

    #: How many deaths in a row are followed by a restart.
    most: int
    #: Tells it from the others, so that not all are started in the same moment.
    seed: str
    deaths: int = 0
    #: Those since the last one that had begun its work, with that one.
    early: int = 0

    def delay_s(self, lived_s: float, end: ProcessEnd, *, has_progressed: bool = False) -> float | None:
        """Record a death; return the seconds until the restart, None if that is hopeless.

        `lived_s` are the seconds that it lived. `has_progressed` tells whether the run has got further than ever since
        the last death: then the earlier ones do not count, unless the process brought its death upon itself.
        """
        if end.is_excused:
            lived_s = math.inf
        if lived_s >= STEADY_S or (has_progressed and end.is_from_outside and not end.is_crash):
            self.deaths = 0
        if end.code == USAGE or self.deaths >= self.most:
            return None
        self.deaths += 1
        self.early = 1 if lived_s >= BEGUN_S else self.early + 1
        return backoff_s(self.early, first_s=FIRST_S, most_s=MOST_S, seed=self.seed)


class PlaceState(Enum):
    """What a worker's place holds."""

    #: A process.
    RUNNING = "running"
    #: Nothing until the next process starts.
    AWAITED = "awaited"
    #: Nothing: the process has ended well.
    DONE = "done"
    #: Nothing: another process would end alike.
    GIVEN_UP = "given up"


@dataclass
class SupervisedWorker:
    """One worker's place."""

    restarts: Restarts
    started_s: float
    #: The most steps that the run had made when the process started.
    steps: int
    state: PlaceState = PlaceState.RUNNING
    #: When the next process starts, if it is awaited.
    due_s: float = math.inf


@dataclass
class WorkerSupervisor:
    """All workers of a run, or all processes of a team."""

    most: int
    #: How many form a team, one after the other: the first of each leads it.
    team_size: int = 1
    places: list[SupervisedWorker] = field(default_factory=list)
    #: The most steps that the run has made.
    steps: int = 0

    def start_all(self, count: int, now: float) -> list[int]:
        """Return the numbers of the workers that start now."""
        self.places = [
            SupervisedWorker(Restarts(self.most, seed=f"worker {number}"), now, self.steps) for number in range(count)
        ]
        return list(range(count))

    def ended(self, number: int, end: ProcessEnd, now: float) -> bool:
        """Record the end of a worker's process; return whether it will be restarted."""
        worker = self.places[number]
        if not end.code:
            worker.state = PlaceState.DONE
            return False
        has_progressed = self.steps > worker.steps
        delay_s = worker.restarts.delay_s(now - worker.started_s, end, has_progressed=has_progressed)
        worker.state = PlaceState.GIVEN_UP if delay_s is None else PlaceState.AWAITED
        worker.due_s = math.inf if delay_s is None else now + delay_s
        return delay_s is not None

    def start_due(self, now: float) -> list[int]:
        """Return the numbers of the workers whose next process starts now."""
        due = [number for number, worker in enumerate(self.places) if now >= worker.due_s]
        for number in due:
            worker = self.places[number]
            worker.state, worker.due_s = PlaceState.RUNNING, math.inf
            worker.started_s, worker.steps = now, self.steps
        return due

    def deadline(self) -> float | None:
        """Return when `start_due` has something to return."""
        due_s = min((worker.due_s for worker in self.places), default=math.inf)
        return None if due_s == math.inf else due_s

    def are_given_up(self) -> bool:
        """Return whether no team has a leader, and none will be started: the others cannot work without theirs."""
        return all(leader.state is PlaceState.GIVEN_UP for leader in self.places[:: self.team_size])
