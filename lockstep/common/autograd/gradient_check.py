"""Compares gradients with central differences of the values that they belong to.

One random direction per argument finds a wrong derivative anywhere in it with probability 1, at the price of two
evaluations; the element-wise mode shows where it is wrong, at the price of two evaluations per element.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from lockstep.common.autograd.graph import no_grad
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor

#: Of all steps, about the cube root of the rounding error makes the sum of rounding and truncation error smallest.
_STEP = 6e-6


class Slope(msgspec.Struct, frozen=True):
    """The derivative of a number along one direction of an array, in two ways."""

    #: By the gradient.
    exact: float
    #: By central differences.
    numeric: float
    #: The sum of the magnitudes whose sum is `exact`: rounding errors are relative to it.
    scale: float


def slope_along(
    direction: Array, array: Array, gradient: Array, value: Callable[[], float], step: float = _STEP
) -> Slope:
    """Return the slope of `value()`, which reads `array`; `array` is changed in place meanwhile and then restored."""
    before, ends = array.copy(), []
    try:
        for signed in (step, -step):
            array[...] = before + signed * direction
            ends.append(value())
    finally:
        array[...] = before
    terms = gradient * direction
    return Slope(float(np.sum(terms)), (ends[0] - ends[1]) / (2 * step), float(np.sum(np.abs(terms))))


class GradientError(AssertionError):
    """A gradient is not the derivative. Its text names the argument and both slopes."""


def check_gradients(
    function: Callable[..., Tensor],
    arguments: Sequence[Any],
    rng: np.random.Generator,
    *,
    elementwise: bool = False,
    tolerance: float = 1e-6,
) -> None:
    """Compare the gradients of `function` with central differences; return nothing if they agree.

    `function` is called with `arguments`. Those that are float64 arrays, of any shape, are passed as tensors, and their
    gradients are checked. All others are passed as they are. The function returns a tensor of any shape, which random
    weights drawn from `rng` reduce to one number: that number is differentiated.

    By default each gradient is checked along one random direction: two evaluations per argument. With
    `elementwise=True` every element is checked, which takes two evaluations per element and shows where the first wrong
    one is. `tolerance` is relative to the sizes of the numbers that are added up.

    The function must be smooth within 1e-5 of the arguments: keep away from the kink of a `relu`, and from ties under a
    maximum. It must also give the same value for every memory layout. The gradients are those of the arguments with the
    strides that they have, the differences are those of contiguous copies, and a disagreement is reported.

    Raises `GradientError` with the argument, the slope that its gradient gives, and the slope that was measured;
    `ValueError` if no argument is a float64 array.

        >>> import numpy as np
        >>> from lockstep import F, check_gradients
        >>> rng = np.random.default_rng(0)
        >>> check_gradients(F.tanh, [rng.normal(size=(2, 3))], rng)
        >>> check_gradients(lambda x: x * x.detach(), [np.array([3.0])], rng, elementwise=True)
        Traceback (most recent call last):
        ...
        lockstep.common.autograd.gradient_check.GradientError: the gradient of argument 0 at (0,), shape (1,), is ...
    """
    checked = [index for index, each in enumerate(arguments) if _is_checked(each)]
    if not checked:
        raise ValueError("no argument is a float64 array: nothing to check")
    tensors = [Tensor(each, requires_grad=True) if _is_checked(each) else each for each in arguments]
    result = function(*tensors)
    if not result.requires_grad:
        raise GradientError("the result does not require a gradient: the function leaves the graph")
    weights = np.asarray(rng.standard_normal(result.shape))
    copies = [np.array(each, order="C") if _is_checked(each) else each for each in arguments]

    def value() -> float:
        with no_grad():
            again = function(*(Tensor(each) if _is_checked(each) else each for each in copies))
        return float(np.sum(again.data * weights))

    first, size = float(np.sum(result.data * weights)), 1 + float(np.sum(np.abs(result.data * weights)))
    if not abs(value() - first) <= tolerance * size:
        raise GradientError(
            f"the result depends on the memory layout: {first!r}, but {value()!r} for contiguous arguments"
        )
    result.backward(weights)
    for index in checked:
        gradient = _gradient_of(tensors[index], index)
        for direction, where in _directions(gradient.shape, rng, elementwise):
            slope = slope_along(direction, copies[index], gradient, value)
            if not abs(slope.exact - slope.numeric) <= tolerance * (size + slope.scale):
                raise GradientError(
                    f"the gradient of argument {index}{where}, shape {gradient.shape}, is wrong: "
                    f"its slope is {slope.exact!r}, expected {slope.numeric!r}"
                )


def _gradient_of(tensor: Tensor, index: int) -> Array:
    """Return the gradient that was computed, zeros if none was: the function may ignore an argument."""
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
    """Yield directions of the argument's shape, each with a text for an error message."""
    if not elementwise:
        yield rng.standard_normal(shape), ""
        return
    for position in np.ndindex(shape):
        direction = np.zeros(shape)
        direction[position] = 1.0
        yield direction, f" at {position}"


def _is_checked(argument: Any) -> bool:
    return isinstance(argument, np.ndarray) and argument.dtype == np.float64
