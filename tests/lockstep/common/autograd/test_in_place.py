"""A change of an array that the backward pass needs is noticed; one that it does not need is fine."""

import numpy as np
import pytest

from lockstep.common.autograd.graph import detect_in_place, no_grad
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


def gradient(tensor: Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad


def add_in_place(tensor: Tensor) -> None:
    tensor += 1


def assign(tensor: Tensor) -> None:
    tensor[0] = 5.0


def write_through_data(tensor: Tensor) -> None:
    tensor.data += 1.0


def change_a_view(tensor: Tensor) -> None:
    with no_grad():
        view = tensor.detach()[1:]
        view *= 2


CHANGES = [
    add_in_place,
    assign,
    write_through_data,
    change_a_view,
    lambda tensor: tensor.fill_(1.0),
    lambda tensor: tensor.copy_([3.0, 4.0]),
    lambda tensor: tensor.detach().fill_(1.0),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_needed_result_must_not_change(change) -> None:  # type: ignore[no-untyped-def]
    x = leaf(1.0, 2.0)
    y = x.exp()
    z = y.sum()
    change(y)
    with pytest.raises(RuntimeError, match=r"gradient of 'exp' needs, result shape \(2,\), was changed in place"):
        z.backward()


@pytest.mark.parametrize("change", CHANGES)
def test_a_needed_argument_must_not_change(change) -> None:  # type: ignore[no-untyped-def]
    factor = Tensor(np.array([1.0, 2.0]))
    z = (leaf(1.0, 2.0) * factor).sum()
    change(factor)
    with pytest.raises(RuntimeError, match="gradient of 'multiply' needs"):
        z.backward()


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_needed_may_change(change) -> None:  # type: ignore[no-untyped-def]
    x = leaf(1.0, 2.0)
    y = x * 3
    z = (y + 1).sum()
    change(y)
    z.backward()
    np.testing.assert_array_equal(gradient(x), [3.0, 3.0])


def test_a_step_between_forward_and_backward_is_noticed() -> None:
    weight = leaf(1.0, 2.0)
    loss = (weight * weight).sum()
    with no_grad():
        weight -= 0.1
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_steps_between_graphs_are_fine() -> None:
    weight = leaf(1.0)
    for _ in range(3):
        weight.zero_grad()
        (weight * weight).backward()
        with no_grad():
            weight -= 0.25 * gradient(weight)
    np.testing.assert_array_equal(weight.data, [0.125])


def test_other_data_leaves_the_recorded_graph_valid() -> None:
    weight = leaf(3.0)
    loss = weight * weight
    weight.data = np.array([100.0])
    loss.backward()
    np.testing.assert_array_equal(gradient(weight), [6.0])


class TestRecorded:
    """Changes in place that take part in the graph."""

    def test_operators(self) -> None:
        x = leaf(2.0, 3.0)
        y = x * 1
        y += x
        y *= 2
        y -= x
        y /= 4
        y.backward(np.ones(2))
        np.testing.assert_array_equal(y.data, [1.5, 2.25])
        np.testing.assert_array_equal(gradient(x), [0.75, 0.75])

    def test_the_object_stays_the_same(self) -> None:
        y = leaf(2.0) * 1
        before, array = y, y.data
        y += 1
        assert y is before
        assert y.data is array

    def test_assigned_elements_cut_off_the_old_ones(self) -> None:
        x, value = leaf(1.0, 2.0, 3.0), leaf(5.0)
        y = x * 2
        y[1:2] = value
        (y * y).sum().backward()
        np.testing.assert_array_equal(gradient(x), [8.0, 0.0, 24.0])
        np.testing.assert_array_equal(gradient(value), [10.0])

    def test_a_constant_becomes_part_of_the_graph(self) -> None:
        total, x = Tensor(np.zeros(2)), leaf(1.0, 2.0)
        total += x * 3
        total.backward(np.ones(2))
        np.testing.assert_array_equal(gradient(x), [3.0, 3.0])

    @pytest.mark.parametrize("change", [add_in_place, assign, lambda tensor: tensor.fill_(0.0)])
    def test_leaves_refuse(self, change) -> None:  # type: ignore[no-untyped-def]
        x = leaf(1.0, 2.0)
        with pytest.raises(RuntimeError, match="use no_grad"):
            change(x)
        np.testing.assert_array_equal(x.data, [1.0, 2.0])

    def test_views_refuse(self) -> None:
        y = leaf(1.0, 2.0) * 1
        view = y[:1]
        with pytest.raises(RuntimeError, match="'add' in place on memory of which there are views"):
            view += 1
        with pytest.raises(RuntimeError, match="there are views"):
            y += 1
        np.testing.assert_array_equal(y.data, [1.0, 2.0])

    def test_a_wider_result_does_not_fit(self) -> None:
        y = leaf(1.0) * 1
        with pytest.raises(ValueError, match=r"\(3,\)"):
            y += np.ones(3)


def test_a_raw_write_is_noticed_where_one_asks_for_it() -> None:
    x = leaf(1.0, 2.0)
    with detect_in_place():
        y = (x * x).sum()
    y.backward()
    x.data[0] = 7.0
    with pytest.raises(RuntimeError, match="its contents differ"):
        y.backward()


def test_a_raw_write_into_a_result_is_noticed() -> None:
    with detect_in_place():
        y = leaf(1.0, 2.0).exp()
    y.data[...] = 0
    with pytest.raises(RuntimeError, match="'exp' needs"):
        y.backward(np.ones(2))
