"""The unavoidable products of a step, counted by hand for the four models."""

import numpy as np
import pytest

from lockstep.bench.step import step_flops
from lockstep.common.nn.models import MODELS

#: Multiplications of one image forward, layer by layer.
LAYERS = {
    "linear": [784 * 10],
    "mlp": [784 * 512, 512 * 256, 256 * 10],
    "lenet": [28 * 28 * 6 * 25, 10 * 10 * 16 * 6 * 25, 400 * 120, 120 * 84, 84 * 10],
    "cnn": [28 * 28 * 32 * 9, 14 * 14 * 64 * 32 * 9, 3136 * 128, 128 * 10],
}


@pytest.mark.parametrize("name", LAYERS)
def test_flops_are_those_of_forward_weights_and_inputs_but_the_first(name: str) -> None:
    images = np.zeros((5, 1, 28, 28), dtype=np.float32)
    first, *others = LAYERS[name]
    assert step_flops(MODELS[name](), images) == 2 * 5 * (2 * first + 3 * sum(others))
