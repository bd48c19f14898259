"""The error function against the C library's."""

import math

import numpy as np
import pytest

from common.autograd.primitives.erf import erf
from common.autograd.primitives.primitive import Array


def reference(x: Array) -> Array:
    return np.array([math.erf(each) for each in x.tolist()]).reshape(x.shape)


@pytest.mark.parametrize(("dtype", "relative"), [(np.float32, 5e-7), (np.float64, 2e-14)])
def test_values(dtype: type, relative: float) -> None:
    x: Array = np.concatenate([np.linspace(-1e-3, 1e-3, 2001), np.linspace(-9, 9, 20001)]).astype(dtype)
    result = erf(x)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, reference(x), rtol=relative, atol=0)


def test_it_is_odd_and_ends_at_one() -> None:
    x = np.array([0.0, 0.3, 2.0, 30.0, np.inf])
    np.testing.assert_array_equal(erf(-x), -erf(x))
    np.testing.assert_allclose(erf(x[3:]), 1.0, rtol=2e-14)


def test_nan_stays() -> None:
    assert np.isnan(erf(np.array([np.nan]))).all()
