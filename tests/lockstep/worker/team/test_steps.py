"""A team makes several steps in the server's memory: after each, weights and slots have the bits of one process.

Whoever has which turn, is killed, or stands still, with a lock or without, and wakes up when all has moved on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.aggregation.tree import Node
from lockstep.common.job.job import Job
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.team_memory import ENTRIES, UpdateMarks, tally_in
from lockstep.ps.setup import open_run
from lockstep.ps.shard.shard import Shard
from lockstep.runs.single_process import SingleProcessTrainer
from lockstep.worker.team.division import OrderPlan, TeamPart
from lockstep.worker.team.member import TeamMember
from lockstep.worker.team.progress import PATIENT, MakeSlice, OrderOutcome, OrderStage, Patience, patience_of
from tests.lockstep.worker.team.crew import Crew, Turns, wide
from tests.simulation.small import digits, job_of

#: Seconds after which the server has no patience with a team any more.
LATE_S = 0.25

#: Steps of any number, none of them short.
STEPS = {"steps": 4000, "global_batch": 8}

#: All that an update depends on.
UPDATE_JOBS = {
    "sgd": wide(**STEPS),
    "clipped": wide(**STEPS, clip_norm=0.05),
    "adam, clipped": wide(**STEPS, optimizer="adam", lr=0.001, clip_norm=0.05),
    "bfloat16": wide(**STEPS, wire="bfloat16", wire_weights="bfloat16", optimizer="adamw", lr=0.01),
    "int8, clipped, not a power of two": wide(
        steps=4000, global_batch=20, micro_batches=5, wire="int8", clip_norm=0.05, schedule="cosine", warmup_steps=5
    ),
    "one slice": job_of(**STEPS, micro_batches=3, momentum=0.9, nesterov=True, metrics=["f1"]),
    "one micro-batch": wide(**STEPS, micro_batches=1, optimizer="rmsprop", lr=0.001),
}


def weights_at(shard: Shard, steps: int) -> tuple[str, str]:
    """Return digests of the weights after so many steps, and of those that workers compute with."""
    return weights_digest(shard.slots[steps % 2]), weights_digest(shard.served[steps % 2])


def slots_of(shard: Shard) -> dict[str, str]:
    """Return digests of the optimizer's slots with which a shard continues."""
    return {name: weights_digest(slot) for name, slot in shard.state.items()}


