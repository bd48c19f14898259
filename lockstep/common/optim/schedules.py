"""Learning rates as functions of the step: float64 arithmetic, the same everywhere; no state, nothing of optimizers."""

import math
from typing import Protocol

import msgspec

from lockstep.common.numerics.scalars import cos, power


class Schedule(Protocol):
    """A learning rate for every step: anything with this one method."""

    def rate(self, step: int) -> float:
        """Return the rate of `step`, which counts from 0; after the schedule's last step the rate stays."""
        ...


class Constant(msgspec.Struct, frozen=True):
    """One rate for all steps. Raises ValueError for a rate that is negative or not finite.

    Differs from PyTorch: a schedule is a function of the step, and changes no optimizer.
    """

    lr: float

    def __post_init__(self) -> None:
        _check_rate("lr", self.lr)

    def rate(self, step: int) -> float:
        """Return the rate of `step`, which counts from 0: `lr`."""
        return self.lr


class _Falling(msgspec.Struct, frozen=True):
    """The arguments of rates that are multiplied by `gamma` in every `every` steps, checked."""

    lr: float
    every: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _check_rate("lr", self.lr)
        _check_rate("gamma", self.gamma)
        _check_steps("every", self.every)


class Step(_Falling, frozen=True):
    """A rate that is multiplied by `gamma` after every `every` steps.

    Raises ValueError for a rate or a `gamma` that is negative or not finite, and for `every` below 1.

    Differs from PyTorch: PyTorch calls it `StepLR`, and counts epochs if `step` is called once per epoch.
    """

    def rate(self, step: int) -> float:
        """Return the rate of `step`, which counts from 0."""
        return self.lr * power(self.gamma, step // self.every)


class Cosine(msgspec.Struct, frozen=True):
    """Half a cosine from `lr` down to `min_lr` over `steps` (Loshchilov and Hutter, SGDR, ICLR 2017, equation 5).

    Raises ValueError for a rate that is negative or not finite, and for `steps` below 1.

    Differs from PyTorch: PyTorch calls it `CosineAnnealingLR`; after `steps` the rate stays, and does not rise again.
    """

    lr: float
    steps: int
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        _check_rate("lr", self.lr)
        _check_rate("min_lr", self.min_lr)
        _check_steps("steps", self.steps)

    def rate(self, step: int) -> float:
        """Return the rate of `step`, which counts from 0; from `steps` on it is `min_lr`."""
        return _along_cosine(self.lr, self.min_lr, step / self.steps)


class OneCycle(msgspec.Struct, frozen=True):
    """Up to `max_lr` and far down again, both along cosines (Smith and Topin, 2018).

    The rate starts at max_lr / div_factor, is max_lr at the step `pct_start`·steps - 1, and in the last step is the
    first one's / final_div_factor. Raises ValueError for a rate that is negative or not finite, for `steps` below 1,
    for a `pct_start` outside of [0, 1], and for a factor that is not above 0.

    >>> schedule = optim.OneCycle(0.1, steps=100)
    >>> [round(schedule.rate(step), 4) for step in (0, 29, 99)]
    [0.004, 0.1, 0.0]

    Differs from PyTorch: PyTorch calls it `OneCycleLR`; it does not change the momentum.
    """

    max_lr: float
    steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self) -> None:
        _check_rate("max_lr", self.max_lr)
        _check_steps("steps", self.steps)
        if not 0.0 <= self.pct_start <= 1.0:
            raise ValueError(f"pct_start is {self.pct_start!r}: expected a number in [0, 1]")
        for name, factor in (("div_factor", self.div_factor), ("final_div_factor", self.final_div_factor)):
            if not 0.0 < factor < math.inf:
                raise ValueError(f"{name} is {factor!r}: expected a finite number above 0")

    def rate(self, step: int) -> float:
        """Return the rate of `step`, which counts from 0; after the last step it stays."""
        first = self.max_lr / self.div_factor
        peak, last = self.pct_start * self.steps - 1.0, self.steps - 1.0
        # The peak may lie at or before step 0, where PyTorch divides by zero: then there is no way up.
        if step < peak:
            return _along_cosine(first, self.max_lr, step / peak)
        if peak >= last:
            return self.max_lr
        return _along_cosine(self.max_lr, first / self.final_div_factor, (step - peak) / (last - peak))


class Exponential(_Falling, frozen=True):
    """A rate that falls by one factor from step to step, so that it is multiplied by `gamma` in every `every` steps.

    Raises ValueError for a rate or a `gamma` that is negative or not finite, and for `every` below 1.

    Differs from PyTorch: PyTorch calls it `ExponentialLR`, and counts epochs if `step` is called once per epoch.
    """

    def rate(self, step: int) -> float:
        """Return the rate of `step`, which counts from 0."""
        return self.lr * power(self.gamma, step / self.every)


class Polynomial(msgspec.Struct, frozen=True):
    """From `lr` down to `min_lr` over `steps`, along a line or, with `power`, along a power of the rest.

    Raises ValueError for a rate that is negative or not finite, for `steps` below 1, and for a `power` that is not
    above 0.

    Differs from PyTorch: PyTorch calls it `PolynomialLR`, which has no `min_lr`.
    """

    lr: float
    steps: int
    power: float = 1.0
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        _check_rate("lr", self.lr)
        _check_rate("min_lr", self.min_lr)
        _check_steps("steps", self.steps)
        if not 0.0 < self.power < math.inf:
            raise ValueError(f"power is {self.power!r}: expected a finite number above 0")

    def rate(self, step: int) -> float:
        """Return the rate of `step`, which counts from 0; from `steps` on it is `min_lr`."""
        left = 1.0 - min(step, self.steps) / self.steps
        return self.min_lr + (self.lr - self.min_lr) * power(left, self.power)


class LinearWarmup(msgspec.Struct, frozen=True):
    """Another schedule times a factor that grows from `start_factor` to 1 over `steps`.

    Raises ValueError for `steps` below 1 and for a `start_factor` outside of [0, 1].

    Differs from PyTorch: PyTorch calls it `LinearLR`, and chains it with another schedule.
    """

    after: Schedule
    steps: int
    start_factor: float = 1.0 / 3.0

    def __post_init__(self) -> None:
        _check_steps("steps", self.steps)
        if not 0.0 <= self.start_factor <= 1.0:
            raise ValueError(f"start_factor is {self.start_factor!r}: expected a number in [0, 1]")

    def rate(self, step: int) -> float:
        """Return the rate of `step`, which counts from 0."""
        done = min(step, self.steps) / self.steps
        return self.after.rate(step) * (self.start_factor + (1.0 - self.start_factor) * done)


def _along_cosine(start: float, end: float, done: float) -> float:
    """Return the point that is the part `done` of the way, held at the end once past it."""
    return end + (start - end) / 2.0 * (1.0 + cos(math.pi * min(done, 1.0)))


def _check_rate(name: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}: expected a finite number of at least 0")


def _check_steps(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value!r}: expected at least 1")
