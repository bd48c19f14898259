"""When steps that a team makes by itself count, and when the server ends them. In virtual time."""

from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.protocol.messages import MultiStepLease
from lockstep.ps.coordinator.parts.team_lease import (
    BETWEEN_S,
    LATE,
    LATE_S,
    MOVE_S,
    TeamLease,
)
from tests.lockstep.ps.coordinator.parts.lease_memory import SLICES, MemoryByHand

FIRST, LAST, STEP_S = 10, 20, 0.01
LEASE = MultiStepLease(number=1, incarnation="", first=FIRST, last=LAST, reads=0)


class Ended(NamedTuple):
    """The end of a lease, after so many steps of the run."""

    steps: int
    is_cut: bool = False
    is_silent: bool = True


@dataclass
class Drive:
    """A lease, the memory in which a team makes its steps, and the time."""

    kind: type[TeamLease] = TeamLease
    step_s: float = STEP_S
    now: float = 100.0
    memory: MemoryByHand = field(default_factory=lambda: MemoryByHand(LEASE, unread=1, has_room=True))
    recorded: list[int] = field(default_factory=list)
    withdrawals: int = 0

    def __post_init__(self) -> None:
        self.of_team = self.kind(
            memory=self.memory,
            count=lambda made: self.recorded.append(made.step),
            rank=2,
            step_s=self.step_s,
            advanced=self.now,
        )

    @property
    def completed(self) -> list[Ended]:
        return [Ended(steps, self.of_team.is_cut, not self.of_team.has_answered) for steps in self.memory.taken_over]

    def handle(self, is_withdrawn: bool) -> None:
        self.withdrawals += is_withdrawn
        assert self.of_team.is_over == bool(self.completed)
        if self.completed:
            assert not self.memory.may_begin, "it ended while updates may begin"
            assert not self.memory.inside, "it ended while a process may write"

    def wait(self, seconds: float) -> None:
        """Let time pass, waking the lease at each of its deadlines."""
        end = self.now + seconds
        while not self.completed and self.of_team.due <= end:
            self.now = max(self.now, self.of_team.due)
            self.handle(self.of_team.on_time(self.now))
        self.now = end

    def withdraw(self) -> None:
        team = self.of_team
        self.handle(team.on_time(self.now) if team.is_ending else team.withdraw_at(self.now))

    def answer(self) -> None:
        self.of_team.has_answered = True
        self.handle(self.of_team.on_time(self.now))


def within(*inside: int, has_room: bool = True) -> Drive:
    """Return a lease of a team whose processes are in the middle of these slices."""
    return Drive(memory=MemoryByHand(LEASE, unread=1, has_room=has_room, inside={*inside}))


def test_steps_are_recorded_now_and_then_but_for_the_newest_until_the_lease_ends_with_the_last() -> None:
    drive = Drive()
    drive.memory.made += 5
    assert drive.recorded == []
    drive.wait(BETWEEN_S[1])
    assert drive.recorded == [10, 11, 12, 13]
    drive.memory.made = LAST
    drive.wait(BETWEEN_S[1])
    assert drive.recorded == list(range(FIRST, LAST))
    assert drive.completed == [Ended(steps=LAST)]
    assert drive.withdrawals == 0


@pytest.mark.parametrize("made", [FIRST + 1, LAST])
def test_an_answer_ends_it_at_once_and_counts_as_cut_before_the_last_step(made: int) -> None:
    drive = Drive()
    drive.memory.made = made
    drive.answer()
    assert drive.completed == [Ended(steps=made, is_cut=made < LAST, is_silent=False)]
    assert drive.withdrawals == 0


def test_the_lease_ends_with_what_is_made_if_no_step_is_made_for_long() -> None:
    drive = Drive()
    drive.memory.made += 2
    drive.wait(LATE_S)
    assert drive.completed == []
    drive.wait(BETWEEN_S[1] * 3)
    assert drive.withdrawals == 1
    assert drive.recorded == [10, 11]
    assert drive.completed == [Ended(steps=12, is_cut=True)]


