import re

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.autograd.tensor import Tensor
from tests.lockstep.common.nn.examples import rng
from tests.lockstep.common.nn.finite_differences import assert_gradients

INDICES = np.array([[0, 2], [2, 4]])


@pytest.mark.parametrize("indices", [INDICES, Tensor(INDICES)])
def test_rows_are_looked_up(indices: Tensor) -> None:
    layer = nn.Embedding(5, 3, rng=rng())
    np.testing.assert_array_equal(layer(indices).data, layer.weight.data[INDICES])


def test_gradients_of_a_row_used_twice_add_up() -> None:
    layer = nn.Embedding(5, 3, rng=rng())
    assert_gradients(layer, lambda: (layer(INDICES) ** 2).sum(), each=15)


def test_tokens_do_not_go_into_a_linear_layer() -> None:
    with pytest.raises(TypeError, match=r"Linear got int32 of shape \(2, 2\): expected floats; put an Embedding"):
        nn.Linear(2, 3)(Tensor(INDICES.astype(np.int32)))


@pytest.mark.parametrize(
    ("shape", "told"),
    [((2, 5), "5 features (shape (2, 5))"), ((2, 4, 1), "1 features (shape (2, 4, 1))"), ((), "0 features (shape ())")],
)
def test_an_input_of_another_size_is_reported_with_both_sizes(shape: tuple[int, ...], told: str) -> None:
    expected = f"Linear got an input of {told}, but its weight of shape (8, 4) expects 4"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        nn.Linear(4, 8)(Tensor(np.zeros(shape, np.float32)))
