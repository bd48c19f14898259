"""The walk back: every use counts, in a fixed order, over any number of nodes, as often as one likes."""

import gc
import threading
import weakref
from itertools import pairwise

import numpy as np
import pytest

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


def test_a_chain_of_100_000_nodes() -> None:
    x = leaf(1.0, dtype=np.float32)
    y = x
    for _ in range(100_000):
        y = y + 1
    y.backward()
    np.testing.assert_array_equal(gradient(x), [1.0])


def test_a_long_chain_is_freed_without_deep_recursion_even_on_a_small_stack() -> None:
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
