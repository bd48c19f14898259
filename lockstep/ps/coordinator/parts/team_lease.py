"""One multi-step lease: when the steps of its team are recorded, and when the lease ends. Pure: no clock, no array.

The team shows how many steps it has made, and the server reads that now and then. The lease ends at its last step, or
as soon as anything else happens: another worker is ready; a checkpoint is due; the team is late or gone; the run is
interrupted. Then it is not enough to send the team that the lease ends, because one of its processes may have stalled,
and may write on later:

1. A process writes a slice of an update only while it has that slice's lock, and only if it finds, once it has it, that
   the lease has not been ended. So once the server has all locks, no process is writing. It marks the lease as ended,
   and from then on no process begins, with whatever lock: that is when the locks are released again.
2. The steps that count are those that were made of all slices by then. The weights after them are whole, because an
   update writes where it does not read.
3. A process that stalls within a slice keeps its lock, and may write at any time. After some patience the run
   moves into memory that this process does not know. The system releases the lock of a process that has ended.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from msgspec import Struct

from lockstep.common.aggregation.tree import Node
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.messages import MultiStepLease
from lockstep.ps.records.ledger import Account

#: Steps after which the marks are read, and the least and most seconds: often enough that a team never waits until its
#: entries are read, seldom enough to cost it little.
STEPS_BETWEEN, BETWEEN_S = 8.0, (0.002, 0.1)

#: Steps are late once none was made for so many times as long as one takes, and for at least so many seconds. A process
#: that stalls costs its team less than that: the others do its work.
LATE, LATE_S = 4.0, 0.25

#: Seconds between two attempts to end a lease, and until memory is left to a process that has stalled in it.
RETRY_S, MOVE_S = 0.002, 0.25

#: The reason why a run waits if there is no other memory then.
STUCK = (
    "a process of the team hangs in the middle of an update, and there is no room for other memory: the run "
    "waits for it to continue, or to end"
)


class PartMade(Struct, frozen=True, kw_only=True):
    """The share of one process in a step that its team has made by itself."""

    node: Node
    process: int
    #: When it began and ended, in seconds from the begin of the round, and the seconds of computing.
    began_s: float
    ended_s: float
    compute_s: float


class StepMade(Struct, frozen=True, kw_only=True):
    """A team has made a step by itself."""

    step: int
    #: The team's.
    rank: int
    tally: Tally
    #: Of all micro-batches, as in `Result`.
    losses: bytes
    #: The shares of its processes.
    parts: tuple[PartMade, ...]
    #: Seconds from the last sums of the step before to its own, and of its update.
    round_s: float
    update_s: float
    #: Of the weights after it, and the learning rate.
    checksum: int
    rate: float

    def compute_s(self) -> tuple[float, float]:
        """Return the seconds of computing that went into it, of all processes and the most of any."""
        seconds: dict[int, float] = {}
        for part in self.parts:
            seconds[part.process] = seconds.get(part.process, 0.0) + part.compute_s
        return sum(seconds.values()), max(seconds.values(), default=0.0)


class LeaseMemory(Protocol):
    """The memory in which a team makes the steps of one lease."""

    @property
    def lease(self) -> MultiStepLease:
        """The lease as the team is sent it."""

    def read(self) -> tuple[int, int]:
        """Return the numbers of steps of the run that are made, and that can be recorded while the team goes on."""

    def record(self, first: int, last: int) -> Sequence[StepMade]:
        """Return the steps `[first, last)`, which are made; the team may write over their entries then."""

    def end(self, *, waits: bool = True) -> bool:
        """Mark the lease as ended once no process can be writing; return whether it is marked.

        Without `waits` it is marked in any case: a process that is in the middle of a slice then writes into memory
        that nothing reads any more.
        """

    def leave(self) -> int | None:
        """Continue in other memory, after the steps that are made; return their number, None if there is no room."""

    def take_over(self, steps: int) -> None:
        """Continue with the weights after so many steps: the lease has ended."""


class StepsRefusal(Enum):
    """The reasons why a team is not let make steps by itself."""

    #: It can never be, in this run.
    NEVER = "never"
    #: There is no room for the memory: there may be some later.
    NO_ROOM = "no room"
    #: Something else is to come first.
    NOT_NOW = "not now"


class TeamSteps(Protocol):
    """The server's memory, records and checkpoints, as far as the steps of a team concern them."""

    def bounds(self) -> tuple[int | None, float | None]:
        """Return after how many steps, and when, a checkpoint is due, for which no team must be making steps."""

    def open(self, rank: int, lease: MultiStepLease) -> LeaseMemory | StepsRefusal:
        """Let a team make the updates of a lease in shared memory, which completes the lease with its place."""

    def record(self, account: Account, made: StepMade) -> None:
        """Record a step that a team has made by itself."""


