"""Passing a gradient where a mask holds, bit by bit; dropout: its mask, its scale, and what it depends on."""

import numpy as np
import pytest

from lockstep.common.autograd.primitives.elementwise import dropout, masked
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.numerics.random import Purpose, generator
from tests.lockstep.common.autograd.primitives.calls import layouts, result_of


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_selects_as_where(dtype: type) -> None:
    gradient: Array = np.array([1.5, -2.0, np.inf, -np.inf, np.nan, -0.0], dtype)
    for mask in (np.ones(6, bool), np.zeros(6, bool), np.arange(6) % 2 == 0):
        np.testing.assert_array_equal(masked(gradient, mask), np.where(mask, gradient, 0), strict=True)


def test_broadcasts_and_takes_any_layout() -> None:
    gradient = np.broadcast_to(np.arange(3.0), (2, 3)).T
    mask = np.array([[True], [False], [True]])
    np.testing.assert_array_equal(masked(gradient, mask), [[0, 0], [0, 0], [2, 2]])
    np.testing.assert_array_equal(masked(np.array(2.0), np.array(True)), 2.0)


def _rng() -> np.random.Generator:
    return generator(1, Purpose.DROPOUT)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [0.0, 0.25, 0.9])
def test_keeps_about_the_right_share_and_the_mean(p: float, dtype: type[np.floating]) -> None:
    result = result_of(dropout, np.ones((100, 200), dtype), p=p, rng=_rng())
    assert result.dtype == dtype
    assert set(np.unique(result).tolist()) <= {0.0, float(dtype(1 / (1 - p)))}
    assert abs((result == 0).mean() - p) < 0.01


def test_p_one_drops_everything() -> None:
    np.testing.assert_array_equal(result_of(dropout, np.ones((3, 4)), p=1.0, rng=_rng()), np.zeros((3, 4)))


def test_the_mask_depends_on_the_generator_alone() -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 5, 6))
    expected = result_of(dropout, x, p=0.5, rng=_rng())
    for other in layouts(x):
        np.testing.assert_array_equal(result_of(dropout, other, p=0.5, rng=_rng()), expected)
    rng = _rng()
    in_blocks = [result_of(dropout, part, p=0.5, rng=rng) for part in (x[:1], x[1:3], x[3:])]
    np.testing.assert_array_equal(np.concatenate(in_blocks), expected)


def test_the_layout_is_kept() -> None:
    x = np.asfortranarray(np.ones((4, 6)))
    assert result_of(dropout, x, p=0.5, rng=_rng()).flags.f_contiguous


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_p_out_of_range_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="expected a probability from 0 to 1"):
        dropout.forward(np.ones(3), p=p, rng=_rng())
