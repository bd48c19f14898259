"""Update rules as pure functions over flat vectors; they know nothing of parameters, layers or servers.

Every rule is element-wise, and each of its operations is rounded as IEEE 754 demands: so a slice of the result is the
result of the slice, bit for bit, however the vector is cut. The formulas are PyTorch's (torch/optim), its option
`dampening` excepted, which is 0. A rule keeps no state: what it carries from step to step is in slots named as there.

Updates are out of place, so that the weights of the previous step stay intact for processes that still read them; until
the last operation, `out` is the scratch memory of the others. The slots may be too: then an update changes nothing that
it reads, and may be made again by another process, even after half of it was made, with the same bits.

Rules around other rules change a gradient before a rule sees it, or keep an average of the weights after it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.numerics.leaves import bind_momentum
from lockstep.common.numerics.operands import Mean
from lockstep.common.numerics.scalars import power

#: A flat vector; float32 wherever it is shared, any floating dtype in a notebook.
Vector = NDArray[Any]
#: Slots by name, each as long as the weights.
State = Mapping[str, Vector]

#: An update of some vectors by a gradient that may still be sums, and a rate. It may overwrite the memory of the mean,
#: and tells whether all new weights are finite.
BoundUpdate = Callable[[Mean, float], bool]

#: Elements to be updated in one call. The cost of a call beyond its arithmetic outweighs that a chunk's arrays do not
#: stay in a second-level cache of 1 MiB: 535,818 weights with momentum, from two sums, take 0.43 ms in chunks of
#: 65,536, 0.39 in chunks of 131,072 and 0.37 in these; with Adam 1.14, 1.09 and 1.03; 25 million with momentum 33.6,
#: 30.4 and 27.6. A multiple of clipping's BLOCK.
CHUNK = 262_144


class SlotSets:
    """The slots before an update and after it: the same memory, unless the new ones are to be elsewhere."""

    def __init__(self, old: State, new: State | None = None) -> None:
        self.old, self.new = old, old if new is None else new

    def scaled(self, name: str, factor: float) -> Vector:
        """Write a slot, multiplied, to where the new one is, and return that."""
        return np.multiply(self.old[name], factor, out=self.new[name])


class Rule(Protocol):
    """The way in which weights follow a gradient."""

    def init(self, size: int) -> dict[str, Vector]:
        """Return the slots, float32 and zero, for a vector of `size` elements."""
        ...

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        """Write the weights after a step into `out`, which must share no memory with any other argument.

        `step` counts from 0; `gradient` may be overwritten. The slots after the step are written into the new set,
        which shares no memory with the old one, or is the old one.
        """
        ...


#: Hyperparameters that are a share of the previous value; all other numbers may be anything finite from 0 on.
_SHARES = ("momentum", "alpha", "beta1", "beta2")


class _Checked:
    """Hyperparameters whose values are checked.

    Rules are dataclasses, as those that users write.
    """

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 <= value < (1.0 if name in _SHARES else math.inf):
                expected = "a number in [0, 1)" if name in _SHARES else "a finite number of at least 0"
                raise ValueError(f"{name} is {value!r}: expected {expected}")


@dataclass(frozen=True)
class SGDRule(_Checked):
    """Gradient descent, by default plain; optionally with momentum, Nesterov's variant of it, and L2 weight decay.

    v = momentum·v + g; weights -= lr·v. Nesterov (Sutskever et al., ICML 2013): weights -= lr·(g + momentum·v).
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov without momentum: expected a momentum above 0, as 0.9")

    def init(self, size: int) -> dict[str, Vector]:
        return _zeros(size, ["momentum_buffer"] if self.momentum else [])

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        self.bind(weights, slots, out)(Mean([gradient], memory=gradient), float(lr))

    def bind(self, weights: Vector, slots: SlotSets, out: Vector) -> BoundUpdate:
        """Return `update` of these vectors, in one pass over the sums as well, which can be repeated at any step."""
        return bind_momentum(
            weights,
            (slots.old["momentum_buffer"], slots.new["momentum_buffer"]) if self.momentum else (None, None),
            out,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            is_nesterov=self.nesterov,
        )


