"""Calls of kernels keep their arrays, stay in their thread, and check at each call what may change between two."""

import gc
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

from lockstep.common.numerics.kernel_leaves import KERNELS
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


def test_no_kernel_computes_addresses_without_memory(compiler: tuple[str, ...], tmp_path: Path) -> None:
    """The size of scratch memory is asked for before there is any: offsets to NULL are undefined."""
    path = tmp_path / "checked.so"
    try:
        compile_libraries({path: PLAIN}, compiler, ["-O1", "-fsanitize=undefined"])
    except Exception as error:  # noqa: BLE001  # by its words, since each compiler lacks something else
        pytest.skip(f"this compiler has no sanitizer: {error}")
    program = f"""
import ctypes
import numpy as np
from lockstep.common.numerics.kernels.calls import sizes_of
library = ctypes.CDLL({str(path)!r})
for sizes in ([0, 3, 2, 5, 4], [1, 1, 7, 300, 33], [2, 2, 1, 1, 1]):
    library.ls_recurrent_scratch(sizes_of(sizes))
library.ls_convolution_scratch(sizes_of([2, 6, 7, 19, 5, 3, 3, 1, 1, 1, 1]))
for part in ("arithmetic", "products", "sums", "functions", "convolutions"):
    getattr(library, "ls_check_" + part)()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
