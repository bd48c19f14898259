"""The oracle of the kernels: its fused multiply-add is exact, and it gives the test vectors of the page."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.common.numerics.leaves import CONTRACT_VERSION
from tests.lockstep.common.numerics import reference
from tests.lockstep.common.numerics.reference import PAGE, Floats, fma, vectors

_FUNCTIONS: dict[str, Callable[..., Floats]] = {
    "exp": reference.exp,
    "log": reference.log,
    "log1p": reference.log1p,
    "tanh": reference.tanh,
    "sigmoid": reference.sigmoid,
    "erf": reference.erf,
    "power": reference.power,
}

_finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
#: Numbers next to one another, of which sums are close to the middle of two others.
_near = st.builds(lambda sign, bits, power: sign * bits * 2.0**power, st.sampled_from([-1.0, 1.0]),
                  st.integers(2**24 - 4, 2**24), st.integers(-80, 20))  # fmt: skip


def _nearest(exact: Fraction) -> np.float32:
    """Return the float32 next to an exact number, ties to even, by whole numbers alone."""
    if not exact:
        return np.float32(0.0)
    size, unit = abs(exact), Fraction(1, 2**149)
    while size / unit >= 2**24:
        unit *= 2
    steps = round(size / unit)  # of a fraction to the nearest whole number, ties to even
    value = float(steps * unit)
    with np.errstate(over="ignore"):
        return np.float32(math.copysign(value, exact))


@given(_finite | _near, _finite | _near, _finite | _near)
def test_a_fused_multiply_add_is_rounded_once(a: float, b: float, c: float) -> None:
    operands = [np.float32(each) for each in (a, b, c)]
    exact = Fraction(float(operands[0])) * Fraction(float(operands[1])) + Fraction(float(operands[2]))
    assert fma(*(np.asarray(each) for each in operands)) == _nearest(exact)


def test_a_product_and_a_sum_in_float64_would_be_rounded_twice() -> None:
    # The square lies half-way between two float32, and the addend, which float64 loses, puts the sum above that.
    x, tiny = np.asarray(np.float32(1.0 + 2.0**-12)), np.asarray(np.float32(2.0**-100))
    assert np.float32(np.float64(x) * np.float64(x) + np.float64(tiny)) == np.float32(1.0 + 2.0**-11)
    assert fma(x, x, tiny) == np.float32(1.0 + 2.0**-11 + 2.0**-23)


@pytest.mark.parametrize("name", list(_FUNCTIONS))
def test_the_vectors_of_the_page_are_those_of_the_reference(name: str) -> None:
    found = vectors(name)
    assert len(found) > 5
    for *operands, result in found:
        assert _FUNCTIONS[name](*operands).view(np.uint32) == result.view(np.uint32), operands


_EXACT: dict[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "erf": np.vectorize(math.erf),
}
#: Units in the last place, from tests of all 2**32 operands.
_LARGEST_ERROR = {"exp": 1.02, "log": 0.81, "log1p": 1.39, "tanh": 1.47, "sigmoid": 2.41, "erf": 1.08}


@pytest.mark.parametrize("name", list(_EXACT))
def test_functions_are_close_to_the_exact_value(name: str) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0.0, scale, 5_000) for scale in (1e-3, 0.5, 1.0, 5.0, 30.0)]).astype(np.float32)
    with np.errstate(all="ignore"):
        exact = _EXACT[name](x.astype(np.float64))
        is_finite = np.isfinite(exact.astype(np.float32))
    error = np.abs(_FUNCTIONS[name](x)[is_finite] - exact[is_finite])
    unit = np.exp2(np.maximum(np.frexp(exact[is_finite])[1] - 24.0, -149.0))
    assert np.max(error / unit) <= _LARGEST_ERROR[name]


def test_the_page_has_the_version_of_the_contract() -> None:
    assert f"This is version {CONTRACT_VERSION} of the contract." in PAGE.read_text(encoding="utf-8")
