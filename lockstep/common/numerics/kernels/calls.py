"""Calls of kernels. The address of an array is taken here only, by what keeps the array until its last call is over.

An address is a number: if the last reference to its array goes, the memory has another owner, and nothing fails. NumPy
keeps small arrays in a cache of its own, where not even AddressSanitizer sees that one was freed.
"""

import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from lockstep.common.numerics.kernels.library import load

Array = NDArray[Any]

#: Numbers of a row, as in kernels/source/calls.c.
ROW = 23

#: Bytes of a line of the cache, at whose multiples vectors and scratch memory begin.
LINE_BYTES = 64


class Written(NamedTuple):
    """An array that a kernel writes: its address may be taken only if it is writable."""

    array: Array


#: An argument of a kernel: a number, an array that it reads or writes, or None for no array.
Argument = int | Array | Written | None


class Pinned(ctypes.c_void_p):
    """An argument of a function in C that is the address of an array, which lives as long as this does."""

    def __init__(self, array: Array) -> None:
        super().__init__(_address(array))
        self.array = array


def pinned(argument: Array | Written | None) -> Pinned | None:
    """Return an array as an argument of a function in C, NULL for None; ValueError if it is written and read-only."""
    if argument is None:
        return None
    return Pinned(_writable(argument.array) if isinstance(argument, Written) else argument)


def sizes_of(numbers: Sequence[int]) -> Pinned:
    """Return whole numbers as an argument of a function in C."""
    return Pinned(np.array(numbers, np.int64))


class Calls:
    """Calls of kernels, made one after the other without a return to Python.

    A call is a row of whole numbers: the operation, sizes, strides in elements, addresses. Scratch memory belongs to
    the thread that has bound the calls, so another thread that makes them gets a RuntimeError.
    """

    __slots__ = ("_count", "_owner", "_run", "_table", "arrays", "rows")

    def __init__(
        self, run: Callable[[Pinned, int], None], rows: NDArray[np.int64], arrays: list[Array], owner: int | None
    ) -> None:
        self.rows = rows
        #: The arrays that the addresses in the rows point to.
        self.arrays = arrays
        #: The thread whose scratch memory is used, None without any.
        self._owner = owner
        self._run, self._table, self._count = run, Pinned(rows), len(rows)

    @classmethod
    def of(cls, run: Callable[[Pinned, int], None], rows: Iterable[Sequence[Argument]]) -> "Calls":
        """Return the calls of these rows, whose arrays they keep. ValueError if one would be written and cannot be."""
        arrays, table = list[Array](), list[list[int]]()
        for row in rows:
            table.append([each if type(each) is int else _number(each, arrays) for each in row])
            table[-1].extend((0,) * (ROW - len(row)))
        mine = _scratch.memory
        owner = threading.get_ident() if mine is not None and any(each is mine for each in arrays) else None
        return cls(run, np.array(table, np.int64).reshape(-1, ROW), arrays, owner)

    def __call__(self) -> None:
        if self._owner is not None and self._owner != threading.get_ident():
            raise RuntimeError("calls of kernels with scratch memory of another thread: expected those of this thread")
        self._run(self._table, self._count)

    def joined(self, others: Sequence["Calls"]) -> "Calls":
        """Return these calls and others behind them. Expects that all have been made for one thread."""
        every = (self, *others)
        owners = {each._owner for each in every if each._owner is not None}
        if len(owners) > 1:
            raise RuntimeError("calls of kernels with scratch memory of several threads: expected those of one")
        return Calls(
            self._run,
            np.concatenate([each.rows for each in every]),
            [array for each in every for array in each.arrays],
            next(iter(owners), None),
        )


@contextmanager
def shows_running(place: NDArray[np.float64]) -> Iterator[None]:
    """Let kernels that this thread calls within show that they run, by the seconds of `perf_counter` in `place[0]`."""
    show, shown = load().functions.ls_show_running, pinned(place)
    show(shown)
    try:
        yield
    finally:
        show(None)


class _Scratch(threading.local):
    """Memory in which kernels put together what they read: one piece for all calls of a thread, and so in its cache."""

    memory: Array | None = None


_scratch = _Scratch()


def scratch(floats: int) -> Array:
    """Return so many floats or more, of this thread; earlier contents may be overwritten."""
    memory = _scratch.memory
    if memory is None or memory.size < floats:
        memory = _scratch.memory = aligned(4 * floats).view(np.float32)
    return memory


def aligned(size: int, make: Callable[[int, type[np.uint8]], Array] = np.empty) -> Array:
    """Return so many bytes as `make` makes them, the first of them at the beginning of a line."""
    memory = make(size + LINE_BYTES, np.uint8)
    start = -_address(memory) % LINE_BYTES
    return memory[start : start + size]


def is_aligned(array: Array) -> bool:
    """Tell whether an array begins at a line."""
    return _address(array) % LINE_BYTES == 0


def place_of(array: Array) -> int:
    """Return a number by which arrays in one memory are compared: not an argument of a call."""
    return _address(array)


def extent_of(array: Array) -> tuple[int, int]:
    """Return the numbers between which the places of all elements are."""
    return byte_bounds(array)


def _number(argument: object, arrays: list[Array]) -> int:
    """Return an argument as a number, and add its array to those that are kept."""
    if argument is None:
        return 0
    if isinstance(argument, Written):
        argument = _writable(argument.array)
    if not isinstance(argument, np.ndarray):
        return int(argument)  # type: ignore[call-overload,no-any-return]  # a whole number that NumPy made, or a bool
    arrays.append(argument)
    return _address(argument)


def _writable(array: Array) -> Array:
    if not array.flags.writeable:
        raise ValueError(f"the result of shape {array.shape} would go to an array that is read-only")
    return array


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
