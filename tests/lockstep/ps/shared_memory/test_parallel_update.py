"""Who updates which slice: every part is made, and nobody who may still write is ever forgotten. In virtual time."""

from dataclasses import dataclass, field
from itertools import product
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.aggregation.slices import Slice
from lockstep.common.errors import ProtocolError
from lockstep.common.protocol.messages import SliceResult
from lockstep.common.statemachine.machine import ILLEGAL, TimePassed
from lockstep.ps.coordinator.effects import ForgetWorker
from lockstep.ps.shared_memory import parallel_update as effects
from lockstep.ps.shared_memory import parallel_update as events
from lockstep.ps.shared_memory.parallel_update import (
    TRANSITIONS,
    ModeChoice,
    ParallelUpdate,
    ParallelUpdateConfig,
    UpdateMode,
    UpdatePhase,
)

SIZE, UNIT = 100, 10

CONFIG = ParallelUpdateConfig(cores=3, least_values=SIZE, unit=UNIT, withdraw_s=1.0, patience_s=10.0)


@dataclass
class Chosen(ModeChoice):
    """Always the same way, if it is possible."""

    mode: UpdateMode = UpdateMode.TOGETHER

    def choose(self, possible: list[UpdateMode]) -> UpdateMode:  # type: ignore[override]
        return self.mode if self.mode in possible else UpdateMode.ALONE


