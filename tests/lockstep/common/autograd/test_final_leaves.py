"""A leaf is reported when its gradient is final: after its last use on the way back, and once a walk."""

import numpy as np

from lockstep.common.autograd.graph import Leaf
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor


def leaf(value: float) -> Tensor:
    return Tensor(np.array([value]), requires_grad=True)


def walk(loss: Tensor, *leaves: Tensor) -> list[tuple[int, float]]:
    """Return which leaves were finished, in order, each with its gradient at that moment."""
    told: list[tuple[int, float]] = []

    def finished(found: Leaf) -> None:
        place = [each.leaf for each in leaves].index(found)
        told.append((place, float(gradient(leaves[place])[0])))

    loss.backward(on_final=finished)
    return told


def gradient(tensor: Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad


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
