"""The gradient check accepts what is right and rejects each of the mistakes that people make."""

from collections.abc import Callable

import numpy as np
import pytest

from lockstep.common.autograd.gradient_check import GradientError, check_gradients
from lockstep.common.autograd.primitives import elementwise
from lockstep.common.autograd.primitives.primitive import RESULT, Array, Derivative, Primitive
from lockstep.common.autograd.tensor import Tensor, apply

X = np.random.default_rng(0).standard_normal((3, 4))
ROW = np.random.default_rng(1).standard_normal(4)


def check(function: Callable[..., Tensor], *arguments: Array, elementwise: bool = False) -> None:
    check_gradients(function, arguments, np.random.default_rng(2), elementwise=elementwise)


def function_of(primitive: Primitive) -> Callable[..., Tensor]:
    return lambda *tensors: apply(primitive, *tensors)


def tanh_with(derivative: Derivative) -> Callable[..., Tensor]:
    return function_of(Primitive("tanh", np.tanh, (derivative,), reads=((0, RESULT),)))


def right_at_the_first_element_only(gradient: Array, result: Array, x: Array) -> Array:
    wrong = gradient * np.ones_like(x)
    wrong.flat[0] = (gradient * (1 - result * result)).flat[0]
    return wrong


def wrong_at_the_last_element_only(gradient: Array, result: Array, x: Array) -> Array:
    right = np.asarray(gradient * (1 - result * result))
    right.flat[-1] *= 1.001
    return right


PLANTED: dict[str, tuple[Callable[..., Tensor], tuple[Array, ...]]] = {
    "wrong sign": (tanh_with(lambda g, y, x: -g * (1 - y * y)), (X,)),
    "the derivative of relu": (tanh_with(lambda g, y, x: g * (x > 0)), (X,)),
    "right at the first element only": (tanh_with(right_at_the_first_element_only), (X,)),
    "wrong at the last element only": (tanh_with(wrong_at_the_last_element_only), (X,)),
    "missing factor": (function_of(Primitive("square", np.square, (lambda g, y, x: g * x,))), (X,)),
    "one argument of two": (
        function_of(Primitive("multiply", np.multiply, (lambda g, _, x, y: g * y, lambda g, _, x, y: g * y))),
        (X, X + 1),
    ),
    "broadcasting undone by taking a row": (
        function_of(Primitive("add", np.add, (lambda g, _, x, y: g, lambda g, _, x, y: g[0]))),
        (X, ROW),
    ),
    "broadcasting undone by the mean": (
        function_of(Primitive("add", np.add, (lambda g, _, x, y: g, lambda g, _, x, y: g.mean(0)))),
        (X, ROW),
    ),
    "one use of two counted": (lambda x: apply(elementwise.multiply, x, x.detach()), (X,)),
    "argument outside of the graph": (lambda x, y: apply(elementwise.multiply, x, y.detach()), (X, X + 1)),
    "result outside of the graph": (lambda x: apply(elementwise.tanh, x.detach()), (X,)),
    "dependent on the layout": (
        function_of(Primitive("ravel", lambda x: x.ravel("K").reshape(x.shape), (lambda g, _, x: g,))),
        (X.T,),
    ),
    "not a number": (tanh_with(lambda g, y, x: g * np.nan), (X,)),
}


@pytest.mark.parametrize("elementwise", [False, True])
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_rejected(name: str, elementwise: bool) -> None:
    function, arguments = PLANTED[name]
    with pytest.raises(GradientError):
        check(function, *arguments, elementwise=elementwise)


@pytest.mark.parametrize("elementwise", [False, True])
def test_right_derivatives_are_accepted(elementwise: bool) -> None:
    check(lambda x, row: (x * row).tanh() * x, X, ROW, elementwise=elementwise)


def test_a_gradient_of_another_shape_is_an_error_of_the_derivative() -> None:
    with pytest.raises(RuntimeError, match="argument 0 of 'tanh' has shape"):
        check(tanh_with(lambda g, y, x: g[:2]), X)


def test_the_element_is_named() -> None:
    with pytest.raises(GradientError, match=r"argument 0 at \(2, 3\), shape \(3, 4\)"):
        check(tanh_with(wrong_at_the_last_element_only), X, elementwise=True)


def test_something_must_be_checked() -> None:
    with pytest.raises(ValueError, match="nothing to check"):
        check(lambda x: x, X.astype(np.float32))
