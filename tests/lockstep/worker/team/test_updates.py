"""What a process of a team makes of an update follows from the job as it does at the server."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.aggregation.update import UpdateVectors
from lockstep.common.job.own_code import OwnCode
from lockstep.common.job.tally import Tally
from lockstep.common.optim.rules import SGDRule
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.team_memory import UpdateMarks
from lockstep.ps.setup import open_run
from lockstep.worker.compute import Compute
from lockstep.worker.team.division import OrderPlan
from lockstep.worker.team.progress import Order, Steps
from lockstep.worker.team.sums import PIECE
from lockstep.worker.team.updates import StepChain, UpdateMaker, policy_in
from tests.lockstep.worker.team.crew import wide
from tests.simulation.small import digits, job_of

#: The third step of a run, the first of a lease.
STEPS = Steps(number=5, first=3, last=9, reads=1)
ORDER = Order(number=1, work="train", step=3, node=Node(0, 4), plan=OrderPlan((), ()), steps=STEPS)


@pytest.mark.parametrize(
    "values",
    [
        {"schedule": "step", "decay_every": 1},
        {"schedule": "step", "decay_every": 2, "decay_factor": 0.5, "warmup_steps": 2},
        {"schedule": "cosine", "steps": None, "epochs": 3},
        {"schedule": "one-cycle", "steps": None, "epochs": 3},
    ],
)
def test_rates_are_those_of_the_server_also_if_an_epoch_ends_with_a_short_step(values: dict[str, Any]) -> None:
    # Forty samples: two steps and a short one.
    job = job_of(**{"steps": 12, "global_batch": 16, **values})
    opening = open_run("run", job, digits(), RunOptions())
    schedule = opening.shard.policy.schedule
    policy = policy_in(Compute(job, opening.model, opening.data))
    assert [policy.schedule.rate(step) for step in range(12)] == [schedule.rate(step) for step in range(12)]


def test_a_rule_and_a_schedule_of_the_users_own_are_used() -> None:
    opening = open_run("run", job_of(), digits(), RunOptions())
    own = OwnCode(optimizer=lambda: SGDRule(momentum=0.25), schedule=lambda step, steps: 1 / (1 + step))
    job = job_of(optimizer="mine.py:rule", schedule="mine.py:falling", lr=0.5)
    policy = policy_in(Compute(job, opening.model, opening.data, own=own))
    assert policy.rules == ((opening.layout.size, SGDRule(momentum=0.25)),)
    assert policy.schedule.rate(3) == 0.125


def test_statistics_of_normalization_are_no_parameters() -> None:
    opening = open_run("run", wide(), digits(), RunOptions())
    policy, expected = policy_in(Compute(wide(), opening.model, opening.data)), opening.shard.policy
    assert policy.parameter_size == expected.parameter_size < opening.layout.size
    assert policy.momenta.tolist() == expected.momenta.tolist()


@dataclass
class Overflowing:
    """Makes a slice whose weights are not finite, or are; its lock is held until it is shown."""

    is_finite: bool
    seen: list[str] = field(default_factory=list)
    policy: Any = field(default_factory=lambda: SimpleNamespace(clip_norm=None))

    @property
    def locks(self) -> Any:
        return [SimpleNamespace(release=lambda: self.seen.append("released"))]

    def write(self, *_: Any) -> bool:
        return self.is_finite

    def show_made(self, slice_: int, step: int) -> None:
        self.seen.append("mark")


@dataclass
class Writing(StepChain):
    """Has no entries."""

    def _show(self, *_: Any) -> None:
        cast(Any, self.updates).seen.append("entry")


@pytest.mark.parametrize("is_finite", [False, True])
def test_the_mark_of_a_slice_comes_last_before_its_lock_is_released_and_only_if_it_is_finite(is_finite: bool) -> None:
    updates, nothing = Overflowing(is_finite), cast(Any, None)
    sums = cast(Any, SimpleNamespace(tally_of=lambda *_: Tally(), memory=nothing))
    chain = Writing(cast(Any, updates), sums, memory=0)
    assert chain.make(ORDER, 0, nothing, nothing, 0.0) is is_finite
    assert updates.seen == [*(["entry", "mark"] * is_finite), "released"]


@dataclass
class ZeroAdder:
    """Gradients that are zero, piece by piece."""

    def pieces(self, operands: Any, whole: Slice) -> Iterator[tuple[Slice, list[Vector]]]:
        return ((piece, [np.zeros(len(piece), np.float32)]) for piece in whole.cut_evenly(PIECE))


@pytest.mark.parametrize("place", [None, 0, 300_000, -1])
def test_a_slice_is_finite_only_if_all_of_its_pieces_are(place: int | None) -> None:
    job, nothing = job_of(model="mlp", momentum=0.0), cast(Any, None)
    opening = open_run("run", job, digits(), RunOptions())
    weights = opening.layout.new_vector(), opening.layout.new_vector()
    if place is not None:
        weights[1][place] = np.inf
    vectors = UpdateVectors(weights=weights, served=weights, slots=({}, {}))
    maker = UpdateMaker(opening.shard.policy, cast(Any, ZeroAdder()), nothing, vectors, locks=[nothing])
    assert len(list(maker.slices[0].cut_evenly(PIECE))) > 2
    assert maker.write(0, ORDER, nothing, 8.0, None) is (place is None)
    assert weights[0].tobytes() == weights[1].tobytes()


@dataclass
class SlowLock:
    """A lock of a slice; something happens after it was asked for, and before it is ours."""

    meanwhile: Callable[[], None] = lambda: None
    is_ours: bool = False
    #: Whether somebody else has it.
    is_taken: bool = False

    def acquire(self) -> bool:
        self.meanwhile()
        self.is_ours = not self.is_taken
        return self.is_ours

    def release(self) -> None:
        self.is_ours = False


def maker_of(marks: UpdateMarks, lock: SlowLock) -> UpdateMaker:
    """Return what makes updates of one slice, of which it has the marks and the lock."""
    nothing, weights = cast(Any, None), (np.zeros(1, np.float32), np.zeros(1, np.float32))
    vectors = UpdateVectors(weights=weights, served=weights, slots=({}, {}))
    return UpdateMaker(nothing, nothing, marks, vectors, locks=[cast(Any, lock)])


def marks_at(steps: int, keep_order: Callable[[], None] = lambda: None) -> UpdateMarks:
    """Return the marks of one slice after so many steps, in the lease of the order."""
    return UpdateMarks(np.array([5, 3, 1]), np.array([steps]), np.zeros(0, np.void), keep_order)


HAPPENS: dict[str, Callable[[UpdateMarks], None]] = {
    "the lease is ended": UpdateMarks.end,
    "another lease begins": lambda marks: marks.begin(6, 3, 1),
    "somebody makes the slice": lambda marks: marks.made.fill(4),
}


@pytest.mark.parametrize("happens", [*HAPPENS, "nothing", "somebody has it"])
def test_whether_a_slice_is_still_to_be_made_is_seen_under_its_lock(happens: str) -> None:
    # Before that, the server may have had all locks, and write where we would.
    marks = marks_at(3)
    lock = SlowLock(lambda: HAPPENS[happens](marks) if happens in HAPPENS else None)
    lock.is_taken = happens == "somebody has it"
    assert maker_of(marks, lock).begin(0, ORDER) is lock.is_ours is (happens == "nothing")


def test_whether_a_lease_is_made_is_seen_behind_a_barrier() -> None:
    # The lock shows what the one wrote who had it before; the end of the lease is written under another one.
    marks, lock = marks_at(3), SlowLock()
    maker = maker_of(replace(marks, keep_order=lambda: marks.head.fill(0)), lock)
    assert not maker.begin(0, ORDER)
    assert not lock.is_ours


def test_the_mark_of_a_slice_is_between_two_barriers() -> None:
    seen = list[int]()
    marks = marks_at(3, lambda: seen.append(int(marks.made[0])))
    maker_of(marks, SlowLock()).show_made(0, 3)
    assert seen == [3, 4]


def test_what_is_missing_is_seen_before_what_was_made_is_read() -> None:
    marks = marks_at(3, lambda: marks.made.fill(4))
    maker = maker_of(marks, SlowLock())
    assert (maker.missing(3), maker.missing(3), maker.missing(4)) == ([0], [], [0])
