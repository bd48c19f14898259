"""What counts of the steps of timed runs, and what their figures are."""

from collections.abc import Sequence
from typing import Any

import pytest

from lockstep.bench.peers import WARM_UP
from lockstep.bench.timed_run import TimedRun, mean_step_s, middle_run, split_of
from lockstep.ps.records.metrics import StepRecord
from tests.lockstep.statuses import result


def step(number: int, round_s: float, epoch: int = 1) -> StepRecord:
    """Return a step half of whose time is computing and a tenth of it the update."""
    times: dict[str, Any] = {
        "round_s": round_s,
        "mean_s": round_s / 2,
        "slowest_s": round_s / 2,
        "update_s": round_s / 10,
    }
    return StepRecord(epoch=epoch, step=number, loss=0.0, accuracy=0.0, lr=0.1, samples=8, **times)


def run_of(*steady: float, after: Sequence[StepRecord] = ()) -> TimedRun:
    """Return a run of which the warm-up took longer."""
    warm_up = [step(number, 9.0) for number in range(WARM_UP)]
    steps = [step(WARM_UP + number, seconds) for number, seconds in enumerate(steady)]
    return TimedRun(result=result(), steps=[*warm_up, *steps, *after])


def test_slow_steps_count_as_in_the_images_per_second_of_a_run() -> None:
    assert mean_step_s([[1.0, 1.0, 4.0]]) == 2.0


@pytest.mark.parametrize(
    ("turns", "expected"), [([1.0, 9.0, 2.0], 2.0), ([3.0, 1.0], 3.0), ([1.0, 2.0, 3.0, 9.0], 3.0)]
)
def test_the_middle_turn_counts_or_the_slower_of_two(turns: list[float], expected: float) -> None:
    assert mean_step_s([[seconds, seconds] for seconds in turns]) == expected


def test_the_warm_up_and_the_step_after_an_evaluation_do_not_count() -> None:
    after = [step(WARM_UP + 2, 7.0, epoch=2), step(WARM_UP + 3, 0.5, epoch=2)]
    assert run_of(1.0, 2.0, after=after).seconds() == [1.0, 2.0, 0.5]


def test_the_parts_of_a_step_add_up_to_the_mean_step_of_the_middle_turn() -> None:
    runs = [run_of(1.0, 1.0), run_of(5.0, 5.0), run_of(2.0, 4.0)]
    split = split_of([middle_run(runs)])
    assert (split.steps, split.compute_s) == (2, 1.5)
    assert split.step_s == pytest.approx(mean_step_s([run.seconds() for run in runs])) == pytest.approx(3.0)
    # The warm-up's last update lies within the first step that counts.
    assert split.update_s == pytest.approx((0.9 + 0.2) / 2)
