"""Restarts of processes that have died: when they are due, and when they are hopeless. Pure: time is an argument."""

import math
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from msgspec import Struct

from lockstep.common.statemachine.machine import backoff_s

#: The exit code of a process that could not begin, was refused, or cannot do its task: the next would end alike.
USAGE = 2

#: The exit code of a process that was interrupted by SIGINT or SIGTERM.
INTERRUPTED = 130

#: Seconds that a process has to live for its earlier deaths not to count any more.
STEADY_S = 60.0

#: Seconds after which a process has begun its work, so that it was not its start that has ended it: a process that is
#: killed again and again is back at once each time, and only one that dies at its start waits ever longer.
BEGUN_S = 2.0

#: Seconds before the first restart at most, and before any: a process that was killed is soon back in its team.
FIRST_S, MOST_S = 0.1, 10.0

#: The signals by which a processor or a library ends a process that computes: the next one would crash alike.
CRASHES = frozenset({signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP})


class ProcessEnd(Struct, frozen=True, kw_only=True):
    """The end of a process."""

    #: The exit code, negative for a signal.
    code: int
    #: Whether it has reported an error.
    has_reported: bool = False
    #: Whether it was killed on purpose, or its machine is gone, so that its death says nothing about it.
    is_excused: bool = False

    @property
    def is_from_outside(self) -> bool:
        """Tell whether a signal ended it; one of ours would have come after an interrupt of this process."""
        return self.code < 0 or self.code == INTERRUPTED

    @property
    def is_crash(self) -> bool:
        """Tell whether it ended by a signal that processes cause themselves."""
        return -self.code in CRASHES

    @property
    def was_killed(self) -> bool:
        """Tell whether it ended without reporting a reason."""
        return self.is_from_outside or (self.code == 1 and not self.has_reported)


#: The end of a process that has done all that it had to do.
WELL = ProcessEnd(code=0)


class Role(Enum):
    """The part of a process in a run, by the command that starts it."""

    SERVER = "server"
    SHARD = "shard"
    WORKER = "worker"


class ProcessPlace(Struct, frozen=True):
    """A process of a run and those that replace it."""

    role: Role
    number: int = 0

    @property
    def name(self) -> str:
        """The name of the process in messages."""
        return "the server" if self.role is Role.SERVER else f"a {self.role.value}"

    @property
    def stem(self) -> str:
        """The name of its log and its socket, without their endings."""
        return self.role.value if self.role is Role.SERVER else f"{self.role.value}-{self.number}"


SERVER = ProcessPlace(Role.SERVER)


class PlaceState(Enum):
    """The state of a place: whether it has a process, or is to have one."""

    #: A process.
    RUNNING = "running"
    #: Nothing: its process has ended, and what follows is decided later.
    ENDED = "ended"
    #: Nothing until the next process starts.
    AWAITED = "awaited"
    #: Nothing: the process has ended well.
    DONE = "done"
    #: Nothing: another process would end alike.
    GIVEN_UP = "given up"


@dataclass
class SupervisedPlace:
    """A place, its current process, and the deaths of those before."""

    #: How many deaths in a row are followed by a restart.
    most: int
    #: Tells it from the others, so that not all are started in the same moment.
    seed: str
    deaths: int = 0
    #: Those since the last process that had begun its work, with that one.
    early: int = 0
    state: PlaceState = PlaceState.RUNNING
    #: When its process started, and the most steps that the run had made then.
    started_s: float = 0.0
    steps: int = 0
    #: How its last process ended.
    end: ProcessEnd = WELL
    #: When the next process starts, or it is decided what follows.
    due_s: float = math.inf

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


@dataclass
class ProcessTable:
    """The places of a run, or of a team."""

    #: How many deaths in a row are followed by a restart.
    most: int
    #: The most steps that the run has made.
    steps: int = 0
    _places: dict[ProcessPlace, SupervisedPlace] = field(default_factory=dict)

    def begin(self, place: ProcessPlace, now: float) -> None:
        """Record the start of a process."""
        before = self._places.get(place)
        deaths, early = (0, 0) if before is None else (before.deaths, before.early)
        self._places[place] = SupervisedPlace(self.most, str(place), deaths, early, started_s=now, steps=self.steps)

    def end(self, place: ProcessPlace, end: ProcessEnd, judged_s: float) -> None:
        """Record the end of a process; what follows is decided at a time."""
        ended = self._places[place]
        ended.state, ended.end, ended.due_s = PlaceState.ENDED, end, judged_s

    def restart(self, place: ProcessPlace, now: float) -> float | None:
        """Decide what follows the end of a process: return the seconds until it is restarted, None if it is not."""
        ended = self._places[place]
        ended.due_s = math.inf
        if not ended.end.code:
            ended.state = PlaceState.DONE
            return None
        has_progressed, ended.steps = self.steps > ended.steps, self.steps
        delay_s = ended.delay_s(now - ended.started_s, ended.end, has_progressed=has_progressed)
        if delay_s is None:
            ended.state = PlaceState.GIVEN_UP
        else:
            self.expect(place, now + delay_s)
        return delay_s

    def expect(self, place: ProcessPlace, due_s: float) -> None:
        """Let the next process of a place start at a time."""
        self._places[place].state, self._places[place].due_s = PlaceState.AWAITED, due_s

    def vacate(self, place: ProcessPlace) -> None:
        """Let a place be empty until a process begins there for another reason; its deaths still count."""
        if place in self._places:
            self.end(place, WELL, math.inf)

    def due(self, state: PlaceState, now: float) -> list[ProcessPlace]:
        """Return the places in a state whose time has come."""
        return [place for place, one in self._places.items() if one.state is state and now >= one.due_s]

    def deadline(self) -> float | None:
        """Return when `due` has something to return."""
        due_s = min((one.due_s for one in self._places.values()), default=math.inf)
        return None if due_s == math.inf else due_s

    def state(self, place: ProcessPlace) -> PlaceState | None:
        """Return what a place holds, None if no process was ever there."""
        return self._places[place].state if place in self._places else None

    def at(self, place: ProcessPlace) -> SupervisedPlace:
        """Return a place in which a process has been."""
        return self._places[place]

    def are_given_up(self, places: Iterable[ProcessPlace]) -> bool:
        """Return whether none of these will have a process again."""
        return all(self.state(place) is PlaceState.GIVEN_UP for place in places)
