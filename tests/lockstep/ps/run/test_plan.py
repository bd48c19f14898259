"""The rounds of a job: an epoch's steps, then an evaluation, to the last step."""

import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.job.job import Job
from lockstep.ps.run.plan import Plan, Round, plan_of


def rounds_of(plan: Plan) -> list[Round]:
    rounds, at = [], plan.first()
    while True:
        rounds.append(at)
        following = plan.after(at)
        if following is None:
            return rounds
        at = following


def told(plan: Plan) -> str:
    return " ".join(f"{at.work[0]}{at.step}" for at in rounds_of(plan))


@pytest.mark.parametrize(
    ("samples", "job", "expected"),
    [
        (32, Job(global_batch=16, epochs=2), "t0 t1 e2 t2 t3 e4"),
        (33, Job(global_batch=16, epochs=2), "t0 t1 t2 e3 t3 t4 t5 e6"),
        (16, Job(global_batch=16, epochs=3), "t0 e1 t1 e2 t2 e3"),
        (32, Job(global_batch=16, steps=3), "t0 t1 e2 t2 e3"),
        (32, Job(global_batch=16, steps=4), "t0 t1 e2 t2 t3 e4"),
        (64, Job(global_batch=16, steps=1), "t0 e1"),
        (32, Job(global_batch=16, epochs=1, steps=3), "t0 t1 e2 t2 e3"),
    ],
)
def test_rounds(samples: int, job: Job, expected: str) -> None:
    assert told(plan_of(job, samples, 10)) == expected


def test_rounds_have_the_pieces_of_their_work() -> None:
    plan = plan_of(Job(global_batch=16, micro_batches=4, steps=1), 32, 1200)
    assert rounds_of(plan) == [Round("train", 0, 4), Round("evaluate", 1, 3)]


@pytest.mark.parametrize(("steps", "expected"), [(1, 16), (2, 32), (3, 33), (4, 49), (6, 66), (8, 98)])
def test_samples_that_all_steps_use(steps: int, expected: int) -> None:
    assert plan_of(Job(global_batch=16, steps=steps), 33, 10).samples(33, 16) == expected


def test_epochs_count_from_one_and_the_last_may_be_cut_short() -> None:
    plan = plan_of(Job(global_batch=16, steps=5), 48, 10)
    assert [plan.epoch_of(step) for step in range(5)] == [1, 1, 1, 2, 2]
    assert plan.epoch_of(5) == plan.epochs == 2


def test_micro_batches_are_named_for_people() -> None:
    nodes = [Node(0, 1), Node(4, 8)]
    assert Round("train", 3, 8).named(nodes) == "micro-batches 0, 4-7 of step 3"
    assert Round("evaluate", 3, 8).named(nodes) == "evaluation chunks 0, 4-7 after step 3"


def test_a_validation_set_comes_before_the_test_set() -> None:
    plan = plan_of(Job(global_batch=16, steps=3), 32, 10, 1200)
    assert told(plan) == "t0 t1 v2 e2 t2 v3 e3"
    assert rounds_of(plan)[2] == Round("validate", 2, 3)
    assert Round("validate", 2, 3).named([Node(0, 2)]) == "validation chunks 0-1 after step 2"


@pytest.mark.parametrize("validation_chunks", [0, 2])
def test_a_run_goes_on_where_it_was(validation_chunks: int) -> None:
    plan = Plan(5, 2, micro_batches=4, evaluation_chunks=3, validation_chunks=validation_chunks)
    rounds, at = [], plan.at(0, is_evaluated=False)
    while at is not None:
        rounds.append(at)
        # Nothing tells of a validation alone: a run that stopped after one does it again.
        done = plan.after(at) if at.work == "validate" else at
        assert done is not None
        rounds += [done] if done is not at else []
        at = plan.at(done.step + (done.work == "train"), is_evaluated=done.work == "evaluate")
    assert rounds == rounds_of(plan)
