"""The four models: PyTorch's parameter names, shapes and counts. Digests of what they learn are in tests/golden."""

import numpy as np
import pytest

from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.models import MODELS
from tests.lockstep.common.nn.examples import rng

#: The weights of each model's layers by their position, outputs first; each has a bias of as many numbers.
WEIGHTS: dict[str, dict[int, tuple[int, ...]]] = {
    "linear": {1: (10, 784)},
    "mlp": {1: (512, 784), 3: (256, 512), 5: (10, 256)},
    "lenet": {0: (6, 1, 5, 5), 3: (16, 6, 5, 5), 7: (120, 400), 9: (84, 120), 11: (10, 84)},
    "cnn": {0: (32, 1, 3, 3), 3: (64, 32, 3, 3), 7: (128, 3136), 9: (10, 128)},
}
COUNTS = {"linear": 7_850, "mlp": 535_818, "lenet": 61_706, "cnn": 421_642}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_named_and_shaped_as_in_pytorch(name: str) -> None:
    model = MODELS[name]()
    expected: list[tuple[str, tuple[int, ...]]] = []
    for position, shape in WEIGHTS[name].items():
        expected += [(f"{position}.weight", shape), (f"{position}.bias", shape[:1])]
    assert [(key, array.shape) for key, array in model.state_dict().items()] == expected
    assert sum(parameter.size for parameter in model.parameters()) == COUNTS[name]
    assert {parameter.dtype for parameter in model.parameters()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", MODELS)
def test_float32_images_give_float32_logits_near_zero(name: str) -> None:
    images = Tensor(rng().normal(size=(2, 1, 28, 28)).astype(np.float32))
    logits = MODELS[name]().initialize(0)(images)
    assert logits.shape == (2, 10)
    assert logits.dtype == np.float32
    assert np.abs(logits.data).max() < 4
