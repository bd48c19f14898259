"""What a tape refuses: calls that it would repeat as others than they were, or on memory that it does not know."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tape import Memory, MemoryKind, Tape, TapedArray, UntapeableError
from lockstep.common.numerics import leaves
from lockstep.common.numerics.operands import Window

BEFORE = np.arange(1, 7, dtype=np.float32).reshape(2, 3)


def taped() -> TapedArray:
    """Return an array of two rows and three columns whose use is recorded."""
    return Tape().know(BEFORE.copy(), MemoryKind.INPUT)


def locked(array: Array) -> Array:
    array.flags.writeable = False
    return array


def replaced(x: Any, index: Any) -> None:
    x[index] = 7.0


REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "one element is replaced": (lambda x: replaced(x, (1, 2)), "elements are replaced at"),
    "elements of a list are replaced": (lambda x: replaced(x, [1, 0]), "elements are replaced at"),
    "elements of a mask are replaced": (lambda x: replaced(x, np.ones((2, 3), np.bool_)), "elements are replaced at"),
    "a number is taken out": (lambda x: x * x[1, 2], "may be a number out of an array"),
    "of no tape": (lambda x: np.zeros(3, np.float32).view(TapedArray) + 1, "no operand whose tape is known"),
    "computed out of sight": (lambda x: x.repeat(2, 0) + 1, "not recorded"),
    "computed out of sight, and read-only": (lambda x: x + locked(x.repeat(1, 0)), "not recorded"),
    "an array that may change": (lambda x: x + np.ones((2, 3), np.float32), "not recorded"),
    "two results": (lambda x: np.modf(x), "is called by __call__"),
    "every pair": (lambda x: np.multiply.outer(x, x), "is called by outer"),
    "sums on the way": (lambda x: np.add.accumulate(x), "is called by accumulate"),
    "some elements, perhaps twice": (lambda x: np.add.at(x, [0, 0], 1.0), "add is called by at"),
    "a product of matrices, which is a leaf": (lambda x: np.matmul(x, x.T), "matmul is called by"),
    "some elements": (lambda x: np.add(x, 1, where=BEFORE > 2), "add is called with"),
    "another type": (lambda x: np.add(x, 1, dtype=np.float64), "add is called with"),
    "another rule of types": (lambda x: np.add(x, 1, casting="safe"), "add is called with"),
    "a sum of some elements": (lambda x: np.add.reduce(x, where=BEFORE > 2), "add.reduce is called with"),
    "a sum in another type": (lambda x: np.add.reduce(x, dtype=np.float64), "add.reduce is called with"),
    "a sum that begins with an array's number": (lambda x: np.add.reduce(x, initial=x[0, 0]), "add.reduce is called"),
    "to memory that is not writable": (
        lambda x: np.add(x, 1, out=locked(np.zeros((2, 3), np.float32))),
        "not writable",
    ),
}


@pytest.mark.parametrize(("call", "text"), REFUSED.values(), ids=REFUSED)
def test_a_call_that_would_be_repeated_as_another_is_refused(call: Callable[[Any], object], text: str) -> None:
    x = taped()
    with pytest.raises(UntapeableError, match=text):
        call(x)
    assert x.tobytes() == BEFORE.tobytes()
    assert x.tape is not None
    assert x.tape.calls == []


def test_an_array_without_an_element_is_refused_since_it_has_no_memory() -> None:
    with pytest.raises(UntapeableError, match=r"shape \(0, 3\) has no memory"):
        Tape().know(np.empty((0, 3), np.float32), MemoryKind.INPUT)


def test_a_view_that_is_set_to_another_array_is_recorded_and_one_that_was_changed_in_place_is_not_again() -> None:
    x = taped()
    assert x.tape is not None
    x[0] = x[1]
    assert [call.function for call in x.tape.calls] == [np.copyto]
    assert x.tolist() == [[4.0, 5.0, 6.0], [4.0, 5.0, 6.0]]
    x[1] += x[0]
    assert [call.function for call in x.tape.calls] == [np.copyto, np.add]
    assert x.tolist() == [[4.0, 5.0, 6.0], [8.0, 10.0, 12.0]]


@pytest.mark.parametrize(
    ("known", "asked"),
    [
        (slice(0, 5), slice(5, 9)),
        (slice(0, 5), slice(3, 7)),
        (slice(5, 9), slice(2, 7)),
        (slice(5, 9), slice(7, 3, -1)),
        (slice(0, 5), slice(8, 3, -1)),
    ],
    ids=["behind", "over the end", "over the beginning", "back over the beginning", "back over the end"],
)
def test_memory_of_which_only_a_part_is_known_is_unknown(known: slice, asked: slice) -> None:
    array, tape = np.zeros(10, np.float32), Tape()
    tape.know(array[known], MemoryKind.INPUT)
    assert tape.view_of(array[known][::-1]) is not None
    assert tape.view_of(array[asked]) is None


@pytest.mark.parametrize(
    ("call", "leaf"),
    [
        (leaves.exp, leaves.exp),
        (leaves.relu, leaves.relu),
        (lambda x: leaves.relu_gradient(x, x), leaves.relu_gradient),
        (lambda x: leaves.product(x, x.T), leaves.matrix_product),
        (lambda x: leaves.matrix_product(x, x.T, x[:, 0]), leaves.matrix_product),
    ],
)
def test_a_leaf_is_recorded_as_one_call(call: Callable[[Any], object], leaf: leaves.LeafFunction) -> None:
    x = taped()
    found = call(x)
    assert isinstance(found, TapedArray)
    assert x.tape is not None
    assert [each.function for each in x.tape.calls] == [leaf]


def test_leaves_that_fill_given_memory_are_recorded_with_what_they_read_and_write() -> None:
    tape = Tape()
    shapes = {"x": (2, 4, 4, 3), "kernels": (2, 2, 2, 2), "y": (2, 3, 3, 3), "bias": (2,), "pooled": (2, 2, 2, 3)}
    arrays = {name: tape.know(np.ones(shape, np.float32), MemoryKind.INPUT) for name, shape in shapes.items()}
    x, kernels, y, bias, pooled = arrays.values()
    convolved, pools = ((Window(4, 2, 1),) * 2, 1), ((Window(4, 2, 2),) * 2,)
    leaves.convolution(x, kernels, bias, out=y, options=convolved)
    leaves.convolution_to_input(y, kernels, out=x, options=convolved)
    leaves.convolution_to_kernels(y, x, out=kernels, options=convolved)
    leaves.max_pool(x, out=pooled, options=pools)
    leaves.max_pool_gradient(pooled, x, pooled, out=x, options=pools)
    leaves.total(x, (1, 2, 3), out=bias)
    written = [
        (each.function.name, [memory.number for memory in each.written() if isinstance(memory, Memory)])
        for each in tape.calls
        if isinstance(each.function, leaves.LeafFunction)
    ]
    assert written == [
        ("convolution", [2]),
        ("convolution_to_input", [0]),
        ("convolution_to_kernels", [1]),
        ("max_pool", [4]),
        ("max_pool_gradient", [0]),
        ("sum", [3]),
    ]
