"""Calls of kernels keep their arrays, stay in their thread, and check at each call what may change between two."""

import gc
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.common.errors import NumericsError
from lockstep.common.numerics.kernel_leaves import KERNELS, MOST_ELEMENTS
from lockstep.common.numerics.kernels.calls import (
    ROW,
    Argument,
    Calls,
    Pinned,
    Written,
    aligned,
    is_aligned,
    pinned,
    sizes_of,
)
from lockstep.common.numerics.kernels.compilation import compile_libraries
from lockstep.common.numerics.kernels.library import PLAIN, SOURCE
from lockstep.common.numerics.numpy_leaves import NUMPY
from lockstep.common.numerics.operands import GATES, Window


def floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    count = int(np.prod(shape))
    return ((np.arange(seed, seed + count) * 37 % 23 - 11) / 8).astype(np.float32).reshape(shape)


def unrun(table: Pinned, count: int) -> None:
    """Carry out nothing."""


#: What holds an address, made of an array.
HOLDERS: dict[str, Callable[[NDArray[np.float32]], object]] = {
    "an argument": pinned,
    "a written argument": lambda array: pinned(Written(array)),
    "a call": lambda array: Calls.of(unrun, [(1, array)]),
    "a call that writes": lambda array: Calls.of(unrun, [(1, None, Written(array))]),
    "joined calls": lambda array: Calls.of(unrun, [(1,)]).joined([Calls.of(unrun, [(1, array)])]),
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=list(HOLDERS))
def test_an_address_keeps_its_array(holder: Callable[[NDArray[np.float32]], object]) -> None:
    array = floats(5)
    seen, held = weakref.ref(array), holder(array)
    del array
    gc.collect()
    assert seen() is not None
    del held
    gc.collect()
    assert seen() is None


def test_sizes_are_kept_as_long_as_their_address() -> None:
    argument = sizes_of([3, 1, 4])
    assert argument.array.tolist() == [3, 1, 4]
    assert argument.value == argument.array.ctypes.data


def test_a_row_has_the_addresses_of_its_arrays_and_zeros_behind() -> None:
    array, written = floats(3), floats(4)
    row: list[Argument] = [7, array, None, True, Written(written), np.int64(9)]  # type: ignore[list-item]  # as shapes have
    call = Calls.of(unrun, [row, (1,)])
    expected = [7, array.ctypes.data, 0, 1, written.ctypes.data, 9]
    assert call.rows.tolist() == [expected + [0] * (ROW - 6), [1] + [0] * (ROW - 1)]
    assert call.rows.dtype == np.int64
    assert f"ROW = {ROW} }}" in (SOURCE / "calls.c").read_text()


def test_what_is_read_only_is_not_written() -> None:
    array = floats(3)
    array.flags.writeable = False
    assert pinned(array) is not None
    for bind in (lambda: pinned(Written(array)), lambda: Calls.of(unrun, [(1, Written(array))])):
        with pytest.raises(ValueError, match=r"the result of shape \(3,\) would go to an array that is read-only"):
            bind()


def test_memory_begins_at_a_line() -> None:
    assert all(is_aligned(aligned(size)) and aligned(size).nbytes == size for size in (4, 100, 4096))
    assert not is_aligned(aligned(8)[4:])


def errors_in_another_thread(act: Callable[[], None]) -> list[Exception]:
    found = list[Exception]()

    def run() -> None:
        try:
            act()
        except RuntimeError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


def test_scratch_memory_belongs_to_the_thread_that_has_bound_it() -> None:
    a, b, out = floats(4, 5), floats(5, 3, seed=2), np.empty((4, 3), np.float32)
    product = KERNELS["product"](a, b, out)
    assert isinstance(product, Calls)
    product()
    expected = out.copy()
    exp: Any = KERNELS["exp"](a, floats(4, 5))
    for call in (product, product.joined([exp])):
        out.fill(0)
        (error,) = errors_in_another_thread(call)
        assert "scratch memory of another thread" in str(error)
        assert not out.any()
        call()
        assert out.tobytes() == expected.tobytes()
    # One that needs none may be made anywhere.
    assert errors_in_another_thread(exp) == []
    other = list[Any]()
    assert errors_in_another_thread(lambda: other.append(KERNELS["product"](a, b, np.empty((4, 3), np.float32)))) == []
    with pytest.raises(RuntimeError, match="of several threads"):
        product.joined(other)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("how", ["columns", "steps", "overlapping", "flat"])
def test_a_sum_of_products_goes_to_a_result_that_lies_in_any_way(how: str, adds: bool) -> None:
    lefts, rights = floats(3, 4, 5), floats(3, 5, 4, seed=3)
    ones = np.ones((4, 8), np.float32)
    out = {"columns": ones[:, :4].T, "steps": ones[:, ::2], "overlapping": lefts[0, :, :4], "flat": ones[:, :4]}[how]
    expected = out.astype(np.float32)
    NUMPY["product_sum"](lefts.copy(), rights, expected, adds)()
    KERNELS["product_sum"](lefts, rights, out, adds)()
    assert np.allclose(out, expected, rtol=1e-5)


