"""Methods that compute, under NumPy's and PyTorch's names."""

from typing import Any

import numpy as np
import pytest

from common.autograd.tensor import Tensor

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("axis", [None, 1, -1, (0, 2), [0, 1]])
def test_reductions_under_both_names(name: str, axis: Any) -> None:
    x = Tensor(X)
    method = getattr(x, name)
    along = tuple(axis) if isinstance(axis, list) else axis
    expected = getattr(X, name)(axis=along, keepdims=True)
    for result in (method(axis, True), method(axis=axis, keepdims=True), method(dim=axis, keepdim=True)):
        np.testing.assert_allclose(result.data, expected, rtol=1e-6)
    np.testing.assert_allclose(method(axis).data, getattr(X, name)(axis=along), rtol=1e-6)


def test_variance() -> None:
    x = Tensor(X)
    np.testing.assert_allclose(x.var().data, X.var(ddof=1), rtol=1e-6)
    np.testing.assert_allclose(x.var(dim=1, correction=0).data, X.var(axis=1), rtol=1e-6)


@pytest.mark.parametrize("name", ["mean", "var"])
@pytest.mark.parametrize("axis", [None, 1, -1, (0, 2), ()])
def test_the_reduced_axes_go_unless_they_are_kept(name: str, axis: Any) -> None:
    method, options = getattr(Tensor(X), name), {"correction": 0} if name == "var" else {}
    assert method(axis=axis, **options).shape == getattr(X, name)(axis=axis).shape
    assert method(axis=axis, keepdims=True, **options).shape == getattr(X, name)(axis=axis, keepdims=True).shape


@pytest.mark.parametrize("name", ["exp", "tanh", "abs"])
def test_functions(name: str) -> None:
    np.testing.assert_array_equal(getattr(Tensor(X), name)().data, getattr(np, name)(X))


def test_functions_of_positive_numbers() -> None:
    x = Tensor([1.0, 4.0])
    np.testing.assert_allclose(x.log().data, np.log(x.data))
    np.testing.assert_array_equal(x.sqrt().data, [1.0, 2.0])


def test_bounds() -> None:
    x = Tensor([-2.0, 0.5, 2.0])
    np.testing.assert_array_equal(x.clip(-1, 1).data, [-1.0, 0.5, 1.0])
    np.testing.assert_array_equal(x.clamp(min=0).data, [0.0, 0.5, 2.0])
    np.testing.assert_array_equal(x.relu().data, [0.0, 0.5, 2.0])
    np.testing.assert_array_equal(x.maximum(1).data, [1.0, 1.0, 2.0])
    np.testing.assert_array_equal(x.minimum(1).data, [-2.0, 0.5, 1.0])
    np.testing.assert_array_equal(x.pow(2).data, [4.0, 0.25, 4.0])


def test_shapes() -> None:
    x = Tensor(X)
    assert x.reshape(6, 4).shape == x.view((6, -1)).shape == (6, 4)
    assert x.flatten().shape == (24,)
    assert x.flatten(1).shape == (2, 12)
    assert x.flatten(0, 1).shape == (6, 4)
    assert Tensor(1.0).flatten().shape == (1,)
    assert x.transpose(0, -1).shape == x.T.shape == (4, 3, 2)
    assert x.permute(2, 0, 1).shape == x.permute((2, 0, 1)).shape == (4, 2, 3)
    assert x.unsqueeze(0).shape == (1, 2, 3, 4)
    assert x.unsqueeze(-1).squeeze(-1).shape == x.squeeze(0).shape == x.unsqueeze(1).squeeze().shape == (2, 3, 4)
    assert x.broadcast_to(5, 2, 3, 4).shape == (5, 2, 3, 4)
    assert x.matmul(np.ones((4, 2), np.float32)).shape == (2, 3, 2)


def test_flatten_the_wrong_way_round() -> None:
    with pytest.raises(ValueError, match="start_dim 2 lies behind end_dim 1"):
        Tensor(X).flatten(2, 1)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_argmax(axis: int | None, keepdims: bool) -> None:
    expected = np.asarray(np.argmax(X, axis=axis, keepdims=True))
    np.testing.assert_array_equal(
        Tensor(X).argmax(axis, keepdims).data, expected if keepdims else expected.squeeze(axis), strict=True
    )
