"""The tensor as its users see it: an array with operators and methods that NumPy and Python know how to treat."""

import copy
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor


def leaf(*values: float) -> Tensor:
    return Tensor(list(values), requires_grad=True)


class TestMaking:
    @pytest.mark.parametrize(
        ("data", "dtype"),
        [
            (1, np.float32),
            (1.5, np.float32),
            ([1, 2], np.float32),
            ([[1.0], [2.0]], np.float32),
            (True, np.bool_),
            ([True, False], np.bool_),
            (np.float64(1), np.float64),
            (np.array([1, 2]), np.int64),
            (np.zeros(2), np.float64),
            ([], np.float32),
        ],
    )
    def test_dtypes(self, data: Any, dtype: type) -> None:
        assert Tensor(data).dtype == dtype

    def test_a_dtype_can_be_asked_for(self) -> None:
        assert Tensor([1, 2], dtype=np.int64).dtype == np.int64

    def test_an_array_is_shared(self) -> None:
        array = np.zeros(2)
        assert Tensor(array).data is array

    @pytest.mark.parametrize("data", ["text", None, [1, "two"], object(), [1 + 2j]])
    def test_what_is_no_number_is_refused(self, data: Any) -> None:
        with pytest.raises(TypeError, match="a tensor cannot"):
            Tensor(data)

    def test_ragged_lists_are_refused(self) -> None:
        with pytest.raises(ValueError, match="expected lists of the same length"):
            Tensor([[1, 2], [3]])

    @pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.float16])
    def test_only_float32_and_float64_require_gradients(self, dtype: type) -> None:
        with pytest.raises(RuntimeError, match="cannot require a gradient"):
            Tensor(np.zeros(2, dtype), requires_grad=True)


class TestIndexing:
    def test_tensors_as_indices(self) -> None:
        x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
        np.testing.assert_array_equal(x[Tensor(np.array([1, 1]))].data, x.data[[1, 1]])
        picked = x[Tensor(np.array([0, 1])), Tensor(np.array([2, 0]))]
        picked.backward(np.ones(2))
        np.testing.assert_array_equal(x.grad, [[0, 0, 1], [1, 0, 0]])

    def test_a_repeated_index_adds_up(self) -> None:
        x = leaf(1.0, 2.0)
        x[[1, 1, 1, 0]].backward(np.array([1.0, 2.0, 3.0, 4.0]))
        np.testing.assert_array_equal(x.grad, [4.0, 6.0])

    def test_iteration_and_length(self) -> None:
        x = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
        assert len(x) == 2
        assert [row.tolist() for row in x] == [[1.0, 2.0], [3.0, 4.0]]
        with pytest.raises(TypeError):
            len(Tensor(1.0))

    def test_out_of_range(self) -> None:
        with pytest.raises(IndexError):
            Tensor([1.0])[1]

    def test_assignment_outside_of_a_graph(self) -> None:
        x = Tensor([1.0, 2.0, 3.0])
        x[x > 1] = Tensor(0.0)
        assert x.tolist() == [1.0, 0.0, 0.0]


class TestPython:
    def test_one_element(self) -> None:
        x = leaf(2.5)
        assert (x.item(), float(x), int(x), bool(x)) == (2.5, 2.5, 2, True)

    def test_the_truth_of_many_elements_is_refused(self) -> None:
        with pytest.raises(ValueError, match="ambiguous"):
            bool(leaf(1.0, 2.0))
        with pytest.raises(ValueError, match="size 1"):
            leaf(1.0, 2.0).item()

    def test_hashed_by_identity(self) -> None:
        one, other = leaf(1.0), leaf(1.0)
        assert {one: "one", other: "other"}[one] == "one"

    def test_a_deep_copy_of_a_leaf_is_another_leaf(self) -> None:
        x = leaf(1.0, 2.0)
        x.sum().backward()
        twin = copy.deepcopy(x)
        twin.sum().backward()
        np.testing.assert_array_equal(twin.grad, [2.0, 2.0])
        np.testing.assert_array_equal(x.grad, [1.0, 1.0])

    @pytest.mark.parametrize(
        ("tensor", "text"),
        [
            (Tensor([1.0, 2.5]), "tensor([1. , 2.5])"),
            (leaf(1.0), "tensor([1.], requires_grad=True)"),
            (leaf(1.0) * 2, "tensor([2.], grad_fn=<multiply>)"),
            (Tensor(np.array(1.0)), "tensor(1., dtype=float64)"),
            (Tensor([[1.0], [2.0]]), "tensor([[1.],\n        [2.]])"),
            (Tensor(np.array([1, 2])), "tensor([1, 2])"),
        ],
    )
    def test_repr(self, tensor: Tensor, text: str) -> None:
        assert repr(tensor) == text


class TestArrays:
    def test_asarray_of_a_detached_tensor_shares(self) -> None:
        x = leaf(1.0, 2.0)
        assert np.shares_memory(np.asarray(x.detach()), x.data)
        assert np.asarray(x.detach(), np.float64).dtype == np.float64
        assert not np.shares_memory(np.array(x.detach()), x.data)
        assert x.detach().numpy() is x.data

    @pytest.mark.parametrize("convert", [np.asarray, lambda x: x.numpy()])
    def test_a_tensor_in_a_graph_says_what_to_do(self, convert: Callable[[Tensor], Array]) -> None:
        with pytest.raises(RuntimeError, match=r"use tensor\.detach\(\)"):
            convert(leaf(1.0))

    def test_astype(self) -> None:
        assert leaf(1.0).astype(np.float64).dtype == np.float64

    def test_zero_dimensional_results_are_arrays(self) -> None:
        assert isinstance(leaf(1.0).sum().data, np.ndarray)


