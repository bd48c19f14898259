"""How far a run is: epochs, speed, time left."""

import pytest

from lockstep.common.job.tally import Tally
from lockstep.ps.run.progress import Progress, StepTime


def test_nothing_is_known_before_the_first_step() -> None:
    progress = Progress()
    assert (progress.elapsed(9.0), progress.images_per_s(), progress.eta_s(1000)) == (0.0, 0.0, 0.0)


def test_speed_is_that_of_training_without_evaluations() -> None:
    progress = Progress()
    progress.begin_round(10.0)
    progress.end_step(Tally(2.0, 100, metrics=(1, 100)), 11.0)
    progress.begin_round(50.0)
    progress.end_step(Tally(1.0, 100, metrics=(1, 100)), 51.0)
    assert (progress.train_s, progress.samples, progress.images_per_s()) == (2.0, 200, 100.0)
    assert progress.eta_s(500) == 3.0
    assert progress.elapsed(60.0) == 50.0


def test_the_times_of_the_last_step_are_kept() -> None:
    progress = Progress()
    progress.begin_round(10.0)
    progress.end_step(Tally(), 13.0, (1.0, 2.0))
    assert progress.last_step == StepTime(round_s=3.0, mean_s=1.0, slowest_s=2.0)


def test_speed_is_that_of_the_last_seconds_and_the_memory_of_it_is_short() -> None:
    progress = Progress()
    for step in range(1000):
        progress.begin_round(float(step))
        progress.end_step(Tally(0.0, 1 if step < 900 else 50), step + 1.0)
    assert progress.images_per_s() == 50.0
    assert len(progress.recent) <= 8


def test_one_slow_step_is_enough_to_know_the_speed() -> None:
    progress = Progress()
    for step in range(3):
        progress.begin_round(100.0 * step)
        progress.end_step(Tally(0.0, 200), 100.0 * step + 100.0)
    assert progress.images_per_s() == 2.0


def test_an_epoch_gives_means_over_its_own_samples() -> None:
    progress = Progress()
    progress.begin_round(0.0)
    progress.end_step(Tally(30.0, 10, metrics=(5, 10)), 1.0)
    progress.end_step(Tally(10.0, 10, metrics=(5, 10)), 2.0)
    status = progress.end_epoch(1, Tally(8.0, 4, metrics=(3, 4)), 3.0)
    assert (status.loss, status.accuracy, status.test_loss, status.test_accuracy) == (2.0, 0.5, 2.0, 0.75)
    assert status.wall_s == 3.0
    progress.end_step(Tally(5.0, 5), 4.0)
    assert progress.end_epoch(2, Tally(), 5.0).loss == 1.0
    assert [epoch.epoch for epoch in progress.history] == [1, 2]


@pytest.mark.parametrize("samples", [0, 200, 300])
def test_no_time_is_left_at_the_end(samples: int) -> None:
    progress = Progress()
    progress.begin_round(0.0)
    progress.end_step(Tally(0.0, 300), 1.0)
    assert progress.eta_s(samples) == 0.0
