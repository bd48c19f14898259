"""The rounds of a job: an epoch's steps, then an evaluation, to the last step or an early stop."""

from typing import Any

import msgspec
import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.run.plan import Plan, Round, best_epoch, figure_of, is_stopped, plan_of


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


def history_of(*figures: float, name: str = "val_loss") -> list[EpochRecord]:
    """Return epochs with those figures, and others that would say the opposite."""
    fixed: dict[str, Any] = {
        "loss": 1.0,
        "accuracy": 0.5,
        "test_loss": 1.0,
        "test_accuracy": 0.5,
        "val_loss": 1.0,
        "val_accuracy": 0.5,
    }
    return [
        EpochRecord(epoch=number, wall_s=0.0, **{**fixed, name: figure}) for number, figure in enumerate(figures, 1)
    ]


def job_of(**values: Any) -> Job:
    return Job(validation_split=0.1, **values)


@pytest.mark.parametrize(
    ("monitor", "figures", "best"),
    [
        ("val_loss", (3.0, 2.0, 1.0), 3),
        ("val_loss", (1.0, 2.0, 3.0), 1),
        ("val_loss", (2.0, 1.0, 1.0), 2),
        ("val_accuracy", (0.1, 0.9, 0.5), 2),
        ("test_loss", (2.0, 1.0, 3.0), 2),
        ("accuracy", (0.9, 0.9, 0.91), 3),
    ],
)
def test_the_best_is_the_first_that_none_is_better_than(monitor: str, figures: tuple[float, ...], best: int) -> None:
    history = history_of(*figures, name=monitor)
    assert best_epoch(job_of(monitor=monitor), history) is history[best - 1]


@pytest.mark.parametrize(
    ("values", "figures", "best"),
    [
        ({"metrics": ("f1",), "monitor": "test_f1"}, (0.1, 0.9, 0.5), 2),
        ({"metrics": ("perplexity",), "monitor": "test_perplexity"}, (3.0, 5.0, 2.0), 3),
        ({"metrics": ("own.py:cost",), "monitor": "test_cost", "monitor_mode": "min"}, (3.0, 5.0, 2.0), 3),
        ({"metrics": ("own.py:gain",), "monitor": "test_gain", "monitor_mode": "max"}, (3.0, 5.0, 2.0), 2),
    ],
)
def test_metrics_of_a_job_are_watched_in_their_direction(
    values: dict[str, Any], figures: tuple[float, ...], best: int
) -> None:
    epochs = history_of(*(0.0 for _ in figures))
    history = [
        msgspec.structs.replace(epoch, metrics={values["monitor"]: figure})
        for epoch, figure in zip(epochs, figures, strict=True)
    ]
    assert best_epoch(job_of(**values), history) is history[best - 1]


def test_before_the_first_epoch_nothing_is_judged() -> None:
    assert best_epoch(job_of(), []) is None
    assert not is_stopped(job_of(patience=1), [])


def test_small_gains_do_not_count_and_do_not_add_up_unseen() -> None:
    job, slow = job_of(min_delta=0.5), history_of(2.0, 1.75, 1.5, 1.25)
    assert best_epoch(job, slow[:3]) is slow[0]
    # Together they do: it is the best one that each is compared with.
    assert best_epoch(job, slow) is slow[3]


@pytest.mark.parametrize(
    ("patience", "figures", "stopped"),
    [
        (None, (1.0, 2.0, 3.0, 4.0), [False] * 4),
        (1, (1.0, 2.0), [False, True]),
        (2, (1.0, 2.0, 3.0), [False, False, True]),
        (2, (3.0, 4.0, 2.0, 5.0, 6.0), [False, False, False, False, True]),
        (2, (1.0, 1.0, 1.0), [False, False, True]),
    ],
)
def test_a_run_stops_when_its_patience_is_used_up(
    patience: int | None, figures: tuple[float, ...], stopped: list[bool]
) -> None:
    history = history_of(*figures)
    found = [is_stopped(job_of(patience=patience), history[:number]) for number in range(1, len(history) + 1)]
    assert found == stopped


def test_without_a_validation_set_the_test_loss_is_watched() -> None:
    history = history_of(2.0, 1.0, name="test_loss")
    assert best_epoch(Job(), history) is history[1]


def test_a_figure_that_there_is_not() -> None:
    epoch = EpochRecord(epoch=1, loss=1.0, test_loss=1.0, wall_s=0.0)
    with pytest.raises(ValueError, match="val_loss is None: expected a run with validation_split"):
        figure_of(epoch, "val_loss")
