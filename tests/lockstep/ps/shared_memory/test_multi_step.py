"""When steps that workers make by themselves count, and when the server withdraws them. In virtual time."""

from collections import deque
from dataclasses import dataclass, field
from itertools import product
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.errors import ProtocolError
from lockstep.common.protocol.messages import steps_key
from lockstep.common.statemachine.machine import ILLEGAL, TimePassed
from lockstep.ps.coordinator.effects import ForgetWorker, LeaseSteps
from lockstep.ps.coordinator.events import MultiStepLeaseEnded
from lockstep.ps.shared_memory import multi_step as effects
from lockstep.ps.shared_memory import multi_step as events
from lockstep.ps.shared_memory.multi_step import (
    BETWEEN_S,
    LATE_S,
    MOVE_S,
    TRANSITIONS,
    MultiStepControl,
    MultiStepPhase,
)

FIRST, LAST, STEP_S = 10, 20, 0.01

LEASE = LeaseSteps(first=FIRST, last=LAST, ranks=(0, 1), step_s=STEP_S, patience_s=0.01)


def ended(*, steps: int, is_cut: bool, silent: tuple[int, ...], number: int = 1) -> MultiStepLeaseEnded:
    return MultiStepLeaseEnded(lease=steps_key(number), steps=steps, is_cut=is_cut, silent=silent)


