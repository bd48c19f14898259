import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.autograd.tensor import Tensor

ONES = Tensor(np.ones((50, 40), np.float32))


def test_in_evaluation_nothing_changes() -> None:
    np.testing.assert_array_equal(nn.Dropout(0.5).eval()(ONES).data, ONES.data)


def test_in_training_a_share_p_is_zero_and_the_rest_scaled() -> None:
    layer = nn.Dropout(0.2)
    layer.reseed(0, 0, 0)
    y = layer(ONES).data
    assert set(np.unique(y)) == {np.float32(0), np.float32(1.25)}
    assert np.mean(y == 0) == pytest.approx(0.2, abs=0.04)


def masks(model: nn.Sequential, seed: int, step: int, micro_batch: int) -> list[np.ndarray]:
    """Return which elements each layer of `model` leaves."""
    model.reseed(seed, step, micro_batch)
    return [layer(ONES).data != 0 for layer in model]


def test_the_same_place_draws_the_same_mask_whatever_was_drawn_before() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    first = masks(model, 1, 2, 3)
    model(ONES)
    again = masks(nn.Sequential(nn.Dropout(), nn.Dropout()), 1, 2, 3)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


def test_another_layer_seed_step_or_micro_batch_draws_another() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    drawn = [mask.tobytes() for place in [(1, 2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0)] for mask in masks(model, *place)]
    assert len(set(drawn)) == 8


def test_two_layers_that_were_never_reseeded_draw_different_masks() -> None:
    one, other = nn.Dropout(), nn.Dropout()
    assert not np.array_equal(one(ONES).data, other(ONES).data)


def test_a_stochastic_module_of_ones_own_is_reseeded_too() -> None:
    class Noise(nn.Stochastic):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.rng.normal(size=x.shape)

    model = nn.Sequential(Noise(), Noise())
    drawn = []
    for _ in range(2):
        model.reseed(1, 2, 3)
        drawn.append(model(ONES).data)
    np.testing.assert_array_equal(drawn[0], drawn[1])


def test_a_probability_out_of_range_is_told() -> None:
    with pytest.raises(ValueError, match=r"dropout probability is -0.1: expected a number in \[0, 1\]"):
        nn.Dropout(-0.1)
