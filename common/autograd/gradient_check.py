"""Comparing the gradients that a function of tensors gives with differences of its values.

One random direction an argument finds a wrong derivative anywhere in it with probability 1, at the price of two
evaluations; the element-wise mode says where it is wrong, at the price of two an element.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from common.autograd.graph import no_grad
from common.autograd.primitives.primitive import Array
from common.autograd.tensor import Tensor

#: Of all steps, about the cube root of the rounding error makes the sum of rounding and truncation error smallest.
_STEP = 6e-6


class GradientError(AssertionError):
    """A gradient is not the derivative: names the argument, both values, and what was expected."""


def check_gradients(
    function: Callable[..., Tensor],
    arguments: Sequence[Any],
    rng: np.random.Generator,
    *,
    elementwise: bool = False,
    tolerance: float = 1e-6,
) -> None:
    """Raise GradientError unless the gradient of every float64 argument of `function` is right.

    `function` takes those as tensors, the others as they are, and returns a tensor; it is made a number by random
    weights drawn from `rng`. Central differences, so the function must be smooth
    within 1e-5 of the arguments: keep away from kinks and ties. `tolerance` is relative to the sizes of what is summed.
    Arguments keep their strides in the evaluation that is differentiated; the differences use contiguous copies, and
    both must agree, so that a function which depends on the layout is found too.
    """
    checked = [index for index, each in enumerate(arguments) if _is_checked(each)]
    if not checked:
        raise ValueError("no argument is a float64 array: nothing to check")
    tensors = [Tensor(each, requires_grad=True) if _is_checked(each) else each for each in arguments]
    result = function(*tensors)
    weights = np.asarray(rng.standard_normal(result.shape))
    _check_result(result, function, arguments, weights, tolerance)
    result.backward(weights)
    for index in checked:
        gradient = _gradient_of(tensors[index], index)
        for direction, where in _directions(gradient.shape, rng, elementwise):
            numeric = _slope(function, arguments, index, direction, weights)
            exact = float(np.sum(gradient * direction))
            scale = 1 + float(np.sum(np.abs(gradient * direction))) + float(np.sum(np.abs(result.data * weights)))
            if not abs(exact - numeric) <= tolerance * scale:
                raise GradientError(
                    f"the gradient of argument {index}{where}, shape {gradient.shape}, is wrong: "
                    f"its slope is {exact!r}, expected {numeric!r}"
                )


def _check_result(
    result: Tensor, function: Callable[..., Tensor], arguments: Sequence[Any], weights: Array, tolerance: float
) -> None:
    if not result.requires_grad:
        raise GradientError("the result does not require a gradient: the function leaves the graph")
    again = _number(function, arguments, weights)
    first = float(np.sum(result.data * weights))
    if not abs(again - first) <= tolerance * (1 + float(np.sum(np.abs(result.data * weights)))):
        raise GradientError(
            f"the result depends on the memory layout: {first!r}, but {again!r} for contiguous arguments"
        )


def _gradient_of(tensor: Tensor, index: int) -> Array:
    """Return the gradient that was computed, zeros where none was: the function may not use an argument."""
    gradient = tensor.grad
    if gradient is None:
        return np.zeros(tensor.shape)
    if gradient.shape != tensor.shape or gradient.dtype != tensor.dtype:
        raise GradientError(
            f"the gradient of argument {index} has shape {gradient.shape} and dtype {gradient.dtype}, "
            f"expected {tensor.shape} and {tensor.dtype}"
        )
    return gradient


def _directions(shape: tuple[int, ...], rng: np.random.Generator, elementwise: bool) -> Iterator[tuple[Array, str]]:
    """Yield directions of the argument's shape, each with words for where it points."""
    if not elementwise:
        yield rng.standard_normal(shape), ""
        return
    for position in np.ndindex(shape):
        direction = np.zeros(shape)
        direction[position] = 1.0
        yield direction, f" at {position}"


def _slope(
    function: Callable[..., Tensor], arguments: Sequence[Any], index: int, direction: Array, weights: Array
) -> float:
    """Return the derivative along `direction` by central differences."""

    def moved(step: float) -> float:
        there = np.asarray(arguments[index] + step * direction)
        return _number(function, [*arguments[:index], there, *arguments[index + 1 :]], weights)

    return (moved(_STEP) - moved(-_STEP)) / (2 * _STEP)


def _number(function: Callable[..., Tensor], arguments: Sequence[Any], weights: Array) -> float:
    with no_grad():
        result = function(*(Tensor(np.array(each, order="C")) if _is_checked(each) else each for each in arguments))
    return float(np.sum(result.data * weights))


def _is_checked(argument: Any) -> bool:
    return isinstance(argument, np.ndarray) and argument.dtype == np.float64
