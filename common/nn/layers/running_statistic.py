"""A statistic that follows the batches, as BatchNorm's mean and variance do; knows not who reduces it (rule R8)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class RunningStatistic:
    """An exponential average over batches that either updates itself or hands its observations to someone else.

    A worker must not keep a statistic of its own: it would depend on which pieces the worker computed. There,
    `observed` is a view in the vector of results, and the server reduces it over the whole batch and calls `update`.
    """

    #: The average so far, float32; in the state dict, and changed in place only: it may be a view in a flat vector.
    value: NDArray[np.float32]
    #: The weight of a new batch, in [0, 1].
    momentum: float
    #: Where set: gets `statistic * count` of the piece, of `value`'s shape, instead of `value` being updated.
    observed: NDArray[np.float32] | None

    def __init__(self, value: NDArray[np.float32], momentum: float) -> None:
        self.value = value
        self.momentum = momentum
        self.observed = None

    def observe(self, statistic: NDArray[Any], count: int) -> None:
        """Take in the statistic of a piece of `count` samples.

        With `observed` set, `statistic * count` replaces what is there: sums and counts travel, and the server divides
        once (rule R1).
        """
        if self.observed is None:
            self.update(statistic)
        else:
            np.multiply(statistic, count, out=self.observed, casting="same_kind")

    def update(self, statistic: NDArray[Any]) -> None:
        """Move `value` towards the statistic of one whole batch: `value += momentum * (statistic - value)`."""
        self.value += self.momentum * (statistic - self.value)

    def __repr__(self) -> str:
        return f"RunningStatistic(shape={self.value.shape}, momentum={self.momentum})"