@dataclass(kw_only=True)
class TeamLease:
    """A multi-step lease, from its begin to its end."""

    memory: LeaseMemory
    #: Counts a step.
    count: Callable[[StepMade], None]
    #: The team's, and how many seconds a step is expected to take it.
    rank: int
    step_s: float
    #: Steps that are recorded, and that were made when this was read last.
    recorded: int = field(init=False)
    made: int = field(init=False)
    #: When the last step was seen to be made; at first, when the lease began.
    advanced: float
    #: When the marks are read again, or the lease is ended again.
    due: float = field(init=False)
    has_answered: bool = False
    #: Whether the team was late, or could not go on.
    is_cut: bool = False
    #: When memory is left to a process that has stalled; infinite while the team is to make steps.
    patient_until: float = math.inf
    #: Whether there was no room for other memory then.
    is_stuck: bool = False
    #: Whether it has ended, after the steps that are recorded.
    is_over: bool = False

    def __post_init__(self) -> None:
        self.recorded = self.made = self.memory.lease.first
        self.due = self.advanced + self.between_s

    @property
    def is_ending(self) -> bool:
        """True once the team is to make no more steps."""
        return self.patient_until < math.inf

    @property
    def between_s(self) -> float:
        """Seconds after which the marks are read again."""
        low, high = BETWEEN_S
        return min(max(low, STEPS_BETWEEN * self.step_s), high)

    def on_time(self, now: float) -> bool:
        """Look how far the team is, or try again to end its lease; tell whether the team is to learn that it ends."""
        if not self.is_ending:
            return self._look(now)
        self._end(now)
        return False

    def withdraw_at(self, now: float) -> bool:
        """Let the team make no more steps; tell whether it is to learn that."""
        self.patient_until = now + MOVE_S
        self._end(now)
        return not self.has_answered and self.made < self.memory.lease.last

    def interrupt(self) -> None:
        """End the lease now: the run will not continue, and nothing will read what a process is writing."""
        self.memory.end(waits=False)
        self._complete(self.memory.read()[0])

    def _look(self, now: float) -> bool:
        """Record what can be, and end the lease if it is made, if the team makes no more of it, or if that is late."""
        made, entered = self.memory.read()
        self._record(entered)
        if made > self.made:
            self.made, self.advanced = made, now
        self.due = now + self.between_s
        is_late = now >= self.advanced + max(LATE_S, LATE * self.step_s) + self.between_s
        self.is_cut = made < self.memory.lease.last and (self.has_answered or is_late)
        return (made >= self.memory.lease.last or self.is_cut) and self.withdraw_at(now)

    def _record(self, until: int) -> None:
        assert until <= self.memory.lease.last, "more was made than was asked for"
        first, self.recorded = self.recorded, max(self.recorded, until)
        for made in self.memory.record(first, until) if until > first else ():
            self.count(made)

    def _end(self, now: float) -> None:
        """End the lease if no process can be writing; otherwise wait, or leave the memory."""
        if self.memory.end():
            self._complete(self.memory.read()[0])
            return
        self.due = now + RETRY_S
        if now < self.patient_until:
            return
        made = self.memory.leave()
        if made is None:
            self.patient_until, self.is_stuck = now + MOVE_S, True
        else:
            self._complete(made)

    def _complete(self, made: int) -> None:
        """Let the run continue after so many steps, step by step."""
        self._record(made)
        self.is_over = True
        self.memory.take_over(self.recorded)
