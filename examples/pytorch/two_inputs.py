"""A net of two inputs, a picture and a row of numbers, with a loss of its own: how sure it is, it learns as well.

    python examples/pytorch/two_inputs.py

Its outputs are a mean and the logarithm of a variance. The loss is the negative log-likelihood of a normal distribution
with both (Nix and Weigend, "Estimating the mean and variance of the target probability distribution", 1994).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lockstep import fit

TRAIN, TEST, SIZE = 2000, 500, 16


class TwoInputs(nn.Module):
    """Pictures (n, 16, 16) and rows (n, 3) to a mean and a log-variance, (n,) each."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 32), nn.ReLU(), nn.Linear(32, 8))
        self.row = nn.Linear(3, 8)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, picture: torch.Tensor, row: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return both outputs by name; the inputs come by the names that they have in the data."""
        mean, log_variance = self.head(torch.cat([self.picture(picture), self.row(row)], 1)).unbind(1)
        return {"mean": mean, "log_variance": log_variance}


def likelihood(outputs: Any, targets: Any) -> Any:
    """Return the sum of the negative log-likelihoods, and of how many; constants are left out."""
    log_variance = outputs["log_variance"]
    errors = (targets.reshape(-1) - outputs["mean"]) ** 2
    return 0.5 * (log_variance + errors * torch.exp(-log_variance)).sum(), len(errors)


def drawn(count: int, seed: int) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """Return pictures of a bar with rows of numbers, and targets whose noise grows with the first of these."""
    rng = np.random.Generator(np.random.Philox(seed))
    rows = rng.uniform(-1, 1, (count, 3))
    heights = rng.integers(1, SIZE, count)
    pictures = rng.normal(0, 0.2, (count, SIZE, SIZE)) + (np.arange(SIZE)[:, np.newaxis] < heights[:, None, None])
    deviations = 0.1 * np.exp(rows[:, 0])
    targets = heights / SIZE + rows[:, 1] * rows[:, 2] + deviations * rng.normal(size=count)
    inputs = {"picture": pictures.astype(np.float32), "row": rows.astype(np.float32)}
    return inputs, targets.astype(np.float32)


def main(epochs: int = 20, workers: int | None = 2, **values: Any) -> Any:
    """Train, and compare the loss with that of the true deviations; return the run."""
    data = drawn(TRAIN, 0), drawn(TEST, 1)
    options = {"epochs": epochs, "optimizer": "adam", "lr": 0.003, "schedule": "one-cycle", "normalize": False}
    run = fit(TwoInputs, data, loss=likelihood, global_batch=50, workers=workers, **options, **values)
    row = data[1][0]["row"]
    best = float(np.mean(0.5 * (2 * np.log(0.1 * np.exp(row[:, 0])) + 1)))
    print(f"test loss {run.result.test_loss:.3f}; with the true means and deviations it would be about {best:.3f}")
    return run


if __name__ == "__main__":
    main()
