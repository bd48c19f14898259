"""Some micro-batches are computed again by another worker, before the update, and a difference ends the run."""

from dataclasses import replace

import msgspec
import pytest

from lockstep.common.errors import FailureKind
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import Diverged, Lease, Quantity, Result
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import UpdateWeights
from lockstep.ps.coordinator.membership import Member
from lockstep.ps.coordinator.scheduling.audit import AUDITED, Audit, chosen_for_audit
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.ledger import UnusedWork
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round
from tests.lockstep.ps.runs import Drive, facts_of, finished, join_of, messages, peer_of, result_of, said

#: What workers find.
SAME, OTHER = "a" * 64, "b" * 64


def audited(share: float = 1.0, *, min_workers: int = 2, job: Job | None = None) -> RunInfo:
    return replace(facts_of(job, min_workers=min_workers), audit=share)


def digested(lease: Lease, digest: str = SAME) -> Result:
    return msgspec.structs.replace(result_of(lease), digest=digest if lease.is_digested else "")


class Audited(Drive):
    """A coordinator whose workers find the same, or what is told of one of them."""

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
    assert {entry.why for entry in entries} == {AUDITED}
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


def test_a_difference_names_both_and_ends_the_run_before_the_update() -> None:
    drive = Audited(audited())
    drive.enter(1, 2)
    drive.to_audit(1, 2)
    assert drive.coordinator.phase is RunPhase.AUDITING
    drive.bring_all({2: OTHER})
    (finish,) = finished(drive.effects)
    assert finish.kind is FailureKind.AUDIT
    assert "of step 0: " in finish.failure
    for named in ("worker 0 (host host, pid 1)", "worker 1 (host host, pid 2)", "aaaaaaaaaaaa…", "bbbbbbbbbbbb…"):
        assert named in finish.failure
    assert not [effect for effect in drive.effects if isinstance(effect, UpdateWeights)]


def test_a_loss_that_only_the_second_one_finds_infinite_is_a_difference() -> None:
    drive = Audited(audited())
    drive.enter(1, 2)
    drive.to_audit(1, 2)
    lease = drive.leases[1][0]
    nowhere = Diverged(work="audit", step=0, micro_batch=99, layer="fc")
    assert drive.happen(events.Received(peer=peer_of(1), message=nowhere)) == []
    diverged = Diverged(work="audit", step=0, micro_batch=lease.lo, layer="fc")
    drive.happen(events.Received(peer=peer_of(1), message=diverged))
    (finish,) = finished(drive.effects)
    assert finish.kind is FailureKind.AUDIT
    assert "from layer fc on" in finish.failure


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
    assert drive.coordinator.membership.compute_s == 6 * 4 * 0.5


STEP = Round("train", 0, 4)


def recorded(digest: str = SAME) -> tuple[Audit, Member, Result]:
    """Return an audit of one micro-batch whose first result is there, with another worker and its result."""
    audit = Audit(STEP, frozenset({1}))
    first, second = (Member(peer_of(rank), rank, join_of(rank)) for rank in (4, 5))
    lease = Lease(work="train", step=0, lo=1, hi=2)
    audit.record(first, msgspec.structs.replace(result_of(lease), digest=SAME))
    audit.record(first, result_of(Lease(work="train", step=0, lo=2, hi=3)))
    return audit, second, msgspec.structs.replace(result_of(lease), digest=digest, work="audit")


def test_only_what_is_chosen_is_recorded_and_its_worker_does_not_get_it_again() -> None:
    audit, second, same = recorded()
    assert audit.excluded() == {1: 4}
    assert audit.is_due()
    assert audit.difference(second, same) == ""


#: What follows a difference.
ADVICE = (
    "; one of them computes wrongly, and the step was not applied: find out which with `lockstep verify`, or by "
    "leaving out one at a time, and resume from the last checkpoint"
)


@pytest.mark.parametrize(
    ("digest", "shown"), [("", ""), ("a" * 12, "a" * 12), ("a" * 63 + "b", "a" * 12), (OTHER, "b" * 12)]
)
def test_digests_are_compared_whole(digest: str, shown: str) -> None:
    audit, second, other = recorded(digest)
    assert audit.difference(second, other) == (
        "the audit found a difference in micro-batches 1 of step 0: worker 4 (host host, pid 4) found aaaaaaaaaaaa…, "
        f"worker 5 (host host, pid 5) {shown}…{ADVICE}"
    )


@pytest.mark.parametrize(("quantity", "where"), [("loss", "from layer fc on"), ("gradient", "first of 'fc'")])
def test_a_value_that_only_the_second_worker_finds_infinite_is_named(quantity: Quantity, where: str) -> None:
    audit, second, _ = recorded()
    diverged = Diverged(work="audit", step=0, micro_batch=1, layer="fc", quantity=quantity)
    assert audit.divergence(second, diverged) == (
        "the audit found a difference in micro-batches 1 of step 0: worker 4 (host host, pid 4) found a finite "
        f"{quantity}, worker 5 (host host, pid 5) one that is not, {where}{ADVICE}"
    )
    assert audit.divergence(second, msgspec.structs.replace(diverged, micro_batch=2)) == ""


def test_only_training_is_audited() -> None:
    assert Audit.of(STEP, 1.0, 7).chosen == frozenset(range(4))
    assert Audit.of(Round("evaluate", 3, 4), 1.0, 7).chosen == frozenset()
