"""The walk back: every use counts, in a fixed order, over any number of nodes, as often as one likes.

Nothing is recorded without need, changes in place are noticed, buffers are filled, and final gradients are reported.
"""

import gc
import threading
import weakref
from itertools import pairwise

import numpy as np
import pytest

from lockstep.common.autograd.graph import Leaf, detect_in_place, enable_grad, no_grad
from lockstep.common.autograd.primitives import elementwise, linear_algebra
from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.tensor import Tensor, apply


def leaf(*values: float, dtype: type = np.float64) -> Tensor:
    return Tensor(np.array(values, dtype), requires_grad=True)


def gradient(tensor: Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad


def test_a_node_used_twice_is_visited_once_with_the_sum() -> None:
    calls: list[Array] = []

    def derivative(g: Array, _: Array, x: Array) -> Array:
        calls.append(g)
        return g * 2

    double = Primitive("double", lambda x: x * 2, (derivative,))
    x = leaf(1.0, 2.0)
    shared = apply(double, x)
    (shared * 3 + shared * 4).backward(np.ones(2))
    assert len(calls) == 1
    np.testing.assert_array_equal(gradient(x), [14.0, 14.0])


def test_a_diamond_of_many_levels_takes_one_visit_a_node() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(60):  # 2**60 paths
        y = (y + y) * 0.5
    y.backward()
    np.testing.assert_array_equal(gradient(x), [1.0])


def test_a_leaf_used_by_many_adds_up() -> None:
    x = leaf(3.0)
    (x * x * x + x).backward()
    np.testing.assert_allclose(gradient(x), [28.0])


def test_the_same_array_handed_to_two_arguments_is_not_changed() -> None:
    x, y = leaf(1.0), leaf(2.0)
    total = x + y
    (total + x * 2 + total).backward()
    np.testing.assert_array_equal(gradient(x), [4.0])
    np.testing.assert_array_equal(gradient(y), [2.0])
    assert not np.shares_memory(gradient(x), gradient(y))


def test_the_given_gradient_is_not_changed_and_not_kept() -> None:
    x = leaf(1.0, 2.0)
    seed = np.ones(2)
    (x + x + x).backward(seed)
    np.testing.assert_array_equal(seed, [1.0, 1.0])
    assert not np.shares_memory(gradient(x), seed)


def test_walking_twice_adds_up() -> None:
    x = leaf(2.0)
    y = x * x
    y.backward()
    y.backward()
    np.testing.assert_array_equal(gradient(x), [8.0])


def test_walking_from_two_results_of_one_graph_adds_up() -> None:
    x = leaf(2.0)
    shared = x.exp()
    (shared * 2).backward()
    (shared * 3).backward()
    np.testing.assert_allclose(gradient(x), 5 * np.exp([2.0]))


def test_a_released_graph_says_so() -> None:
    x = leaf(2.0)
    y = x.exp()
    z = y * y
    z.backward(retain_graph=False)
    with pytest.raises(RuntimeError, match="already released at 'multiply'"):
        z.backward()
    np.testing.assert_allclose(gradient(x), 2 * np.exp([4.0]))


def test_releasing_frees_arrays_while_the_walk_goes_on() -> None:
    x = leaf(2.0)
    y = x.exp()
    kept = weakref.ref(y.data)
    z = y * 3.0
    del y
    assert kept() is not None  # exp needs its result
    z.backward(retain_graph=False)
    assert kept() is None


def test_a_long_chain_is_walked_and_freed_without_deep_recursion_even_on_a_small_stack() -> None:
    outcome: list[Tensor] = []

    def build_and_drop() -> None:
        x = leaf(1.0)
        y = x
        for _ in range(100_000):
            y = y * 1.0
        y.backward()
        del y
        outcome.append(x)

    # Python 3.13 nests up to 10000 deallocations, about 1 MiB, before it defers the rest; 100000 nodes and their lists
    # of parents would need twenty times that.
    previous = threading.stack_size(2 * 1024 * 1024)
    try:
        thread = threading.Thread(target=build_and_drop)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(previous)
    np.testing.assert_array_equal(gradient(outcome[0]), [1.0])


def test_no_cycle_keeps_a_graph_alive() -> None:
    gc.disable()
    try:
        x = leaf(1.0)
        y = x.exp()
        z = (y * y).sum()
        z.backward()
        array, node = weakref.ref(y.data), weakref.ref(z)
        del y, z
        assert array() is None
        assert node() is None
    finally:
        gc.enable()


def test_nothing_that_no_derivative_reads_is_kept() -> None:
    x = leaf(1.0)
    y = x + 1
    array = weakref.ref(y.data)
    z = y + 2
    del y
    assert array() is None
    z.backward()


def test_a_constant_factor_is_kept_but_not_what_it_multiplies() -> None:
    x = leaf(1.0)
    y = x + 1
    array = weakref.ref(y.data)
    z = y * 2
    del y
    assert array() is None
    z.backward()
    np.testing.assert_array_equal(gradient(x), [2.0])


@pytest.mark.parametrize(
    ("shape", "other"),
    [((3, 1), (1, 4)), ((), (2, 3)), ((1, 1), (2, 3)), ((4,), (2, 3, 4)), ((1, 3, 1), (2, 3, 4)), ((0,), (1,))],
)
def test_broadcasting_is_undone(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    x = Tensor(np.ones(shape), requires_grad=True)
    result = x + np.ones(other)
    result.backward(np.ones(result.shape))
    copies = result.size // max(1, x.size)
    np.testing.assert_array_equal(gradient(x), np.full(shape, float(copies)))


def test_sums_are_taken_latest_use_first() -> None:
    x = leaf(1.0, dtype=np.float32)
    shared = x * 1
    weights = [np.float32(each) for each in (1e8, 1.0, -1e8, 0.5)]
    total = shared * weights[0]
    for weight in weights[1:]:
        total = total + shared * weight
    total.backward()
    expected = np.float32(0)
    for weight in reversed(weights):
        expected = np.float32(expected + weight)
    np.testing.assert_array_equal(gradient(x), [expected])


def test_float32_stays_float32() -> None:
    x = leaf(0.5, 2.0, dtype=np.float32)
    y = ((x * 2 + 1) / 3 - 0.5) ** 2 * np.pi * np.sqrt(2)
    loss = (2 / (1 + y.exp())).mean()
    loss.backward()
    assert loss.dtype == gradient(x).dtype == np.float32


def test_a_float32_leaf_under_a_float64_graph_gets_a_float32_gradient() -> None:
    x = leaf(0.5, dtype=np.float32)
    (x * np.array([2.0])).backward()
    assert gradient(x).dtype == np.float32


def test_a_layout_passes_through_forward_and_backward() -> None:
    x = Tensor(np.moveaxis(np.zeros((3, 4, 5), np.float32), -1, 0), requires_grad=True)
    y = (x.tanh() * 2 + 1).relu()
    y.backward(np.ones_like(y.data))
    assert y.data.strides == gradient(x).strides == x.data.strides


def test_linear_keeps_the_batch_innermost() -> None:
    x = Tensor(np.zeros((6, 5), np.float32).T, requires_grad=True)
    weight = Tensor(np.ones((4, 6), np.float32), requires_grad=True)
    y = apply(linear_algebra.linear, x, weight, None)
    y.backward(np.ones((5, 4), np.float32))
    assert y.data.T.flags.c_contiguous
    assert gradient(x).T.flags.c_contiguous


def test_threads_can_walk_one_graph_at_once() -> None:
    x = leaf(*np.linspace(-1, 1, 1000))
    weights = [leaf(1.0) for _ in range(4)]
    shared = x.detach().tanh()
    losses = [(shared * weight).sum() for weight in weights]
    threads = [threading.Thread(target=loss.backward) for loss in losses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(gradient(one), gradient(other)) for one, other in pairwise(weights))


def test_reads_must_name_each_derivative() -> None:
    with pytest.raises(TypeError, match="expected 1 tuples, one for each derivative"):
        Primitive("exp", np.exp, elementwise.exp.derivatives, reads=((), ()))


def test_no_grad_records_nothing() -> None:
    x = leaf(1.0)
    with no_grad():
        y = x * 2
    assert not y.requires_grad
    assert (x * 2).requires_grad


def test_no_grad_as_a_decorator() -> None:
    @no_grad()
    def double(x: Tensor, depth: int) -> Tensor:
        return x * 2 if depth == 0 else double(x, depth - 1)

    x = leaf(1.0)
    assert not double(x, 2).requires_grad
    assert (x * 2).requires_grad


def test_an_exception_restores_recording() -> None:
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (leaf(1.0) * 2).requires_grad


def test_enable_grad_inside() -> None:
    with no_grad(), enable_grad():
        assert (leaf(1.0) * 2).requires_grad


def test_other_threads_go_on_recording() -> None:
    found: list[bool] = []
    with no_grad():
        thread = threading.Thread(target=lambda: found.append((leaf(1.0) * 2).requires_grad))
        thread.start()
        thread.join()
    assert found == [True]


def test_constants_make_no_nodes() -> None:
    assert Tensor([1.0]).exp().grad_fn is None


def test_an_argument_without_a_derivative_is_not_walked() -> None:
    condition = leaf(1.0)
    assert not apply(elementwise.where, condition, np.array([1.0]), np.array([2.0])).requires_grad


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


def test_the_first_gradient_is_written_and_later_ones_are_added() -> None:
    flat = np.full(5, np.nan)
    x = leaf(1.0, 2.0)
    x.grad_buffer = flat[1:3]
    (x * 3).backward(np.ones(2))
    assert x.grad is not None
    assert np.shares_memory(x.grad, flat)
    (x * x).backward(np.ones(2))
    np.testing.assert_array_equal(flat, [np.nan, 5.0, 7.0, np.nan, np.nan])


def test_zero_grad_starts_anew_without_zeroing() -> None:
    flat = np.full(2, np.nan)
    x = leaf(1.0, 2.0)
    x.grad_buffer = flat
    for _ in range(2):
        x.zero_grad()
        assert x.grad is None
        (x * 3 + x).backward(np.ones(2))
        np.testing.assert_array_equal(flat, [4.0, 4.0])


def test_linear_writes_its_gradients_with_out() -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((5, 3)), rng.standard_normal((2, 3)), rng.standard_normal(2)
    tensors = [Tensor(weight, requires_grad=True), Tensor(bias, requires_grad=True)]
    for tensor in tensors:
        tensor.grad_buffer = np.full(tensor.shape, np.nan)
    total = apply(linear_algebra.linear, x, *tensors) + apply(linear_algebra.linear, 2 * x, *tensors)
    total.backward(np.ones((5, 2)))
    np.testing.assert_allclose(gradient(tensors[0]), np.ones((2, 5)) @ (3 * x))
    np.testing.assert_array_equal(gradient(tensors[1]), [10.0, 10.0])


@pytest.mark.parametrize("buffer", [np.zeros(3), np.zeros(2, np.float32)])
def test_a_buffer_must_fit(buffer: Array) -> None:
    with pytest.raises(ValueError, match="grad_buffer has shape"):
        leaf(1.0, 2.0).grad_buffer = buffer


def test_only_leaves_have_one() -> None:
    with pytest.raises(RuntimeError, match="was computed"):
        (leaf(1.0) * 2).grad_buffer = np.zeros(1)
    with pytest.raises(RuntimeError, match="does not require"):
        Tensor([1.0]).grad_buffer = np.zeros(1, np.float32)


def walk(loss: Tensor, *leaves: Tensor) -> list[tuple[int, float]]:
    """Return which leaves were finished, in order, each with its gradient at that moment."""
    told: list[tuple[int, float]] = []

    def finished(found: Leaf) -> None:
        place = [each.leaf for each in leaves].index(found)
        told.append((place, float(gradient(leaves[place])[0])))

    loss.backward(on_final=finished)
    return told


def test_leaves_are_finished_from_the_end_on() -> None:
    first, second = leaf(2.0), leaf(3.0)
    assert walk((first * 5.0) * second, first, second) == [(1, 10.0), (0, 15.0)]


def test_a_leaf_that_is_used_twice_is_finished_after_its_first_use() -> None:
    twice, between = leaf(2.0), leaf(3.0)
    assert walk(((twice * 5.0) * between) * twice, twice, between) == [(1, 20.0), (0, 60.0)]
    twice.zero_grad()
    assert walk(twice * twice, twice) == [(0, 4.0)]


def test_what_takes_no_part_is_not_told_of() -> None:
    used, unused = leaf(2.0), leaf(3.0)
    assert walk(used * 1.0, used, unused) == [(0, 1.0)]


def test_a_leaf_that_is_itself_the_loss_is_final_at_once() -> None:
    x = leaf(2.0)
    assert walk(x, x) == [(0, 1.0)]
