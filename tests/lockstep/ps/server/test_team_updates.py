"""Multi-step leases in real memory, with a team by hand: what counts, who may write."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.aggregation.slices import slices_for
from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import SharingError
from lockstep.common.job.tally import Tally, pack_losses
from lockstep.common.protocol.messages import MultiStepLease
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.team_memory import (
    ENTRIES,
    WEIGHTS,
    TeamShape,
    UpdateMarks,
    file_of,
    lock_file,
    update_file,
    weights_shape,
    write_tally,
)
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.coordinator.parts.team_lease import (
    BETWEEN_S,
    MOVE_S,
    PartMade,
    StepMade,
    StepsRefusal,
    TeamLease,
)
from lockstep.ps.server.shared_memory import ServerSharedMemory, share
from lockstep.ps.server.team_updates import TeamUpdates, open_updates
from lockstep.ps.setup import open_run
from tests.simulation.small import digits, job_of

#: Twenty steps of three micro-batches each, of which a team of five processes is to make these.
JOB = job_of(global_batch=3, micro_batches=3, steps=13, momentum=0.9, model="mlp")
ASKED = MultiStepLease(number=1, incarnation="life-4", first=3, last=12, reads=0)
NEXT = replace(ASKED, number=2, first=4)
PROCESSES, RANK = 5, 4


@dataclass
class FakeTeam:
    """A team in the memory of the server, made when it gets a lease, as its processes map it then."""

    sharing: ServerSharedMemory
    shape: TeamShape
    lease: MultiStepLease

    def __post_init__(self) -> None:
        folder = self.sharing.folder
        segment = folder.attach(update_file(RANK), file_of(self.shape.of_update()), is_writable=True)
        self.marks = UpdateMarks.of(segment, self.shape)
        self.slices = slices_for(self.shape.size, self.marks.slices)
        self.weights = folder.attach(WEIGHTS, weights_shape(self.shape.size), is_writable=True).vectors
        self.locks = [folder.lock_of(lock_file(slice_)) for slice_ in range(self.marks.slices)]

    def enter(self, slice_: int, step: int) -> bool:
        """Get into the middle of a slice; return whether it may be written."""
        if not self.locks[slice_].acquire():
            return False
        if self.marks.number == self.lease.number and self.marks.made[slice_] == step:
            return True
        self.locks[slice_].release()
        return False

    def write(self, slice_: int, step: int) -> None:
        """Write a slice, and what belongs to the first one and the last; then leave it."""
        self.slices[slice_].of(self.weights[(step + 1) % 2])[:] = step + 1
        if slice_ == 0:
            self._write_entry(step)
        if slice_ == len(self.slices) - 1:
            self.marks.entries["checksum"][step % ENTRIES] = 1000 + step - 1
        self.marks.made[slice_] = step + 1
        self.locks[slice_].release()

    def _write_entry(self, step: int) -> None:
        entry = self.marks.entries[step % ENTRIES]
        entry["step"] = step
        write_tally(entry, Tally(step / 2, 3, metrics=(1, 3)))
        entry["round_s"], entry["update_s"], entry["used"] = 0.5, 0.125, 2
        entry["parts"][:2] = [(0, 2, 3), (2, 3, 1)]
        entry["times"][:2] = [(0.125, 0.0, 0.25), (0.25, 0.0, 0.375)]
        entry["losses"] = [step, step + 0.25, step + 0.5]

    def make(self, step: int, *slices: int) -> list[int]:
        """Make some slices of a step, or all; return those that could be written."""
        written = [slice_ for slice_ in (slices or range(len(self.slices))) if self.enter(slice_, step)]
        for slice_ in written:
            self.write(slice_, step)
        return written

    def close(self) -> None:
        for lock in self.locks:
            lock.close()


@dataclass
class Bench:
    """A server that has made three steps, and a team that shares its memory."""

    root: Path
    clock: ManualClock = field(default_factory=ManualClock)
    #: A part of each lease is of this class, which may have a bug.
    planted: type[TeamUpdates | TeamLease] = TeamLease
    #: One for each lease.
    teams: list[FakeTeam] = field(default_factory=list)
    counted: list[StepMade] = field(default_factory=list)
    #: The lease that was begun last.
    lease: TeamLease = field(init=False)

    def __post_init__(self) -> None:
        setup, self.sharing = share(open_run("run", JOB, digits(), RunOptions()), self.root)
        self.shard = setup.shard
        self.shard.skip_to(ASKED.first)
        size = self.shard.weights.size
        self.shape = TeamShape(processes=PROCESSES, micro_batches=JOB.micro_batches, size=size, clips=False, metrics=2)
        self.sharing.admit(RANK, self.sharing.folder.nonce.hex(), self.shape)

    def open(self, asked: MultiStepLease = ASKED) -> TeamUpdates | StepsRefusal:
        return open_updates(self.sharing, self.shard, RANK, asked)

    def begin(self, asked: MultiStepLease = ASKED) -> FakeTeam:
        updates = self.open(asked)
        assert isinstance(updates, TeamUpdates)
        self.lease = TeamLease(
            memory=updates,
            count=self.counted.append,
            rank=RANK,
            step_s=0.01,
            advanced=self.clock.now(),
        )
        if issubclass(self.planted, TeamUpdates):
            updates.__class__ = self.planted
        else:
            self.lease.__class__ = self.planted
        self.teams.append(FakeTeam(self.sharing, self.shape, updates.lease))
        return self.teams[-1]

    @property
    def updates(self) -> TeamUpdates:
        assert isinstance(self.lease.memory, TeamUpdates)
        return self.lease.memory

    def wait(self, seconds: float) -> list[StepMade]:
        """Let time pass, and the lease act when it is due; return the steps that are counted."""
        before, end = len(self.counted), self.clock.now() + seconds
        while not self.lease.is_over and self.lease.due <= end:
            self.clock.advance(max(0.0, self.lease.due - self.clock.now()))
            self.lease.on_time(self.clock.now())
        self.clock.advance(max(0.0, end - self.clock.now()))
        return self.counted[before:]

    def end(self) -> list[StepMade]:
        """Withdraw the lease; return the steps that are counted."""
        before = len(self.counted)
        self.lease.withdraw_at(self.clock.now())
        return self.counted[before:]

    def close(self) -> None:
        for team in self.teams:
            team.close()
        self.sharing.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with closing(Bench(tmp_path)) as made:
        yield made


def steps_in(counted: list[StepMade]) -> list[int]:
    return [made.step for made in counted]


def test_a_team_may_make_the_updates_of_its_steps_in_its_slices(bench: Bench) -> None:
    team = bench.begin()
    assert team.lease == ASKED
    assert (team.marks.number, team.marks.slices, team.marks.read, team.marks.least()) == (1, 5, 3, 3)
    assert len(team.make(3)) == len(bench.shape.slices) == 5


def test_what_a_team_shows_becomes_steps_that_are_made_but_for_the_newest(bench: Bench) -> None:
    team = bench.begin()
    for step in range(3, 6):
        team.make(step)
    counted = bench.wait(BETWEEN_S[1])
    assert steps_in(counted) == [3, 4]
    last = counted[-1]
    assert (last.rank, last.tally, last.losses) == (4, Tally(2.0, 3, metrics=(1, 3)), pack_losses([4.0, 4.25, 4.5]))
    assert last.parts == (
        PartMade(node=Node(0, 2), process=3, began_s=0.0, ended_s=0.25, compute_s=0.125),
        PartMade(node=Node(2, 3), process=1, began_s=0.0, ended_s=0.375, compute_s=0.25),
    )
    assert last.compute_s() == (0.375, 0.25)
    assert (last.round_s, last.update_s, last.checksum) == (0.5, 0.125, 1004)
    # Their entries may be used again.
    assert team.marks.read == 5
    assert bench.shard.updates == ASKED.first


def test_at_the_end_the_server_has_the_weights_and_slots_of_the_last_step(bench: Bench) -> None:
    before, other = bench.shard.state, bench.begin()
    for step in range(3, 12):
        other.make(step)
    assert steps_in(bench.wait(BETWEEN_S[1])) == list(range(3, 12))
    assert (bench.lease.is_over, bench.lease.is_cut, bench.shard.updates) == (True, False, 12)
    assert set(bench.shard.weights.tolist()) == {12.0}
    # An odd number of updates: the slots are in the other set.
    assert bench.shard.reads == 1
    assert bench.shard.state is not before


def test_the_checksum_of_the_newest_step_is_taken_here(bench: Bench) -> None:
    team = bench.begin()
    team.make(3)
    (made,) = bench.end()
    assert made.checksum == checksum_after(3, bench.shard.slots[0])
    assert (bench.lease.is_over, bench.shard.updates) == (True, 4)


def test_after_the_end_nobody_writes_any_more_whatever_is_leased_next(bench: Bench) -> None:
    late = bench.begin()
    late.make(3, 0, 1, 2)
    assert bench.end() == []
    assert bench.lease.is_over
    assert late.make(3) == []
    next_team = bench.begin(replace(ASKED, number=2))
    assert late.make(3) == []
    assert next_team.make(3) == [0, 1, 2, 3, 4]
    assert late.make(4) == []


@pytest.mark.parametrize("others", [(), (4,)])
def test_what_was_made_of_some_slices_only_is_made_again(others: tuple[int, ...], bench: Bench) -> None:
    team = bench.begin()
    team.make(3)
    team.make(4, 0, 2, *others)
    counted = bench.end()
    # The entry of step 4 has the checksum of step 3 once its last slice is made.
    checksum = 1003 if others else checksum_after(3, bench.shard.slots[0])
    assert [(made.step, made.checksum) for made in counted] == [(3, checksum)]
    assert (bench.shard.updates, set(bench.shard.weights.tolist())) == (4, {4.0})


def test_entries_are_read_before_they_are_used_again(bench: Bench) -> None:
    long = replace(ASKED, last=3 + 3 * ENTRIES)
    team = bench.begin(long)
    for step in range(long.first, long.last):
        team.make(step)
        if step + 1 - team.marks.read == ENTRIES:
            bench.wait(BETWEEN_S[1])
    bench.wait(BETWEEN_S[1])
    assert [made.losses for made in bench.counted] == [
        pack_losses([step, step + 0.25, step + 0.5]) for step in range(long.first, long.last)
    ]
    assert [made.checksum for made in bench.counted[:-1]] == [1000 + step for step in range(long.first, long.last - 1)]


def test_a_process_that_is_killed_within_a_slice_costs_nothing(bench: Bench) -> None:
    team = bench.begin()
    team.make(3, 0, 1, 3, 4)
    assert team.enter(2, 3)
    bench.end()
    assert not bench.lease.is_over
    # The system releases its lock.
    team.locks[2].release()
    assert bench.wait(0.01) == []
    assert bench.lease.is_over
    assert bench.sharing.generation == 0


def test_memory_is_left_to_a_process_that_stands_still_and_what_it_writes_there_is_nobodys(bench: Bench) -> None:
    team = bench.begin()
    team.make(3)
    assert team.enter(0, 4)
    team.make(4, 1, 2)
    bench.end()
    assert not bench.lease.is_over
    assert [(made.step, made.checksum) for made in bench.wait(MOVE_S + 0.01)] == [
        (3, checksum_after(3, np.full_like(bench.shard.weights, 4.0)))
    ]
    assert bench.lease.is_over
    assert (bench.sharing.generation, bench.shard.updates) == (1, 4)
    # In the old memory nobody begins anything, although its locks are free.
    assert team.make(4, 3) == []
    assert bench.begin(NEXT).lease == replace(NEXT, memory=1)
    slots = [slot.copy() for slot in bench.shard.slots]
    # It wakes up.
    team.write(0, 4)
    assert bench.teams[-1].marks.least() == 4
    assert set(bench.shard.weights.tolist()) == {4.0}
    assert np.array_equal(bench.shard.slots, slots)


def test_without_room_for_other_memory_the_run_waits(bench: Bench) -> None:
    team = bench.begin()
    assert team.enter(1, 3)

    def refuse(descriptor: int, size: int) -> None:
        raise OSError("no room")

    bench.sharing.allocate = refuse
    bench.end()
    bench.wait(1.0)
    assert not bench.lease.is_over
    assert bench.lease.is_stuck
    team.write(1, 3)
    bench.wait(0.01)
    assert bench.lease.is_over


def test_an_interrupt_waits_for_nobody_and_keeps_all_that_is_made(bench: Bench) -> None:
    team = bench.begin()
    for step in range(3, 7):
        team.make(step)
    assert team.enter(1, 7)
    bench.lease.interrupt()
    assert steps_in(bench.counted) == [3, 4, 5, 6]
    assert (bench.lease.is_over, bench.shard.updates) == (True, 7)
    weights = bench.shard.weights.copy()
    team.write(1, 7)
    assert np.array_equal(bench.shard.weights, weights)


def test_steps_are_leased_one_by_one_if_the_weights_are_not_finite(bench: Bench) -> None:
    bench.shard.not_finite = 5
    assert bench.open() is StepsRefusal.NOT_NOW


def test_without_room_for_what_updates_need_it_may_be_tried_again(bench: Bench) -> None:
    def refuse(descriptor: int, size: int) -> None:
        raise OSError("no room")

    allocate, bench.sharing.allocate = bench.sharing.allocate, refuse
    for _ in range(2):
        with pytest.raises(SharingError):
            bench.open()
    bench.sharing.allocate = allocate
    assert isinstance(bench.open(), TeamUpdates)


def test_without_shared_memory_or_a_team_in_it_there_is_none(bench: Bench) -> None:
    bench.sharing.forget(RANK)
    assert bench.open() is StepsRefusal.NEVER
    assert open_updates(None, bench.shard, RANK, ASKED) is StepsRefusal.NEVER


# Planted bugs


class Grasping(TeamUpdates):
    """Ends a lease without the locks of all slices."""

    def end(self, *, waits: bool = True) -> bool:
        return super().end(waits=False)


class Lax(TeamUpdates):
    """Does not mark a lease as ended."""

    def end(self, *, waits: bool = True) -> bool:
        return True


class Eager(TeamLease):
    """Loses patience with a process that stands still, and lets the next lease begin where that may write."""

    def _end(self, now: float) -> None:
        if now < self.patient_until:
            super()._end(now)
            return
        self.memory.end(waits=False)
        self._complete(self.memory.read()[0])


class Trusting(TeamUpdates):
    """Reads entries before they are whole."""

    def read(self) -> tuple[int, int]:
        self.entered, _ = super().read()
        return self.entered, self.entered


def what_a_late_process_writes_is_in_nobodys_way(bench: Bench) -> None:
    """Let a process get into a slice, and write once its lease is over and another one is made."""
    team = bench.begin()
    team.make(3)
    assert team.enter(1, 4)
    bench.end()
    bench.wait(MOVE_S + 0.01)
    assert bench.lease.is_over
    bench.begin(NEXT)
    before = bench.shard.slots[1].copy()
    team.write(1, 4)
    assert np.array_equal(bench.shard.slots[1], before), "it wrote into memory in use"
    assert bench.teams[-1].marks.least() == bench.teams[-1].marks.made.max() == 4


def nothing_is_made_of_an_ended_lease(bench: Bench) -> None:
    team = bench.begin()
    team.make(3)
    bench.end()
    assert team.make(4) == [], "it wrote after the end"


def each_step_has_the_checksum_of_its_weights(bench: Bench) -> None:
    team = bench.begin()
    for step in range(3, 6):
        team.make(step)
        counted = bench.wait(BETWEEN_S[1])
        assert all(made.checksum == 1000 + made.step for made in counted), "a checksum of something else"


@pytest.mark.parametrize(
    ("plant", "scenario", "message"),
    [
        (Grasping, what_a_late_process_writes_is_in_nobodys_way, "it wrote into memory in use"),
        (Eager, what_a_late_process_writes_is_in_nobodys_way, "it wrote into memory in use"),
        (Lax, nothing_is_made_of_an_ended_lease, "it wrote after the end"),
        (Trusting, each_step_has_the_checksum_of_its_weights, "a checksum of something else"),
    ],
)
def test_planted_bugs_are_found(
    tmp_path: Path, plant: type[TeamUpdates | TeamLease], scenario: Callable[[Bench], None], message: str
) -> None:
    for name in ("sound", "planted"):
        (tmp_path / name).mkdir()
    with closing(Bench(tmp_path / "sound")) as bench:
        scenario(bench)
    with closing(Bench(tmp_path / "planted")) as bench:
        bench.planted = plant
        with pytest.raises(AssertionError, match=message):
            scenario(bench)


class Overwriting(UpdateMarks, frozen=True):
    """A team that writes over entries as soon as it is shown that they were read."""

    def show_read(self, steps: int) -> None:
        super().show_read(steps)
        self.entries["step"][self.entries["step"] < steps] = -7


def test_entries_are_shown_as_read_only_after_they_were_read(bench: Bench) -> None:
    team = bench.begin()
    bench.updates.marks = Overwriting(**msgspec.structs.asdict(bench.updates.marks))
    first = ASKED.first
    for step in range(first, first + 4):
        assert team.make(step)
    assert steps_in(bench.wait(BETWEEN_S[1])) == [first, first + 1, first + 2]


def test_an_entry_of_another_step_is_never_taken_for_that_of_this_one(bench: Bench) -> None:
    team = bench.begin()
    for step in range(3, 6):
        team.make(step)
    team.marks.entries["step"][4] = -1
    with pytest.raises(AssertionError, match="the entry of step 4 is that of -1"):
        bench.wait(BETWEEN_S[1])


def test_entries_are_read_after_the_marks_that_show_that_they_are_there(bench: Bench) -> None:
    team, barriers = bench.begin(), list[int]()
    for step in range(3, 6):
        team.make(step)

    def happens() -> None:
        barriers.append(team.marks.read)
        if len(barriers) == 1:
            team.make(6)
        else:
            team.marks.entries["checksum"][6] = 77

    bench.updates.marks = replace(bench.updates.marks, keep_order=happens)
    # First the steps of all slices, then that of the last one, and then the checksum that is there if that is made.
    assert [(made.step, made.checksum) for made in bench.wait(BETWEEN_S[1])] == [(3, 1003), (4, 1004), (5, 77)]
    assert barriers[:2] == [3, 3]


def test_locks_are_released_once_the_lease_is_marked_as_ended(bench: Bench) -> None:
    team, seen = bench.begin(), list[tuple[int, bool]]()

    def look() -> None:
        seen.append((team.marks.number, team.locks[0].acquire()))

    bench.updates.marks = replace(bench.updates.marks, keep_order=look)
    bench.end()
    assert seen[:2] == [(0, False), (0, True)]
