"""Some micro-batches are computed again by another worker, before the update; a third one decides on a difference."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from lockstep.common.errors import FailureKind, RefusalKind
from lockstep.common.job.job import Job
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.messages import (
    Diverged,
    Eviction,
    Finished,
    Lease,
    Quantity,
    Refused,
    Result,
    Welcome,
)
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import UpdateWeights
from lockstep.ps.coordinator.findings import Conviction, MicroBatchOutcome
from lockstep.ps.coordinator.membership import Member
from lockstep.ps.coordinator.parts.assembly import part_of
from lockstep.ps.coordinator.parts.audit import Audit, AuditOfStep, chosen_for_audit, finding_of
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.ledger import UnusedCause, UnusedWork
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round
from tests.lockstep.ps.runs import (
    Drive,
    facts_of,
    finished,
    join_of,
    kinds,
    messages,
    peer_of,
    result_of,
    said,
    with_options,
)

#: What workers find.
SAME, OTHER, THIRD, FOURTH = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


def audited(share: float = 1.0, *, min_workers: int = 2, job: Job | None = None) -> RunInfo:
    return with_options(facts_of(job, min_workers=min_workers), audit=share)


def digested(lease: Lease, digest: str = SAME) -> Result:
    return msgspec.structs.replace(result_of(lease), digest=digest if lease.is_digested else "")


@dataclass
class Audited(Drive):
    """A coordinator whose workers find the same, or what is told of one of them."""

    #: What the server finds, empty if it cannot compute; and the steps and micro-batches that it was asked for.
    right: str = ""
    asked: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        part_of(self.coordinator, Audit).serve(self._recompute)

    def _recompute(self, step: int, micro_batch: int) -> MicroBatchOutcome | None:
        self.asked.append((step, micro_batch))
        return MicroBatchOutcome(digest=self.right) if self.right else None

    def bring(self, worker: int, digest: str = SAME) -> None:
        self.send(worker, digested(self.leases[worker].pop(0), digest))

    def to_audit(self, *workers: int) -> None:
        """Let workers bring all that is to be trained of the step at hand."""
        while self.coordinator.phase is RunPhase.TRAINING:
            self.bring(next(worker for worker in workers if self.leases.get(worker)))

    def bring_all(self, digests: dict[int, str] | None = None) -> None:
        while not self.coordinator.is_over():
            worker = next(worker for worker, leases in self.leases.items() if leases)
            self.bring(worker, (digests or {}).get(worker, SAME))

    def of_audits(self) -> list[Lease]:
        sent = messages(self.effects)
        return [message for message in sent if isinstance(message, Lease) and message.work == "audit"]


def again(drive: Drive) -> list[UnusedWork]:
    updates = [effect for effect in drive.effects if isinstance(effect, UpdateWeights)]
    return [entry for update in updates for entry in update.account.entries if isinstance(entry, UnusedWork)]


def test_what_is_chosen_follows_from_seed_step_and_micro_batch() -> None:
    first = [chosen_for_audit(0.1, 7, step, 64) for step in range(100)]
    assert first == [chosen_for_audit(0.1, 7, step, 64) for step in range(100)]
    assert first != [chosen_for_audit(0.1, 8, step, 64) for step in range(100)]
    assert 500 < sum(map(len, first)) < 780
    # A larger share is a larger part of the same order.
    assert all(few <= chosen_for_audit(0.3, 7, step, 64) for step, few in enumerate(first))
    assert chosen_for_audit(1.0, 7, 0, 8) == frozenset(range(8))
    assert chosen_for_audit(0.0, 7, 0, 8) == frozenset()


def test_a_micro_batch_to_be_audited_is_leased_by_itself_and_asked_for_its_digest() -> None:
    drive = Audited(audited(min_workers=1))
    drive.enter(1)
    leases = [message for message in messages(drive.effects) if isinstance(message, Lease)]
    assert [(lease.lo, lease.hi, lease.is_digested) for lease in leases] == [(0, 1, True), (1, 2, True)]


def test_every_micro_batch_is_computed_again_by_another_worker_and_booked() -> None:
    drive = Audited(audited())
    drive.enter(1, 2)
    drive.bring_all()
    assert finished(drive.effects)[0].failure == ""
    assert drive.coordinator.progress.audited == 6 * 4
    assert drive.coordinator.progress.unaudited == 0
    entries = again(drive)
    assert {entry.cause for entry in entries} == {UnusedCause.AUDITED}
    assert [(entry.step, entry.lo) for entry in sorted(entries, key=lambda it: (it.step, it.lo))] == [
        (step, micro_batch) for step in range(6) for micro_batch in range(4)
    ]
    for effect in drive.effects:
        if isinstance(effect, UpdateWeights):
            first = {
                micro_batch: share.rank for share in effect.account.shares for micro_batch in range(share.lo, share.hi)
            }
            second = {entry.lo: entry.rank for entry in effect.account.entries if isinstance(entry, UnusedWork)}
            assert all(first[micro_batch] != rank for micro_batch, rank in second.items())


def test_the_audit_adds_nothing_to_the_sums() -> None:
    drive = Audited(audited())
    drive.enter(1, 2)
    drive.bring_all()
    for effect in drive.effects:
        if isinstance(effect, UpdateWeights):
            assert effect.tally.count == 4
    assert len(drive.counted) == 6 * 4


def differing(*workers: int, audit_ends: bool = False) -> Audited:
    """Return a run of some workers of which the first has computed all, and the second another digest of one part."""
    drive = Audited(with_options(audited(min_workers=len(workers)), audit_ends=audit_ends))
    drive.enter(*workers)
    while drive.coordinator.phase is RunPhase.TRAINING:
        drive.bring(next(worker for worker in workers if drive.leases.get(worker)), SAME)
    return drive


def bring_audits(drive: Audited, digests: dict[int, str]) -> None:
    """Let workers bring what they audit until the run is over."""
    while not drive.coordinator.is_over():
        worker = next(worker for worker, leases in drive.leases.items() if leases)
        drive.bring(worker, digests.get(worker, SAME))


def convicted(drive: Audited) -> Conviction:
    (finish,) = finished(drive.effects)
    assert finish.conviction is not None
    return finish.conviction


def test_a_third_worker_decides_and_who_is_wrong_is_evicted() -> None:
    drive = differing(1, 2, 3)
    bring_audits(drive, {2: OTHER})
    conviction = convicted(drive)
    assert drive.asked == []
    assert [(one.rank, one.found.digest) for one in conviction.wrong] == [(1, OTHER)]
    assert (conviction.step, conviction.right.digest) == (0, SAME)
    assert len(conviction.judges) == 2
    assert finished(drive.effects)[0].kind is FailureKind.ROLLBACK
    (refused,) = messages(drive.effects, 2)[-1:]
    assert isinstance(refused, Refused)
    assert refused.kind is RefusalKind.CONVICTED
    # The others join again, and the step is not applied.
    assert [kinds(drive.effects, worker)[-1] for worker in (1, 3)] == [Eviction, Eviction]
    assert not [effect for effect in drive.effects if isinstance(effect, UpdateWeights)]


def test_the_dispute_is_reported_with_both_and_then_with_all_three() -> None:
    drive = differing(1, 2, 3)
    bring_audits(drive, {2: OTHER})
    assert "worker 1 (host host, pid 2) found bbbbbbbbbbbb…; another worker, or the server, computes it too" in said(
        drive.effects
    )
    assert (
        convicted(drive).text().endswith(" aaaaaaaaaaaa…: worker 1 (host host, pid 2) computes wrongly, and is evicted")
    )
    assert "worker 1 (host host, pid 2) found bbbbbbbbbbbb…, and worker " in convicted(drive).text()


@pytest.mark.parametrize(("right", "wrong"), [(SAME, 1), (OTHER, 0)])
def test_the_server_decides_if_there_is_no_third_worker(right: str, wrong: int) -> None:
    drive = differing(1, 2)
    drive.right = right
    bring_audits(drive, {2: OTHER})
    assert [one.rank for one in convicted(drive).wrong] == [wrong]
    assert {one.found.digest for one in convicted(drive).wrong} == {OTHER if right == SAME else SAME}
    assert convicted(drive).judges[-1] == "the server"
    assert len(drive.asked) == 1


def test_both_are_evicted_if_the_server_finds_a_third_result() -> None:
    drive = differing(1, 2)
    drive.right = THIRD
    bring_audits(drive, {2: OTHER})
    assert {one.rank for one in convicted(drive).wrong} == {0, 1}
    assert convicted(drive).text().endswith(", and are evicted")


def test_if_all_workers_differ_the_server_decides() -> None:
    drive = differing(1, 2, 3, 4)
    drive.right = SAME
    bring_audits(drive, {1: "e" * 64, 2: OTHER, 3: THIRD, 4: FOURTH})
    assert len(convicted(drive).wrong) == 3
    assert convicted(drive).right.digest == SAME


def test_without_anybody_to_decide_the_run_ends_with_both_named() -> None:
    drive = differing(1, 2)
    bring_audits(drive, {2: OTHER})
    (finish,) = finished(drive.effects)
    assert finish.kind is FailureKind.AUDIT
    assert finish.conviction is None
    for named in ("worker 0 (host host, pid 1)", "worker 1 (host host, pid 2)", "no worker is left that could decide"):
        assert named in finish.failure


def test_an_audit_may_end_the_run_instead() -> None:
    drive = differing(1, 2, 3, audit_ends=True)
    bring_audits(drive, {2: OTHER})
    (finish,) = finished(drive.effects)
    assert finish.kind is FailureKind.AUDIT
    assert finish.conviction is not None
    assert [kinds(drive.effects, worker)[-1] for worker in (1, 2, 3)] == [Finished, Refused, Finished]


def test_a_process_has_one_opinion_under_whatever_rank() -> None:
    drive = differing(1, 2, 3)
    lease = drive.leases[1][0]
    drive.bring(1, OTHER)
    assert drive.asked == []
    # The same process is back before another worker has decided.
    again_joined = msgspec.structs.replace(join_of(1), incarnation="life-1.1")
    drive.leave(1)
    drive.happen(events.Received(peer=peer_of(7), message=again_joined))
    drive.prepare(7)
    for worker in (2, 3):
        assert lease.lo not in [one.lo for one in drive.leases.get(7, ())]
        drive.leave(worker)
    assert lease.lo in [micro_batch for _, micro_batch in drive.asked]


@pytest.mark.parametrize(
    ("incarnation", "key", "may_join"),
    [("life-1", "", False), ("life-1.3", "", False), ("life-2", "", True), ("life-2", "worker-1", False)],
)
def test_who_was_convicted_may_not_come_back(incarnation: str, key: str, may_join: bool) -> None:
    drive = Audited(audited())
    drive.coordinator.admission.convicted = {"process life-1": "it lied", "key worker-1": "it lied"}
    join = msgspec.structs.replace(join_of(1), incarnation=incarnation)
    drive.happen(events.Received(peer=peer_of(1), message=join, key=key))
    (answer,) = messages(drive.effects, 1)
    assert isinstance(answer, Welcome) is may_join
    if isinstance(answer, Refused):
        assert answer.kind is RefusalKind.CONVICTED
        assert answer.reason == "it lied; test the memory and the processor of its machine"


def test_a_loss_that_only_the_second_one_finds_infinite_is_a_difference() -> None:
    drive = Audited(audited())
    drive.enter(1, 2)
    drive.to_audit(1, 2)
    lease = drive.leases[1][0]
    nowhere = Diverged(number=lease.number, micro_batch=99, layer="fc")
    assert drive.happen(events.Received(peer=peer_of(1), message=nowhere)) == []
    diverged = Diverged(number=lease.number, micro_batch=lease.lo, layer="fc")
    drive.right = SAME
    drive.happen(events.Received(peer=peer_of(1), message=diverged))
    assert "found a loss that is not finite, from layer fc on; another worker" in said(drive.effects)
    assert [one.rank for one in convicted(drive).wrong] == [0]


def test_one_worker_waits_for_nobody_and_it_is_said_once() -> None:
    drive = Audited(audited(min_workers=1))
    drive.enter(1)
    drive.bring_all()
    assert finished(drive.effects)[0].failure == ""
    assert said(drive.effects).count("cannot audit micro-batches 0, 1, 2, 3 of step 0") == 1
    assert said(drive.effects).count("cannot audit") == 1
    assert (drive.coordinator.progress.audited, drive.coordinator.progress.unaudited) == (0, 24)
    assert drive.of_audits() == []


@pytest.mark.parametrize("how", ["leaves", "is late", "raises"])
def test_an_audit_whose_only_other_worker_is_lost_goes_on_without(how: str) -> None:
    drive = Audited(audited())
    drive.enter(1, 2)
    drive.to_audit(1, 2)
    while drive.leases[1]:
        drive.bring(1)
    assert drive.coordinator.round.work == "audit"
    match how:
        case "leaves":
            drive.leave(2)
        case "is late":
            drive.pass_time(61.0)
        case "raises":
            while drive.coordinator.round.step == 0:
                drive.fail(2)
    assert drive.coordinator.round.step == 1
    assert drive.coordinator.phase is RunPhase.TRAINING
    progress = drive.coordinator.progress
    assert progress.audited + progress.unaudited == 4
    assert progress.unaudited > 0
    assert said(drive.effects).count("cannot audit") == 1


def test_an_audit_is_taken_over_by_a_third_worker() -> None:
    drive = Audited(audited(min_workers=3))
    drive.enter(1, 2, 3)
    drive.to_audit(1, 2, 3)
    assert drive.coordinator.phase is RunPhase.AUDITING
    drive.leave(2)
    drive.bring_all()
    assert finished(drive.effects)[0].failure == ""
    assert drive.coordinator.progress.unaudited == 0


def test_results_of_the_step_that_come_during_its_audit_are_of_no_use() -> None:
    drive = Audited(audited())
    drive.enter(1, 2)
    late = digested(drive.leases[1][0], OTHER)
    drive.to_audit(1, 2)
    counted = list(drive.counted)
    assert drive.send(1, late) == []
    assert drive.counted == counted
    drive.bring_all()
    assert finished(drive.effects)[0].failure == ""


def test_a_part_of_the_micro_batches_is_audited() -> None:
    job = Job(model="linear", epochs=2, global_batch=16, micro_batches=16)
    drive = Audited(audited(0.25, job=job))
    drive.enter(1, 2)
    drive.bring_all()
    expected = {(step, micro_batch) for step in range(6) for micro_batch in chosen_for_audit(0.25, job.seed, step, 16)}
    assert {(lease.step, lease.lo) for lease in drive.of_audits()} == expected
    assert {(entry.step, entry.lo) for entry in again(drive)} == expected
    assert 0 < len(expected) < 96


def test_what_the_audit_computes_counts_as_time_of_the_step_and_of_no_gradient() -> None:
    drive = Audited(audited())
    drive.enter(1, 2)
    drive.bring_all()
    # Two workers computed four micro-batches twice, half a second each.
    assert drive.coordinator.progress.last_step.mean_s == 2.0
    assert drive.coordinator.progress.compute_s == 6 * 4 * 0.5


STEP = Round("train", 0, 4)


def recorded(digest: str = SAME) -> tuple[AuditOfStep, Member, Result]:
    """Return an audit of one micro-batch whose first result is there, with another worker and its result."""
    first, second = (Member(peer_of(rank), rank, join_of(rank)) for rank in (4, 5))
    lease = Lease(work="train", step=0, lo=1, hi=2)
    found = finding_of(first, msgspec.structs.replace(result_of(lease), digest=SAME))
    audit = AuditOfStep(STEP, frozenset({1}), {1: [found]})
    return audit, second, msgspec.structs.replace(result_of(lease), digest=digest, work="audit")


def test_the_worker_that_computed_a_micro_batch_does_not_get_it_again() -> None:
    audit, second, same = recorded()
    assert audit.excluded([second]) == {1: frozenset({4})}
    # Nor under another rank.
    back = Member(peer_of(9), 9, msgspec.structs.replace(join_of(4), incarnation="life-4.1"))
    assert audit.excluded([second, back]) == {1: frozenset({4, 9})}
    assert audit.has_heard(1, back)
    assert not audit.has_heard(1, second)
    assert audit.add(1, finding_of(second, same)) is None
    assert not audit.is_disputed(1)


@pytest.mark.parametrize(
    ("digest", "shown"), [("", ""), ("a" * 12, "a" * 12), ("a" * 63 + "b", "a" * 12), (OTHER, "b" * 12)]
)
def test_digests_are_compared_whole(digest: str, shown: str) -> None:
    audit, second, other = recorded(digest)
    assert audit.add(1, finding_of(second, other)) is None
    assert audit.is_disputed(1)
    assert audit.dispute(1) == (
        "the audit found a difference in micro-batches 1 of step 0: worker 4 (host host, pid 4) found aaaaaaaaaaaa…, "
        f"worker 5 (host host, pid 5) found {shown}…"
    )


@pytest.mark.parametrize(("quantity", "where"), [("loss", "from layer fc on"), ("gradient", "first of 'fc'")])
def test_a_value_that_the_first_worker_should_have_found_infinite_is_named(quantity: Quantity, where: str) -> None:
    audit, second, _ = recorded()
    diverged = Diverged(number=1, micro_batch=1, layer="fc", quantity=quantity)
    assert audit.add(1, finding_of(second, diverged)) is None
    conviction = audit.convict(1, MicroBatchOutcome(quantity=quantity, layer="fc"), "the server")
    assert conviction is not None
    assert conviction.text() == (
        "the audit found a difference in micro-batch 1 of step 0: worker 4 (host host, pid 4) found aaaaaaaaaaaa…, and "
        f"worker 5 (host host, pid 5) and the server a {quantity} that is not finite, {where}: worker 4 (host host, "
        "pid 4) computes wrongly, and is evicted"
    )


def test_only_training_is_audited() -> None:
    audit = part_of(Audited(audited()).coordinator, Audit)
    assert audit.opened(STEP) == frozenset(range(4))
    assert audit.opened(Round("evaluate", 3, 4)) == frozenset()


# Which share to audit


def lies(seed: int, step: int, micro_batch: int, wrong: float) -> bool:
    rng = generator(seed, Purpose.SIMULATE, at=step, micro_batch=micro_batch, layer=21)
    return bool(rng.random() < wrong)


def found_after(seed: int, share: float, wrong: float, most: int) -> int:
    """Return after how many steps a worker is found that computes the first 8 of 32 micro-batches of each step."""
    for step in range(most):
        audited_here = [one for one in chosen_for_audit(share, seed, step, 32) if one < 8]
        if any(lies(seed, step, micro_batch, wrong) for micro_batch in audited_here):
            return step + 1
    return most + 1


def steps_to_find(share: float, wrong: float, results: float, probability: float) -> int:
    """Return after how many steps an audit of a `share` of the micro-batches has found a worker.

    The worker computes `results` micro-batches a step, a share `wrong` of them wrongly, each by chance; it is found in
    that many steps with at least this probability. Each of its results is audited and wrong with the probability
    share · wrong, and so none of n steps' with (1 - share · wrong)^(n · results). Its own audits of others, which may
    be wrong too, are not counted: with them it is found sooner.
    """
    found = share * wrong
    return 1 if found >= 1.0 else math.ceil(math.log1p(-probability) / (results * math.log1p(-found)))


@pytest.mark.parametrize(("share", "wrong"), [(0.05, 1.0), (0.05, 0.5), (0.2, 0.1)])
def test_a_worker_is_found_within_the_steps_of_the_formula(share: float, wrong: float) -> None:
    within = steps_to_find(share, wrong, 8, 0.99)
    found = [found_after(seed, share, wrong, within) for seed in range(400)]
    # Four in expectation are not.
    assert sum(steps > within for steps in found) <= 10
    # Nor are all found much sooner: half of the steps for a half are not enough for all.
    half = steps_to_find(share, wrong, 8, 0.5)
    assert 160 <= sum(steps <= half for steps in found) <= 280


def test_the_table_of_the_docs_is_that_of_the_formula() -> None:
    page = (Path(__file__).parents[5] / "docs" / "how-to" / "audit.md").read_text(encoding="utf-8")
    for name, wrong in (("all", 1.0), ("half", 0.5), ("1 of 10", 0.1), ("1 of 100", 0.01)):
        cells = [f"{steps_to_find(share, wrong, 1, 0.99):,}" for share in (0.01, 0.05, 0.2, 1.0)]
        assert f"| {name} | {' | '.join(cells)} |" in page
