"""The progress of a run: epochs, speed, time left, the parts of a step's time, and traffic."""

import numpy as np
import pytest

from lockstep.common.job.tally import Tally
from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.messages import Message, Ping, Result, SumsFrame, Weights
from lockstep.ps.run.progress import NOTHING, Moved, Progress, Split, StepTime, StepTimeTotals, Traffic


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


VALUES = np.ones(100, np.float32)

RESULT = Result(work="train", step=0, lo=0, hi=1, loss_sum=1.0, count=1, compute_s=0.1)


def counted(*messages: Message, values: np.ndarray | None = VALUES) -> Moved:
    traffic = Traffic()
    for message in messages:
        frames = encode(message, [] if values is None else [values])
        traffic.record_received(message, frames)
        traffic.record_sent(message, frames)
    return traffic.drain()


def test_sums_that_come_and_weights_that_go_are_counted_with_their_headers() -> None:
    part, weights = SumsFrame(step=0, lo=0, hi=1, start=0), Weights(step=0, start=0)
    assert 400 < counted(part).sums < 480
    assert counted(part).weights == 0
    assert counted(part, part).sums == 2 * counted(part).sums
    assert 400 < counted(weights).weights < 480
    assert counted(weights).sums == 0


def test_what_brings_no_array_is_not_counted() -> None:
    assert counted(RESULT, Ping(), values=None) == Moved()


def test_what_was_taken_is_not_counted_again() -> None:
    traffic = Traffic()
    traffic.add(Moved(sums=7, weights=5))
    traffic.add(Moved(sums=1))
    assert [traffic.drain(), traffic.drain()] == [Moved(sums=8, weights=5), Moved()]


def test_the_mean_is_over_the_steps() -> None:
    assert NOTHING.mean(0) == Moved()
    moved = [Moved(sums=sums, weights=10) for sums in (100, 200, 301)]
    assert sum(moved, NOTHING).mean(3) == Moved(sums=200, weights=10)
