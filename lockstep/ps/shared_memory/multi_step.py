"""When the steps that workers make by themselves are recorded, and when they are withdrawn. Pure.

No socket, clock or array.

Workers in a multi-step lease show how many steps they have made, and the server reads that now and then. A multi-step
lease ends at its last step, or as soon as anything else happens: a worker is late, gone, or comes; a checkpoint is due;
the run is interrupted. Then it is not enough to tell the workers so, since one may be standing still, and write on
later. As with single slices (`lockstep.ps.parallel_update`), a worker writes only while it has the lock on its file:

1. Whoever's lock the server has, or who has answered, makes no further slice. What both workers have made by then are
   the steps that count; the weights after them are whole, since an update writes where it does not read, and nobody
   begins the next but one without the other.
2. The run goes on once that is true of both. A worker that has its lock and is silent may write at any time: after some
   patience the run moves into memory that this one does not know.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from msgspec import Struct

from lockstep.common.protocol.messages import steps_key
from lockstep.common.statemachine.machine import IGNORED, Machine, TimePassed, table_of
from lockstep.ps.coordinator.effects import ForgetWorker, LeaseSteps
from lockstep.ps.coordinator.events import MultiStepLeaseEnded

#: Steps after which the boards are read, and the least and most seconds: often enough that no worker waits until its
#: entries are read, and that one that is late is noticed; seldom enough to cost the workers little.
STEPS_BETWEEN, BETWEEN_S = 3.0, (0.002, 0.02)

#: A step is late if it takes so many times as long as expected, and so many seconds more.
LATE, LATE_S = 2.0, 0.002

#: Seconds between two attempts to get a lock, and until memory is left to a worker that stands still in it.
RETRY_S, MOVE_S = 0.002, 0.25

#: Seconds between two reports that the run waits.
REPORT_S = 5.0


class MultiStepPhase(Enum):
    """The phases of a multi-step lease."""

    #: There is none.
    IDLE = "step by step"
    #: Workers make steps.
    RUNNING = "workers make steps"
    #: It is over, and not all workers are known to make nothing more.
    ENDING = "withdrawing the steps"


# Events; some of them are effects of the coordinator, as they are


class BoardsRead(Struct, frozen=True, kw_only=True):
    """So many steps of the run are made, and of so many of these all entries are there: what a slower worker shows."""

    made: int
    entered: int


class WorkerAnswered(Struct, frozen=True, kw_only=True):
    """A worker makes nothing more of a multi-step lease; of the run's steps it has made so many."""

    number: int
    rank: int
    steps: int


class EndRequested(Struct, frozen=True, kw_only=True):
    """The run is to go on step by step."""

    #: Whether one worker that makes nothing more is enough, since the run is about to end.
    is_interrupted: bool = False
    #: Whether none is waited for: both have stood still for long.
    is_final: bool = False


class LocksTried(Struct, frozen=True, kw_only=True):
    """The locks of workers were taken, or not, since they are in the middle of a slice."""

    taken: tuple[int, ...]


class MemoryLeft(Struct, frozen=True, kw_only=True):
    """The run has left the memory that workers may still write into, after so many steps; None if it cannot."""

    made: int | None


MultiStepEvent = (
    LeaseSteps | BoardsRead | WorkerAnswered | ForgetWorker | EndRequested | LocksTried | MemoryLeft | TimePassed
)

# Effects


class ReadBoards(Struct, frozen=True, kw_only=True):
    """Read how far the workers are; answered by `BoardsRead`."""


class RecordSteps(Struct, frozen=True, kw_only=True):
    """Record the steps `[first, last)`, which are made."""

    first: int
    last: int


class SendWithdrawal(Struct, frozen=True, kw_only=True):
    """Send workers that the multi-step lease ends."""

    ranks: tuple[int, ...]


class TryLocks(Struct, frozen=True, kw_only=True):
    """Prevent workers from beginning slices; answered by `LocksTried`."""

    ranks: tuple[int, ...]


class ReleaseLock(Struct, frozen=True, kw_only=True):
    """Let a worker make slices again: it has said that it is out of the multi-step lease."""

    rank: int


