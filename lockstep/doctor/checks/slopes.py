"""Compares the gradients of one module with differences of its outputs; says how far off, not why."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.autograd.gradient_check import slope_along
from common.autograd.graph import no_grad
from common.autograd.primitives.primitive import Array
from common.autograd.tensor import Tensor
from common.nn.module import Module
from common.random import Purpose, generator
from lockstep.doctor.target import Walk

#: A wrong derivative is wrong in every direction, with probability 1; one that crosses a kink is not.
DIRECTIONS = 3


@dataclass(frozen=True)
class Precision:
    """What central differences can be trusted with."""

    #: Relative to the size of the array that is moved.
    step: float
    #: Largest error, relative to what is summed to a slope, and to what is summed to a value.
    of_slope: float
    of_value: float


#: For float64: kinks are hardly ever within the step, and rounding leaves nine digits.
FINE = Precision(1e-6, 1e-3, 1e-7)

#: For modules that compute in float32, whatever they are given.
COARSE = Precision(1e-2, 0.1, 1e-3)


@dataclass(frozen=True)
class Mismatch:
    """An argument whose gradient is wrong: its slopes along some directions, as walked back and as measured."""

    argument: str
    exact: tuple[float, ...]
    numeric: tuple[float, ...]


@dataclass
class Checked:
    """One module in float64, with arguments of its own that may be changed."""

    module: Module
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def mismatches(self, walk: Walk) -> Iterator[Mismatch]:
        """Yield the arguments with a wrong gradient; raises what the walk raises."""
        output = self._output()
        weights = generator(0, Purpose.CANARY, at=1).standard_normal(output.shape)
        precision = FINE if output.dtype == np.float64 else COARSE
        arrays = dict(self._arrays())
        if output.requires_grad:
            walk((output * weights.astype(output.dtype)).sum())
        noise = precision.of_value * float(np.sum(np.abs(output.data * weights)))
        for number, (argument, tensor) in enumerate(arrays.items()):
            found = self._compare(tensor, weights, precision, noise, number)
            if found is not None:
                yield Mismatch(argument, *found)

    def _arrays(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors whose gradients are checked."""
        inputs = [each for each in self.arguments if isinstance(each, Tensor) and each.requires_grad]
        for place, each in enumerate(inputs):
            yield ("its input" if len(inputs) == 1 else f"its input {place}"), each
        yield from self.module.named_parameters()

    def _output(self) -> Tensor:
        self.module.reseed(0, 0, 0)
        return self.module(*self.arguments, **self.options)

    def _compare(
        self, tensor: Tensor, weights: Array, precision: Precision, noise: float, number: int
    ) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        gradient = np.zeros(tensor.shape) if tensor.grad is None else np.array(tensor.grad, np.float64)
        slopes = []
        for place in range(DIRECTIONS):
            rng = generator(0, Purpose.CANARY, at=2, micro_batch=number, layer=place)
            direction = rng.standard_normal(tensor.shape) * _size(tensor.data)
            slope = slope_along(direction, tensor.data, gradient, lambda: self._value(weights), precision.step)
            if not abs(slope.exact - slope.numeric) > precision.of_slope * slope.scale + noise:
                return None  # a NaN is another check's finding
            slopes.append(slope)
        return tuple(each.exact for each in slopes), tuple(each.numeric for each in slopes)

    def _value(self, weights: Array) -> float:
        with no_grad():
            return float(np.sum(self._output().data * weights))


def _size(array: Array) -> float:
    """Return the root of the mean square, 1 where that is 0."""
    return float(np.sqrt(np.mean(np.square(array)))) or 1.0
