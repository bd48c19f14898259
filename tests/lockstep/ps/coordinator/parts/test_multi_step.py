"""When the coordinator lets a team make steps by itself, how it counts these, and when it ends them."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common.data.manifest import manifest_of
from lockstep.common.errors import FailureKind
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import (
    Dropped,
    Lease,
    MultiStepLease,
    Welcome,
    Withdrawal,
)
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect
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
from lockstep.ps.coordinator.parts.team_lease import (
    BETWEEN_S,
    LATE_S,
    MOVE_S,
    STUCK,
    LeaseMemory,
    StepMade,
    StepsRefusal,
    TeamLease,
)
from lockstep.ps.coordinator.status import REMINDER_S
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.ledger import Account
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.progress import Progress
from tests.lockstep.ps.coordinator.parts.lease_memory import MemoryByHand
from tests.lockstep.ps.runs import (
    INTERRUPT,
    TRAIN,
    Drive,
    facts_of,
    finished,
    kinds,
    messages,
    peer_of,
    said,
    with_options,
)
from tests.simulation.small import digits

#: Thirteen steps an epoch and a short one, of three micro-batches each.
JOB = Job(model="linear", epochs=2, global_batch=3, micro_batches=3)
STEPS = -(-TRAIN // JOB.global_batch)


def info_of(**values: Any) -> RunInfo:
    return replace(facts_of(msgspec.structs.replace(JOB, **values)), needs_memory=False)


@dataclass
class StepsByHand:
    """The memory, records and checkpoints of a server."""

    #: Why no lease is opened, None if one is; and when a checkpoint is due.
    refusal: StepsRefusal | None = None
    last: int | None = None
    until: float | None = None
    opened: list[MemoryByHand] = field(default_factory=list)
    recorded: list[tuple[Account, StepMade]] = field(default_factory=list)

    def bounds(self) -> tuple[int | None, float | None]:
        return self.last, self.until

    def open(self, rank: int, lease: MultiStepLease) -> LeaseMemory | StepsRefusal:
        if self.refusal is not None:
            return self.refusal
        self.opened.append(MemoryByHand(lease))
        return self.opened[-1]

    def record(self, account: Account, made: StepMade) -> None:
        self.recorded.append((account, made))


@dataclass
class Team(Drive):
    """A team of two processes that shares the server's memory."""

    info: RunInfo = field(default_factory=info_of)
    server: StepsByHand = field(default_factory=StepsByHand)

    def __post_init__(self) -> None:
        self.coordinator = Coordinator(self.info, all_parts(first_steps=0))
        self.part.serve(self.server)

    @property
    def part(self) -> MultiStep:
        return part_of(self.coordinator, MultiStep)

    @property
    def team(self) -> MemoryByHand:
        return self.server.opened[-1]

    @property
    def lease(self) -> TeamLease:
        assert self.part.lease is not None
        return self.part.lease

    def begin(self, processes: int = 2) -> list[Effect]:
        """Let it enter, and make the first step, after which its speed is known."""
        effects = self.enter_team(1, processes)
        self.now += 0.03
        return effects + self.finish_round()

    def make(self, step: int) -> list[Effect]:
        """Let it make the steps up to this one, which the server sees a little later."""
        self.team.made = step + 1
        return self.pass_time(BETWEEN_S[1])

    def answer_steps(self, number: int | None = None) -> list[Effect]:
        """Let it answer that it makes no more of a lease."""
        self.leases.clear()
        number = self.team.lease.number if number is None else number
        return self.happen(events.Received(peer=peer_of(1), message=Dropped(number=number)))


def begun(effects: list[Effect]) -> list[MultiStepLease]:
    return [message for message in messages(effects) if isinstance(message, MultiStepLease)]


@pytest.mark.parametrize("processes", [1, 2, 16])
def test_once_the_speed_of_a_team_is_known_it_makes_the_steps_up_to_the_last_of_the_epoch(processes: int) -> None:
    drive = Team()
    (lease,) = begun(drive.begin(processes))
    assert (lease.first, lease.last, lease.incarnation) == (1, STEPS - 1, "life-1")
    assert drive.lease.rank == 0
    assert drive.lease.step_s == pytest.approx(0.03)
    assert drive.coordinator.phase is RunPhase.MULTI_STEP
    status = drive.coordinator.status(drive.now)
    assert status.phase == "training"
    assert [(worker.state, worker.processes) for worker in status.workers] == [("computing", processes)]


def test_the_first_steps_of_a_run_are_leased_also_of_one_that_is_resumed() -> None:
    coordinator = Coordinator(info_of(), all_parts(), progress=Progress(steps=3))
    assert part_of(coordinator, MultiStep).plan.earliest == 3 + FIRST_STEPS


def test_a_step_that_a_team_made_counts_like_any_other() -> None:
    drive = Team()
    drive.begin()
    before, compute_s = drive.coordinator.progress.samples, drive.coordinator.progress.compute_s
    assert drive.make(1) == []
    ((account, made),) = drive.server.recorded
    entry = account.step_done(1, made.checksum)
    assert [(share.lo, share.hi, share.rank) for share in entry.shares] == [(0, 2, 0), (2, 3, 0)]
    assert (entry.processes, entry.loss_sums().tolist()) == ([1, 0], [1.0, 0.5, 1.0])
    progress = drive.coordinator.progress
    assert progress.samples == before + 3
    assert progress.compute_s == pytest.approx(compute_s + 0.024)
    time = progress.last_step
    assert (time.round_s, time.mean_s, time.slowest_s) == pytest.approx((0.03, 0.012, 0.015))
    assert drive.coordinator.status(drive.now).step == 2
    drive.make(2)
    assert kinds(drive.answer_steps()) == [Lease]
    assert (drive.coordinator.round.step, drive.team.taken_over) == (3, [3])


