"""A tape of NumPy calls: records what functions of arrays compute, call by call, and where in memory.

A function that is given taped arrays computes as usual, and every call of NumPy in it is recorded with the very views
that it reads and writes. So the calls can be repeated on other memory without the function. NumPy's two protocols for
arrays of other kinds do it (NEP 13 and 18); a function whose calls they do not show raises `UntapeableError`, or is
found out when its recorded results are compared with computed ones: `Tape` alone promises nothing. Knows no primitive.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Any

import msgspec
import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Sink
from lockstep.common.numerics.kernels.calls import extent_of, place_of
from lockstep.common.numerics.leaves import CallKind, LeafFunction
from lockstep.common.numerics.random import Source

#: Options of primitives that differ from batch to batch: the source of random numbers, and the sink of statistics.
OfBatch = Source | Sink


class UntapeableError(Exception):
    """A function does something with taped arrays that cannot be recorded."""


class MemoryKind(Enum):
    """The owner of an array's memory."""

    #: Filled with each batch.
    INPUT = auto()
    #: The same for all batches, as weights are.
    SHARED = auto()
    #: Receives the gradient of a leaf.
    GRADIENT = auto()
    #: Intermediate results.
    TEMPORARY = auto()


@dataclass(eq=False, slots=True)
class Memory:
    """A range of bytes that arrays are views of."""

    kind: MemoryKind
    #: The number among those of its kind.
    number: int
    size: int
    #: The array that was there when the tape was made; it keeps the addresses from being used again.
    array: Array


class View(msgspec.Struct, frozen=True):
    """The place of an operand."""

    memory: Memory
    #: In bytes, of the first element.
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bounds(self) -> tuple[int, int]:
        """The range of bytes within the memory that the view's elements are in."""
        reach = [(size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)]
        low = sum(each for each in reach if each < 0)
        return self.offset + low, self.offset + sum(each for each in reach if each > 0) + self.dtype.itemsize


@dataclass(slots=True, eq=False)
class Saved:
    """The place of a value that one function saves for another, if their own calls are not recorded."""

    #: The value that was saved last.
    value: Any


class Call(msgspec.Struct, frozen=True, eq=False):
    """`function(*operands)`. An operand is a view, a value that a function saved, an `OfBatch`, or a constant."""

    function: Callable[..., Any]
    operands: tuple[Any, ...]
    #: The places among the operands of those that are written.
    writes: tuple[int, ...]
    kind: CallKind
    #: Memory that must not be used again before this call: a saved value among the operands may be a view of it.
    holds: tuple[View, ...] = ()

    def views(self) -> Iterator[View]:
        """Yield all that is read or written."""
        yield from (each for each in self.operands if isinstance(each, View))
        yield from self.holds

    def touched(self) -> Iterator["Resource"]:
        """Yield the memories that are read or written, and what functions have saved."""
        yield from (view.memory for view in self.views())
        yield from (each for each in self.operands if isinstance(each, Saved))

    def written(self) -> Iterator["Resource"]:
        """Yield the memories that are written, and what functions save."""
        operands = (self.operands[place] for place in self.writes)
        return (each.memory if isinstance(each, View) else each for each in operands)


#: Can be read by a call and written by another.
Resource = Memory | Saved


class TapedArray(np.ndarray[Any, np.dtype[Any]]):
    """An array whose use is recorded: so are its views. Numbers taken out of it are not."""

    tape: "Tape | None"

    def __array_finalize__(self, origin: Any) -> None:
        self.tape = getattr(origin, "tape", None)

    def __setitem__(self, index: Any, value: Any) -> None:
        target = self[index]
        if not isinstance(target, TapedArray) or not np.may_share_memory(target, self):
            raise UntapeableError(f"elements are replaced at {index!r}, which is not a view")
        if isinstance(value, TapedArray) and _lies_at(value) == _lies_at(target):
            return  # as of `x[...] += y`, which has changed them
        np.copyto(target, value)

    def reshape(self, *shape: Any, order: Any = "C", copy: bool | None = None) -> Any:
        try:
            return super().reshape(*shape, order=order, copy=False)
        except ValueError:  # not without a copy, or not at all
            return _tape_of([self]).copied(self, order).reshape(*shape, order=order, copy=False)

    def copy(self, order: Any = "C") -> Any:
        return _tape_of([self]).copied(self, order)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        return _tape_of([*inputs, *out])._apply(ufunc, method, inputs, out[0] if out else None, options)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        if isinstance(function, LeafFunction):
            return _tape_of([*arguments, options["out"]])._apply_leaf(function, arguments, **options)
        recorder = _RECORDERS.get(function)
        if recorder is None:  # what only changes the view; the memory of anything else is unknown to the tape
            return super().__array_function__(function, types, arguments, options)
        return recorder(_tape_of(arguments), *arguments, **options)


