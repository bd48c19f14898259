"""When the steps that a team makes by itself are recorded, and when it may make no more. Pure: no clock, no array.

A team with a lease of several steps shows how many it has made, and the server reads that now and then. The lease ends
at its last step, or as soon as anything else happens: another worker is ready; a checkpoint is due; the team is late or
gone; the run is interrupted. Then it is not enough to send the team that it ends, since one of its processes may be
standing still, and write on later:

1. A process writes a slice of an update only while it has that slice's lock, and only if it finds, once it has it, that
   the lease has not been ended. So once the server has all locks, nobody is writing. It marks the lease as ended, and
   from then on nobody begins, with whatever lock: that is when the locks are released again.
2. What was made of all slices by then are the steps that count. The weights after them are whole, since an update
   writes where it does not read.
3. A process that stands still within a slice keeps its lock, and may write at any time. After some patience the run
   moves into memory that this process does not know. The system releases the lock of a process that has ended.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from msgspec import Struct

from lockstep.common.protocol.messages import steps_key
from lockstep.common.statemachine.machine import IGNORED, Machine, TimePassed, stays, table_of
from lockstep.ps.coordinator.effects import ForgetWorker
from lockstep.ps.coordinator.events import MultiStepLeaseEnded

#: Steps after which the marks are read, and the least and most seconds: often enough that a team never waits until its
#: entries are read, seldom enough to cost it little.
STEPS_BETWEEN, BETWEEN_S = 8.0, (0.002, 0.1)

#: Steps are late once none was made for so many times as long as one takes, and for at least so many seconds. A process
#: that stands still costs its team less than that: the others do its work.
LATE, LATE_S = 4.0, 0.25

#: Seconds between two attempts to get locks, and until memory is left to a process that stands still in it.
RETRY_S, MOVE_S = 0.002, 0.25

#: Seconds between two reports that the run waits.
REPORT_S = 5.0


class MultiStepPhase(Enum):
    """The phases of a multi-step lease."""

    #: There is none, and nobody but the server writes weights.
    IDLE = "step by step"
    #: A team makes steps.
    RUNNING = "a team makes steps"
    #: It is to make no more, and may still be writing.
    ENDING = "ending the multi-step lease"


# Events; one of them is an effect of the coordinator, as it is


class StepsLeased(Struct, frozen=True, kw_only=True):
    """The steps `[first, last)` were leased to the team of that rank, which makes updates in so many slices."""

    rank: int
    first: int
    last: int
    #: Seconds that one is expected to take.
    step_s: float
    slices: int


class MarksRead(Struct, frozen=True, kw_only=True):
    """So many steps of the run are made, and so many of these can be recorded while the team goes on."""

    made: int
    entered: int


class HolderAnswered(Struct, frozen=True, kw_only=True):
    """The team makes no more of a multi-step lease, at its end or before it."""

    number: int


class EndRequested(Struct, frozen=True, kw_only=True):
    """The run is to continue step by step, or if it is interrupted, not at all."""

    is_interrupted: bool = False


class LocksTried(Struct, frozen=True, kw_only=True):
    """The locks of these slices, of those that were tried, are ours now."""

    taken: tuple[int, ...]


class MemoryLeft(Struct, frozen=True, kw_only=True):
    """The run has left the memory that a process may still write into, after so many steps; None if it cannot."""

    made: int | None


MultiStepEvent = (
    StepsLeased | MarksRead | HolderAnswered | ForgetWorker | EndRequested | LocksTried | MemoryLeft | TimePassed
)

# Effects


class ReadMarks(Struct, frozen=True, kw_only=True):
    """Read how far the team is; answered by `MarksRead`."""


class RecordSteps(Struct, frozen=True, kw_only=True):
    """Record the steps `[first, last)`, which are made."""

    first: int
    last: int


class SendWithdrawal(Struct, frozen=True, kw_only=True):
    """Send the team that the lease ends."""

    rank: int


class TryLocks(Struct, frozen=True, kw_only=True):
    """Take the locks of these slices, as far as nobody has them; answered by `LocksTried`."""

    slices: tuple[int, ...]


class EndUpdates(Struct, frozen=True, kw_only=True):
    """Mark the lease as ended: who takes a lock after this writes nothing."""


class ReleaseLocks(Struct, frozen=True, kw_only=True):
    """Release the locks of these slices, once the lease is marked as ended."""

    slices: tuple[int, ...]


class LeaveMemory(Struct, frozen=True, kw_only=True):
    """Continue in other memory, with the weights after the steps that are made; answered by `MemoryLeft`.

    The locks stay with the memory that was left.
    """


class ReportStuck(Struct, frozen=True, kw_only=True):
    """Report that the run waits for a process that stands still."""


MultiStepEffect = (
    ReadMarks
    | RecordSteps
    | SendWithdrawal
    | TryLocks
    | EndUpdates
    | ReleaseLocks
    | LeaveMemory
    | ReportStuck
    | MultiStepLeaseEnded
)

_IDLE, _RUNNING, _ENDING = MultiStepPhase

#: What may follow.
TRANSITIONS = table_of(
    MultiStepPhase,
    {
        StepsLeased: {_IDLE: {_RUNNING}},
        MarksRead: {_RUNNING: {_RUNNING, _ENDING}, _ENDING: {_IDLE}},
        HolderAnswered: {_IDLE: IGNORED} | stays(_RUNNING, _ENDING),
        ForgetWorker: {_IDLE: IGNORED, _RUNNING: {_RUNNING, _ENDING}, _ENDING: {_ENDING}},
        EndRequested: {_IDLE: IGNORED, _RUNNING: {_ENDING}, _ENDING: {_ENDING}},
        LocksTried: {_ENDING: {_ENDING}},
        MemoryLeft: {_ENDING: {_ENDING, _IDLE}},
        TimePassed: {_IDLE: IGNORED} | stays(_RUNNING, _ENDING),
    },
)


@dataclass
class MultiStepControl(Machine[MultiStepEvent, MultiStepEffect]):
    """The multi-step lease at hand, as the server sees it."""

    transitions = TRANSITIONS
    phase: MultiStepPhase = MultiStepPhase.IDLE
    #: Of the lease: no two have the same.
    number: int = 0
    #: The team's, and the slices in which it makes updates.
    rank: int = 0
    slices: int = 0
    last: int = 0
    #: Steps that are recorded, and that were made when this was read last.
    recorded: int = 0
    made: int = 0
    #: The slices whose locks we have: none but while it ends.
    held: set[int] = field(default_factory=set)
    has_answered: bool = False
    #: When the marks are read again, or locks tried; and how often the former happens.
    due: float = 0.0
    between_s: float = 0.0
    #: When the last step was seen to be made, and in how many seconds the next has to be.
    advanced: float = 0.0
    late_s: float = 0.0
    #: When memory is left to a process that stands still, and when it is reported if that cannot be.
    patient_until: float = 0.0
    report_at: float = 0.0
    #: Whether it was ended since the team was late, or could not go on.
    is_cut: bool = False

    def handle(self, event: MultiStepEvent, now: float) -> list[MultiStepEffect]:
        return self.obey(event, now)

    def deadline(self) -> float | None:
        return None if self.phase is MultiStepPhase.IDLE else self.due

    def react(self, event: MultiStepEvent, now: float) -> list[MultiStepEffect]:
        is_running = self.phase is MultiStepPhase.RUNNING
        match event:
            case StepsLeased():
                return self._begin(event, now)
            case MarksRead(made=made, entered=entered):
                return self._on_marks(made, entered, now) if is_running else self._complete(made)
            case HolderAnswered():
                return self._on_answer(event)
            case ForgetWorker(rank=rank):  # its processes may not have ended
                return self._end(now) if is_running and rank == self.rank else []
            case EndRequested(is_interrupted=True):
                # Who is in the middle of a slice writes beside the weights that count, and nobody will need that place.
                self.phase = MultiStepPhase.ENDING
                return [EndUpdates(), ReadMarks()]
            case EndRequested():
                return self._end(now) if is_running else self._try_locks()
            case LocksTried(taken=taken):
                return self._on_locks(taken, now)
            case MemoryLeft(made=made):
                return self._on_memory(made, now)
            case TimePassed():
                return [ReadMarks()] if is_running else self._try_locks()
            case _:
                assert_never(event)

    def _begin(self, event: StepsLeased, now: float) -> list[MultiStepEffect]:
        low, high = BETWEEN_S
        self.phase, self.rank, self.slices, self.last = MultiStepPhase.RUNNING, event.rank, event.slices, event.last
        self.number += 1
        self.recorded = self.made = event.first
        self.has_answered = self.is_cut = False
        self.between_s = min(max(low, STEPS_BETWEEN * event.step_s), high)
        self.advanced, self.late_s = now, max(LATE_S, LATE * event.step_s) + self.between_s
        self.due = now + self.between_s
        return []

    def _on_marks(self, made: int, entered: int, now: float) -> list[MultiStepEffect]:
        """Record what can be, and end the lease if it is made, if the team makes no more of it, or if that is late."""
        effects = self._record(entered)
        if made > self.made:
            self.made, self.advanced = made, now
        self.due = now + self.between_s
        if made >= self.last:
            return effects + self._end(now)
        if self.has_answered or now >= self.advanced + self.late_s:
            self.is_cut = True
            return effects + self._end(now)
        return effects

    def _record(self, until: int) -> list[MultiStepEffect]:
        if until <= self.recorded:
            return []
        first, self.recorded = self.recorded, until
        return [RecordSteps(first=first, last=until)]

    def _on_answer(self, event: HolderAnswered) -> list[MultiStepEffect]:
        if event.number != self.number:
            return []
        self.has_answered = True
        return [ReadMarks()] if self.phase is MultiStepPhase.RUNNING else self._try_locks()

    def _end(self, now: float) -> list[MultiStepEffect]:
        """Let the team make no more of it."""
        self.phase = MultiStepPhase.ENDING
        self.patient_until = self.report_at = now + MOVE_S
        is_over = self.has_answered or self.made >= self.last
        return [*([] if is_over else [SendWithdrawal(rank=self.rank)]), *self._try_locks()]

    def _try_locks(self) -> list[MultiStepEffect]:
        return [TryLocks(slices=tuple(slice_ for slice_ in range(self.slices) if slice_ not in self.held))]

    def _on_locks(self, taken: tuple[int, ...], now: float) -> list[MultiStepEffect]:
        """Complete the lease if nobody can be writing; else wait, or leave the memory."""
        self.held.update(taken)
        if len(self.held) == self.slices:
            return [EndUpdates(), ReadMarks()]
        self.due = now + RETRY_S
        return [] if now < self.patient_until else [LeaveMemory()]

    def _on_memory(self, made: int | None, now: float) -> list[MultiStepEffect]:
        """Continue in other memory, or wait further for whoever holds the old one."""
        if made is not None:
            self.held.clear()
            return self._complete(made)
        self.patient_until = now + MOVE_S
        if now < self.report_at:
            return []
        self.report_at = now + REPORT_S
        return [ReportStuck()]

    def _complete(self, made: int) -> list[MultiStepEffect]:
        """Continue after so many steps, step by step."""
        effects = self._record(made)
        if self.held:
            effects.append(ReleaseLocks(slices=tuple(sorted(self.held))))
            self.held.clear()
        self.phase = MultiStepPhase.IDLE
        is_silent, lease = not self.has_answered, steps_key(self.number)
        return [
            *effects,
            MultiStepLeaseEnded(lease=lease, steps=self.recorded, is_cut=self.is_cut, is_silent=is_silent),
        ]

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        assert self.phase is MultiStepPhase.ENDING or not self.held, "locks are held although nothing is to be ended"
        assert self.held <= set(range(self.slices)), "a lock is held of a slice that there is not"
        assert self.phase is MultiStepPhase.IDLE or len(self.held) < self.slices, "all locks are held for nothing"
        assert self.recorded <= self.last or not self.number, "more was made than was asked for"