def test_indices_are_checked_at_each_call_because_a_program_has_others_in_the_same_array() -> None:
    gradient, indices, out = np.ones((2, 3), np.float32), np.array([0, 2]), np.zeros((3, 3), np.float32)
    add = KERNELS["add_rows"](gradient, indices, out)
    add()
    assert out.sum(axis=1).tolist() == [3.0, 0.0, 3.0]
    for wrong in (3, -1):
        indices[1] = wrong
        with pytest.raises(IndexError, match="expected indices from 0 to the last row"):
            add()
    indices[1] = 1
    add()
    assert out.sum(axis=1).tolist() == [6.0, 3.0, 3.0]


def recurrent_operands(kind: str) -> list[Any]:
    rows, cells, curves = GATES[kind] * 4, 3 * (kind == "lstm"), 2 * (kind in ("lstm", "gru"))
    kept = [floats(2, 3, rows), floats(curves, 3, 4), floats(cells, 3, 4), floats(3, 3, 4)]
    return [floats(2, 3, 5), floats(rows, 5), None, None, None, floats(rows, 4), *kept, kind, False]


@pytest.mark.parametrize("written", range(6, 10))
def test_what_a_recurrent_layer_fills_may_not_be_read_only(written: int) -> None:
    operands = recurrent_operands("lstm")
    operands[written].flags.writeable = False
    with pytest.raises(ValueError, match="would go to an array that is read-only"):
        KERNELS["recurrent"](*operands)


@pytest.mark.parametrize("missing", [1, 5, 6, 9])
def test_a_recurrent_layer_without_one_of_its_arrays_is_refused(missing: int) -> None:
    operands = recurrent_operands("gru")
    operands[missing] = np.empty((16, 4)) if missing == 5 else None
    with pytest.raises(ValueError, match="expected shapes that fit together"):
        KERNELS["recurrent"](*operands)


def test_scratch_memory_whose_size_could_overflow_is_refused() -> None:
    ones = [np.zeros((1, 1), np.float32) for _ in range(2)]
    stacks = [np.lib.stride_tricks.as_strided(one, (MOST_ELEMENTS, 1, 1), (0, 0, 0)) for one in ones]
    with pytest.raises(ValueError, match="products of 1 terms and 1 columns have too many elements: expected at most"):
        KERNELS["product"](floats(1, 1), *stacks)
    far = 1 << 38
    windows = Window(1, 1, 1), Window(1, 2, 1, far, 2 * far)
    with pytest.raises(ValueError, match="convolution_to_input got arrays of shapes"):
        KERNELS["convolution_to_input"](floats(64, 1, 1, 1), floats(64, 1, 1, 2), floats(1, 1, 1, 1), windows, 1)


def test_memory_is_in_order_where_the_rounding_of_floats_changes() -> None:
    text = (SOURCE / "calls.c").read_text()
    barrier, change = '__asm__ volatile("" : : : "memory");', "write_floating_point_mode(mode);"
    assert text.count(f"{barrier}\n    {change}\n    {barrier}") == text.count(change) == 1
    assert len(re.findall(r"_mm_setcsr|msr fpcr", "".join(path.read_text() for path in SOURCE.iterdir()))) == 2


#: Carries out by the library in a file what the installed one has bound; undefined behaviour ends the process.
CHECKED = """
import ctypes
from lockstep.common.numerics.kernel_leaves import KERNELS
from lockstep.common.numerics.kernels.calls import ROW, Pinned, sizes_of
from lockstep.common.numerics.kernels.library import SELF_TEST
from lockstep.common.numerics.operands import GATES
from tests.lockstep.common.numerics.kernels.test_calls import recurrent_operands

library = ctypes.CDLL({path!r})
for sizes in ([0, 3, 2, 5, 4], [1, 1, 7, 300, 33], [2, 2, 1, 1, 1]):
    # No more is read; but if it were, it would be NULL.
    library.ls_recurrent_scratch(sizes_of(sizes + [0] * ROW))
library.ls_convolution_scratch(sizes_of([2, 6, 7, 19, 5, 3, 3, 1, 1, 1, 1]))
for part in SELF_TEST:
    getattr(library, "ls_check_" + part)()
for kind in GATES:
    call = KERNELS["recurrent"](*recurrent_operands(kind))
    library.ls_run(Pinned(call.rows), ctypes.c_int64(len(call.rows)))
"""


# Of the two, clang alone finds offsets to NULL.
@pytest.mark.parametrize("compiler", ["clang", "gcc"])
def test_no_kernel_does_what_c_leaves_undefined(compiler: str, tmp_path: Path) -> None:
    path = tmp_path / "checked.so"
    # Ends by a signal, because clang links no sanitizer's library into ours.
    flags = ("-O0", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
    try:
        compile_libraries({path: PLAIN}, (compiler,), flags)
    except (NumericsError, FileNotFoundError) as error:
        pytest.skip(f"{compiler} has no sanitizer: {error}")
    subprocess.run([sys.executable, "-c", CHECKED.format(path=str(path))], check=True)