def _lies_at(array: Array) -> tuple[Any, ...]:
    return place_of(array), array.shape, array.strides, array.dtype


def _tape_of(operands: Iterable[Any]) -> "Tape":
    for operand in operands:
        tape = operand.tape if isinstance(operand, TapedArray) else None
        if tape is not None:
            return tape
    raise UntapeableError("a call has no operand whose tape is known")


def plain(operand: Any) -> Any:
    """Return a taped array as an ordinary one; anything else as it is."""
    return operand.view(np.ndarray) if isinstance(operand, TapedArray) else operand


@dataclass
class Tape:
    """Records calls, in their order."""

    calls: list[Call] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)
    #: For each saved value, the memory of which it may be a view.
    _held: dict[Saved, tuple[View, ...]] = field(default_factory=dict)
    _starts: list[int] = field(default_factory=list)
    _by_start: list[Memory] = field(default_factory=list)

    def know(self, array: Array, kind: MemoryKind) -> TapedArray:
        """Return an array as one whose use is recorded; no two share memory."""
        if not array.size:
            raise UntapeableError(f"an array of shape {array.shape} has no memory")
        low, high = extent_of(array)
        memory = Memory(kind, sum(each.kind is kind for each in self.memories), high - low, array)
        place = bisect_right(self._starts, low)
        self._starts.insert(place, low)
        self._by_start.insert(place, memory)
        self.memories.append(memory)
        return self._taped(array)

    def view_of(self, array: Array) -> View | None:
        """Return where an array lies, None if the tape does not know its memory."""
        address = place_of(array)
        place = bisect_right(self._starts, address) - 1
        if place < 0 or not array.size:
            return None
        memory, start = self._by_start[place], self._starts[place]
        view = View(memory, address - start, array.shape, array.strides, array.dtype)
        return view if view.bounds[1] <= memory.size and view.bounds[0] >= 0 else None

    def seen(self, operand: Any) -> Any:
        """Return an operand as an array whose use is recorded, if the tape knows its memory; else as it is."""
        if isinstance(operand, TapedArray) or not isinstance(operand, np.ndarray) or self.view_of(operand) is None:
            return operand
        return self._taped(operand)

    def call_whole(self, function: Callable[..., Any], arrays: tuple[Any, ...], *, keeps: bool) -> Any:
        """Call a function whose own calls are not recorded, and record it as one call.

        If it `keeps`, it returns its result and a value to be saved, as the forward of a primitive does.
        """
        outcome = function(*(each.value if isinstance(each, Saved) else plain(each) for each in arrays))
        result, saved = outcome if keeps else (outcome, None)
        operands = tuple(self._operand(each) for each in arrays)
        taped, view = self._new(np.array(result))
        if not keeps:
            self.calls.append(Call(_fill, (function, view, *operands), (1,), CallKind.ALONE, self._held_by(operands)))
            return taped
        place = Saved(saved)
        self._held[place] = tuple(each for each in operands if isinstance(each, View))
        self.calls.append(Call(_fill_and_save, (function, view, place, *operands), (1, 2), CallKind.ALONE))
        return taped, place

    def _held_by(self, operands: tuple[Any, ...]) -> tuple[View, ...]:
        return tuple(view for each in operands if isinstance(each, Saved) for view in self._held[each])

    def _taped(self, array: Array) -> TapedArray:
        taped: TapedArray = array.view(TapedArray)
        taped.tape = self
        return taped

    def _new(self, array: Array) -> tuple[TapedArray, View]:
        taped = self.know(array, MemoryKind.TEMPORARY)
        view = self.view_of(array)
        assert view is not None
        return taped, view

    def _operand(self, operand: Any) -> Any:
        """Return an operand as it is recorded: a view, or a constant."""
        if not isinstance(operand, np.ndarray):
            if isinstance(operand, np.generic):
                raise UntapeableError(f"{operand!r} may be a number out of an array")
            return operand
        view = self.view_of(operand)
        if view is not None:
            return view
        if isinstance(operand, TapedArray) or operand.flags.writeable:
            raise UntapeableError(f"an array of shape {operand.shape} was computed in a way that is not recorded")
        return operand

    def _apply(self, ufunc: np.ufunc, method: str, inputs: Any, out: Any, options: dict[str, Any]) -> Any:
        # Products of matrices are leaves.
        if ufunc.nout != 1 or ufunc.signature is not None or method not in ("__call__", "reduce"):
            raise UntapeableError(f"{ufunc.__name__} is called by {method}")
        operands = tuple(self._operand(each) for each in inputs)
        if method == "reduce":
            return self._reduce(ufunc, plain(inputs[0]), operands[0], out, options)
        if any(value is not None and value is not True for value in options.values()):
            raise UntapeableError(f"{ufunc.__name__} is called with {options!r}")
        result, target = self._target(ufunc, tuple(map(plain, inputs)), out)
        self.calls.append(Call(ufunc, (*operands, target), (len(operands),), CallKind.ELEMENTWISE))
        return result

    def _apply_leaf(self, leaf: LeafFunction, arrays: Any, *, out: Any, options: tuple[Any, ...]) -> Any:
        operands, inputs = tuple(map(self._operand, arrays)), tuple(map(plain, arrays))
        if out is None:
            result, target = self._new(leaf.make(*inputs, *options))
        else:
            result, target = out, self._operand(out)
            if not isinstance(target, View):
                raise UntapeableError(f"the result of {leaf.name} goes to an array that is not writable")
        leaf.bind(*inputs, plain(result), *options)()
        self.calls.append(Call(leaf, (*operands, target, *options), (len(operands),), leaf.kind))
        return result

    def _reduce(self, ufunc: np.ufunc, array: Array, operand: Any, out: Any, options: dict[str, Any]) -> Any:
        axis, keepdims = options.pop("axis", 0), bool(options.pop("keepdims", False))
        if any(value is not None and value is not True for value in options.values()):
            raise UntapeableError(f"{ufunc.__name__}.reduce is called with {options!r}")
        reduced: Any = partial(ufunc.reduce, axis=axis, keepdims=keepdims)
        result, target = self._target(reduced, (array,), out)
        self.calls.append(Call(ufunc.reduce, (operand, axis, None, target, keepdims), (3,), CallKind.REDUCTION))
        return result

    def _target(self, function: Callable[..., Any], inputs: tuple[Any, ...], out: Any) -> tuple[Any, Any]:
        """Compute into `out`, or into new memory; return the result and where it lies."""
        if out is None:
            return self._new(np.asarray(function(*inputs)))
        view = self._operand(out)
        if not isinstance(view, View):
            raise UntapeableError("a result goes to an array that is not writable")
        function(*inputs, out=plain(out))
        return out, view

    def copied(self, array: Any, order: Any) -> Any:
        """Return a copy of an array."""
        made = self.empty(array, order=order)
        self.copy(made, array)
        return made

    def copy(self, target: Any, source: Any) -> None:
        """Stand for `np.copyto`."""
        operands = self._operand(target), self._operand(source)
        np.copyto(plain(target), plain(source))
        self.calls.append(Call(np.copyto, operands, (0,), CallKind.ELEMENTWISE))

    def empty(self, prototype: Any, dtype: Any = None, order: Any = "K", subok: bool = True, shape: Any = None) -> Any:
        """Stand for `np.empty_like`."""
        return self._new(np.empty_like(plain(prototype), dtype, order, subok, shape))[0]

    def zeros(self, prototype: Any, dtype: Any = None, order: Any = "K", subok: bool = True, shape: Any = None) -> Any:
        """Stand for `np.zeros_like`."""
        made = self.empty(prototype, dtype, order, subok, shape)
        self.copy(made, 0)
        return made


def _fill(function: Callable[..., Any], target: Array, *arrays: Any) -> None:
    np.copyto(target, function(*(each.value if isinstance(each, Saved) else each for each in arrays)))


def _fill_and_save(function: Callable[..., Any], target: Array, place: Saved, *arrays: Any) -> None:
    result, place.value = function(*arrays)
    np.copyto(target, result)


#: Those of NumPy's functions that make or fill memory and are not ufuncs.
_RECORDERS: dict[Any, Callable[..., Any]] = {
    np.copyto: Tape.copy,
    np.empty_like: Tape.empty,
    np.zeros_like: Tape.zeros,
}