@dataclass
class Made:
    """What one process makes of a job, step by step."""

    job: Job
    trainer: SingleProcessTrainer = field(init=False)
    #: By steps, digests of the weights after them, of those that workers compute with, and of the optimizer's slots.
    weights: list[tuple[str, str]] = field(default_factory=list)
    slots: list[dict[str, str]] = field(default_factory=list)
    #: By step, its tally, losses and the checksum of the weights after it.
    figures: list[tuple[Tally, list[float], int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trainer = SingleProcessTrainer(open_run("alone", self.job, digits(), RunOptions()))
        self._keep()

    def _keep(self) -> None:
        shard = self.trainer.setup.shard
        self.weights.append(weights_at(shard, shard.updates))
        self.slots.append(slots_of(shard))

    def advance(self, steps: int) -> None:
        """Make so many steps of the run, if they were not made yet."""
        for step in range(len(self.figures), steps):
            sums, tally = self.trainer.sums(step)
            losses = list(self.trainer.compute.losses)
            self.trainer.update(step, sums, tally)
            self.figures.append((tally, losses, checksum_after(step, self.trainer.setup.shard.weights)))
            self._keep()


@dataclass
class Yard:
    """A team with a server, and what it should come to."""

    crew: Crew
    made: Made
    #: Steps of the run that are made, and those whose checksums were looked at; and the number of the last lease.
    at: int = 0
    summed: int = 0
    number: int = 0
    marks: UpdateMarks | None = None
    #: Those that the steps took, as the team shows it.
    seconds: float = 0.0
    #: Seconds that the server waits: more where nobody looks again and again, since nobody wakes anybody here.
    late_s: float = LATE_S

    def begin(self, last: int) -> UpdateMarks:
        """Give the team the steps up to `last`."""
        self.made.advance(last)
        self.number, self.summed = self.number + 1, self.at
        self.marks = self.crew.begin_steps(self.at, last, self.number)
        self.crew.check = self.check
        return self.marks

    def check(self) -> None:
        """Check the weights after the last step that is whole, and what the team shows of those before."""
        opening, marks = self.crew.opening, self.marks
        assert opening is not None
        assert marks is not None
        steps = marks.least()
        if marks.number != self.number:
            return
        self._check_checksums(marks)
        if steps == self.at:
            return
        assert weights_at(opening.shard, steps) == self.made.weights[steps]
        for step in range(self.at, steps):
            entry, (tally, losses, _) = marks.entries[step % ENTRIES], self.made.figures[step]
            assert int(entry["step"]) == step
            assert tally_in(entry) == tally
            assert entry["losses"].tolist() == losses
            assert entry["round_s"] >= 0.0
            self.seconds += float(entry["round_s"])
        # Who makes the entry of a step may not have seen the step before: no second is counted twice for that.
        assert self.seconds <= self.crew.clock.now()
        marks.show_read(steps)
        self.at = steps

    def _check_checksums(self, marks: UpdateMarks) -> None:
        """Check those of the weights that the last slices were made from: each is there before its mark."""
        begun = int(marks.made[marks.slices - 1]) - 1
        for step in range(self.summed, begun):
            assert int(marks.entries[(step + 1) % ENTRIES]["checksum"]) == self.made.figures[step][2]
        self.summed = max(self.summed, begun)

    def end(self) -> None:
        """End the lease, as the server does: in other memory if somebody stands still with a lock."""
        crew, marks = self.crew, self.marks
        sharing, opening = crew.sharing, crew.opening
        assert marks is not None
        assert sharing is not None
        assert opening is not None
        taken = [lock for lock in sharing.locks if lock.acquire()]
        if len(taken) == len(sharing.locks):
            self.check()
        marks.end()
        steps = marks.least()
        opening.shard.skip_to(steps)
        if len(taken) < len(sharing.locks):
            assert sharing.move(opening.shard)
        else:
            for lock in taken:
                lock.release()
        self.at = steps
        self.check_state()

    def check_state(self) -> None:
        """Check the weights and the optimizer's slots with which the run continues."""
        assert self.crew.opening is not None
        shard = self.crew.opening.shard
        assert (shard.updates, weights_at(shard, self.at)) == (self.at, self.made.weights[self.at])
        assert slots_of(shard) == self.made.slots[self.at]

    def run(self, steps: int) -> None:
        """Let the team make so many steps, and end the lease when they are made, or late."""
        last, crew = self.at + steps, self.crew
        self.begin(last)
        until = crew.clock.now() + self.late_s
        crew.run(lambda: crew.clock.now() > until)
        self.end()


@contextmanager
def yard_of(
    job: Job, processes: int, root: Path, seed: int = 0, share: float = 0.3, patience: Patience = PATIENT
) -> Iterator[Yard]:
    crew = Crew.serving(job, processes, root, Turns(seed, share), patience=patience)
    try:
        yield Yard(crew, Made(job), late_s=LATE_S if patience.spin_s else 20 * LATE_S)
    finally:
        crew.close()


@pytest.mark.parametrize("name", UPDATE_JOBS)
@pytest.mark.parametrize("processes", [1, 3])
def test_weights_are_those_of_one_process_after_each_step(name: str, processes: int, memory: Path) -> None:
    with yard_of(UPDATE_JOBS[name], processes, memory, seed=processes) as yard:
        for steps in (3, 1, 4):
            yard.run(steps)
            assert set(yard.crew.ended.values()) == {OrderOutcome.DONE}
        assert yard.at == 8


@pytest.mark.parametrize("seed", range(3, 6))
@pytest.mark.parametrize(
    ("name", "cores"),
    [
        *(("clipped", 1), ("sgd", 2), ("clipped", 4)),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("sgd", 1), ("clipped", 2), ("sgd", 4))),
    ],
)
def test_whoever_has_which_turn(name: str, seed: int, cores: int, memory: Path) -> None:
    """Some are too late for a step, or for several."""
    processes = 2 + seed % 3
    patience = patience_of(processes, cores)
    with yard_of(UPDATE_JOBS[name], processes, memory, seed, share=0.2 * (seed % 4), patience=patience) as yard:
        yard.crew.turns.pauses = 0.05
        yard.begin(8)
        yard.crew.run()
        assert set(yard.crew.ended.values()) <= {OrderOutcome.DONE, OrderOutcome.STOPPED}
        assert yard.crew.ended[0] is OrderOutcome.DONE
        yard.end()
        assert yard.at == 8


