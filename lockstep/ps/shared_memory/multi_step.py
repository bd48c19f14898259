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

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple, Protocol

from lockstep.common.protocol.messages import steps_key
from lockstep.ps.coordinator.effects import LeaseSteps
from lockstep.ps.coordinator.events import Event, MultiStepLeaseEnded, StepMade

#: Steps after which the marks are read, and the least and most seconds: often enough that a team never waits until its
#: entries are read, seldom enough to cost it little.
STEPS_BETWEEN, BETWEEN_S = 8.0, (0.002, 0.1)

#: Steps are late once none was made for so many times as long as one takes, and for at least so many seconds. A process
#: that stalls costs its team less than that: the others do its work.
LATE, LATE_S = 4.0, 0.25

#: Seconds between two attempts to end a lease, and until memory is left to a process that has stalled in it.
RETRY_S, MOVE_S = 0.002, 0.25

#: Seconds between two reports that the run waits.
REPORT_S = 5.0

#: The report.
STUCK = (
    "a process of the team hangs in the middle of an update, and there is no room for other memory: the run "
    "waits for it to continue, or to end"
)


class StepsSeen(NamedTuple):
    """The numbers of steps of the run that are made, and that can be recorded while the team goes on."""

    made: int
    entered: int


class LeaseMemory(Protocol):
    """The memory in which a team makes the steps of one lease."""

    def read(self) -> StepsSeen:
        """Return how far the team is."""

    def record(self, first: int, last: int) -> Sequence[StepMade]:
        """Return the steps `[first, last)`, which are made; the team may write over their entries then."""

    def end(self, *, waits: bool = True) -> bool:
        """Mark the lease as ended once no process can be writing; return whether it is marked.

        Without `waits` it is marked in any case: a process that is in the middle of a slice then writes into memory
        that nothing reads any more.
        """

    def leave(self) -> int | None:
        """Continue in other memory, after the steps that are made; return their number, None if there is no room."""


@dataclass
class TeamLease:
    """A multi-step lease, from its begin to its end."""

    memory: LeaseMemory
    #: Sends the team that its lease ends; returns that the worker has left if it cannot be sent to.
    withdraw: Callable[[], Sequence[Event]]
    report: Callable[[str], None]
    _: KW_ONLY
    number: int
    #: The steps that the team makes, and its rank.
    steps: LeaseSteps
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
    #: When memory is left to a process that has stalled, None while the team is to make steps.
    patient_until: float | None = None
    #: When it is reported that there is no room for other memory.
    report_at: float = 0.0

    def __post_init__(self) -> None:
        self.recorded = self.made = self.steps.first
        self.due = self.advanced + self.between_s

    @property
    def between_s(self) -> float:
        """Seconds after which the marks are read again."""
        low, high = BETWEEN_S
        return min(max(low, STEPS_BETWEEN * self.steps.step_s), high)

    def key(self) -> tuple[int, int]:
        """Return the rank of its team, and its number."""
        return self.steps.rank, self.number

    def on_time(self, now: float) -> list[Event]:
        """Look how far the team is, or try again to end its lease."""
        return self._look(now) if self.patient_until is None else self._end(self.patient_until, now)

    def on_answer(self, now: float) -> list[Event]:
        """Handle that the team makes no more of the lease, at its end or before it."""
        self.has_answered = True
        return self.on_time(now)

    def withdraw_at(self, now: float) -> list[Event]:
        """Let the team make no more steps."""
        if self.patient_until is not None:
            return self._end(self.patient_until, now)
        self.patient_until = self.report_at = now + MOVE_S
        is_over = self.has_answered or self.made >= self.steps.last
        return [*([] if is_over else self.withdraw()), *self._end(self.patient_until, now)]

    def interrupt(self) -> list[Event]:
        """End the lease now: the run will not continue, and nothing will read what a process is writing."""
        self.memory.end(waits=False)
        return self._complete(self.memory.read().made)

    def _look(self, now: float) -> list[Event]:
        """Record what can be, and end the lease if it is made, if the team makes no more of it, or if that is late."""
        made, entered = self.memory.read()
        recorded = self._record(entered)
        if made > self.made:
            self.made, self.advanced = made, now
        self.due = now + self.between_s
        is_late = now >= self.advanced + max(LATE_S, LATE * self.steps.step_s) + self.between_s
        self.is_cut = made < self.steps.last and (self.has_answered or is_late)
        return [*recorded, *(self.withdraw_at(now) if made >= self.steps.last or self.is_cut else [])]

    def _record(self, until: int) -> list[Event]:
        assert until <= self.steps.last, "more was made than was asked for"
        first, self.recorded = self.recorded, max(self.recorded, until)
        return [*self.memory.record(first, until)] if until > first else []

    def _end(self, patient_until: float, now: float) -> list[Event]:
        """End the lease if no process can be writing; otherwise wait, or leave the memory."""
        if self.memory.end():
            return self._complete(self.memory.read().made)
        self.due = now + RETRY_S
        if now < patient_until:
            return []
        made = self.memory.leave()
        if made is not None:
            return self._complete(made)
        self.patient_until = now + MOVE_S
        if now >= self.report_at:
            self.report_at = now + REPORT_S
            self.report(STUCK)
        return []

    def _complete(self, made: int) -> list[Event]:
        """Continue after so many steps, step by step."""
        recorded = self._record(made)
        lease, is_silent = steps_key(self.number), not self.has_answered
        return [
            *recorded,
            MultiStepLeaseEnded(lease=lease, steps=self.recorded, is_cut=self.is_cut, is_silent=is_silent),
        ]
