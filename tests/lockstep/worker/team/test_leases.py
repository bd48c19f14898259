"""A team computes a lease: bits, tally and losses are those of one process, whoever has which turn or none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.common import nn
from lockstep.common.aggregation.tree import Node
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.nn.description import describe
from lockstep.common.protocol.messages import Lease, Work
from lockstep.common.protocol.team_memory import OWN_PARTS, ROWS
from lockstep.worker.gradient_sink import NotFiniteError
from lockstep.worker.team.division import OrderPlan, TeamPart
from lockstep.worker.team.leader import Found
from lockstep.worker.team.memory import OwnVectors
from lockstep.worker.team.pace import IDLE_S
from lockstep.worker.team.progress import CROWDED, PATIENT, ComputeNode, Order, OrderOutcome, Patience
from tests.lockstep.worker.team.crew import TEAM_JOBS, Alone, Crew, FaultyCompute, Turns, bits, whole, wide
from tests.simulation.small import JOBS, digits, job_of, long_test_set


@contextmanager
def crew_of(crew: Crew) -> Iterator[Crew]:
    try:
        yield crew
    finally:
        crew.close()


def found(crew: Crew) -> tuple[Found, bytes]:
    """Return what the leader has found in the order that is done, and the bits of the sums."""
    order, out = crew.leader.order, np.full(crew.members[0].memory.shape.size, np.nan, np.float32)
    assert order is not None
    return crew.leader.found(order, out), bits(out)


def check(crew: Crew, alone: Alone, lease: Lease) -> None:
    """Let a crew compute a lease, and check that it finds what one process finds."""
    sums, tally, losses = alone.train(lease.step, lease.node())
    expected = bits(sums)
    assert crew.work(lease) is OrderOutcome.DONE
    what, vector = found(crew)
    assert (vector, what.tally, what.losses) == (expected, tally, losses)


@pytest.mark.parametrize("name", TEAM_JOBS)
def test_a_team_finds_what_one_process_finds(name: str, memory: Path) -> None:
    job = TEAM_JOBS[name]
    with crew_of(Crew.of(job, 3, memory, Turns(1))) as crew:
        alone = Alone.of(job)
        for step, work in enumerate(("train", "audit", "train")):
            check(crew, alone, whole(job, step % job.micro_batches, work))  # type: ignore[arg-type]
        check(crew, alone, Lease(work="train", step=1, lo=0, hi=2))


@pytest.mark.parametrize("processes", [1, 2, 5, 8])
@pytest.mark.parametrize("wire", ["float32", "bfloat16", "int8"])
def test_any_number_of_processes_and_any_rounding(processes: int, wire: str, memory: Path) -> None:
    job = job_of(micro_batches=7, wire=wire)
    with crew_of(Crew.of(job, processes, memory, Turns(processes))) as crew:
        alone = Alone.of(job)
        for node in (Node(0, 7), Node(0, 4), Node(4, 7), Node(6, 7)):
            check(crew, alone, Lease(work="train", step=0, lo=node.lo, hi=node.hi))


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_who_has_no_sample_of_a_short_step_does_not_hide_what_those_of_others_weigh(
    processes: int, memory: Path
) -> None:
    # Forty samples: the third step has two of them, for five micro-batches.
    job = job_of(global_batch=19, micro_batches=5, class_weights=tuple(0.1 * label for label in range(1, 11)))
    with crew_of(Crew.of(job, processes, memory, Turns(processes))) as crew:
        alone = Alone.of(job)
        for node in (Node(0, 5), Node(0, 4), Node(4, 5)):
            check(crew, alone, Lease(work="train", step=2, lo=node.lo, hi=node.hi))


def numbers() -> TrainTest:
    """The same images, with a number each."""
    train, test = (
        Dataset(part.images, (part.labels[:, np.newaxis] / 7).astype(np.float32), 0)
        for part in (digits().train, digits().test)
    )
    return TrainTest("numbers", train, test)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_metrics_that_are_no_whole_numbers_are_added_over_the_tree_too(processes: int, memory: Path) -> None:
    net = describe(nn.Sequential(nn.Flatten(), nn.Linear(784, 1)))
    job, data = job_of(model=net, loss="mse", metrics=["rmse"], global_batch=35, micro_batches=7), numbers()
    with crew_of(Crew.of(job, processes, memory, Turns(processes), data=data)) as crew:
        alone = Alone.of(job, data)
        for node in (Node(0, 7), Node(0, 4), Node(4, 7)):
            check(crew, alone, Lease(work="train", step=0, lo=node.lo, hi=node.hi))


@pytest.mark.parametrize("processes", [1, 3])
def test_metrics_over_no_samples_are_none_as_those_of_one_process(processes: int, memory: Path) -> None:
    # Of the five micro-batches of the third step, the first two have no sample.
    job = job_of(global_batch=19, micro_batches=5, metrics=["top3"])
    with crew_of(Crew.of(job, processes, memory, Turns(processes))) as crew:
        check(crew, Alone.of(job), Lease(work="train", step=2, lo=0, hi=2))


@pytest.mark.parametrize("seed", range(3))
def test_whoever_is_killed_wherever_it_is(seed: int, memory: Path) -> None:
    job = wide(micro_batches=6)
    with crew_of(Crew.of(job, 3, memory, Turns(seed))) as crew:
        alone = Alone.of(job)
        check(crew, alone, whole(job))
        last = max(crew.turns.barriers.values())
        for at in range(1, last + 1):
            for process in (1, 2):
                crew.turns.reset()
                crew.turns.killed = {process: at}
                check(crew, alone, whole(job, at % 2))
                crew.revive()


def test_the_leader_alone_is_left(memory: Path) -> None:
    job = wide(micro_batches=6)
    with crew_of(Crew.of(job, 4, memory)) as crew:
        alone = Alone.of(job)
        for at in range(1, 9, 2):
            crew.turns.reset()
            crew.turns.killed = {1: at, 2: at + 1, 3: 1}
            check(crew, alone, whole(job, at % 2))
            crew.revive()


def test_a_process_that_looks_without_a_pause_lets_others_have_its_core(memory: Path) -> None:
    patience = replace(PATIENT, slack_s=0.01)
    with crew_of(Crew.of(job := wide(), 2, memory, Turns(1, pauses=0.05), patience=patience)) as crew:
        yielded, alone = list[int](), Alone.of(job)
        for member in crew.members:
            member.waking.yield_core = lambda: yielded.append(1)
        for step in range(4):
            check(crew, alone, whole(job, step))
        assert yielded


@pytest.mark.parametrize("patience", [PATIENT, replace(CROWDED, cores=2)])
def test_who_wakes_up_late_does_no_harm(patience: Patience, memory: Path) -> None:
    """It stands still in the middle of one lease until two more are done, and goes on with the first."""
    job = wide(micro_batches=6)
    with crew_of(Crew.of(job, 3, memory, Turns(5), patience=patience)) as crew:
        alone = Alone.of(job)
        check(crew, alone, whole(job))
        last = max(crew.turns.barriers.values())
        for at in range(1, last + 1):
            crew.turns.reset()
            crew.turns.stopped = {1: at}
            results = list[tuple[int, bytes]]()

            def meanwhile(results: list[tuple[int, bytes]] = results) -> None:
                crew.run(lambda: 0 in crew.ended)
                results.append((0, found(crew)[1]))
                for step in (1, 0):
                    crew.work(whole(job, step))
                    results.append((step, found(crew)[1]))

            crew.meanwhile = meanwhile
            outcome = crew.work(whole(job, 0))
            if not results:
                results.append((0, found(crew)[1]))
            assert outcome is OrderOutcome.DONE
            assert results == [(step, bits(alone.train(step, Node(0, 6))[0])) for step, _ in results]
            # It is in again with the next one.
            crew.turns.reset()
            check(crew, alone, whole(job, 1))
            crew.run()
            newest = crew.members[0].memory.marks.newest
            assert [member.last and member.last.order.number for member in crew.members] == [newest] * 3


@pytest.mark.parametrize("work", get_args(Work)[2:])
def test_an_evaluation_is_divided_too(work: Work, memory: Path) -> None:
    job = JOBS["stopped"]
    with crew_of(Crew.of(job, 3, memory, Turns(2), data=long_test_set())) as crew:
        alone = Alone.of(job, long_test_set())
        chunks = alone.compute.batches.micro_batches_of(work)
        assert crew.work(whole(job, 0, work, chunks)) is OrderOutcome.DONE
        order = crew.leader.order
        assert order is not None
        result = crew.leader.found(order, None)
        assert result.tally == alone.compute.evaluate(Node(0, chunks), work)
        assert result.losses == []
        assert result.compute_s == 0.0


def test_an_evaluation_of_as_many_chunks_as_a_step_has_micro_batches_is_divided_alike(memory: Path) -> None:
    job = wide(micro_batches=3)
    with crew_of(Crew.of(job, 3, memory, Turns(2), data=long_test_set())) as crew:
        alone = Alone.of(job, long_test_set())
        assert alone.compute.batches.micro_batches_of("evaluate") == job.micro_batches
        check(crew, alone, whole(job))
        for step in (1, 0):
            assert crew.work(whole(job, 0, "evaluate")) is OrderOutcome.DONE
            check(crew, alone, whole(job, step))


@pytest.mark.parametrize("seed", range(3))
def test_what_cannot_be_computed_is_left_to_the_leader(seed: int, memory: Path) -> None:
    """Any process would find the loss that is not finite: so the leader computes the lease alone, and reports it."""
    job = wide(micro_batches=6)
    with crew_of(Crew.of(job, 3, memory, Turns(seed))) as crew:
        alone = Alone.of(job)
        check(crew, alone, whole(job))
        computes = [member.compute for member in crew.members if isinstance(member.compute, FaultyCompute)]
        for compute in computes:
            compute.fault = NotFiniteError(2, "1 (Linear)")
        assert crew.work(whole(job)) is OrderOutcome.FAILED
        assert any(member.error.startswith("NotFiniteError: ") for member in crew.members)
        # The order is over for the others too once there is another one, and that is as if nothing had been.
        for compute in computes:
            compute.fault = None
        check(crew, alone, whole(job, 1))
        crew.run()
        assert crew.ended == dict.fromkeys(range(3), OrderOutcome.DONE)


def test_what_nobody_wants_any_more_is_stopped(memory: Path) -> None:
    job = wide(micro_batches=6)
    with crew_of(Crew.of(job, 3, memory, Turns(3))) as crew:
        alone = Alone.of(job)
        for turns in range(0, 20, 3):
            crew.leader.begin_lease(whole(job, turns % 2))
            for _ in range(turns):
                crew.turn()
            crew.leader.stop()
            check(crew, alone, whole(job, 1 - turns % 2))


def test_a_second_copy_is_left_once_the_first_one_is_there(memory: Path) -> None:
    job = wide(micro_batches=8)
    with crew_of(Crew.of(job, 2, memory)) as crew:
        first, second = crew.members
        first.is_stepwise = second.is_stepwise = True
        crew.leader.begin_lease(whole(job))
        order = second.newest()
        assert order is not None
        second.begin(order)
        assert second.last is not None
        copied = ComputeNode(order.plan.of(0)[0], OWN_PARTS)
        second.last.progress.todo.clear()
        second.last.progress.todo.append(copied)
        assert second.advance() is None  # it has begun
        assert second.is_wanted()
        for _ in range(2):
            first.advance()
        assert not second.is_wanted()
        assert second.advance() is None
        assert second.order is order
        assert not second.last.progress.todo
        assert not second.memory.has_made(order, copied)
        crew.run()
        assert crew.ended == dict.fromkeys(range(2), OrderOutcome.DONE)


def test_a_process_that_is_ready_for_another_session_than_this_is_given_nothing(memory: Path) -> None:
    job = wide(micro_batches=6)
    with crew_of(Crew.of(job, 3, memory)) as crew:
        for member in crew.members:
            member.pace.session = 5
            member.pace.show_ready()
        check(crew, Alone.of(job), whole(job))
        crew.run()
        leader, late = crew.members[0], crew.members[1]
        assert leader.last is not None
        for session, present in ((5, [0, 1, 2]), (4, [0, 2]), (6, [0, 2]), (0, [0, 2])):
            late.memory.show("ready", session)
            assert leader.pace.present(leader.last.order) == present


def test_a_process_without_memory_for_the_slices_that_it_adds_up_leaves_the_lease_to_the_leader(memory: Path) -> None:
    """It is seen before it writes: a write to memory that is not there would kill it."""
    job = wide(micro_batches=6)
    with crew_of(Crew.of(job, 3, memory, Turns(share=0.0, pauses=0.0))) as crew:
        member = crew.members[1]
        own, full = member.memory.own, os.open(member.memory.path / "process-1", os.O_RDONLY)
        for row in range(ROWS):
            own.reserve(row)
        # In what is open for reading alone nothing can be reserved.
        member.memory.own = OwnVectors(own.vectors, own.shape, full, set(range(ROWS)))
        assert crew.work(whole(job)) is OrderOutcome.FAILED
        assert member.error.startswith("SharingError: no room for ")
        own.close()


def test_where_cores_are_short_as_many_compute_as_there_is_room_for_and_rather_who_did_before(memory: Path) -> None:
    job, node = wide(micro_batches=6), Node(0, 6)
    with crew_of(Crew.of(job, 3, memory, patience=replace(CROWDED, cores=1))) as crew:
        leader = crew.members[0]
        # Each waits for half of the time: two fit on a core.
        leader.memory.marks.processes["load"][:] = 0.5
        assert leader.pace.plan(node, None).workers == {1, 2}
        plan = OrderPlan((TeamPart(Node(0, 4), 0), TeamPart(Node(4, 6), 1)), (0, 1))
        before = Order(number=0, work="train", step=0, node=node, plan=plan)
        assert leader.pace.plan(node, before).workers == {0, 1}


def test_where_cores_are_short_who_had_nothing_to_do_counts_as_present_while_it_looks(memory: Path) -> None:
    job = wide(micro_batches=6)
    with crew_of(Crew.of(job, 3, memory, patience=replace(CROWDED, cores=1))) as crew:
        check(crew, Alone.of(job), whole(job))
        leader, idle = crew.members[0], crew.members[1]
        assert leader.last is not None
        assert leader.last.order.plan.workers == {2}
        idle.memory.mine["at"], idle.memory.mine["seen_s"] = 0, crew.clock.now()
        assert leader.pace.present(leader.last.order) == [0, 1, 2]
        crew.clock.advance(IDLE_S)
        assert leader.pace.present(leader.last.order) == [0, 2]