def test_slow_steps_are_not_late() -> None:
    step_s = 3.0
    drive = Drive(step_s=step_s)
    for _ in range(5):
        drive.wait(0.9 * LATE * step_s)
        drive.memory.made += 1
    assert drive.completed == []
    drive.wait(1.1 * LATE * step_s)
    assert drive.completed == [Ended(steps=FIRST + 5, is_cut=True)]


def test_a_process_in_the_middle_of_a_slice_is_waited_for() -> None:
    drive = within(1)
    drive.withdraw()
    assert (drive.completed, drive.memory.locked) == ([], {0, 2})
    drive.memory.made += 1
    drive.memory.inside.clear()
    drive.wait(0.01)
    assert drive.recorded == [FIRST]
    assert drive.completed == [Ended(steps=FIRST + 1)]


def test_memory_is_left_to_a_process_that_stands_still_within_a_slice() -> None:
    drive = within(1)
    drive.withdraw()
    drive.wait(MOVE_S * 0.9)
    assert (drive.memory.moves, drive.completed) == (0, [])
    drive.wait(MOVE_S * 0.2)
    assert (drive.memory.moves, drive.completed) == (1, [Ended(steps=FIRST)])


def test_without_room_it_waits_for_longer() -> None:
    drive = within(1, has_room=False)
    drive.withdraw()
    assert not drive.of_team.is_stuck
    drive.wait(3.5 * MOVE_S)
    assert (drive.memory.moves, drive.of_team.is_stuck) == (3, True)
    drive.memory.inside.clear()
    drive.wait(0.01)
    assert drive.completed == [Ended(steps=FIRST)]


def test_an_interrupted_run_waits_for_no_process() -> None:
    drive = Drive()
    drive.memory.made += 3
    drive.memory.inside.add(1)
    drive.withdraw()
    drive.of_team.interrupt()
    assert drive.recorded == list(range(FIRST, FIRST + 3))
    assert (drive.completed, drive.memory.may_begin, drive.memory.locked) == ([Ended(FIRST + 3)], False, set())


def test_an_answer_while_it_ends_is_remembered() -> None:
    drive = within(0)
    drive.withdraw()
    drive.answer()
    drive.memory.inside.clear()
    drive.wait(0.01)
    assert drive.completed == [Ended(steps=FIRST, is_silent=False)]


def whatever_happens(drive: Drive, data: st.DataObject) -> None:
    """Let anything happen to a lease: each step is recorded once, and it ends while nobody can write."""
    for _ in range(data.draw(st.integers(0, 30))):
        if drive.completed:
            break
        slice_ = data.draw(st.integers(0, SLICES - 1))
        match data.draw(st.sampled_from(["make", "in", "out", "wait", "end", "answer"])):
            case "make" if drive.memory.may_begin and drive.memory.made < LAST:
                drive.memory.made += 1
            case "in" if drive.memory.may_begin and slice_ not in drive.memory.locked:
                drive.memory.inside.add(slice_)
            case "out":
                drive.memory.inside.discard(slice_)
            case "wait":
                drive.wait(data.draw(st.floats(0.0, 0.1)))
            case "end":
                drive.withdraw()
            case "answer":
                drive.answer()
    drive.memory.inside.clear()
    if not drive.completed:
        drive.withdraw()
    assert len(drive.completed) == 1
    assert drive.recorded == list(range(FIRST, drive.completed[0].steps))
    assert drive.completed[0].steps == drive.memory.made, "steps that were made are lost"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_happens_each_step_is_recorded_once_and_the_run_continues(data: st.DataObject) -> None:
    whatever_happens(Drive(), data)


# Planted bugs


class Grasping(TeamLease):
    """Ends although a process may be writing."""

    def _end(self, now: float) -> None:
        self.memory.end(waits=False)
        self._complete(self.memory.read()[0])


class Forgetful(TeamLease):
    """Does not record what it had not before the lease was to end."""

    def _complete(self, made: int) -> None:
        super()._complete(self.recorded)


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Grasping, "it ended while a process may write"), (Forgetful, "steps that were made are lost")],
)
def test_planted_bugs_are_found(kind: type[TeamLease], message: str) -> None:
    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(st.data())
    def explore(data: st.DataObject) -> None:
        whatever_happens(Drive(kind), data)

    with pytest.raises(AssertionError, match=message):
        explore()
