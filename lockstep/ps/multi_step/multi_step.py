"""When what workers make by themselves is recorded, and when the run takes the steps back into its own hands. Pure.

`handle(event, now)` returns what is to be done; `deadline()` says when `TimePassed` is due. No socket, clock or array.

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

from lockstep.common.statemachine.transitions import (
    IGNORED,
    ILLEGAL,
    TransitionTable,
    check_reached,
    table_of,
    targets_in,
)
from lockstep.ps.multi_step import events
from lockstep.ps.multi_step.effects import (
    CompleteSteps,
    LeaveMemory,
    MultiStepEffect,
    ReadBoards,
    RecordSteps,
    ReleaseLock,
    ReportStuck,
    SendWithdrawal,
    TryLocks,
)

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
    ENDING = "taking the steps back"


_IDLE, _RUNNING = frozenset({MultiStepPhase.IDLE}), frozenset({MultiStepPhase.RUNNING})
_ENDING = frozenset({MultiStepPhase.ENDING})
_ANY = _IDLE | _RUNNING | _ENDING

#: For each event, what may follow in the phases IDLE, RUNNING, ENDING.
TRANSITIONS: TransitionTable[MultiStepPhase, events.MultiStepEvent] = table_of(
    MultiStepPhase,
    {
        events.StepsLeased: (_RUNNING, ILLEGAL, ILLEGAL),
        events.BoardsRead: (IGNORED, _ANY, _ENDING | _IDLE),
        events.WorkerAnswered: (_IDLE, _RUNNING | _ENDING, _ENDING),
        events.MemberRemoved: (_IDLE, _RUNNING | _ENDING, _ENDING),
        events.EndRequested: (IGNORED, _ENDING, _ENDING),
        events.LocksTried: (ILLEGAL, ILLEGAL, _ENDING),
        events.MemoryLeft: (ILLEGAL, ILLEGAL, _ENDING | _IDLE),
        events.TimePassed: (IGNORED, _RUNNING, _ENDING),
    },
)


@dataclass
class MultiStepControl:
    """The multi-step lease at hand, as the server sees it; see `TRANSITIONS` for the table that it obeys."""

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
    is_hurried: bool = False
    #: Whether it was ended since a worker was late, or could not go on.
    is_cut: bool = False

    def handle(self, event: events.MultiStepEvent, now: float) -> list[MultiStepEffect]:
        """Handle what happened at `now` seconds; return what is to be done, in order."""
        targets = targets_in(TRANSITIONS, self.phase, event)
        if not targets:
            return []
        effects = self._react(event, now)
        check_reached(targets, event, self.phase)
        return effects

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due, None if only a message can move it."""
        return None if self.phase is MultiStepPhase.IDLE else self.due

    def _react(self, event: events.MultiStepEvent, now: float) -> list[MultiStepEffect]:
        match event:
            case events.StepsLeased():
                return self._begin(event, now)
            case events.BoardsRead(made=made, listed=listed):
                return self._on_boards(made, listed, now)
            case events.WorkerAnswered():
                return self._on_answer(event, now)
            case events.MemberRemoved(rank=rank):
                return self._end(now) if self.phase is MultiStepPhase.RUNNING and rank in self.ranks else []
            case events.EndRequested(is_hurried=is_hurried, is_final=is_final):
                if is_final:
                    self.phase = MultiStepPhase.ENDING
                    return [ReadBoards()]
                self.is_hurried = self.is_hurried or is_hurried
                return self._end(now) if self.phase is MultiStepPhase.RUNNING else self._take_back()
            case events.LocksTried(taken=taken):
                self.locked |= dict.fromkeys(taken, self.number)
                self.out |= set(taken)
                return self._go_on(now)
            case events.MemoryLeft(made=made):
                return self._on_moved(made, now)
            case events.TimePassed():
                return [ReadBoards()] if self.phase is MultiStepPhase.RUNNING else self._take_back()
            case _:
                assert_never(event)

    def _begin(self, event: events.StepsLeased, now: float) -> list[MultiStepEffect]:
        low, high = BETWEEN_S
        self.phase, self.number, self.last, self.ranks = MultiStepPhase.RUNNING, event.number, event.last, event.ranks
        self.recorded, self.is_hurried, self.is_cut = event.first, False, False
        self.out.clear()
        self.answered.clear()
        self.between_s = min(max(low, STEPS_BETWEEN * event.step_s), high)
        self.advanced, self.late_s = now, LATE * event.step_s + LATE_S + self.between_s
        self.due = now + self.between_s
        return []

    def _on_boards(self, made: int, listed: int, now: float) -> list[MultiStepEffect]:
        until = listed if self.phase is MultiStepPhase.RUNNING else made
        effects = list[MultiStepEffect]()
        if until > self.recorded:
            effects.append(RecordSteps(first=self.recorded, last=until))
            self.recorded, self.advanced = until, now
        if self.phase is MultiStepPhase.ENDING or (made == listed == self.last and self._are_out()):
            return [*effects, self._complete()]
        self.due = now + self.between_s
        if now >= self.advanced + self.late_s:
            self.is_cut = True
            effects += self._end(now)
        return effects

    def _complete(self) -> MultiStepEffect:
        self.phase = MultiStepPhase.IDLE
        silent = tuple(rank for rank in self.ranks if rank not in self.answered)
        return CompleteSteps(steps=self.recorded, is_cut=self.is_cut, silent=silent)

    def _are_out(self) -> bool:
        return all(rank in self.out for rank in self.ranks)

    def _on_answer(self, event: events.WorkerAnswered, now: float) -> list[MultiStepEffect]:
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
        """Take the steps back."""
        self.phase, self.patient_until = MultiStepPhase.ENDING, now + MOVE_S
        left = tuple(rank for rank in self.ranks if rank not in self.out)
        return [SendWithdrawal(ranks=left), *self._take_back()]

    def _take_back(self) -> list[MultiStepEffect]:
        return [TryLocks(ranks=tuple(rank for rank in self.ranks if rank not in self.out))]

    def _go_on(self, now: float) -> list[MultiStepEffect]:
        """Complete the multi-step lease if nobody makes anything more of it; else wait, or leave the memory."""
        if self._are_out() or (self.is_hurried and self.out):
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
