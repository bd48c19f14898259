"""Images in other sizes: constants stay, means stay, nothing is skipped."""

import numpy as np
import pytest

from lockstep.common.numerics.random import Purpose, generator
from lockstep.results.evaluation.pictures import resized

IMAGE = generator(0, Purpose.CANARY).random((24, 36))


@pytest.mark.parametrize("size", [(24, 36), (12, 12), (7, 5), (1, 1), (50, 90)])
def test_a_constant_stays_constant(size: tuple[int, int]) -> None:
    np.testing.assert_allclose(resized(np.full((24, 36), 0.3), *size), np.full(size, 0.3))


def test_the_same_size_is_the_same_image() -> None:
    np.testing.assert_allclose(resized(IMAGE, 24, 36), IMAGE)


def test_every_pixel_counts_when_it_becomes_smaller() -> None:
    for place in ((12, 17), (5, 30), (11, 8)):
        dot = np.zeros((24, 36))
        dot[place] = 1.0
        assert resized(dot, 6, 9).sum() == pytest.approx(1 / 16, rel=0.05)


def test_between_two_pixels_it_is_interpolated() -> None:
    np.testing.assert_allclose(resized(np.array([[0.0, 1.0]]), 1, 4), [[0.0, 0.25, 0.75, 1.0]])


def test_channels_are_resized_each() -> None:
    both = resized(np.stack([IMAGE, 1 - IMAGE]), 6, 9)
    np.testing.assert_allclose(both[0], resized(IMAGE, 6, 9))
    np.testing.assert_allclose(both.sum(axis=0), np.ones((6, 9)))
