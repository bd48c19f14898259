"""Optimizers for a notebook, called as PyTorch's are: they hold the state and leave the formulas to rules.

The public names of `lockstep.optim`, with the schedules.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lockstep.common.optim.rules import CHUNK, AdamRule, AdamWRule, RMSPropRule, Rule, SGDRule, SlotSets, Vector
from lockstep.common.optim.schedules import (
    Constant,
    Cosine,
    Exponential,
    LinearWarmup,
    OneCycle,
    Polynomial,
    Schedule,
    Step,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Exponential",
    "LinearWarmup",
    "OneCycle",
    "Optimizer",
    "Polynomial",
    "RMSprop",
    "Schedule",
    "Step",
]


class Variable(Protocol):
    """A parameter: an array that is changed in place, and the gradient that backward left, if any."""

    grad: NDArray[Any] | None

    @property
    def data(self) -> NDArray[Any]:
        """The values, of a floating dtype."""
        ...


@dataclass
class _ParameterState:
    """The state of one parameter from step to step."""

    #: A copy that the rule may overwrite, so that `.grad` can still be looked at after a step.
    gradient: Vector
    slots: dict[str, Vector]
    #: Updates so far; a step without a gradient does not count, as in PyTorch.
    step: int = 0


class Optimizer:
    """Applies one rule to some parameters, of any shapes; the base of all optimizers.

    `lr` is the learning rate of the next step, and may be set between steps, as `optimizer.lr = schedule.rate(step)`.
    Raises ValueError if there are no parameters, if one is given twice, and for a rate that is negative or not finite.

    Differs from PyTorch: there is one group of parameters, `lr` is an attribute, and there is no `state_dict`.
    """

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
        self._states = [_new_state(rule, parameter.data) for parameter in self.parameters]

    def step(self) -> None:
        """Update every parameter that has a gradient, in place; one without does not count the step.

        The gradients stay, so that they can still be looked at.
        """
        for parameter, known in zip(self.parameters, self._states, strict=True):
            if parameter.grad is None:
                continue
            np.copyto(known.gradient, parameter.grad.reshape(-1))
            weights = parameter.data.reshape(-1)
            self._update(weights, known)
            # A view if the array is contiguous, else a copy that has to be written back.
            if not np.may_share_memory(weights, parameter.data):
                parameter.data[...] = weights.reshape(parameter.data.shape)
            known.step += 1

    def _update(self, weights: Vector, known: _ParameterState) -> None:
        """Update a flat vector in place, in chunks that stay in cache."""
        spare = np.empty(min(CHUNK, weights.size), weights.dtype)
        for start in range(0, weights.size, CHUNK):
            part = slice(start, start + CHUNK)
            old = weights[part]
            new, slots = spare[: old.size], SlotSets({name: slot[part] for name, slot in known.slots.items()})
            self.rule.update(old, known.gradient[part], slots, known.step, self.lr, new)
            old[...] = new

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        for parameter in self.parameters:
            parameter.grad = None


class SGD(Optimizer):
    """Gradient descent: v = momentum·v + g, and weights -= lr·v; `nesterov` gives weights -= lr·(g + momentum·v).

    `weight_decay` times the weights is added to the gradient. The formulas are those of `SGDRule`, for parameters of
    any shapes. Raises ValueError for a `momentum` outside of [0, 1), a negative `weight_decay`, and `nesterov` without
    momentum.

    >>> x = Tensor([1.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> optim.SGD([x], lr=0.25).step()
    >>> x.data
    array([0.5], dtype=float32)

    Differs from PyTorch: there is no `dampening` and no `maximize`.
    """

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
    """Adam with its bias corrections (Kingma and Ba, ICLR 2015, algorithm 1), for parameters of any shapes.

    `weight_decay` times the weights is added to the gradient. Raises ValueError for a beta outside of [0, 1), for a
    negative `eps` or `weight_decay`.

    Differs from PyTorch: there is no `amsgrad`, no `maximize`, and no `decoupled_weight_decay`: `AdamW` has that.
    """

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
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), for parameters of any shapes.

    Raises ValueError for a beta outside of [0, 1), for a negative `eps` or `weight_decay`.

    Differs from PyTorch: there is no `amsgrad` and no `maximize`.
    """

    def __init__(
        self,
        parameters: Iterable[Variable],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, AdamWRule(*betas, eps, weight_decay))


class RMSprop(Optimizer):
    """Gradients divided by the root of their running mean square, for parameters of any shapes; see `RMSPropRule`.

    Raises ValueError for an `alpha` or a `momentum` outside of [0, 1), for a negative `eps` or `weight_decay`.

    Differs from PyTorch: there is no `centered`.
    """

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


def _new_state(rule: Rule, data: NDArray[Any]) -> _ParameterState:
    slots = {name: slot.astype(data.dtype) for name, slot in rule.init(data.size).items()}
    return _ParameterState(np.empty(data.size, dtype=data.dtype), slots)
