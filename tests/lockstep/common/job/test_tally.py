"""Tallies add up, and give means."""

import numpy as np

from lockstep.common.job.tally import Tally, pack_losses


def test_tallies_add_field_by_field() -> None:
    assert Tally(1.5, 2, 4) + Tally(0.25, 1, 3) == Tally(1.75, 3, 7)


def test_weights_are_added_and_what_is_ignored_is_in_no_mean() -> None:
    tally = Tally(3.0, 1, 4, 1) + Tally(2.0, 2, 4, 1, 2.5)
    assert tally == Tally(5.0, 3, 8, 2, 5.5)
    assert (tally.divisor, tally.loss, tally.accuracy) == (5.5, 5.0 / 5.5, 0.5)


def test_nothing_is_neutral() -> None:
    assert Tally(1.5, 2, 4) + Tally() == Tally(1.5, 2, 4)


def test_means_are_over_the_samples() -> None:
    tally = Tally(3.0, 1, 4)
    assert (tally.loss, tally.accuracy) == (0.75, 0.25)


def test_means_over_nothing_are_zero() -> None:
    assert (Tally().loss, Tally().accuracy) == (0.0, 0.0)


def test_losses_keep_their_bits() -> None:
    losses = [np.float32(0.1), np.float32(1e-45), np.float32(3.4e38), np.float32(0.0)]
    packed = pack_losses([float(loss) for loss in losses])
    assert packed == np.array(losses, "<f4").tobytes()
    assert pack_losses([]) == b""
