"""Functions of arrays by the kernels have the bits of the contract, for every kind of number and layout of memory."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.common.numerics import leaves
from lockstep.common.numerics.leaves import LeafFunction
from tests.lockstep.common.numerics import reference
from tests.lockstep.common.numerics.reference import Floats

_FUNCTIONS: list[tuple[LeafFunction, Callable[[Floats], Floats]]] = [
    (leaves.exp, reference.exp),
    (leaves.log, reference.log),
    (leaves.log1p, reference.log1p),
    (leaves.tanh, reference.tanh),
    (leaves.sigmoid, reference.sigmoid),
    (leaves.erf, reference.erf),
]
_each_function = pytest.mark.parametrize(("leaf", "expected"), _FUNCTIONS, ids=lambda value: getattr(value, "name", ""))

#: Zeros, infinities, three kinds of NaN, the ends of subnormal and of normal numbers, and where formulas change.
_SPECIAL = np.array(
    [
        *(0, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x3F800000),
        *(0x3F7FFFFF, 0x3F800001, 0x3F3504F2, 0x3F3504F3, 0x3F0CCCCC, 0x3F0CCCCD, 0x40800000, 0x41200000, 0x42B17217),
        *(0x42B17218, 0x42AEAC50, 0x42CFF1B5, 0x42D00000, 0x4B800000, 0x4B7FFFFF),
    ],
    np.uint32,
)
_EVERY_KIND = np.concatenate([_SPECIAL, _SPECIAL | np.uint32(1 << 31)]).view(np.float32)


def _some_of_every_exponent(count: int) -> Floats:
    words = np.random.default_rng(0).integers(0, 2**32, count, dtype=np.uint32)
    return words.view(np.float32)


def _same(found: object, expected: object) -> bool:
    return np.asarray(found, np.float32).tobytes() == np.asarray(expected, np.float32).tobytes()


@_each_function
def test_a_function_has_the_bits_of_the_contract(leaf: LeafFunction, expected: Callable[[Floats], Floats]) -> None:
    usual = np.random.default_rng(1).normal(0.0, 3.0, 5_000).astype(np.float32)
    x = np.concatenate([_EVERY_KIND, _some_of_every_exponent(5_000), usual])
    assert _same(leaf(x), expected(x))


@_each_function
def test_a_function_leaves_what_lies_around_its_result(
    leaf: LeafFunction, expected: Callable[[Floats], Floats]
) -> None:
    values = np.linspace(0.25, 4.0, 70, dtype=np.float32)
    for length in (0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 33):
        memory = np.full(length + 2, 7.0, np.float32)
        leaf(values[:length], out=memory[1:-1])
        assert memory[[0, -1]].tolist() == [7.0, 7.0]
        assert _same(memory[1:-1], expected(values[:length]))


@_each_function
def test_a_function_may_overwrite_its_operand(leaf: LeafFunction, expected: Callable[[Floats], Floats]) -> None:
    x = np.linspace(0.25, 4.0, 37, dtype=np.float32)
    right = expected(x)
    leaf(x, out=x)
    assert _same(x, right)


@pytest.mark.parametrize("step", [-3, 1, 20])
def test_a_result_may_lie_across_its_operand(step: int) -> None:
    memory = np.linspace(0.25, 4.0, 80, dtype=np.float32)
    x, out = memory[20:60], memory[20 + step : 60 + step]
    expected = reference.exp(x.copy())
    leaves.exp(x, out=out)
    assert _same(out, expected)


def test_a_result_that_is_read_only_is_refused() -> None:
    x = np.frombuffer(bytes(40), np.float32)
    with pytest.raises(ValueError, match=r"the result of shape \(10,\) would go to an array that is read-only"):
        leaves.exp(x, out=x)


def test_an_array_in_a_file_is_an_operand(tmp_path: Path) -> None:
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(5,))
    assert _same(leaves.exp(x), np.ones(5))


@given(
    st.sampled_from(_FUNCTIONS),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)
def test_bits_do_not_depend_on_the_layout(
    pair: tuple[LeafFunction, Callable[[Floats], Floats]], shape: list[int], step: int, turned: bool, spread: bool
) -> None:
    leaf, expected = pair
    wide = np.random.default_rng(0).uniform(0.1, 3.0, [size * step for size in shape]).astype(np.float32)
    x = wide[(slice(None, None, step),) * len(shape)]
    x = x.T if turned else x
    out = np.empty((*x.shape, 2), np.float32)[..., 0] if spread else np.empty(x.shape, np.float32)
    leaf(x, out=out)
    assert _same(out, expected(x))
    assert _same(leaf(x), expected(x))


def test_powers_have_the_bits_of_the_contract() -> None:
    base, exponent = np.meshgrid(
        _EVERY_KIND, np.concatenate([_EVERY_KIND, np.array([2, -2, 3, -3, 0.5, 1 / 3], np.float32)])
    )
    rng = np.random.default_rng(2)
    x = np.concatenate([base.ravel(), rng.uniform(0.0, 4.0, 2_000).astype(np.float32)])
    y = np.concatenate([exponent.ravel(), rng.normal(0.0, 20.0, 2_000).astype(np.float32)])
    assert _same(leaves.power(x, y), reference.power(x, y))


@pytest.mark.parametrize("exponent", [0, 0.25, 1 / 3, 0.5, 1, 1.5, 2, 3, -1, -2])
def test_a_power_by_a_number_is_that_by_an_array(exponent: float) -> None:
    x = np.linspace(0.0, 5.0, 41, dtype=np.float32)
    with np.errstate(divide="ignore"):
        assert _same(leaves.power(x, exponent), reference.power(x, np.float32(exponent)))


def test_a_number_is_raised_to_an_array_of_powers() -> None:
    y = np.linspace(-3.0, 3.0, 13, dtype=np.float32).reshape(13, 1)
    assert _same(leaves.power(2.5, y), reference.power(np.float32(2.5), y))


def test_powers_are_broadcast() -> None:
    x, y = np.linspace(0.5, 2.0, 4, dtype=np.float32)[:, None], np.array([[-1.5, 0.0, 2.0, 3.5]], np.float32)
    assert _same(leaves.power(x, y), reference.power(x, y))
