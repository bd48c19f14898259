"""When the coordinator lets two workers make steps by themselves, how it counts these, and when it takes them back."""

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest

from lockstep.common.job.job import Job
from lockstep.common.job.tally import pack_losses
from lockstep.common.protocol.messages import Dropped, Join, Lease, MultiStepResult
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect, LeaseSteps, RecordStep, WithdrawSteps
from lockstep.ps.coordinator.scheduling.multi_step_plan import (
    FIRST_STEPS,
    LONGEST_PAUSE,
    PASSED,
    PAUSE,
    MultiStepPlan,
    may_lease_steps,
)
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round
from tests.lockstep.ps.runs import TRAIN, Drive, facts_of, join_of, kinds, peer_of, said

#: Twenty steps an epoch, of two micro-batches each.
JOB = Job(model="linear", epochs=2, global_batch=2, micro_batches=2)
STEPS = TRAIN // JOB.global_batch


def info_of(**values: Any) -> RunInfo:
    return replace(facts_of(msgspec.structs.replace(JOB, **values), min_workers=2), needs_memory=False)


@dataclass
class Pair(Drive):
    """Two workers on a machine with a core for each, which share memory."""

    info: RunInfo = field(default_factory=info_of)
    cores: int = 2

    def __post_init__(self) -> None:
        self.coordinator = Coordinator(self.info, first_steps=0)

    def join(self, worker: int) -> list[Effect]:
        joined: Join = msgspec.structs.replace(join_of(worker), machine="here", cores=tuple(range(self.cores)))
        return self.happen(events.Received(peer=peer_of(worker), message=joined))

    def begin(self) -> list[Effect]:
        """Let both enter, and make the first step, after which their speed is known."""
        effects = self.enter(1, 2, shares=True)
        self.now += 0.01
        return effects + self.finish_round()

    def make(self, step: int, *, slow: float = 1.0) -> list[Effect]:
        """Let workers make a step; the second takes so many times as long."""
        count = self.info.job.global_batch // 2
        halves = tuple(
            events.HalfStep(
                rank=rank,
                loss_sum=1.0,
                correct=1,
                count=count,
                compute_s=0.01 * (slow if rank else 1.0),
                losses=pack_losses([1.0] * count),
                began_s=0.0,
                ended_s=0.01,
            )
            for rank in (0, 1)
        )
        made = events.StepMade(
            step=step, halves=(halves[0], halves[1]), round_s=0.01, update_s=0.001, checksum=7, rate=0.1
        )
        return self.happen(made)

    def complete(self, steps: int, *, is_cut: bool = False, silent: tuple[int, ...] = ()) -> list[Effect]:
        self.leases.clear()
        completed = events.MultiStepLeaseEnded(lease=("steps", 0, 1), steps=steps, is_cut=is_cut, silent=silent)
        return self.happen(completed)


def begun(effects: list[Effect]) -> list[LeaseSteps]:
    return [effect for effect in effects if isinstance(effect, LeaseSteps)]


def test_once_two_equal_workers_are_known_they_make_the_steps_up_to_the_last_of_the_epoch() -> None:
    drive = Pair()
    (multi_step_lease,) = begun(drive.begin())
    assert (multi_step_lease.first, multi_step_lease.last, multi_step_lease.ranks) == (1, STEPS - 1, (0, 1))
    assert drive.coordinator.phase is RunPhase.MULTI_STEP
    status = drive.coordinator.status(drive.now)
    assert status.phase == "training"
    assert [worker.state for worker in status.workers] == ["computing", "computing"]


def test_the_first_steps_of_a_run_are_leased_also_of_one_that_is_resumed() -> None:
    at = Round("train", 3, JOB.micro_batches)
    assert Coordinator(info_of(), start=at).multi_step.earliest == 3 + FIRST_STEPS


def test_a_step_that_they_made_counts_like_any_other() -> None:
    drive = Pair()
    drive.begin()
    before = drive.coordinator.progress.samples
    (recorded,) = drive.make(1)
    assert isinstance(recorded, RecordStep)
    assert (recorded.tally.count, recorded.tally.loss_sum) == (2, 2.0)
    assert [(share.lo, share.hi, share.rank) for share in recorded.account.shares] == [(0, 1, 0), (1, 2, 1)]
    assert drive.coordinator.progress.samples == before + 2
    assert drive.coordinator.status(drive.now).step == 2
    drive.make(2)
    effects = drive.complete(3)
    assert kinds(effects) == [Lease, Lease]
    assert drive.coordinator.round.step == 3


