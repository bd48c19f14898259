"""Work is leased on demand, comes back once, and rounds follow one another."""

import msgspec
import pytest

from lockstep.common.aggregation.tree import Node, TreeSum
from lockstep.common.job.job import Job
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.messages import Eviction, Lease
from lockstep.ps.coordinator.effects import Finish, RecordEpoch, Send, UpdateWeights
from lockstep.ps.coordinator.scheduling.round_state import WINDOW
from lockstep.ps.coordinator.transitions import RunPhase
from tests.lockstep.ps.runs import Drive, facts_of, finished, kinds, messages, peer_of, result_of, said
from tests.lockstep.ps.timed import TimedRun, steady


def test_one_worker_gets_the_whole_round() -> None:
    drive = Drive()
    effects = drive.enter(1)
    lease = Lease(work="train", step=0, lo=0, hi=4, number=1)
    assert effects[-1] == Send(peer=peer_of(1), message=lease)


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
def test_leases_cover_all_micro_batches_exactly_once(workers: int) -> None:
    drive = Drive(facts_of(Job(model="linear", global_batch=64, micro_batches=64), min_workers=workers))
    drive.enter(*range(workers))
    while drive.coordinator.round.work == "train":
        drive.answer(max(drive.leases, key=lambda one: (len(drive.leases[one]), one)))
    covered = sorted(micro_batch for node in drive.counted for micro_batch in range(node.lo, node.hi))
    assert covered == list(range(64))


def test_nobody_holds_more_than_the_window() -> None:
    drive = Drive(facts_of(Job(model="linear", global_batch=64, micro_batches=64), min_workers=3))
    drive.enter(1, 2, 3)
    assert [len(drive.leases[worker]) for worker in (1, 2, 3)] == [WINDOW] * 3
    drive.answer(2)
    assert [len(drive.leases[worker]) for worker in (1, 2, 3)] == [WINDOW] * 3


def test_while_nothing_is_known_leases_are_half_a_fair_share_of_what_is_left() -> None:
    drive = Drive(facts_of(Job(model="linear", global_batch=64, micro_batches=64), min_workers=2))
    drive.enter(1, 2)
    sizes = {worker: [lease.hi - lease.lo for lease in leases] for worker, leases in drive.leases.items()}
    # Of 64, 48, 40 and 32 micro-batches a quarter each, or the largest node at that place.
    assert sizes == {1: [16, 8], 2: [8, 8]}


@pytest.mark.parametrize(("speeds", "shares"), [((1.0, 1.0), [32, 32]), ((4.0, 1.0), [52, 12]), ((3.0, 0.5), [55, 9])])
def test_once_times_are_known_a_slow_worker_gets_less_and_a_round_takes_few_leases(
    speeds: tuple[float, float], shares: list[int]
) -> None:
    run = TimedRun([steady(speed) for speed in speeds], micro_batches=64, cores=1)
    run.run(4)
    for step in range(1, 4):
        nodes = [run.leased_to(worker, step) for worker in range(2)]
        assert [sum(map(len, given)) for given in nodes] == shares
        assert sum(map(len, nodes)) <= 10


def test_a_finished_tree_updates_the_weights_before_the_next_step_is_leased() -> None:
    drive = Drive()
    drive.enter(1)
    effects = drive.answer(1)
    update = effects[0]
    assert isinstance(update, UpdateWeights)
    assert (update.step, update.tally) == (0, Tally(4.0, 4))
    lease = Lease(work="train", step=1, lo=0, hi=4, number=2)
    assert effects == [update, Send(peer=peer_of(1), message=lease)]


def test_a_run_evaluates_after_each_epoch_and_finishes() -> None:
    drive = Drive()
    drive.enter(1, 2)
    effects = drive.finish()
    steps = [effect.step for effect in effects if isinstance(effect, UpdateWeights)]
    epochs = [effect.epoch.epoch for effect in effects if isinstance(effect, RecordEpoch)]
    assert (steps, epochs) == ([0, 1, 2, 3, 4, 5], [1, 2])
    assert finished(effects) == [Finish()]


def test_counts_are_added_over_the_tree_whoever_answers_first() -> None:
    job = Job(model="linear", epochs=1, global_batch=16, micro_batches=8)
    losses = [0.1 * 3**micro_batch for micro_batch in range(8)]
    tree: TreeSum[Tally] = TreeSum(8, lambda left, right: left + right)
    for micro_batch, loss in enumerate(losses):
        tree.add(Node(micro_batch, micro_batch + 1), Tally(loss, 2))
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 3, 1, 5, 0, 6, 2, 4]):
        drive = Drive(facts_of(job))
        drive.enter(1)
        effects = []
        for micro_batch in order:
            part = result_of(Lease(work="train", step=0, lo=micro_batch, hi=micro_batch + 1))
            effects += drive.send(1, msgspec.structs.replace(part, loss_sum=losses[micro_batch], count=2))
        assert [effect.tally for effect in effects if isinstance(effect, UpdateWeights)] == [tree.total()]