@dataclass
class Drive:
    """The machine, the workers' memory as they and the server write it, and the time."""

    workers: int = 2
    mode: UpdateMode = UpdateMode.TOGETHER
    config: ParallelUpdateConfig = CONFIG
    now: float = 100.0
    #: How often each value was updated since the memory was last moved.
    made: list[int] = field(default_factory=lambda: [0] * SIZE)
    completed: list[int] = field(default_factory=list)
    leases: dict[int, effects.LeaseSlice] = field(default_factory=dict)
    #: The workers that are in the middle of a slice, and those that we prevent from beginning one.
    inside: set[int] = field(default_factory=set)
    prevented: set[int] = field(default_factory=set)
    has_room: bool = True
    moves: int = 0

    def __post_init__(self) -> None:
        self.state = ParallelUpdate(self.config, SIZE)
        self.state.choice = Chosen(mode=self.mode)
        for rank in range(self.workers):
            self.handle(events.HelperAdmitted(rank=rank))

    def handle(self, event: events.ParallelUpdateEvent) -> None:
        pending = [event]
        while pending:
            for effect in self.state.handle(pending.pop(0), self.now):
                following = self._perform(effect)
                pending += [] if following is None else [following]
            self.state.validate() if not pending else None

    def _perform(self, effect: effects.ParallelUpdateEffect) -> events.ParallelUpdateEvent | None:
        match effect:
            case effects.LeaseSlice():
                self.leases[effect.number] = effect
            case effects.UpdateOwnPart(part=part):
                self._make(part)
                return events.OwnPartUpdated(part=part)
            case effects.WithdrawSlices(ranks=ranks):
                taken = {number for number, rank in ranks.items() if rank not in self.inside}
                self.prevented |= {ranks[number] for number in taken}
                return events.WithdrawalTried(withdrawn=tuple(taken), held=tuple(ranks.keys() - taken))
            case effects.EndWithdrawal(rank=rank):
                self.prevented.remove(rank)
            case effects.MoveMemory():
                if self.has_room:
                    self.moves += 1
                    self.made = [0] * SIZE
                return events.MemoryMoved(is_done=self.has_room)
            case effects.CompleteUpdate(step=step):
                self.completed.append(step)
        return None

    def _make(self, part: Slice) -> None:
        for place in range(part.start, part.stop):
            self.made[place] += 1

    def begin(self, step: int = 0, *, can_share: bool = True) -> None:
        self.made = [0] * SIZE
        self.handle(events.SumsCompleted(step=step, can_share=can_share))

    def answer(self, number: int, *, is_done: bool = True, seconds: float = 0.1) -> None:
        """Let a worker end its slice."""
        lease = self.leases.pop(number)
        self.inside.discard(lease.rank)
        if is_done and number in self.state.loans:
            self._make(lease.part)
        self.handle(SliceResult(number=number, is_done=is_done, seconds=seconds))

    def wait(self, seconds: float) -> None:
        """Let time pass, waking the machine at each of its deadlines."""
        end = self.now + seconds
        while (due := self.state.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.handle(TimePassed())
        self.now = end

    def parts(self) -> list[Slice]:
        return sorted(lease.part for lease in self.leases.values())


#: One event of each kind.
EVENTS: dict[type[events.ParallelUpdateEvent], events.ParallelUpdateEvent] = {
    type(event): event
    for event in (
        events.HelperAdmitted(rank=0),
        events.HelperLeased(rank=0, lease=("train", 0, 1)),
        events.HelperAnswered(rank=0, lease=("train", 0, 1)),
        ForgetWorker(peer=b"", rank=0),
        events.SumsCompleted(step=0, can_share=True),
        events.OwnPartUpdated(part=Slice(0, 1)),
        SliceResult(number=1, is_done=True, seconds=0.0),
        events.WithdrawalTried(withdrawn=(), held=()),
        events.MemoryMoved(is_done=True),
        events.RunInterrupted(),
        TimePassed(),
    )
}


def test_the_table_has_every_phase_and_event() -> None:
    assert set(EVENTS) == set(get_args(events.ParallelUpdateEvent))
    assert set(TRANSITIONS) == set(product(UpdatePhase, get_args(events.ParallelUpdateEvent)))


@pytest.mark.parametrize("key", [key for key, targets in TRANSITIONS.items() if targets is ILLEGAL], ids=str)
def test_what_is_illegal_raises(key: tuple[UpdatePhase, type[events.ParallelUpdateEvent]]) -> None:
    phase, kind = key
    machine = ParallelUpdate(CONFIG, SIZE, phase=phase)
    with pytest.raises(ProtocolError, match=f"{kind.__name__} while {phase.value}"):
        machine.handle(EVENTS[kind], 0.0)


def test_alone_the_server_makes_all_at_once() -> None:
    drive = Drive(mode=UpdateMode.ALONE)
    drive.begin(step=7)
    assert (drive.completed, drive.made, drive.leases) == ([7], [1] * SIZE, {})


def test_together_the_server_makes_the_first_part_and_waits_for_the_rest() -> None:
    drive = Drive()
    drive.begin(step=3)
    assert drive.parts() == [Slice(30, 60), Slice(60, 100)]
    drive.answer(1)
    assert not drive.completed
    drive.answer(2)
    assert (drive.completed, drive.made) == ([3], [1] * SIZE)
    assert drive.state.deadline() is None


def own_values(drive: Drive) -> int:
    """Return how many values the server makes in an update that is under way."""
    return SIZE - sum(len(part) for part in drive.parts())


def test_the_servers_share_grows_while_it_waits_and_shrinks_while_it_does_not() -> None:
    drive = Drive(workers=1, config=ParallelUpdateConfig(cores=2, least_values=SIZE, unit=1))
    shares = []
    for step in range(80):
        drive.begin(step)
        shares.append(own_values(drive))
        drive.now += 1.0 if step < 40 else 0.0
        drive.answer(step + 1)
    assert shares[0] == 50
    assert shares == sorted(shares[:41]) + sorted(shares[41:], reverse=True)
    assert max(shares) == 88
    assert shares[-1] < 50


def test_the_server_always_has_a_part_of_what_is_made_together() -> None:
    drive = Drive(config=ParallelUpdateConfig(cores=3, least_values=SIZE, unit=SIZE))
    drive.begin()
    assert (drive.completed, drive.made, drive.leases) == ([0], [1] * SIZE, {})


def test_workers_alone_make_all_of_it() -> None:
    drive = Drive(workers=5, mode=UpdateMode.WORKERS)
    drive.begin()
    assert drive.parts() == [Slice(0, 30), Slice(30, 60), Slice(60, 100)]
    for number in list(drive.leases):
        drive.answer(number)
    assert (drive.completed, drive.made) == ([0], [1] * SIZE)


@pytest.mark.parametrize(
    ("config", "can_share", "workers"),
    [
        (CONFIG, False, 2),
        (CONFIG, True, 0),
        (ParallelUpdateConfig(cores=1, least_values=1), True, 2),
        (ParallelUpdateConfig(cores=3, least_values=SIZE + 1), True, 2),
    ],
    ids=["sums elsewhere", "nobody", "one core", "too small"],
)
def test_where_nobody_can_help_the_server_makes_all(
    config: ParallelUpdateConfig, can_share: bool, workers: int
) -> None:
    drive = Drive(workers=workers, config=config)
    drive.begin(can_share=can_share)
    assert (drive.completed, drive.leases) == ([0], {})


def test_only_those_help_that_have_answered_what_they_were_leased() -> None:
    drive = Drive(workers=3)
    drive.handle(events.HelperLeased(rank=0, lease=("train", 0, 1)))
    drive.handle(events.HelperLeased(rank=1, lease=("train", 0, 2)))
    drive.handle(events.HelperAnswered(rank=1, lease=("train", 0, 2)))
    # Of another round: what it was leased last has not been answered.
    drive.handle(events.HelperAnswered(rank=0, lease=("evaluate", 0, 1)))
    drive.begin()
    assert sorted(lease.rank for lease in drive.leases.values()) == [1, 2]


def test_those_that_were_fastest_are_chosen_and_those_that_were_not_tried() -> None:
    drive = Drive(workers=3)
    drive.begin()
    assert sorted(lease.rank for lease in drive.leases.values()) == [0, 1]
    drive.answer(1, seconds=5.0)
    drive.answer(2, seconds=0.1)
    drive.begin(step=1)
    assert sorted(lease.rank for lease in drive.leases.values()) == [1, 2]


def test_a_slice_that_was_not_begun_is_withdrawn_and_made_here() -> None:
    drive = Drive()
    drive.begin()
    drive.answer(1)
    drive.wait(0.9)
    assert not drive.completed
    drive.wait(0.2)
    assert (drive.completed, drive.made, drive.prevented) == ([0], [1] * SIZE, {1})
    # It is prevented until it has answered, and is asked nothing meanwhile.
    drive.begin(step=1)
    assert [lease.rank for number, lease in drive.leases.items() if number > 2] == [0]
    drive.answer(3)
    drive.answer(2, is_done=False)
    assert (drive.prevented, drive.completed) == (set(), [0, 1])
    drive.begin(step=2)
    assert len(drive.leases) == 2


def test_one_in_the_middle_of_its_slice_is_waited_for() -> None:
    drive = Drive()
    drive.begin()
    drive.answer(1)
    drive.inside.add(1)
    drive.wait(9.5)
    assert not drive.completed
    drive.answer(2)
    assert (drive.completed, drive.made, drive.moves) == ([0], [1] * SIZE, 0)


def test_one_that_stands_still_in_its_slice_is_left_alone_with_the_memory() -> None:
    drive = Drive()
    drive.begin()
    drive.answer(1)
    drive.inside.add(1)
    drive.wait(12.0)
    assert (drive.completed, drive.made, drive.moves) == ([0], [1] * SIZE, 1)
    # What it reports later is of no use, and it may help again.
    drive.answer(2)
    assert drive.completed == [0]
    drive.begin(step=1)
    assert sorted(lease.rank for lease in drive.leases.values()) == [0, 1]


def test_without_room_for_other_memory_it_is_waited_for() -> None:
    drive = Drive(has_room=False)
    drive.begin()
    drive.answer(1)
    drive.inside.add(1)
    drive.wait(100.0)
    assert not drive.completed
    drive.answer(2)
    assert (drive.completed, drive.made) == ([0], [1] * SIZE)


def test_the_slice_of_one_that_died_is_made_here_at_once() -> None:
    drive = Drive()
    drive.begin()
    drive.answer(1)
    drive.handle(ForgetWorker(peer=b"", rank=1))
    assert (drive.completed, drive.made) == ([0], [1] * SIZE)
    # Its process may be there all the same, with the slice before it.
    assert drive.prevented == {1}


def test_one_that_is_removed_in_the_middle_of_its_slice_may_still_write() -> None:
    drive = Drive()
    drive.begin()
    drive.answer(1)
    drive.inside.add(1)
    drive.handle(ForgetWorker(peer=b"", rank=1))
    assert not drive.completed
    drive.wait(12.0)
    assert (drive.completed, drive.moves) == ([0], 1)


def test_a_worker_that_cannot_make_its_slice_leaves_it_to_the_server() -> None:
    drive = Drive()
    drive.begin()
    drive.answer(1)
    drive.answer(2, is_done=False)
    assert (drive.completed, drive.made, drive.prevented) == ([0], [1] * SIZE, set())


def test_one_that_joins_within_an_update_helps_with_the_next() -> None:
    drive = Drive(workers=1)
    drive.begin()
    drive.handle(events.HelperAdmitted(rank=1))
    drive.answer(1)
    drive.begin(step=1)
    assert sorted(lease.rank for lease in drive.leases.values()) == [0, 1]


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_run_that_is_about_to_end_waits_for_nobody(is_inside: bool) -> None:
    drive = Drive()
    drive.begin()
    drive.inside |= {1} if is_inside else set()
    drive.handle(events.RunInterrupted())
    assert (drive.completed, drive.made, drive.moves) == ([0], [1] * SIZE, int(is_inside))


def test_between_two_updates_there_is_nothing_to_make() -> None:
    drive = Drive()
    drive.handle(events.RunInterrupted())
    assert drive.completed == []


ACTIONS = st.sampled_from(["answer", "refuse", "enter", "remove", "admit", "wait", "long", "full", "room"])


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.sampled_from(UpdateMode), st.lists(st.tuples(ACTIONS, st.integers(0, 5)), max_size=60))
def test_whatever_happens_every_part_is_made_and_nobody_can_write_later(
    mode: UpdateMode, story: list[tuple[str, int]]
) -> None:
    drive = Drive(workers=3, mode=mode)
    drive.begin()
    for action, number in story:
        step = len(drive.completed)
        _act(drive, action, number)
        if len(drive.completed) == step:
            continue
        assert min(drive.made) >= 1
        # Nobody whose slice is of this memory, and who has not answered, is inside it or may get there.
        current = {one.rank for one in drive.leases.values()}
        assert drive.moves or not drive.inside & current
        assert drive.moves or current <= drive.prevented
        drive.moves = 0
        drive.leases = {n: one for n, one in drive.leases.items() if one.rank in drive.prevented}
        drive.inside.clear()
        drive.begin(step=step + 1)
    assert drive.completed == sorted(drive.completed)


def _act(drive: Drive, action: str, place: int) -> None:
    numbers = sorted(drive.leases)
    number = numbers[place % len(numbers)] if numbers else None
    match action:
        case "answer" | "refuse" if number is not None:
            rank = drive.leases[number].rank
            is_done = action == "answer" and rank not in drive.prevented
            drive.answer(number, is_done=is_done)
        case "enter" if number is not None and drive.leases[number].rank not in drive.prevented:
            drive.inside.add(drive.leases[number].rank)
        case "remove":
            drive.handle(ForgetWorker(peer=b"", rank=place))
        case "admit":
            drive.handle(events.HelperAdmitted(rank=10 + len(drive.state.helpers) + 100 * place))
        case "wait":
            drive.wait(1.1)
        case "long":
            drive.wait(15.0)
        case "full" | "room":
            drive.has_room = action == "room"
        case _:
            pass
