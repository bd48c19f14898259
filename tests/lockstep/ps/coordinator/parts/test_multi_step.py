"""When the coordinator lets a team make steps by itself, how it counts these, and when it ends them."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.data.manifest import manifest_of
from lockstep.common.job.job import Job
from lockstep.common.job.tally import Tally, pack_losses
from lockstep.common.protocol.messages import Dropped, Lease, MultiStepResult
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect, LeaseSteps, RecordStep, WithdrawSteps
from lockstep.ps.coordinator.parts.assembly import all_parts, part_of
from lockstep.ps.coordinator.parts.multi_step import (
    FIRST_STEPS,
    LONGEST_PAUSE,
    PASSED,
    PAUSE,
    MultiStep,
    MultiStepPlan,
    may_lease_steps,
)
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round
from lockstep.ps.shared_memory.multi_step_leases import declined
from tests.lockstep.ps.runs import TRAIN, Drive, facts_of, kinds, peer_of, said, with_options
from tests.simulation.small import digits

#: Thirteen steps an epoch and a short one, of three micro-batches each.
JOB = Job(model="linear", epochs=2, global_batch=3, micro_batches=3)
STEPS = -(-TRAIN // JOB.global_batch)


def info_of(**values: Any) -> RunInfo:
    return replace(facts_of(msgspec.structs.replace(JOB, **values)), needs_memory=False)


@dataclass
class Team(Drive):
    """A team of two processes that shares the server's memory."""

    info: RunInfo = field(default_factory=info_of)

    def __post_init__(self) -> None:
        self.coordinator = Coordinator(self.info, all_parts(first_steps=0))

    def begin(self, processes: int = 2) -> list[Effect]:
        """Let it enter, and make the first step, after which its speed is known."""
        effects = self.enter_team(1, processes)
        self.now += 0.03
        return effects + self.finish_round()

    def make(self, step: int) -> list[Effect]:
        parts = (
            events.PartMade(node=Node(0, 2), process=1, began_s=0.0, ended_s=0.02, compute_s=0.015),
            events.PartMade(node=Node(2, 3), process=0, began_s=0.0, ended_s=0.01, compute_s=0.009),
        )
        made = events.StepMade(
            step=step,
            rank=0,
            tally=Tally(2.5, 3, metrics=(1, 3)),
            losses=pack_losses([1.0, 0.5, 1.0]),
            parts=parts,
            round_s=0.03,
            update_s=0.001,
            checksum=7,
            rate=0.1,
        )
        return self.happen(made)

    def complete(self, steps: int, *, is_cut: bool = False, is_silent: bool = False) -> list[Effect]:
        self.leases.clear()
        lease = ("steps", 0, 1)
        return self.happen(
            events.MultiStepLeaseEnded(lease=lease, steps=steps, is_cut=is_cut, is_silent=is_silent)  # type: ignore[arg-type]
        )


def begun(effects: list[Effect]) -> list[LeaseSteps]:
    return [effect for effect in effects if isinstance(effect, LeaseSteps)]


@pytest.mark.parametrize("processes", [1, 2, 16])
def test_once_the_speed_of_a_team_is_known_it_makes_the_steps_up_to_the_last_of_the_epoch(processes: int) -> None:
    drive = Team()
    (lease,) = begun(drive.begin(processes))
    assert (lease.first, lease.last, lease.rank) == (1, STEPS - 1, 0)
    assert lease.step_s == pytest.approx(0.03)
    assert drive.coordinator.phase is RunPhase.MULTI_STEP
    status = drive.coordinator.status(drive.now)
    assert status.phase == "training"
    assert [(worker.state, worker.processes) for worker in status.workers] == [("computing", processes)]


def test_the_first_steps_of_a_run_are_leased_also_of_one_that_is_resumed() -> None:
    at = Round("train", 3, JOB.micro_batches)
    assert part_of(Coordinator(info_of(), all_parts(), start=at), MultiStep).plan.earliest == 3 + FIRST_STEPS


