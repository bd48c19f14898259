"""Every primitive of the package has the right derivatives, and none can be forgotten."""

import dataclasses
import functools
import importlib
import pkgutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.autograd import primitives
from lockstep.common.autograd.gradient_check import check_gradients
from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.tensor import Tensor, apply
from tests.lockstep.common.autograd.cases import CASES, Case
from tests.lockstep.common.autograd.layer_cases import LAYER_CASES

ALL_CASES = CASES + LAYER_CASES
IDS = [f"{case.primitive.name}-{index}" for index, case in enumerate(ALL_CASES)]


def all_primitives() -> dict[str, Primitive]:
    found: dict[str, Primitive] = {}
    for module in pkgutil.iter_modules(primitives.__path__, primitives.__name__ + "."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, Primitive):
                found[f"{module.name}.{name}"] = value
    return found


def floats(arguments: list[Any]) -> list[int]:
    return [index for index, each in enumerate(arguments) if isinstance(each, np.ndarray) and each.dtype.kind == "f"]


def every_gradient_is_the_derivative(case: Case, arguments: list[Any], options: dict[str, Any]) -> None:
    check_gradients(functools.partial(apply, case.primitive, **options), arguments, np.random.default_rng(1))


def one_gradient_alone_is_the_derivative(case: Case, arguments: list[Any], options: dict[str, Any]) -> None:
    # The graph then keeps only what this argument's derivative declares that it reads.
    for index in floats(arguments):
        before, after = arguments[:index], arguments[index + 1 :]

        def function(x: Tensor, before: list[Any] = before, after: list[Any] = after) -> Tensor:
            return apply(case.primitive, *before, x, *after, **options)

        check_gradients(function, [arguments[index]], np.random.default_rng(1))


def gradients(case: Case, arguments: list[Any], options: dict[str, Any], buffered: bool) -> tuple[Tensor, list[Array]]:
    """Return the result, and the gradient of each floating argument where all of them require one."""
    tensors = list(arguments)
    for index in floats(arguments):
        tensors[index] = Tensor(arguments[index], requires_grad=True)
        if buffered:
            tensors[index].grad_buffer = np.full(arguments[index].shape, np.nan, arguments[index].dtype)
    result = apply(case.primitive, *tensors, **options)
    result.backward(np.ones_like(result.data))
    return result, [tensors[index].grad for index in floats(arguments)]


def buffered_gradients_have_the_same_bits(case: Case, arguments: list[Any], options: dict[str, Any]) -> None:
    _, plain = gradients(case, arguments, options, buffered=False)
    _, buffered = gradients(case, arguments, options, buffered=True)
    for one, other in zip(plain, buffered, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def in_float32(value: Any) -> Any:
    return np.asarray(value, np.float32) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def float32_stays_float32_without_a_detour(case: Case, arguments: list[Any], options: dict[str, Any]) -> None:
    arguments = [in_float32(each) for each in arguments]
    options = {name: in_float32(each) for name, each in options.items()}
    result, _ = gradients(case, arguments, options, buffered=False)
    node = result.grad_fn
    assert result.dtype == np.float32
    assert node is not None
    derivatives: Any = case.primitive.derivatives
    for index in floats(arguments):
        derivative = derivatives[index] if isinstance(derivatives, tuple) else functools.partial(derivatives, index)
        assert derivative(np.ones_like(result.data), node.saved, *node.check(), **options).dtype == np.float32


#: Primitives whose bits do not depend on the layout of their arguments.
IN_BATCH_INNERMOST = frozenset({"conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm"})


def the_layout_of_arguments_does_not_matter(case: Case, arguments: list[Any], options: dict[str, Any]) -> None:
    result, found = gradients(case, arguments, options, buffered=False)
    packed = [each.copy("C") if isinstance(each, np.ndarray) else each for each in arguments]
    expected, wanted = gradients(case, packed, options, buffered=False)
    is_exact = case.primitive.name in {*IN_BATCH_INNERMOST, "layer_norm"}
    for one, other in zip([result.data, *found], [expected.data, *wanted], strict=True):
        if is_exact:
            np.testing.assert_array_equal(one, other, strict=True)
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    if case.primitive.name in IN_BATCH_INNERMOST and result.ndim == 4:
        assert result.data.transpose(1, 2, 3, 0).flags.c_contiguous


def a_second_backward_has_the_same_bits_and_changes_no_argument(
    case: Case, arguments: list[Any], options: dict[str, Any]
) -> None:
    before = [each.copy() if isinstance(each, np.ndarray) else each for each in arguments]
    tensors = [
        Tensor(each, requires_grad=True) if index in floats(arguments) else each for index, each in enumerate(arguments)
    ]
    result = apply(case.primitive, *tensors, **options)
    found: list[list[bytes]] = []
    for _ in range(2):
        for index in floats(arguments):
            tensors[index].zero_grad()
        result.backward(np.full(result.shape, 3.0))
        found.append([np.asarray(tensors[index].grad).tobytes() for index in floats(arguments)])
    assert found[0] == found[1]
    for one, other in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(one, other)


def arrays_in(saved: Any) -> list[Array]:
    """Return all arrays in what a primitive keeps: an array, a tuple, or a dataclass of such."""
    if isinstance(saved, np.ndarray):
        return [saved]
    if dataclasses.is_dataclass(saved):
        saved = [getattr(saved, field.name) for field in dataclasses.fields(saved)]
    return [array for each in saved for array in arrays_in(each)] if isinstance(saved, tuple | list) else []


def a_change_in_place_cannot_reach_what_is_kept(case: Case, arguments: list[Any], options: dict[str, Any]) -> None:
    # The graph watches the arguments that are read and, unless the primitive keeps something, the result: no more.
    if not case.primitive.keeps:
        return
    result, saved = case.primitive.forward(*arguments, **options)
    reads = case.primitive.reads
    read = range(len(arguments)) if reads is None else {index for indices in reads for index in indices}
    unwatched = [result, *(arguments[index] for index in floats(arguments) if index not in read)]
    for kept in arrays_in(saved):
        assert not any(np.may_share_memory(kept, each) for each in unwatched)


#: What holds for every primitive, whatever it is called with.
LAWS = (
    every_gradient_is_the_derivative,
    one_gradient_alone_is_the_derivative,
    buffered_gradients_have_the_same_bits,
    float32_stays_float32_without_a_detour,
    the_layout_of_arguments_does_not_matter,
    a_second_backward_has_the_same_bits_and_changes_no_argument,
    a_change_in_place_cannot_reach_what_is_kept,
)


@pytest.mark.parametrize("case", ALL_CASES, ids=IDS)
@settings(derandomize=True, deadline=None, max_examples=8)
@given(data=st.data())
def test_a_primitive_keeps_all_laws(case: Case, data: st.DataObject) -> None:
    arguments, options = data.draw(case.calls)
    for law in LAWS:
        law(case, arguments, options)


def test_every_primitive_has_a_case() -> None:
    covered = {id(case.primitive) for case in ALL_CASES}
    assert [name for name, primitive in all_primitives().items() if id(primitive) not in covered] == []


def test_names_are_unique() -> None:
    distinct = {id(primitive): primitive.name for primitive in all_primitives().values()}
    assert len(set(distinct.values())) == len(distinct)