class LeaveMemory(Struct, frozen=True, kw_only=True):
    """Continue in other memory, with the weights after the steps that are made; answered by `MemoryLeft`."""


class ReportStuck(Struct, frozen=True, kw_only=True):
    """Report that the run waits for two workers that stand still."""


MultiStepEffect = (
    ReadBoards | RecordSteps | SendWithdrawal | TryLocks | ReleaseLock | LeaveMemory | ReportStuck | MultiStepLeaseEnded
)

_IDLE, _RUNNING, _ENDING = MultiStepPhase

#: What may follow.
TRANSITIONS = table_of(
    MultiStepPhase,
    {
        LeaseSteps: {_IDLE: {_RUNNING}},
        BoardsRead: {_IDLE: IGNORED, _RUNNING: {_IDLE, _RUNNING, _ENDING}, _ENDING: {_ENDING, _IDLE}},
        WorkerAnswered: {_IDLE: {_IDLE}, _RUNNING: {_RUNNING, _ENDING}, _ENDING: {_ENDING}},
        ForgetWorker: {_IDLE: {_IDLE}, _RUNNING: {_RUNNING, _ENDING}, _ENDING: {_ENDING}},
        EndRequested: {_IDLE: IGNORED, _RUNNING: {_ENDING}, _ENDING: {_ENDING}},
        LocksTried: {_ENDING: {_ENDING}},
        MemoryLeft: {_ENDING: {_ENDING, _IDLE}},
        TimePassed: {_IDLE: IGNORED, _RUNNING: {_RUNNING}, _ENDING: {_ENDING}},
    },
)