@dataclass(frozen=True)
class _Moments(_Checked):
    """The part that both kinds of Adam share: the moments of the gradient, and the step that follows from them."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def init(self, size: int) -> dict[str, Vector]:
        return _zeros(size, ["exp_avg", "exp_avg_sq"])

    def _follow(self, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        """Follow the gradient with both moments, and write the amount to subtract from the weights into `out`."""
        old, mean = slots.old["exp_avg"], slots.new["exp_avg"]
        np.subtract(gradient, old, out=out)
        out *= 1.0 - self.beta1
        np.add(old, out, out=mean)
        square = _follow_square("exp_avg_sq", gradient, self.beta2, out, slots)
        np.sqrt(square, out=out)
        out /= math.sqrt(1.0 - power(self.beta2, step + 1))
        out += self.eps
        np.divide(mean, out, out=out)
        out *= lr / (1.0 - power(self.beta1, step + 1))


@dataclass(frozen=True)
class AdamRule(_Moments):
    """Adam with its bias corrections (Kingma and Ba, ICLR 2015, algorithm 1); weight decay is added to the gradient."""

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        _add_decay(weights, gradient, out, self.weight_decay)
        self._follow(gradient, slots, step, float(lr), out)
        np.subtract(weights, out, out=out)


@dataclass(frozen=True)
class AdamWRule(_Moments):
    """Adam whose weights decay by themselves (Loshchilov and Hutter, "Decoupled weight decay", ICLR 2019)."""

    weight_decay: float = 0.01

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        self._follow(gradient, slots, step, float(lr), out)
        decayed = np.multiply(weights, 1.0 - float(lr) * self.weight_decay, out=gradient)
        np.subtract(decayed, out, out=out)


@dataclass(frozen=True)
class RMSPropRule(_Checked):
    """Gradients divided by the root of their mean square (Hinton, Coursera lecture 6e), optionally with momentum."""

    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0

    def init(self, size: int) -> dict[str, Vector]:
        return _zeros(size, ["square_avg", "momentum_buffer"] if self.momentum else ["square_avg"])

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        _add_decay(weights, gradient, out, self.weight_decay)
        square = _follow_square("square_avg", gradient, self.alpha, out, slots)
        np.sqrt(square, out=out)
        out += self.eps
        gradient /= out
        np.multiply(_add_momentum(gradient, self.momentum, slots), float(lr), out=out)
        np.subtract(weights, out, out=out)


def bound(rule: Rule, weights: Vector, slots: SlotSets, out: Vector) -> BoundUpdate | None:
    """Return `rule.update` of these vectors as one pass; None if the rule has to be given the mean.

    A class that is derived from one of these may have an `update` of its own.
    """
    return SGDRule.bind(rule, weights, slots, out) if type(rule) is SGDRule else None


#: The names of the registered rules, for the types of a job's values.
RuleName = Literal["sgd", "adam", "adamw", "rmsprop"]

#: The registered rules. The fields of each are its hyperparameters: a job has one of the same name for each.
RULES: dict[str, type[Rule]] = {"sgd": SGDRule, "adam": AdamRule, "adamw": AdamWRule, "rmsprop": RMSPropRule}


def rules_with(hyperparameter: str) -> str:
    """Return the names of the registered rules that have a hyperparameter, as text: `adam, adamw and rmsprop`."""
    kinds: dict[str, Any] = {**RULES}
    *names, last = (name for name, kind in kinds.items() if hyperparameter in kind.__dataclass_fields__)
    return f"{', '.join(names)} and {last}" if names else last


def _follow_square(name: str, gradient: Vector, kept: float, spare: Vector, slots: SlotSets) -> Vector:
    """square = kept·square + (1 - kept)·gradient², which is returned"""
    square = slots.scaled(name, kept)
    np.multiply(gradient, gradient, out=spare)
    spare *= 1.0 - kept
    square += spare
    return square


def _add_decay(weights: Vector, gradient: Vector, spare: Vector, weight_decay: float) -> None:
    if weight_decay:
        np.multiply(weights, weight_decay, out=spare)
        gradient += spare


def _add_momentum(gradient: Vector, momentum: float, slots: SlotSets) -> Vector:
    """Return the direction: `gradient` itself, or the momentum buffer after it was added to that."""
    if not momentum:
        return gradient
    velocity = slots.scaled("momentum_buffer", momentum)
    velocity += gradient
    return velocity


def _zeros(size: int, names: list[str]) -> dict[str, Vector]:
    return {name: np.zeros(size, dtype=np.float32) for name in names}


#: The slot with the average of the weights.
AVERAGE = "ema"


def averaged(weights: Vector, state: Mapping[str, Vector]) -> Vector | None:
    """Return the moving average of the weights, with the running statistics as they are; None if none is kept."""
    if AVERAGE not in state:
        return None
    average = weights.copy()
    average[: len(state[AVERAGE])] = state[AVERAGE]
    return average


class AdjustedRule(msgspec.Struct, frozen=True):
    """Updates by a multiple of the learning rate, with a gradient whose elements are limited.

    They are limited to [-most, most], as by PyTorch's `clip_grad_value_`; not at all if `most` is None.
    """

    inner: Rule
    lr_factor: float = 1.0
    most: float | None = None

    def init(self, size: int) -> dict[str, Vector]:
        return self.inner.init(size)

    def update(self, weights: Vector, gradient: Vector, slots: SlotSets, step: int, lr: float, out: Vector) -> None:
        if self.most is not None:
            np.clip(gradient, -self.most, self.most, out=gradient)
        self.inner.update(weights, gradient, slots, step, self.lr_factor * lr, out)


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
