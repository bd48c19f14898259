"""Kernels for different processors give the same bits: a call that one has made is made again by another."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.common.numerics.kernel_leaves import KERNELS, KernelCalls
from lockstep.common.numerics.kernels.library import Library, load, targets_of, this_machine
from lockstep.common.numerics.operands import Geometry, Mean, PoolWindows

Floats = NDArray[np.float32]


def _drawn(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


#: A leaf, shapes of its operands, that of the result, and options.
_Call = tuple[str, list[tuple[int, ...]], tuple[int, ...], tuple[Any, ...]]


def _of_vectors(name: str, count: int) -> _Call:
    return name, [(203,)] * count, (203,), ()


_GEOMETRY = Geometry(2, (2, 2), (1, 2), (1, 1))
_POOLS = [PoolWindows((2, 2), (2, 2), (0, 0)), PoolWindows((3, 3), (2, 1), (1, 1))]
#: Of widths that are multiples of no vector's.
_CALLS: list[_Call] = [
    ("product", [(23, 600), (600, 75)], (23, 75), ()),
    ("product", [(23, 2100), (2100, 75), (23,)], (23, 75), ()),
    ("product", [(3, 7, 9), (3, 9, 5)], (3, 7, 5), ()),
    ("product", [(7, 600), (5, 600, 3), (7,)], (5, 7, 3), ()),
    ("product_sum", [(7, 13, 300), (7, 300, 53)], (13, 53), (False,)),
    ("sum", [(5, 77, 37)], (5, 37), ((1,), False)),
    ("sum", [(5, 77)], (5,), ((1,), False)),
    *[_of_vectors(name, 1) for name in ("exp", "log", "log1p", "tanh", "sigmoid", "erf", "relu")],
    *[_of_vectors(name, 2) for name in ("power", "relu_gradient")],
    ("convolution", [(4, 9, 8, 5), (6, 2, 3, 2), (6,)], (6, 4, 3, 5), (_GEOMETRY,)),
    ("convolution_to_input", [(6, 4, 3, 5), (6, 2, 3, 2)], (4, 7, 6, 5), (_GEOMETRY,)),
    ("convolution_to_kernels", [(6, 4, 3, 5), (4, 9, 8, 5)], (6, 2, 3, 2), (_GEOMETRY,)),
    ("max_pool", [(2, 6, 8, 19)], (2, 3, 4, 19), (_POOLS[0],)),
    ("max_pool", [(2, 6, 8, 19)], (2, 3, 8, 19), (_POOLS[1],)),
    ("max_pool_gradient", [(2, 3, 4, 19), (2, 6, 8, 19), (2, 3, 4, 19)], (2, 6, 8, 19), (_POOLS[0],)),
    ("max_pool_gradient", [(2, 3, 8, 19), (2, 6, 8, 19), (2, 3, 8, 19)], (2, 6, 8, 19), (_POOLS[1],)),
]


@pytest.fixture
def others(plain: Library) -> list[Library]:
    """Return what this processor can run besides; their scratch memory is not larger than that of the fastest."""
    libraries = [load(target.name) for target in targets_of(this_machine())]
    fastest = load().target
    names = [each.target for each in libraries]
    return [*libraries[names.index(fastest) + 1 :], plain]


def _check(call: Callable[[], object], again: Callable[[Library], object], out: Floats, others: list[Library]) -> None:
    out.fill(7.0)
    call()
    expected = out.tobytes()
    for library in others:
        out.fill(7.0)
        again(library)
        assert out.tobytes() == expected, library.target


@pytest.mark.parametrize(("name", "shapes", "result", "options"), _CALLS)
def test_a_call_has_the_same_bits_on_every_target(
    name: str, shapes: list[tuple[int, ...]], result: tuple[int, ...], options: tuple[Any, ...], others: list[Library]
) -> None:
    operands, out = [_drawn(*shape, seed=seed) for seed, shape in enumerate(shapes)], np.empty(result, np.float32)
    call = KERNELS[name](*operands, out, *options)
    assert isinstance(call, KernelCalls)
    _check(call, lambda library: library.run(call.rows.ctypes.data, len(call.rows)), out, others)


_INDICES = np.array([0, 1, 4, 4, 2, 4, 0, 3, 4])


@pytest.mark.parametrize(
    ("name", "operands", "result", "options"),
    [
        ("add_rows", [_drawn(9, 33), _INDICES], (5, 33), ()),
        ("cross_entropy", [_drawn(37, 9), _INDICES], (9,), (0.1,)),
        ("cross_entropy_gradient", [_drawn(37, 9), _INDICES, _drawn(9)], (37, 9), (0.1,)),
    ],
)
def test_a_call_with_indices_has_the_same_bits_on_every_target(
    name: str, operands: list[Any], result: tuple[int, ...], options: tuple[Any, ...], others: list[Library]
) -> None:
    out = np.empty(result, np.float32)
    call = KERNELS[name](*operands, out, *options)
    assert isinstance(call, KernelCalls)
    _check(call, lambda library: library.run(call.rows.ctypes.data, len(call.rows)), out, others)


@pytest.mark.parametrize("is_nesterov", [False, True])
def test_an_update_is_the_same_on_every_target(is_nesterov: bool, others: list[Library]) -> None:
    weights, old, out, new, first, second = arrays = [_drawn(101, seed=seed) for seed in range(6)]
    at = [each.ctypes.data for each in arrays]
    update = KERNELS["momentum"](weights, old, out, new, 0.9, 0.01, is_nesterov)
    _check(
        lambda: update(Mean([first, second], 37.0, 0.5), 0.1),
        lambda library: library.functions.ls_momentum(
            101, *at[:4], 0.9, 0.01, is_nesterov, *at[4:], 37.0, True, 0.5, True, 0.1
        ),
        out,
        others,
    )
