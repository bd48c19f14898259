"""What the coordinator books for the ledger: who computed what, and what was computed in vain and why."""

from lockstep.common.protocol.messages import Result
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import RecordEpoch, UpdateWeights
from lockstep.ps.coordinator.parts.assembly import all_parts
from lockstep.ps.records.ledger import CAUSES, LedgerEntry, UnusedCause, UnusedWork, WorkerIn
from tests.lockstep.ps.runs import Drive, facts_of, result_of


def updates(drive: Drive) -> list[UpdateWeights]:
    return [effect for effect in drive.effects if isinstance(effect, UpdateWeights)]


def noted(drive: Drive) -> list[LedgerEntry]:
    """Return what was booked beside the shares, of all rounds that are over."""
    accounts = [effect.account for effect in drive.effects if isinstance(effect, UpdateWeights | RecordEpoch)]
    return [entry for account in accounts for entry in account.entries]


def again(drive: Drive) -> list[UnusedWork]:
    return [entry for entry in noted(drive) if isinstance(entry, UnusedWork)]


def test_the_shares_of_a_step_tile_it_with_their_losses() -> None:
    drive = Drive(facts_of(min_workers=3))
    drive.enter(1, 2, 3)
    drive.finish()
    for update in updates(drive):
        done = update.account.step_done(update.step, 0)
        covered = sorted(micro_batch for share in done.shares for micro_batch in range(share.lo, share.hi))
        assert covered == list(range(4))
        assert done.loss_sums().tolist() == [1.0] * 4
    assert {share.rank for share in updates(drive)[0].account.shares} == {0, 1, 2}
    assert again(drive) == []


def test_each_worker_is_named_once() -> None:
    drive = Drive()
    drive.enter(1)
    drive.finish_round()
    drive.enter(2)
    drive.finish()
    assert [entry for entry in noted(drive) if isinstance(entry, WorkerIn)] == [
        WorkerIn(rank=0, host="host", pid=1, identity="process life-1"),
        WorkerIn(rank=1, host="host", pid=2, identity="process life-2"),
    ]


def test_what_a_worker_held_that_left_is_booked_with_the_reason() -> None:
    drive = Drive(facts_of(min_workers=2))
    drive.enter(1, 2)
    held = [(lease.lo, lease.hi) for lease in drive.leases[1]]
    drive.pass_time(1.5)
    drive.leave(1, "interrupted")
    drive.finish()
    assert again(drive) == [
        UnusedWork(work="train", step=0, lo=lo, hi=hi, rank=0, why="it left: interrupted", began_s=0.0, ended_s=1.5)
        for lo, hi in held
    ]


def test_what_ran_out_or_raised_is_booked_with_the_reason() -> None:
    drive = Drive(facts_of(min_workers=2))
    drive.enter(1, 2)
    lease = drive.leases[2][0]
    drive.fail(2, "Traceback (most recent call last):\n  ...\nValueError: boom\n")
    drive.pass_time(61.0)
    drive.ask(1)
    drive.ask(2)
    reasons = {entry.why for entry in drive.coordinator.state.account.entries if isinstance(entry, UnusedWork)}
    assert reasons == {"it raised: ValueError: boom", "it had sent nothing for 60.0 s"}
    first = next(entry for entry in drive.coordinator.state.account.entries if isinstance(entry, UnusedWork))
    assert (first.rank, first.lo, first.hi) == (1, lease.lo, lease.hi)


def test_a_result_that_comes_twice_or_too_late_is_booked() -> None:
    drive = Drive(facts_of(min_workers=2))
    drive.enter(1, 2)
    result = result_of(drive.leases[1][0])
    drive.answer(1)
    drive.send(1, result)
    drive.finish_round()
    drive.send(1, result)
    drive.finish_round()
    why, cause = CAUSES[UnusedCause.FASTER], UnusedCause.FASTER
    twice = UnusedWork(work="train", step=0, lo=result.lo, hi=result.hi, rank=0, why=why, cause=cause)
    assert again(drive) == [twice, twice]
    assert [update.step for update in updates(drive)][:2] == [0, 1]


def test_a_result_of_a_step_to_come_is_no_work() -> None:
    drive = Drive()
    drive.enter(1)
    drive.send(1, Result(work="train", step=9, lo=0, hi=4, loss_sum=0.0, count=4, compute_s=0.0))
    drive.finish()
    assert again(drive) == []


def test_a_run_may_begin_anywhere() -> None:
    info = facts_of()
    for steps, is_evaluated, phase in ((0, False, "training"), (3, False, "evaluating"), (3, True, "training")):
        drive = Drive(info)
        drive.coordinator = Coordinator(info, all_parts(), start=info.plan.at(steps, is_evaluated=is_evaluated))
        drive.enter(1)
        assert drive.coordinator.phase.value == phase
        assert drive.coordinator.round.step == steps
        drive.finish()