class TestGradients:
    def test_a_gradient_is_needed_unless_there_is_one_element(self) -> None:
        with pytest.raises(RuntimeError, match=r"shape \(2,\) needs a gradient of that shape"):
            leaf(1.0, 2.0).backward()
        with pytest.raises(RuntimeError, match="must be equal"):
            leaf(1.0, 2.0).backward(np.ones(3))

    def test_a_constant_has_nothing_to_walk(self) -> None:
        with pytest.raises(RuntimeError, match="does not require a gradient"):
            Tensor([1.0]).backward()

    def test_a_leaf_itself(self) -> None:
        x = leaf(3.0)
        x.backward()
        np.testing.assert_array_equal(x.grad, [1.0])

    @pytest.mark.parametrize("gradient", [[1.0, 2.0], Tensor([1.0, 2.0]), np.array([1, 2])])
    def test_gradients_of_many_kinds(self, gradient: Any) -> None:
        x = leaf(3.0, 4.0)
        (x * 1).backward(gradient)
        np.testing.assert_array_equal(x.grad, np.array([1.0, 2.0], np.float32), strict=True)

    def test_detach(self) -> None:
        x = leaf(2.0)
        (x * x.detach()).backward()
        np.testing.assert_array_equal(x.grad, [2.0])

    def test_requires_grad_can_be_switched(self) -> None:
        x = Tensor([1.0])
        x.requires_grad = True
        (x * 2).backward()
        x.requires_grad = False
        assert x.grad is None
        assert not (x * 2).requires_grad

    def test_a_computed_tensor_stays_in_its_graph(self) -> None:
        y = leaf(1.0) * 2
        assert not y.is_leaf
        assert y.grad is None
        with pytest.raises(RuntimeError, match=r"use detach\(\)"):
            y.requires_grad = False

    def test_grad_can_be_assigned(self) -> None:
        x = leaf(1.0)
        x.grad = np.array([5.0], np.float32)
        (x * 2).backward()
        np.testing.assert_array_equal(x.grad, [7.0])
        with pytest.raises(ValueError, match="grad has shape"):
            x.grad = np.zeros(2, np.float32)

    def test_data_of_another_shape(self) -> None:
        x = leaf(1.0)
        x.data = np.ones((2, 2))
        (x * 2).sum().backward()
        np.testing.assert_array_equal(x.grad, np.full((2, 2), 2.0), strict=True)

    def test_data_must_stay_floating(self) -> None:
        x = leaf(1.0)
        with pytest.raises(RuntimeError, match="cannot require a gradient"):
            x.data = np.array([1])


@pytest.mark.parametrize("apply", [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow])
@pytest.mark.parametrize(
    "other", [2, 2.5, np.float32(2), np.array([2.0, 3.0], np.float32), [2.0, 3.0], Tensor([2.0, 3.0])]
)
def test_both_sides(apply: Callable[[Any, Any], Any], other: Any) -> None:
    x = leaf(1.5, 2.5)
    raw = np.asarray(other, np.float32)
    for result, expected in (
        (apply(x, other), apply(x.data, raw)),
        (apply(other, x), apply(raw, x.data)),
    ):
        assert isinstance(result, Tensor)
        assert result.requires_grad
        assert result.dtype == np.float32
        np.testing.assert_allclose(result.data, expected, rtol=1e-6)


def test_matmul_with_arrays() -> None:
    x = Tensor(np.eye(2), requires_grad=True)
    for result in (x @ np.ones((2, 3)), (np.ones((3, 2)) @ x).T):
        np.testing.assert_array_equal(result.data, np.ones((2, 3)))


def test_unary() -> None:
    x = leaf(-1.0, 2.0)
    np.testing.assert_array_equal((-x).data, [1.0, -2.0])
    np.testing.assert_array_equal((+x).data, [-1.0, 2.0])
    np.testing.assert_array_equal(abs(x).data, [1.0, 2.0])


@pytest.mark.parametrize("compare", [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge])
@pytest.mark.parametrize("other", [2.0, np.array([1.0, 3.0, 2.0]), Tensor([1.0, 3.0, 2.0])])
def test_comparisons(compare: Callable[[Any, Any], Any], other: Any) -> None:
    x = leaf(1.0, 2.0, 3.0)
    raw = np.asarray(other)
    for result, expected in ((compare(x, other), compare(x.data, raw)), (compare(other, x), compare(raw, x.data))):
        assert result.dtype == np.bool_
        assert not result.requires_grad
        np.testing.assert_array_equal(result.data, expected)


def test_masks() -> None:
    x = Tensor([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(x[(x > 1) & ~(x > 2)].data, [2.0])
    np.testing.assert_array_equal(x[(x < 2) | (x > 2)].data, [1.0, 3.0])


def test_ufuncs_refuse_a_tensor() -> None:
    with pytest.raises(TypeError):
        np.exp(Tensor([1.0]))


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
    np.testing.assert_allclose(getattr(Tensor(X), name)().data, getattr(np, name)(X), rtol=1e-6)


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
    by_torch = Tensor(X).argmax(dim=axis, keepdim=keepdims)
    np.testing.assert_array_equal(by_torch.data, Tensor(X).argmax(axis, keepdims).data, strict=True)
