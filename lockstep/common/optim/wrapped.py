"""Update rules around others: what is done to a gradient before a rule sees it, and to weights after it.

Each is a rule itself, element by element and without state but its slots, so that it holds for any slice.
"""

from collections.abc import Mapping

import msgspec
import numpy as np

from lockstep.common.optim.rules import Rule, SlotSets, Vector

#: The slot with the average of the weights.
AVERAGE = "ema"


def averaged(weights: Vector, state: Mapping[str, Vector]) -> Vector | None:
    """Return the moving average of the weights, with the running statistics as they are; None if none is kept."""
    if AVERAGE not in state:
        return None
    average = weights.copy()
    average[: len(state[AVERAGE])] = state[AVERAGE]
    return average


class ClippedRule(msgspec.Struct, frozen=True):
    """Limits each element of the gradient to [-most, most], as PyTorch's `clip_grad_value_`."""

    inner: Rule
    most: float

    def init(self, size: int) -> dict[str, Vector]:
        return self.inner.init(size)

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        np.clip(gradient, -self.most, self.most, out=gradient)
        self.inner.update(weights, gradient, slots, step, lr, out)


class ScaledRule(msgspec.Struct, frozen=True):
    """Updates by a multiple of the learning rate."""

    inner: Rule
    factor: float

    def init(self, size: int) -> dict[str, Vector]:
        return self.inner.init(size)

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        self.inner.update(weights, gradient, slots, step, self.factor * lr, out)


class AveragedRule(msgspec.Struct, frozen=True):
    """Keeps an exponential moving average of the weights in a slot, next to those of the rule, which it leaves alone.

    average = decay·average + (1 - decay)·weights, and the weights themselves after the first step, as PyTorch's
    `AveragedModel` with `get_ema_multi_avg_fn` (Polyak and Juditsky, SIAM J. Control Optim. 30, 1992).
    """

    inner: Rule
    decay: float

    def init(self, size: int) -> dict[str, Vector]:
        return {**self.inner.init(size), AVERAGE: np.zeros(size, np.float32)}

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        self.inner.update(weights, gradient, slots, step, lr, out)
        kept = self.decay if step else 0.0
        average = slots.scaled(AVERAGE, kept)
        average += np.multiply(out, 1.0 - kept, out=gradient)