def test_the_ledger_names_no_process_of_a_team_of_one() -> None:
    drive = Team()
    drive.begin(1)
    drive.make(1)
    ((account, _),) = drive.server.recorded
    assert account.step_done(1, 7).processes == []


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
    drive.part.plan.is_possible = change != "impossible"
    if change == "no team":
        drive.enter(1, shares=True)
    else:
        drive.enter_team(1)
    if change == "two":
        drive.enter(2)
    drive.now += 0.03
    assert not begun([effect for _ in range(3) for effect in drive.finish_round()])


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_worker_that_comes_ends_the_multi_step_lease_once(is_inside: bool) -> None:
    drive = Team()
    drive.begin()
    drive.team.inside = {1} if is_inside else set()
    assert Withdrawal not in kinds(drive.join(2))
    effects = drive.prepare(2)
    # Without having answered: it stops within a micro-batch.
    assert kinds(effects, 1) == ([Withdrawal] if is_inside else [Withdrawal, Lease])
    assert set(kinds(effects, 2)) == (set() if is_inside else {Lease})
    drive.team.inside.clear()
    later = drive.pass_time(0.01)
    assert set(kinds(later, 2)) == ({Lease} if is_inside else set())
    assert Withdrawal not in kinds(later)
    assert drive.team.taken_over == [1]


def test_if_a_process_hangs_in_an_update_and_there_is_no_other_memory_the_run_says_so_now_and_then() -> None:
    drive = Team()
    drive.begin()
    drive.team.inside = {1}
    assert STUCK not in said(drive.enter(2) + drive.pass_time(MOVE_S / 2))
    assert said(drive.pass_time(MOVE_S)) == STUCK
    assert said(drive.pass_time(REMINDER_S)) == STUCK
    drive.team.inside.clear()
    assert Lease in kinds(drive.pass_time(0.01))


def test_a_lease_ends_if_its_team_is_gone() -> None:
    drive = Team()
    drive.begin()
    drive.team.made = 4
    assert kinds(drive.leave(1)) == []
    assert [made.step for _, made in drive.server.recorded] == [1, 2, 3]
    assert (drive.team.taken_over, drive.coordinator.phase) == ([4], RunPhase.TRAINING)
    assert set(kinds(drive.enter(2))) == {Welcome, Lease}


def test_one_that_has_not_answered_gets_no_work_until_it_does() -> None:
    drive = Team()
    drive.begin()
    assert kinds(drive.pass_time(2 * LATE_S)) == [Withdrawal]
    assert drive.coordinator.scheduler.withdrawals.has_any(0)
    assert kinds(drive.answer_steps()) == [Lease]
    assert not drive.coordinator.scheduler.withdrawals.has_any(0)
    drive.happen(events.Received(peer=peer_of(1), message=Dropped(number=1)))


def test_one_that_never_answers_is_late_like_any_other() -> None:
    drive = Team()
    drive.begin()
    drive.pass_time(2 * LATE_S)
    late = said(drive.pass_time(drive.info.options.lease_timeout))
    assert "team 0 (host host, pid 1, 2 workers) has sent nothing for" in late


def test_an_answer_to_another_lease_changes_nothing() -> None:
    drive = Team()
    drive.begin()
    assert drive.answer_steps(number=7) == []
    assert not drive.lease.has_answered


@pytest.mark.parametrize("refusal", [StepsRefusal.NEVER, StepsRefusal.NO_ROOM])
def test_a_refused_multi_step_lease_is_tried_again_later_or_never(refusal: StepsRefusal) -> None:
    drive = Team(server=StepsByHand(refusal=refusal))
    effects = drive.begin()
    assert (begun(effects), kinds(effects)[-1]) == ([], Lease)
    assert drive.part.plan.is_possible is (refusal is StepsRefusal.NO_ROOM)
    assert drive.part.plan.earliest == (1 + PAUSE if refusal is StepsRefusal.NO_ROOM else 0)
    drive.server.refusal = None
    drive.now += 0.03
    assert not begun(drive.finish_round())


@pytest.mark.parametrize("due", [{"last": 4}, {"until": 0.0}])
def test_steps_are_leased_one_by_one_if_a_checkpoint_is_due_soon(due: dict[str, Any]) -> None:
    drive = Team(server=StepsByHand(**due))
    assert not begun(drive.begin())
    drive.server.last = drive.server.until = None
    drive.now += 0.03
    assert begun(drive.finish_round())


def test_a_multi_step_lease_ends_when_a_checkpoint_is_due() -> None:
    drive = Team()
    drive.server.until = drive.now + 0.05
    drive.begin()
    drive.team.made = 2
    drive.team.inside.add(1)
    assert Withdrawal not in kinds(drive.pass_time(0.015))
    assert Withdrawal in kinds(drive.pass_time(0.01))
    drive.team.inside.clear()
    drive.pass_time(0.01)
    assert drive.team.taken_over == [2]


def test_a_run_that_ends_keeps_what_its_team_has_made() -> None:
    drive = Team()
    drive.begin()
    drive.team.made, drive.team.inside = 4, {1}
    (finish,) = finished(drive.happen(INTERRUPT))
    assert finish.kind is FailureKind.INTERRUPTED
    assert [made.step for _, made in drive.server.recorded] == [1, 2, 3]
    assert (drive.team.taken_over, drive.coordinator.progress.steps) == ([4], 4)


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