@dataclass
class MultiStepControl(Machine[MultiStepEvent, MultiStepEffect]):
    """The multi-step lease at hand, as the server sees it."""

    transitions = TRANSITIONS
    phase: MultiStepPhase = MultiStepPhase.IDLE
    number: int = 0
    last: int = 0
    ranks: tuple[int, ...] = ()
    #: Steps that are recorded.
    recorded: int = 0
    #: Workers that make nothing more of it: that have answered, or whose lock we have.
    out: set[int] = field(default_factory=set)
    #: Those of them that have answered.
    answered: set[int] = field(default_factory=set)
    #: By rank, whose lock we have until they answer, and the multi-step lease that they are to answer.
    locked: dict[int, int] = field(default_factory=dict)
    #: When the boards are read again, or locks tried; and how often the former happens.
    due: float = 0.0
    between_s: float = 0.0
    #: When the last step was seen to be made, and in how many seconds the next has to be.
    advanced: float = 0.0
    late_s: float = 0.0
    #: When memory is left to a worker that stands still.
    patient_until: float = 0.0
    is_interrupted: bool = False
    #: Whether it was ended since a worker was late, or could not go on.
    is_cut: bool = False

    def handle(self, event: MultiStepEvent, now: float) -> list[MultiStepEffect]:
        return self.obey(event, now)

    def deadline(self) -> float | None:
        return None if self.phase is MultiStepPhase.IDLE else self.due

    def react(self, event: MultiStepEvent, now: float) -> list[MultiStepEffect]:
        match event:
            case LeaseSteps():
                return self._begin(event, now)
            case BoardsRead(made=made, entered=entered):
                return self._on_boards(made, entered, now)
            case WorkerAnswered():
                return self._on_answer(event, now)
            case ForgetWorker(rank=rank):  # its process may not have ended
                return self._end(now) if self.phase is MultiStepPhase.RUNNING and rank in self.ranks else []
            case EndRequested(is_interrupted=is_interrupted, is_final=is_final):
                if is_final:
                    self.phase = MultiStepPhase.ENDING
                    return [ReadBoards()]
                self.is_interrupted = self.is_interrupted or is_interrupted
                return self._end(now) if self.phase is MultiStepPhase.RUNNING else self._withdraw()
            case LocksTried(taken=taken):
                self.locked |= dict.fromkeys(taken, self.number)
                self.out |= set(taken)
                return self._go_on(now)
            case MemoryLeft(made=made):
                return self._on_moved(made, now)
            case TimePassed():
                return [ReadBoards()] if self.phase is MultiStepPhase.RUNNING else self._withdraw()
            case _:
                assert_never(event)

    def _begin(self, event: LeaseSteps, now: float) -> list[MultiStepEffect]:
        low, high = BETWEEN_S
        self.phase, self.last, self.ranks = MultiStepPhase.RUNNING, event.last, event.ranks
        self.number += 1
        self.recorded, self.is_interrupted, self.is_cut = event.first, False, False
        self.out.clear()
        self.answered.clear()
        self.between_s = min(max(low, STEPS_BETWEEN * event.step_s), high)
        self.advanced, self.late_s = now, LATE * event.step_s + LATE_S + self.between_s
        self.due = now + self.between_s
        return []

    def _on_boards(self, made: int, entered: int, now: float) -> list[MultiStepEffect]:
        until = entered if self.phase is MultiStepPhase.RUNNING else made
        effects = list[MultiStepEffect]()
        if until > self.recorded:
            effects.append(RecordSteps(first=self.recorded, last=until))
            self.recorded, self.advanced = until, now
        if self.phase is MultiStepPhase.ENDING or (made == entered == self.last and self._are_out()):
            return [*effects, self._complete()]
        self.due = now + self.between_s
        if now >= self.advanced + self.late_s:
            self.is_cut = True
            effects += self._end(now)
        return effects

    def _complete(self) -> MultiStepEffect:
        self.phase = MultiStepPhase.IDLE
        silent = tuple(rank for rank in self.ranks if rank not in self.answered)
        lease = steps_key(self.number)
        return MultiStepLeaseEnded(lease=lease, steps=self.recorded, is_cut=self.is_cut, silent=silent)

    def _are_out(self) -> bool:
        return all(rank in self.out for rank in self.ranks)

    def _on_answer(self, event: WorkerAnswered, now: float) -> list[MultiStepEffect]:
        effects, rank = list[MultiStepEffect](), event.rank
        if self.locked.get(rank) == event.number:
            del self.locked[rank]
            effects.append(ReleaseLock(rank=rank))
        if event.number != self.number or self.phase is MultiStepPhase.IDLE:
            return effects
        self.out.add(rank)
        self.answered.add(rank)
        if self.phase is MultiStepPhase.RUNNING and event.steps < self.last:
            self.is_cut = True
            return [*effects, *self._end(now)]
        return [*effects, ReadBoards()] if self.phase is MultiStepPhase.RUNNING or self._are_out() else effects

    def _end(self, now: float) -> list[MultiStepEffect]:
        """Withdraw the steps."""
        self.phase, self.patient_until = MultiStepPhase.ENDING, now + MOVE_S
        left = tuple(rank for rank in self.ranks if rank not in self.out)
        return [SendWithdrawal(ranks=left), *self._withdraw()]

    def _withdraw(self) -> list[MultiStepEffect]:
        return [TryLocks(ranks=tuple(rank for rank in self.ranks if rank not in self.out))]

    def _go_on(self, now: float) -> list[MultiStepEffect]:
        """Complete the multi-step lease if nobody makes anything more of it; else wait, or leave the memory."""
        if self._are_out() or (self.is_interrupted and self.out):
            return [ReadBoards()]
        self.due = now + RETRY_S
        if now < self.patient_until:
            return []
        if self.out:
            return [LeaveMemory()]
        # The weights might change while they are copied.
        self.patient_until = now + REPORT_S
        return [ReportStuck()]

    def _on_moved(self, made: int | None, now: float) -> list[MultiStepEffect]:
        """Continue in other memory, or wait further for those that hold the old one."""
        if made is not None:
            return self._on_boards(made, made, now)
        self.patient_until = now + MOVE_S
        return []

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        assert self.answered <= self.out <= set(self.ranks), "somebody is out who was never in"
        if self.phase is MultiStepPhase.ENDING:
            assert not self._are_out(), "all are out, and nobody has noticed"
        else:
            assert self.number not in self.locked.values() or self.phase is MultiStepPhase.IDLE, "locked while it runs"
        assert self.recorded <= self.last or self.phase is MultiStepPhase.IDLE, "more was made than was asked for"
