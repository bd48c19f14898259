"""A network of PyTorch in an estimator."""

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs scikit-learn: .venv/bin/pip install -e '.[sklearn]'")
torch: Any = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")

from lockstep.common.numerics.random import Purpose, generator  # noqa: E402
from lockstep.sklearn import LockstepClassifier  # noqa: E402


class Normalizing(torch.nn.Module):  # type: ignore[misc]  # it is Any to mypy
    """Four features to two classes, by layers with buffers and draws of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 8),
            torch.nn.BatchNorm1d(8),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(8, 2),
        )

    def forward(self, x: Any) -> Any:
        return self.layers(x)


def build() -> Any:
    """Return the same, by a function."""
    return Normalizing()


@pytest.mark.parametrize("network", [Normalizing, build], ids=["class", "function"])
def test_a_network_of_pytorch_learns_and_is_pickled(network: Any) -> None:
    x = generator(0, Purpose.CANARY).standard_normal((80, 4), dtype=np.float32)
    y = np.where(x[:, 0] > 0, "above", "below")
    values: dict[str, Any] = {"epochs": 20, "lr": 0.05, "global_batch": 40, "micro_batches": 2, "patience": None}
    fitted, again = (LockstepClassifier(network, **values).fit(x, y) for _ in range(2))
    assert fitted.weights_sha256_ == again.weights_sha256_
    assert fitted.score(x, y) > 0.85
    assert isinstance(fitted.module_, torch.nn.Module)
    loaded = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(loaded.predict_proba(x), fitted.predict_proba(x))
