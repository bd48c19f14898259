"""Tallies add up, and give means."""

import numpy as np

from lockstep.common.job.tally import Tally, pack_losses, pack_sums, unpacked_sums


def test_tallies_add_field_by_field() -> None:
    assert Tally(1.5, 4, metrics=(2, 0.5)) + Tally(0.25, 3, metrics=(1, 0.25)) == Tally(1.75, 7, metrics=(3, 0.75))


def test_weights_are_added_and_what_is_ignored_is_in_no_mean() -> None:
    tally = Tally(3.0, 4, 1) + Tally(2.0, 4, 1, 2.5)
    assert tally == Tally(5.0, 8, 2, 5.5)
    assert (tally.divisor, tally.loss) == (5.5, 5.0 / 5.5)


def test_nothing_is_neutral() -> None:
    tally = Tally(1.5, 4, metrics=(2, 4))
    assert tally + Tally() == Tally() + tally == tally


def test_means_are_over_the_samples() -> None:
    assert Tally(3.0, 4).loss == 0.75


def test_means_over_nothing_are_zero() -> None:
    assert Tally().loss == 0.0


def test_losses_keep_their_bits() -> None:
    losses = [np.float32(0.1), np.float32(1e-45), np.float32(3.4e38), np.float32(0.0)]
    packed = pack_losses([float(loss) for loss in losses])
    assert packed == np.array(losses, "<f4").tobytes()
    assert pack_losses([]) == b""


def test_sums_of_metrics_keep_their_bits_and_those_over_nothing_are_nothing() -> None:
    assert unpacked_sums(pack_sums((0.1, 1e300, -0.0))) == (0.1, 1e300, -0.0)
    assert pack_sums((0.0, 0.0)) == pack_sums(()) == b""
    # What a stranger sends may end within a number.
    assert unpacked_sums(pack_sums((0.5, 2.0))[:12]) == (0.5,)
    assert unpacked_sums(b"1234567") == ()