@pytest.mark.parametrize(
    "values",
    [
        {"clip_norm": 1.0},
        {"wire": "float16"},
        {"micro_batches": 1},
        {"global_batch": 6, "micro_batches": 6},
        {"global_batch": 256, "micro_batches": 256},
    ],
)
def test_some_jobs_need_the_server_in_each_step(values: dict[str, Any]) -> None:
    assert not may_lease_steps(info_of(**values))


def test_audits_and_several_servers_need_it_too() -> None:
    assert may_lease_steps(info_of())
    assert not may_lease_steps(replace(info_of(), audit=0.1))
    assert not may_lease_steps(replace(info_of(), servers=2))


@pytest.mark.parametrize("change", ["alone", "third", "crowded", "sockets", "impossible"])
def test_others_than_two_workers_with_a_core_each_in_shared_memory_are_leased_each_step(change: str) -> None:
    drive = Pair(cores=1 if change == "crowded" else 2)
    if change == "impossible":
        drive.coordinator.multi_step.is_possible = False
    drive.enter(1, shares=True)
    if change != "alone":
        drive.enter(2, shares=change != "sockets")
    else:
        drive.enter(2, shares=True)
        drive.leave(2)
    if change == "third":
        drive.info = replace(drive.info, job=msgspec.structs.replace(JOB, global_batch=4, micro_batches=4))
        drive = Pair(drive.info, cores=3)
        drive.enter(1, 2, 3, shares=True)
    drive.now += 0.01
    effects = [effect for _ in range(3) for effect in drive.finish_round()]
    assert not begun(effects)


def test_a_worker_that_comes_or_goes_ends_the_multi_step_lease_once() -> None:
    drive = Pair(info_of(global_batch=4, micro_batches=4), cores=3)
    drive.enter(1, 2, shares=True)
    drive.now += 0.01
    drive.finish_round()
    assert drive.coordinator.phase is RunPhase.MULTI_STEP
    assert [effect for effect in drive.enter(3, shares=True) if isinstance(effect, WithdrawSteps)] == [WithdrawSteps()]
    assert not [effect for effect in drive.pass_time(5.0) if isinstance(effect, WithdrawSteps)]
    assert set(kinds(drive.complete(1))) == {Lease}
    assert drive.coordinator.is_running()


def test_workers_that_are_not_equally_fast_any_more_are_leased_what_suits_them() -> None:
    drive = Pair(info_of(global_batch=4, micro_batches=4))
    drive.enter(1, 2, shares=True)
    drive.now += 0.01
    drive.finish_round()
    made = [effect for step in range(1, 6) for effect in drive.make(step, slow=4.0)]
    assert [effect for effect in made if isinstance(effect, WithdrawSteps)] == [WithdrawSteps()]


def test_one_that_has_not_answered_gets_no_work_until_it_does() -> None:
    drive = Pair()
    drive.begin()
    effects = drive.complete(1, is_cut=True, silent=(1,))
    assert kinds(effects, 1) == [Lease, Lease]
    assert kinds(effects, 2) == []
    assert drive.coordinator.scheduler.withdrawals.has_any(1)
    drive.happen(events.Received(peer=peer_of(2), message=MultiStepResult(number=1, steps=0)))
    assert not drive.coordinator.scheduler.withdrawals.has_any(1)
    drive.happen(events.Received(peer=peer_of(2), message=Dropped(work="train", step=0, number=1)))


def test_one_that_never_answers_is_late_like_any_other() -> None:
    drive = Pair()
    drive.begin()
    drive.complete(1, is_cut=True, silent=(1,))
    assert "worker 1 (host host, pid 2) has sent nothing for" in said(drive.pass_time(drive.info.lease_timeout_s))


def test_a_refused_multi_step_lease_is_never_tried_again() -> None:
    drive = Pair()
    drive.begin()
    assert kinds(drive.happen(events.MultiStepLeaseRefused())) == [Lease, Lease]
    drive.now += 0.01
    assert not begun(drive.finish_round())


def test_after_a_cut_it_waits_twice_as_long_each_time_until_one_has_lasted() -> None:
    plan = MultiStepPlan(earliest=0)
    pauses = []
    for _ in range(8):
        plan.on_completed(100, 101, is_cut=True)
        pauses.append(plan.earliest - 101)
    assert pauses == [min(PAUSE * 2**time, LONGEST_PAUSE) for time in range(8)]
    for _ in range(PASSED):
        plan.on_completed(5000, 5000 + LONGEST_PAUSE, is_cut=False)
    plan.on_completed(9000, 9010, is_cut=True)
    assert plan.earliest == 9010 + PAUSE
