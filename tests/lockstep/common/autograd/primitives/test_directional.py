"""The check itself: it must reject planted mistakes."""

import numpy as np
import pytest

from lockstep.common.autograd.primitives.primitive import Array, Derivative, Primitive
from tests.lockstep.common.autograd.primitives.directional import check_derivatives

X = np.random.default_rng(5).standard_normal((3, 4))


def _sine(derivative: Derivative, **declared: object) -> Primitive:
    return Primitive("sine", np.sin, (derivative,), **declared)  # type: ignore[arg-type]


def test_accepts_the_right_derivative() -> None:
    check_derivatives(_sine(lambda g, _, x: g * np.cos(x), reads=((0,),)), X)


def _wrong_in_one_element(g: Array, _: Array, x: Array) -> Array:
    result = g * np.cos(x)
    result[1, 2] = 0
    return result


@pytest.mark.parametrize(
    "derivative",
    [
        lambda g, _, x: -g * np.cos(x),
        lambda g, _, x: g * np.cos(x) * 1.001,
        lambda g, _, x: np.cos(x),
        lambda g, _, x: (g * np.cos(x)).astype(np.float32),
        lambda g, _, x: g[:1] * np.cos(x[:1]),
        _wrong_in_one_element,
    ],
)
def test_rejects_a_wrong_derivative(derivative: Derivative) -> None:
    with pytest.raises(AssertionError):
        check_derivatives(_sine(derivative), X)


def test_rejects_a_derivative_that_reads_what_it_does_not_declare() -> None:
    with pytest.raises((AssertionError, TypeError, AttributeError)):
        check_derivatives(_sine(lambda g, _, x: g * np.cos(x), reads=((),)), X)


def test_rejects_one_that_does_not_fill_what_it_is_given() -> None:
    def ignores_out(g: Array, _: Array, x: Array, out: Array | None = None) -> Array:
        return g * np.cos(x)

    with pytest.raises(AssertionError):
        check_derivatives(_sine(ignores_out, writes=(0,)), X)