@pytest.mark.parametrize("every", [5, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "cores"), [("sgd", 1), ("clipped", 3)])
def test_whoever_is_killed_wherever_it_is(name: str, cores: int, every: int, memory: Path) -> None:
    """Others finish without it, and no lock is left."""
    with yard_of(UPDATE_JOBS[name], 3, memory, seed=4, patience=patience_of(3, cores)) as yard:
        yard.run(2)
        for at in range(1, max(yard.crew.turns.barriers.values()) + 1, every):
            yard.crew.turns.reset()
            yard.crew.turns.killed = {at // every % 3: at}
            before = yard.at
            yard.run(2)
            assert yard.at == before + 2
            yard.crew.revive()


@pytest.mark.parametrize(
    ("name", "process", "every"),
    [("sgd", 0, 1), ("clipped", 2, 2), pytest.param("clipped", 2, 1, marks=pytest.mark.slow)],
)
def test_who_stands_still_anywhere_and_wakes_up_late_writes_nothing_that_counts(
    name: str, process: int, every: int, memory: Path
) -> None:
    """The lease is ended meanwhile, in other memory if need be, and further steps are made; then it goes on."""
    with yard_of(UPDATE_JOBS[name], 3, memory, seed=9) as yard:
        crew, moved = yard.crew, set[bool]()
        yard.run(2)

        def meanwhile() -> None:
            assert crew.sharing is not None
            generation, until = crew.sharing.generation, crew.clock.now() + LATE_S
            crew.run(lambda: crew.clock.now() > until)
            yard.end()
            moved.add(crew.sharing.generation > generation)
            if process != 0:
                yard.run(1)

        for at in range(1, max(crew.turns.barriers.values()) + 1, every):
            crew.turns.reset()
            crew.turns.stopped, crew.meanwhile = {process: at}, meanwhile
            last = yard.at + 2
            yard.begin(last)
            until = crew.clock.now() + 3 * LATE_S
            crew.run(lambda until=until: crew.clock.now() > until)  # type: ignore[misc]
            if yard.marks is not None and yard.marks.number:
                yard.end()
            crew.turns.reset()
            yard.check_state()
            yard.run(4)  # until it counts as fast again: only then it makes slices
        assert moved == {True, False}


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_who_is_started_again_at_once_spoils_nothing(seed: int, memory: Path) -> None:
    """It has the vectors of its life before, which others may be adding up."""
    with yard_of(UPDATE_JOBS["clipped"], 3, memory, seed) as yard:
        crew = yard.crew
        yard.run(1)
        # All four seeds together try each moment.
        for at in range(1 + seed, max(crew.turns.barriers.values()) + 1, 4):
            crew.turns.reset()
            crew.turns.killed = {1 + at % 2: at}
            yard.begin(yard.at + 3)
            crew.run(lambda: bool(crew.gone))
            crew.revive()
            crew.run()
            assert crew.ended[0] is OrderOutcome.DONE
            yard.end()


def test_a_team_that_is_ahead_of_the_server_waits_until_it_has_read(memory: Path) -> None:
    with yard_of(UPDATE_JOBS["one slice"], 2, memory) as yard:
        marks, crew = yard.begin(ENTRIES + 4), yard.crew
        crew.check = lambda: None
        crew.run(lambda: marks.least() == ENTRIES)
        until = crew.clock.now() + 0.1
        crew.run(lambda: crew.clock.now() > until)
        assert (marks.least(), crew.ended) == (ENTRIES, {})
        crew.check = yard.check
        crew.run()
        assert (marks.least(), crew.ended[0]) == (ENTRIES + 4, OrderOutcome.DONE)


def test_a_leader_whose_server_does_not_read_gives_up_in_the_end(memory: Path) -> None:
    with yard_of(UPDATE_JOBS["one slice"], 1, memory) as yard:
        yard.begin(ENTRIES + 4)
        crew = yard.crew
        crew.check = lambda: crew.clock.advance(0.01)
        crew.run()
        assert crew.ended == {0: OrderOutcome.FAILED}
        assert "the server does not read" in crew.members[0].error


def makes_slice(member: TeamMember) -> bool:
    """Tell whether a process has begun with a slice."""
    return member.last is not None and isinstance(member.last.begun, MakeSlice)


def test_an_order_that_is_given_up_leaves_no_lock(memory: Path) -> None:
    with yard_of(UPDATE_JOBS["sgd"], 1, memory, share=0.0) as yard:
        crew = yard.crew
        marks, member = yard.begin(2), crew.members[0]
        crew.run(lambda: makes_slice(member))
        assert crew.sharing is not None
        locks = crew.sharing.locks
        assert [lock.acquire() for lock in locks].count(False) == 1
        member.stop()
        assert all(lock.acquire() for lock in locks)
        assert marks.least() == 0


def test_an_entry_counts_once_it_is_whole_and_the_step_once_its_entry_does(memory: Path) -> None:
    with yard_of(UPDATE_JOBS["one slice"], 1, memory, share=0.0) as yard:
        crew = yard.crew
        yard.run(2)
        marks, member = yard.begin(4), crew.members[0]
        crew.run(lambda: makes_slice(member))
        assert member.chain is not None
        entry, updates, seen = marks.entries[2], member.chain.updates, list[tuple[int, bytes, int]]()
        entry["step"] = 2 - ENTRIES

        def look() -> None:
            rest = b"".join(entry[name].tobytes() for name in ("used", "losses", "next"))
            seen.append((int(entry["step"]), rest, int(marks.made[0])))

        member.memory.keep_order, updates.marks = look, replace(updates.marks, keep_order=look)
        look()
        member.advance()
        before, after = seen[0][1], seen[-1][1]
        assert before != after
        # While its parts are written, it is that of no step.
        states = [(2 - ENTRIES, before, 2), (-1, before, 2), (-1, after, 2), (2, after, 2), (2, after, 3)]
        assert list(dict.fromkeys(seen)) == states


@pytest.mark.parametrize("steps", [(1, 1), (-1, 1), (1, -1), (1, 1 + ENTRIES)])
def test_the_plan_of_the_next_step_is_that_of_an_entry_which_is_whole_while_it_is_read(
    steps: tuple[int, int], memory: Path
) -> None:
    with yard_of(UPDATE_JOBS["one slice"], 2, memory, share=0.0) as yard:
        yard.run(2)
        marks, member = yard.begin(3), yard.crew.members[1]
        yard.crew.run(lambda: member.is_busy)
        first, second = steps

        def write_over() -> None:
            marks.entries["step"][1] = second

        assert member.chain is not None
        updates = member.chain.updates
        marks.entries["step"][1], updates.marks = first, replace(updates.marks, keep_order=write_over)
        assert (member.chain.next_plan(1) is not None) is (steps == (1, 1))


@pytest.mark.parametrize("cores", [1, 3])
def test_after_a_step_those_are_woken_who_have_something_to_do_in_the_next(cores: int, memory: Path) -> None:
    plan, everybody = OrderPlan((TeamPart(Node(0, 4), 2),), (2,)), {0, 1, 2}
    with yard_of(UPDATE_JOBS["sgd"], 3, memory, share=0.0, patience=patience_of(3, cores)) as yard:
        yard.run(2)
        marks, member = yard.begin(4), yard.crew.members[1]
        yard.crew.run(lambda: member.is_busy)
        at, entry = member.last, marks.entries[2]
        assert at is not None
        assert at.order.step == 2
        entry["next"], entry["step"] = member.memory.written(plan), 2
        assert member._next_of(at, OrderStage.UPDATE) == ({2} if cores == 1 else everybody)
        # Others have written over the entry; and after the last step all look for what the leader orders next.
        entry["step"] = -1
        assert member._next_of(at, OrderStage.UPDATE) == everybody
        at.order = at.order.following(3, plan)
        assert member._next_of(at, OrderStage.UPDATE) == everybody


def test_an_update_that_is_not_finite_is_not_made_and_fails_the_order(memory: Path) -> None:
    with yard_of(UPDATE_JOBS["one slice"], 1, memory, share=0.0) as yard:
        crew = yard.crew
        yard.run(2)
        marks, member = yard.begin(4), crew.members[0]
        crew.run(lambda: makes_slice(member))
        # The sums are there, and the weights overflow.
        member.memory.vector(0, 0)[0] = np.inf
        assert crew.opening is not None
        assert crew.sharing is not None
        crew.check = lambda: None
        crew.run()
        assert (crew.ended, marks.least()) == ({0: OrderOutcome.FAILED}, 2)
        assert weights_at(crew.opening.shard, 2) == yard.made.weights[2]
        assert all(lock.acquire() for lock in crew.sharing.locks)


def test_who_moves_to_other_memory_keeps_no_lock_of_the_old_open(memory: Path) -> None:
    with yard_of(UPDATE_JOBS["sgd"], 2, memory) as yard:
        crew = yard.crew
        yard.run(2)
        chains = [member.chain for member in crew.members]
        locks = [lock for chain in chains if chain is not None for lock in chain.updates.locks]
        assert len(locks) == 2 * 2
        assert crew.opening is not None
        assert crew.sharing is not None
        assert crew.sharing.move(crew.opening.shard)
        yard.run(1)
        assert [lock._descriptor for lock in locks] == [-1] * 4