@dataclass
class Drive:
    """The machine, two workers as they show how far they are, and the time."""

    now: float = 100.0
    #: By rank, the steps whose slices it has made and entered; in the middle of a slice it has its lock.
    made: dict[int, int] = field(default_factory=lambda: {0: FIRST, 1: FIRST})
    entered: dict[int, int] = field(default_factory=lambda: {0: FIRST, 1: FIRST})
    inside: set[int] = field(default_factory=set)
    has_room: bool = True
    recorded: list[int] = field(default_factory=list)
    completed: list[MultiStepLeaseEnded] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    moves: int = 0
    number: int = 0
    state: MultiStepControl = field(default_factory=MultiStepControl)

    def begin(self) -> "Drive":
        self.number += 1
        self.handle(LEASE)
        return self

    def handle(self, event: events.MultiStepEvent) -> None:
        pending = deque([event])
        while pending:
            for effect in self.state.handle(pending.popleft(), self.now):
                following = self._perform(effect)
                pending += [] if following is None else [following]
        self.state.validate()

    def _perform(self, effect: effects.MultiStepEffect) -> events.MultiStepEvent | None:
        match effect:
            case effects.ReadBoards():
                return events.BoardsRead(made=min(self.made.values()), entered=min(self.entered.values()))
            case effects.RecordSteps(first=first, last=last):
                self.recorded += range(first, last)
            case effects.SendWithdrawal(ranks=ranks):
                self.cancelled += ranks
            case effects.TryLocks(ranks=ranks):
                return events.LocksTried(taken=tuple(rank for rank in ranks if rank not in self.inside))
            case effects.ReleaseLock(rank=rank):
                self.released.append(rank)
            case effects.LeaveMemory():
                self.moves += 1
                return events.MemoryLeft(made=min(self.made.values()) if self.has_room else None)
            case MultiStepLeaseEnded():
                self.completed.append(effect)
        return None

    def advance(self, steps: int, ranks: tuple[int, ...] = (0, 1)) -> None:
        """Let workers make and enter steps."""
        for rank in ranks:
            self.made[rank] += steps
            self.entered[rank] += steps

    def wait(self, seconds: float) -> None:
        """Let time pass, waking the machine at each of its deadlines."""
        end = self.now + seconds
        while (due := self.state.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.handle(TimePassed())
        self.now = end

    def answer(self, rank: int) -> None:
        self.handle(events.WorkerAnswered(number=self.number, rank=rank, steps=self.made[rank]))


#: One event of each kind.
EVENTS: dict[type[events.MultiStepEvent], events.MultiStepEvent] = {
    type(event): event
    for event in (
        LEASE,
        events.BoardsRead(made=FIRST, entered=FIRST),
        events.WorkerAnswered(number=1, rank=0, steps=LAST),
        ForgetWorker(peer=b"", rank=0),
        events.EndRequested(),
        events.LocksTried(taken=()),
        events.MemoryLeft(made=None),
        TimePassed(),
    )
}


def test_the_table_has_every_phase_and_event() -> None:
    assert set(EVENTS) == set(get_args(events.MultiStepEvent))
    assert set(TRANSITIONS) == set(product(MultiStepPhase, get_args(events.MultiStepEvent)))


@pytest.mark.parametrize("key", [key for key, targets in TRANSITIONS.items() if targets is ILLEGAL], ids=str)
def test_what_is_illegal_raises(key: tuple[MultiStepPhase, type[events.MultiStepEvent]]) -> None:
    phase, kind = key
    with pytest.raises(ProtocolError, match=f"{kind.__name__} while {phase.value}"):
        MultiStepControl(phase=phase).handle(EVENTS[kind], 0.0)


def test_steps_are_recorded_now_and_then_and_a_multi_step_lease_ends_when_both_are_out() -> None:
    drive = Drive().begin()
    drive.advance(4)
    assert drive.recorded == []
    drive.wait(BETWEEN_S[1])
    assert drive.recorded == [10, 11, 12, 13]
    drive.advance(6)
    drive.answer(0)
    assert not drive.completed
    drive.answer(1)
    assert drive.recorded == list(range(FIRST, LAST))
    assert drive.completed == [ended(steps=LAST, is_cut=False, silent=())]
    assert not drive.cancelled
    assert drive.state.deadline() is None


def test_only_what_the_slower_worker_has_listed_is_recorded_while_they_go_on() -> None:
    drive = Drive().begin()
    drive.advance(3, (0,))
    drive.made[1] += 3
    drive.entered[1] += 2
    drive.wait(BETWEEN_S[1])
    assert drive.recorded == [10, 11]


def test_a_late_step_ends_the_multi_step_lease_after_what_both_have_made() -> None:
    drive = Drive().begin()
    drive.advance(2)
    drive.wait(BETWEEN_S[1])
    drive.advance(1, (0,))
    drive.wait(2 * STEP_S + LATE_S + 3 * BETWEEN_S[1])
    assert drive.cancelled == [0, 1]
    assert drive.recorded == [10, 11]
    assert drive.completed == [ended(steps=12, is_cut=True, silent=(0, 1))]
    # Their locks are kept until they answer.
    assert set(drive.state.locked) == {0, 1}
    drive.answer(1)
    drive.answer(0)
    assert (drive.released, drive.state.locked) == ([1, 0], {})


def test_a_worker_that_leaves_early_or_is_gone_ends_it() -> None:
    drive = Drive().begin()
    drive.advance(1)
    drive.answer(0)
    assert drive.completed == [ended(steps=11, is_cut=True, silent=(1,))]
    drive = Drive().begin()
    drive.handle(ForgetWorker(peer=b"", rank=1))
    assert drive.completed == [ended(steps=FIRST, is_cut=False, silent=(0, 1))]


def test_somebody_else_that_is_gone_does_not() -> None:
    drive = Drive().begin()
    drive.handle(ForgetWorker(peer=b"", rank=7))
    assert drive.state.phase is MultiStepPhase.RUNNING


def test_a_worker_in_the_middle_of_a_slice_is_waited_for() -> None:
    drive = Drive(inside={1}).begin()
    drive.handle(events.EndRequested())
    assert not drive.completed
    drive.made[1] += 1
    drive.made[0] += 1
    drive.inside.clear()
    drive.wait(0.01)
    # Nobody has entered its figures, and made all the same.
    assert drive.recorded == [FIRST]
    assert drive.completed == [ended(steps=FIRST + 1, is_cut=False, silent=(0, 1))]


def test_memory_is_left_to_a_worker_that_stands_still_within_its_slice() -> None:
    drive = Drive(inside={1}).begin()
    drive.handle(events.EndRequested())
    drive.wait(MOVE_S * 0.9)
    assert (drive.moves, drive.completed) == (0, [])
    drive.wait(MOVE_S * 0.2)
    assert (drive.moves, len(drive.completed)) == (1, 1)


def test_without_room_it_waits_for_longer() -> None:
    drive = Drive(inside={1}, has_room=False).begin()
    drive.handle(events.EndRequested())
    drive.wait(3.5 * MOVE_S)
    assert drive.moves == 3
    drive.inside.clear()
    drive.wait(0.01)
    assert len(drive.completed) == 1


def test_nothing_is_copied_while_both_may_write() -> None:
    drive = Drive(inside={0, 1}).begin()
    drive.handle(events.EndRequested())
    drive.wait(10 * MOVE_S)
    assert (drive.moves, drive.completed) == (0, [])


def test_in_an_interrupted_run_one_worker_that_is_out_is_enough() -> None:
    drive = Drive(inside={1}).begin()
    drive.handle(events.EndRequested(is_interrupted=True))
    assert drive.completed == [ended(steps=FIRST, is_cut=False, silent=(0, 1))]


def test_an_answer_to_an_earlier_multi_step_lease_releases_its_lock_and_nothing_else() -> None:
    drive = Drive().begin()
    drive.handle(events.EndRequested())
    drive.begin()
    drive.handle(events.WorkerAnswered(number=1, rank=0, steps=FIRST))
    assert drive.released == [0]
    assert drive.state.phase is MultiStepPhase.RUNNING
    assert not drive.state.out


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_happens_each_step_is_recorded_once_and_the_run_goes_on(data: st.DataObject) -> None:
    drive = Drive().begin()
    for _ in range(data.draw(st.integers(0, 30))):
        rank = data.draw(st.integers(0, 1))
        match data.draw(st.sampled_from(["make", "list", "in", "out", "wait", "end", "gone", "answer"])):
            case "make" if drive.made[rank] <= drive.made[1 - rank] and drive.made[rank] < LAST:
                drive.made[rank] += 1
                drive.inside.discard(rank)
            case "list":
                drive.entered[rank] = min(drive.made.values())
            case "in" if rank not in drive.state.out:
                drive.inside.add(rank)
            case "out":
                drive.inside.discard(rank)
            case "wait":
                drive.wait(data.draw(st.floats(0.0, 0.1)))
            case "end":
                drive.handle(events.EndRequested())
            case "gone":
                drive.handle(ForgetWorker(peer=b"", rank=rank))
            case "answer" if rank not in drive.inside:
                drive.answer(rank)
    drive.inside.clear()
    drive.handle(events.EndRequested())
    drive.wait(1.0)
    assert len(drive.completed) == 1
    assert drive.recorded == list(range(FIRST, drive.completed[0].steps))
    assert drive.state.deadline() is None
