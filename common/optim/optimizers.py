"""Optimizers for a notebook, called as PyTorch's are: they hold the state and leave the formulas to rules."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.optim.rules import CHUNK, AdamRule, AdamWRule, RMSPropRule, Rule, SGDRule, Vector


class Variable(Protocol):
    """What is optimised: an array that is changed in place, and the gradient that backward left, if any."""

    grad: NDArray[Any] | None

    @property
    def data(self) -> NDArray[Any]:
        """The values, of a floating dtype."""
        ...


@dataclass
class _Slots:
    """What one parameter carries from step to step."""

    #: A copy that the rule may overwrite, so that `.grad` can still be looked at after a step.
    gradient: Vector
    state: dict[str, Vector]
    #: Updates so far; a step without a gradient does not count, as in PyTorch.
    step: int = 0


class Optimizer:
    """Applies one rule to some parameters. Raises ValueError if there are none, or if one is given twice."""

    def __init__(self, parameters: Iterable[Variable], lr: float, rule: Rule) -> None:
        self.parameters = list(parameters)
        #: May be set between steps, as `optimizer.lr = schedule.rate(step)`.
        self.lr = lr
        self.rule = rule
        if not self.parameters:
            raise ValueError(
                "no parameters: expected those of a model, as model.parameters(); is it an empty iterator?"
            )
        if len({id(parameter) for parameter in self.parameters}) < len(self.parameters):
            raise ValueError("a parameter is given twice: expected each once; it would be updated twice in a step")
        if not 0.0 <= lr < float("inf"):
            raise ValueError(f"lr is {lr!r}: expected a finite number of at least 0")
        self._slots = [_new_slots(rule, parameter.data) for parameter in self.parameters]

    def step(self) -> None:
        """Update every parameter that has a gradient, in place."""
        for parameter, slots in zip(self.parameters, self._slots, strict=True):
            if parameter.grad is None:
                continue
            np.copyto(slots.gradient, parameter.grad.reshape(-1))
            weights = parameter.data.reshape(-1)
            self._update(weights, slots)
            # A view if the array is contiguous, else a copy that has to be written back.
            if not np.may_share_memory(weights, parameter.data):
                parameter.data[...] = weights.reshape(parameter.data.shape)
            slots.step += 1

    def _update(self, weights: Vector, slots: _Slots) -> None:
        """Update a flat vector in place, in chunks that stay in cache."""
        spare = np.empty(min(CHUNK, weights.size), weights.dtype)
        for start in range(0, weights.size, CHUNK):
            part = slice(start, start + CHUNK)
            old = weights[part]
            new, state = spare[: old.size], {name: slot[part] for name, slot in slots.state.items()}
            self.rule.update(old, slots.gradient[part], state, slots.step, self.lr, new)
            old[...] = new

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None


class SGD(Optimizer):
    """Gradient descent; see `SGDRule`."""

    def __init__(
        self,
        parameters: Iterable[Variable],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, lr, SGDRule(momentum, nesterov, weight_decay))


class Adam(Optimizer):
    """Adam; see `AdamRule`."""

    def __init__(
        self,
        parameters: Iterable[Variable],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, AdamRule(*betas, eps, weight_decay))


class AdamW(Optimizer):
    """Adam with decoupled weight decay; see `AdamWRule`."""

    def __init__(
        self,
        parameters: Iterable[Variable],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, AdamWRule(*betas, eps, weight_decay))


class RMSProp(Optimizer):
    """RMSProp; see `RMSPropRule`."""

    def __init__(
        self,
        parameters: Iterable[Variable],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, RMSPropRule(alpha, eps, momentum, weight_decay))


def _new_slots(rule: Rule, data: NDArray[Any]) -> _Slots:
    state = {name: slot.astype(data.dtype) for name, slot in rule.init(data.size).items()}
    return _Slots(np.empty(data.size, dtype=data.dtype), state)
