"""A capture changes nothing, and refuses what could be another computation the next time."""

from collections.abc import Callable

import numpy as np
import pytest

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.capture import capture
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tape import UntapeableError
from lockstep.common.autograd.tensor import Tensor
from tests.lockstep.common.autograd.stacks import computed, program_of

RNG = np.random.default_rng(3)


def leaf(*shape: int) -> Tensor:
    return Tensor(RNG.standard_normal(shape).astype(np.float32), requires_grad=True)


def batch(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def test_neither_the_tensors_nor_their_gradients_change() -> None:
    weight, x = leaf(3, 4), batch(2, 4)
    buffer = np.full((3, 4), 7.0, np.float32)
    weight.grad_buffer = buffer
    weight.grad = gradient = np.ones((3, 4), np.float32)
    before = weight.data.tobytes()
    captured = capture(lambda x: (F.linear(Tensor(x), weight).sum(),), [x], [weight])
    assert (weight.grad is gradient, weight.grad_buffer is buffer) == (True, True)
    assert (weight.data.tobytes(), set(buffer.flat), set(gradient.flat)) == (before, {np.float32(7)}, {np.float32(1)})
    assert captured.is_reached == (True,)
    assert {is_backward for _, is_backward in captured.calls} == {False, True}


def test_a_tensor_used_twice_gets_both_gradients() -> None:
    x, batches = leaf(4), [(batch(4),)]
    made = program_of(lambda y: ((x * Tensor(y) + x * 2.0).sum(),), batches, [x])
    assert made is not None
    assert computed(made, batches, [x])[1][0] == pytest.approx(batches[0][0] + 2)


def test_what_no_gradient_reaches_is_computed_all_the_same() -> None:
    x, unused = leaf(3), leaf(3)
    batches = [(batch(3),)]
    made = program_of(lambda y: ((x * 2.0).sum(), unused.exp() * Tensor(y)), batches, [x, unused])
    assert made is not None
    assert computed(made, batches, [x, unused])[0][1] == (unused.exp() * Tensor(batches[0][0])).data.tobytes()


X = leaf(3)

REFUSED: dict[str, Callable[[Array], tuple[Tensor, ...]]] = {
    "computed past the engine": lambda y: ((X * np.abs(y)).sum(),),
    "a result from elsewhere": lambda y: ((X * Tensor(y)).sum(), Tensor(np.ones(2))),
    "needs no gradient": lambda y: (Tensor(y).sum(),),
    "several numbers": lambda y: (X * Tensor(y),),
    "draws from a generator": lambda y: (F.dropout(X * Tensor(y), 0.5, True, RNG).sum(),),
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED)
def test_what_could_be_another_computation_the_next_time_is_refused(
    function: Callable[[Array], tuple[Tensor, ...]],
) -> None:
    with pytest.raises(UntapeableError):
        capture(function, [batch(3)], [X])
    assert X.grad is None
    assert X.grad_buffer is None


def test_tensors_of_no_gradient_or_another_order_are_refused() -> None:
    for tensor in (Tensor(batch(3, 3)), Tensor(batch(3, 4).T, requires_grad=True)):
        with pytest.raises(UntapeableError, match=r"a tensor (requires no gradient|is not in C order)"):
            capture(lambda tensor=tensor: ((tensor * X[0]).sum(),), [], [tensor])