def test_a_doubled_result_is_ignored() -> None:
    drive = Drive(facts_of(min_workers=2))
    drive.enter(1, 2)
    result = result_of(drive.leases[1][0])
    drive.answer(1)
    assert drive.counted == [result.node()]
    assert drive.send(1, result) == []
    assert drive.counted == [result.node()]
    assert drive.coordinator.membership.members[peer_of(1)].samples == result.count


def test_a_strangers_result_is_not_applied_and_it_is_told_to_join_anew() -> None:
    drive = Drive()
    drive.enter(1)
    effects = drive.send(9, result_of(drive.leases[1][0]))
    assert kinds(effects, 9) == [Eviction]
    assert len(effects) == 1


def test_a_lease_runs_out_and_its_micro_batches_go_to_another() -> None:
    drive = Drive(facts_of(min_workers=2))
    drive.enter(1, 2)
    held = [Node(lease.lo, lease.hi) for lease in drive.leases[1]]
    drive.pass_time(30.0)
    while drive.leases[2]:
        drive.answer(2)
    assert drive.coordinator.deadline() is not None
    effects = drive.pass_time(30.0)
    assert (
        f"worker 0 (host host, pid 1) has held micro-batches {held[0]}, {held[1]} of step 0 for 60.0 s: leased again "
        "to worker 1" in said(effects)
    )
    assert sorted(Node(lease.lo, lease.hi) for lease in drive.leases[2]) == held
    states = {worker.pid: worker.state for worker in drive.coordinator.status(drive.now).workers}
    assert states[1] == "suspect"


def test_a_late_result_counts_if_it_is_the_first_and_its_worker_gets_work_again() -> None:
    drive = Drive(facts_of(min_workers=2))
    drive.enter(1, 2)
    late = result_of(drive.leases[1][0])
    drive.pass_time(59.0)
    while drive.leases[2]:
        drive.answer(2)
    drive.pass_time(2.0)
    drive.send(1, late)
    assert drive.counted[-1] == late.node()
    drive.leases[2] = [lease for lease in drive.leases[2] if lease.lo != late.lo]
    drive.finish_round()
    assert drive.send(1, late) == []
    drive.finish()
    assert drive.coordinator.phase is RunPhase.FINISHED


def test_time_runs_anew_for_what_a_worker_holds_when_it_answers() -> None:
    drive = Drive(facts_of(min_workers=2))
    drive.enter(1, 2)
    drive.pass_time(50.0)
    drive.answer(1)
    drive.answer(2)
    assert said(drive.pass_time(50.0)) == ""
    assert "leased again" in said(drive.pass_time(11.0))


def test_one_silent_worker_alone_gets_its_micro_batches_again_when_it_asks() -> None:
    drive = Drive()
    drive.enter(1)
    drive.pass_time(61.0)
    assert kinds(drive.ask(1))[1:] == [Lease]


def test_with_everybody_silent_a_late_result_still_ends_the_step() -> None:
    drive = Drive()
    drive.enter(1)
    drive.pass_time(200.0)
    effects = drive.answer(1)
    assert [(it.step, it.tally) for it in effects if isinstance(it, UpdateWeights)] == [(0, Tally(4.0, 4))]
    assert kinds(effects, 1)[-1] is Lease


def test_work_that_a_late_result_sets_free_goes_to_whoever_waits() -> None:
    drive = Drive(facts_of(Job(model="linear", epochs=1, global_batch=16, micro_batches=4), min_workers=2))
    drive.enter(1, 2)
    drive.leave(2)
    assert [Node(lease.lo, lease.hi) for lease in drive.leases[1]] == [Node(0, 1), Node(2, 3)]
    late = [result_of(lease) for lease in drive.leases.pop(1)]
    drive.pass_time(61.0)
    drive.enter(3)
    drive.enter(4)
    assert drive.leased() == [Node(0, 4)]
    effects = drive.send(1, late[0])
    freed = [message for message in messages(effects, 4) if isinstance(message, Lease)]
    assert freed


@pytest.mark.parametrize("samples", [100, 1700])
def test_evaluation_is_leased_like_training(samples: int) -> None:
    drive = Drive(facts_of(test_samples=samples, min_workers=2))
    drive.enter(1, 2)
    for _ in range(3):
        drive.finish_round()
    leased = [lease for leases in drive.leases.values() for lease in leases]
    assert {(lease.work, lease.step) for lease in leased} == {("evaluate", 3)}
    effects = drive.finish_round()
    (record,) = [effect for effect in effects if isinstance(effect, RecordEpoch)]
    assert record.epoch.test_loss == 1.0
