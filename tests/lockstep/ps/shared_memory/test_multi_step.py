"""When steps that a team makes by itself count, and when the server ends them. In virtual time."""

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
from lockstep.ps.coordinator.effects import ForgetWorker
from lockstep.ps.coordinator.events import MultiStepLeaseEnded
from lockstep.ps.shared_memory import multi_step as effects
from lockstep.ps.shared_memory import multi_step as events
from lockstep.ps.shared_memory.multi_step import (
    BETWEEN_S,
    LATE,
    LATE_S,
    MOVE_S,
    REPORT_S,
    TRANSITIONS,
    MultiStepControl,
    MultiStepPhase,
)

FIRST, LAST, STEP_S, SLICES = 10, 20, 0.01, 3

LEASE = events.StepsLeased(rank=2, first=FIRST, last=LAST, step_s=STEP_S, slices=SLICES)


def ended(*, steps: int, is_cut: bool = False, is_silent: bool = True, number: int = 1) -> MultiStepLeaseEnded:
    return MultiStepLeaseEnded(lease=steps_key(number), steps=steps, is_cut=is_cut, is_silent=is_silent)


@dataclass
class Drive:
    """The machine, a team as it shows how far it is, and the time."""

    now: float = 100.0
    made: int = FIRST
    #: The slices in the middle of which one of its processes is, and so has the lock.
    inside: set[int] = field(default_factory=set)
    has_room: bool = True
    #: The number of the lease whose updates may be made, and the slices whose locks the server has.
    number: int = 0
    locked: set[int] = field(default_factory=set)
    recorded: list[int] = field(default_factory=list)
    completed: list[MultiStepLeaseEnded] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    moves: int = 0
    reports: int = 0
    state: MultiStepControl = field(default_factory=MultiStepControl)

    def begin(self) -> "Drive":
        assert not self.inside, "updates are begun while somebody may write"
        self.handle(LEASE)
        self.number = self.state.number
        return self

    def begin_inside(self, *slices: int) -> "Drive":
        """Begin, and let processes get into the middle of these slices."""
        self.begin().inside.update(slices)
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
            case effects.ReadMarks():
                return events.MarksRead(made=self.made, entered=max(FIRST, self.made - 1))
            case effects.RecordSteps(first=first, last=last):
                self.recorded += range(first, last)
            case effects.SendWithdrawal(rank=rank):
                self.sent.append(rank)
            case effects.TryLocks(slices=slices):
                taken = tuple(slice_ for slice_ in slices if slice_ not in self.inside)
                self.locked.update(taken)
                return events.LocksTried(taken=taken)
            case effects.EndUpdates():
                self.number = 0
            case effects.ReleaseLocks(slices=slices):
                assert not self.number, "locks are released while updates may be made"
                self.locked.difference_update(slices)
            case effects.LeaveMemory():
                self.moves += 1
                return events.MemoryLeft(made=self._left() if self.has_room else None)
            case effects.ReportStuck():
                self.reports += 1
            case MultiStepLeaseEnded():
                assert not self.inside, "it ended while somebody may write"
                assert (self.number, self.locked) == (0, set()), "something is left of it"
                self.completed.append(effect)
        return None

    def _left(self) -> int:
        self.number = 0
        self.locked.clear()
        self.inside.clear()
        return self.made

    def wait(self, seconds: float) -> None:
        """Let time pass, waking the machine at each of its deadlines."""
        end = self.now + seconds
        while (due := self.state.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.handle(TimePassed())
        self.now = end

    def answer(self) -> None:
        self.handle(events.HolderAnswered(number=self.state.number))


#: One event of each kind.
EVENTS: dict[type[events.MultiStepEvent], events.MultiStepEvent] = {
    type(event): event
    for event in (
        LEASE,
        events.MarksRead(made=FIRST, entered=FIRST),
        events.HolderAnswered(number=1),
        ForgetWorker(peer=b"", rank=2),
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


def test_steps_are_recorded_now_and_then_but_for_the_newest_until_the_lease_ends_with_the_last() -> None:
    drive = Drive().begin()
    drive.made += 5
    assert drive.recorded == []
    drive.wait(BETWEEN_S[1])
    assert drive.recorded == [10, 11, 12, 13]
    drive.made = LAST
    drive.wait(BETWEEN_S[1])
    assert drive.recorded == list(range(FIRST, LAST))
    assert drive.completed == [ended(steps=LAST)]
    assert (drive.sent, drive.state.deadline()) == ([], None)


def test_an_answer_after_the_last_step_ends_it_at_once() -> None:
    drive = Drive().begin()
    drive.made = LAST
    drive.answer()
    assert drive.completed == [ended(steps=LAST, is_silent=False)]
    assert drive.sent == []


def test_the_lease_ends_with_what_is_made_if_no_step_is_made_for_long() -> None:
    drive = Drive().begin()
    drive.made += 2
    drive.wait(LATE_S)
    assert drive.completed == []
    drive.wait(BETWEEN_S[1] * 3)
    assert drive.sent == [2]
    assert drive.recorded == [10, 11]
    assert drive.completed == [ended(steps=12, is_cut=True)]


def test_slow_steps_are_not_late() -> None:
    drive, step_s = Drive(), 3.0
    drive.handle(events.StepsLeased(rank=2, first=FIRST, last=LAST, step_s=step_s, slices=SLICES))
    for _ in range(5):
        drive.wait(0.9 * LATE * step_s)
        drive.made += 1
    assert drive.completed == []
    drive.wait(1.1 * LATE * step_s)
    assert drive.completed == [ended(steps=FIRST + 5, is_cut=True)]


def test_an_answer_before_the_last_step_ends_it_and_counts_as_cut() -> None:
    drive = Drive().begin()
    drive.made += 1
    drive.answer()
    assert drive.completed == [ended(steps=11, is_cut=True, is_silent=False)]
    assert drive.sent == []


def test_a_team_that_is_gone_ends_it_and_somebody_else_does_not() -> None:
    drive = Drive().begin()
    drive.handle(ForgetWorker(peer=b"", rank=7))
    assert drive.state.phase is MultiStepPhase.RUNNING
    drive.handle(ForgetWorker(peer=b"", rank=2))
    assert drive.completed == [ended(steps=FIRST)]


def test_a_process_in_the_middle_of_a_slice_is_waited_for() -> None:
    drive = Drive().begin_inside(1)
    drive.handle(events.EndRequested())
    assert (drive.completed, drive.locked) == ([], {0, 2})
    drive.made += 1
    drive.inside.clear()
    drive.wait(0.01)
    assert drive.recorded == [FIRST]
    assert drive.completed == [ended(steps=FIRST + 1)]


def test_memory_is_left_to_a_process_that_stands_still_within_a_slice() -> None:
    drive = Drive().begin_inside(1)
    drive.handle(events.EndRequested())
    drive.wait(MOVE_S * 0.9)
    assert (drive.moves, drive.completed) == (0, [])
    drive.wait(MOVE_S * 0.2)
    assert (drive.moves, drive.completed) == (1, [ended(steps=FIRST)])


def test_without_room_it_waits_for_longer_and_says_so_now_and_then() -> None:
    drive = Drive(has_room=False).begin_inside(1)
    drive.handle(events.EndRequested())
    drive.wait(3.5 * MOVE_S)
    assert (drive.moves, drive.reports) == (3, 1)
    drive.wait(REPORT_S)
    assert drive.reports == 2
    drive.inside.clear()
    drive.wait(0.01)
    assert drive.completed == [ended(steps=FIRST)]


def test_an_interrupted_run_waits_for_nobody() -> None:
    drive = Drive().begin()
    drive.made += 3
    drive.inside.add(1)
    drive.handle(events.EndRequested())
    found = drive.state.handle(events.EndRequested(is_interrupted=True), drive.now)
    assert found == [effects.EndUpdates(), effects.ReadMarks()]
    *recorded, over = drive.state.handle(events.MarksRead(made=13, entered=12), drive.now)
    assert recorded == [effects.RecordSteps(first=10, last=13), effects.ReleaseLocks(slices=(0, 2))]
    assert over == ended(steps=13)


def test_an_answer_to_an_earlier_multi_step_lease_changes_nothing() -> None:
    drive = Drive().begin()
    drive.handle(events.EndRequested())
    drive.begin()
    drive.handle(events.HolderAnswered(number=1))
    assert (drive.state.phase, drive.state.has_answered) == (MultiStepPhase.RUNNING, False)


def test_an_answer_while_it_ends_is_remembered() -> None:
    drive = Drive().begin_inside(0)
    drive.handle(events.EndRequested())
    drive.answer()
    drive.inside.clear()
    drive.wait(0.01)
    assert drive.completed == [ended(steps=FIRST, is_silent=False)]


def whatever_happens(drive: Drive, data: st.DataObject) -> None:
    """Let anything happen to a lease: each step is recorded once, and it ends while nobody can write."""
    drive.begin()
    for _ in range(data.draw(st.integers(0, 30))):
        slice_ = data.draw(st.integers(0, SLICES - 1))
        match data.draw(st.sampled_from(["make", "in", "out", "wait", "end", "gone", "answer"])):
            case "make" if drive.number and drive.made < LAST:
                drive.made += 1
            case "in" if drive.number and slice_ not in drive.locked:
                drive.inside.add(slice_)
            case "out":
                drive.inside.discard(slice_)
            case "wait":
                drive.wait(data.draw(st.floats(0.0, 0.1)))
            case "end":
                drive.handle(events.EndRequested())
            case "gone":
                drive.handle(ForgetWorker(peer=b"", rank=2))
            case "answer":
                drive.answer()
    drive.inside.clear()
    drive.handle(events.EndRequested())
    drive.wait(1.0)
    assert len(drive.completed) == 1
    assert drive.recorded == list(range(FIRST, drive.completed[0].steps))
    assert drive.completed[0].steps == drive.made, "steps that were made are lost"
    assert drive.state.deadline() is None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_happens_each_step_is_recorded_once_and_the_run_continues(data: st.DataObject) -> None:
    whatever_happens(Drive(), data)


# Planted bugs


class Grasping(MultiStepControl):
    """Ends a lease without the locks of all slices."""

    def _on_locks(self, taken: tuple[int, ...], now: float) -> list[effects.MultiStepEffect]:
        self.held.update(taken)
        return [effects.EndUpdates(), effects.ReadMarks()]


class Hasty(MultiStepControl):
    """Releases the locks before the lease is marked as ended."""

    def _on_locks(self, taken: tuple[int, ...], now: float) -> list[effects.MultiStepEffect]:
        *first, last = super()._on_locks(taken, now) or [effects.ReadMarks()]
        released = effects.ReleaseLocks(slices=tuple(self.held))
        self.held.clear()
        return [released, *first, last]


class Forgetful(MultiStepControl):
    """Does not record what it had not before the lease was to end."""

    def _complete(self, made: int) -> list[effects.MultiStepEffect]:
        return super()._complete(self.recorded)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Grasping, "it ended while somebody may write"),
        (Hasty, "locks are released while updates may be made"),
        (Forgetful, "steps that were made are lost"),
    ],
)
def test_planted_bugs_are_found(kind: type[MultiStepControl], message: str) -> None:
    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(st.data())
    def explore(data: st.DataObject) -> None:
        whatever_happens(Drive(state=kind()), data)

    with pytest.raises(AssertionError, match=message):
        explore()
