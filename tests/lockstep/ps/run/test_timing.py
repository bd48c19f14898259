"""Where the time of steps went: worked examples."""

import pytest

from lockstep.ps.run.progress import Split, StepTime, StepTimeTotals


def test_nothing_is_known_of_steps_that_do_not_count() -> None:
    totals = StepTimeTotals()
    totals.add(StepTime(round_s=9.0, mean_s=1.0, slowest_s=2.0), 0.5, is_counted=False)
    assert totals.split() is None


def test_the_four_parts_of_a_step() -> None:
    totals = StepTimeTotals()
    # An epoch's first step: what it took says nothing, but its update delays the second step.
    totals.add(StepTime(round_s=99.0, mean_s=50.0, slowest_s=60.0), 0.5, is_counted=False)
    # Ten seconds: half a second of update, then the slowest computes for seven, and two and a half are the exchange's.
    totals.add(StepTime(round_s=10.0, mean_s=6.0, slowest_s=7.0), 9.0, is_counted=True)
    assert totals.split() == Split(steps=1, compute_s=6.0, exchange_s=2.5, update_s=0.5, waiting_s=1.0)


def test_the_parts_add_up_to_the_average_step() -> None:
    totals = StepTimeTotals()
    for seconds in (4.0, 5.0, 9.0):
        totals.add(StepTime(round_s=seconds, mean_s=1.0, slowest_s=seconds / 2), 0.25, is_counted=True)
    split = totals.split()
    assert split is not None
    assert split.step_s == pytest.approx(6.0)
    assert split.update_s == pytest.approx(0.5 / 3)  # the first update fell into nobody's step
