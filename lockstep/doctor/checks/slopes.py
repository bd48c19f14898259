"""Compares the gradients of one module with differences of its outputs; says how far off, not why."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

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
        exact, numeric = [], []
        for place in range(DIRECTIONS):
            rng = generator(0, Purpose.CANARY, at=2, micro_batch=number, layer=place)
            direction = rng.standard_normal(tensor.shape) * _size(tensor.data)
            exact.append(float(np.sum(gradient * direction)))
            numeric.append(self._slope(tensor, direction, weights, precision.step))
            allowed = precision.of_slope * float(np.sum(np.abs(gradient * direction))) + noise
            if not abs(exact[-1] - numeric[-1]) > allowed:  # a NaN is another check's finding
                return None
        return tuple(exact), tuple(numeric)

    def _slope(self, tensor: Tensor, direction: Array, weights: Array, step: float) -> float:
        before = tensor.data.copy()
        values = []
        for signed in (step, -step):
            tensor.data[...] = before + signed * direction
            with no_grad():
                values.append(float(np.sum(self._output().data * weights)))
        tensor.data[...] = before
        return (values[0] - values[1]) / (2 * step)


def _size(array: Array) -> float:
    """Return the root of the mean square, 1 where that is 0."""
    return float(np.sqrt(np.mean(np.square(array)))) or 1.0