def test_a_step_that_a_team_made_counts_like_any_other() -> None:
    drive = Team()
    drive.begin()
    before, compute_s = drive.coordinator.progress.samples, drive.coordinator.progress.compute_s
    (recorded,) = drive.make(1)
    assert isinstance(recorded, RecordStep)
    entry = recorded.account.step_done(1, recorded.made.checksum)
    assert [(share.lo, share.hi, share.rank) for share in entry.shares] == [(0, 2, 0), (2, 3, 0)]
    assert (entry.processes, entry.loss_sums().tolist()) == ([1, 0], [1.0, 0.5, 1.0])
    progress = drive.coordinator.progress
    assert progress.samples == before + 3
    assert progress.compute_s == pytest.approx(compute_s + 0.024)
    time = progress.last_step
    assert (time.round_s, time.mean_s, time.slowest_s) == pytest.approx((0.03, 0.012, 0.015))
    assert drive.coordinator.status(drive.now).step == 2
    drive.make(2)
    assert kinds(drive.complete(3)) == [Lease]
    assert drive.coordinator.round.step == 3


def test_the_ledger_names_no_process_of_a_team_of_one() -> None:
    drive = Team()
    drive.begin(1)
    (recorded,) = drive.make(1)
    assert isinstance(recorded, RecordStep)
    assert recorded.account.step_done(1, 7).processes == []


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"clip_norm": 1.0},
        {"wire": "float16", "wire_weights": "bfloat16"},
        {"global_batch": 256, "micro_batches": 256},
        {"micro_batches": 1},
    ],
)
def test_any_job_can_be_left_to_a_team(values: dict[str, Any]) -> None:
    assert may_lease_steps(info_of(**values))


def test_audits_several_servers_and_data_that_is_sent_need_the_server_in_each_step() -> None:
    assert not may_lease_steps(with_options(info_of(), audit=0.1))
    assert not may_lease_steps(with_options(info_of(), servers=2))
    assert not may_lease_steps(replace(info_of(), manifest=manifest_of(digits())))


@pytest.mark.parametrize("change", ["two", "no team", "impossible"])
def test_who_is_not_alone_or_no_team_is_leased_each_step(change: str) -> None:
    drive = Team()
    part_of(drive.coordinator, MultiStep).plan.is_possible = change != "impossible"
    if change == "no team":
        drive.enter(1, shares=True)
    else:
        drive.enter_team(1)
    if change == "two":
        drive.enter(2)
    drive.now += 0.03
    assert not begun([effect for _ in range(3) for effect in drive.finish_round()])


@pytest.mark.parametrize("change", ["comes", "goes"])
def test_a_worker_that_comes_or_goes_ends_the_multi_step_lease_once(change: str) -> None:
    drive = Team()
    drive.begin()
    effects = drive.join(2)
    assert WithdrawSteps() not in effects
    effects = drive.prepare(2) if change == "comes" else drive.leave(1)
    assert effects.count(WithdrawSteps()) == 1
    assert WithdrawSteps() not in drive.pass_time(5.0)
    if change == "comes":
        assert set(kinds(drive.complete(1))) == {Lease}
    assert drive.coordinator.is_running() is (change == "comes")


def test_one_that_has_not_answered_gets_no_work_until_it_does() -> None:
    drive = Team()
    drive.begin()
    assert kinds(drive.complete(1, is_cut=True, is_silent=True)) == []
    assert drive.coordinator.scheduler.withdrawals.has_any(0)
    answer = MultiStepResult(number=1, is_done=False)
    assert kinds(drive.happen(events.Received(peer=peer_of(1), message=answer))) == [Lease]
    assert not drive.coordinator.scheduler.withdrawals.has_any(0)
    drive.happen(events.Received(peer=peer_of(1), message=Dropped(work="train", step=0, number=1)))


def test_one_that_never_answers_is_late_like_any_other() -> None:
    drive = Team()
    drive.begin()
    drive.complete(1, is_cut=True, is_silent=True)
    late = said(drive.pass_time(drive.info.options.lease_timeout))
    assert "team 0 (host host, pid 1, 2 workers) has sent nothing for" in late


def test_a_lease_ends_if_its_team_is_gone() -> None:
    drive = Team()
    drive.begin()
    assert WithdrawSteps() in drive.happen(events.PeerLeft(peer=peer_of(1), reason="its connection is gone"))


def test_a_refused_multi_step_lease_is_never_tried_again() -> None:
    drive = Team()
    (asked,) = begun(drive.begin())
    assert kinds(drive.happen(declined(asked, may_follow=False))) == [Lease]
    drive.now += 0.03
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
