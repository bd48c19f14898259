"""The places of a model's parameters and running statistics in the flat vector."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.tree import Vector, new_vector
from lockstep.common.errors import ModelError
from lockstep.common.nn.module import Module, Parameter, is_counter


class LayoutEntry(msgspec.Struct, frozen=True):
    """A named array at `[offset, offset + size)` of the flat vector, in C order."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def view(self, vector: Vector) -> Vector:
        """Return this entry's array as a view into `vector`."""
        return vector[self.offset : self.offset + self.size].reshape(self.shape)


class FrozenArray(msgspec.Struct, frozen=True, eq=False, dict=True):
    """A named array of a model that training leaves as it is: a frozen parameter, or a constant such as a buffer.

    It is in no vector: it is not summed, sent or updated. Every process builds it, and the layout's digest, which all
    of them compare, covers its values. Files of weights have it, so that they are whole state dicts.
    """

    name: str
    #: The model's own memory, read only, of any dtype.
    array: NDArray[Any]
    #: Whether it is a parameter, which a file of weights that claims to be whole must have.
    is_parameter: bool

    @classmethod
    def of(cls, name: str, array: NDArray[Any], *, is_parameter: bool) -> Self:
        view = array.view()
        view.flags.writeable = False
        return cls(name, view, is_parameter)

    @cached_property
    def sha256(self) -> str:
        """The digest of the values, in hex."""
        return hashlib.sha256(np.ascontiguousarray(self.array).data).hexdigest()

    def is_equal(self, other: NDArray[Any]) -> bool:
        """Tell whether another array has the same values, bit by bit, once it has this one's dtype."""
        other = np.asarray(other)
        if other.shape != self.array.shape:
            return False
        cast = other.astype(self.array.dtype, copy=False)
        return cast.tobytes() == self.array.tobytes()


#: The shapes of arrays by their names, in order.
Shapes = Mapping[str, Sequence[int]]


class ParameterLayout(msgspec.Struct, frozen=True, dict=True):
    """A model's trained parameters, then its running statistics, as one float32 vector; and its frozen arrays.

    Statistics follow the parameters, so that what a micro-batch observed travels and is reduced with its gradients, by
    the same tree (rule R8). Each array begins at a multiple of `alignment`. The gaps between two of them are zero
    and stay so: in weights, in sums, and in the optimizer's slots.
    """

    parameters: tuple[LayoutEntry, ...]
    statistics: tuple[LayoutEntry, ...]
    alignment: int = 1
    #: Arrays that training leaves as they are.
    frozen: tuple[FrozenArray, ...] = ()

    @classmethod
    def of(cls, parameters: Shapes, statistics: Shapes, frozen: Iterable[FrozenArray] = (), alignment: int = 1) -> Self:
        """Place arrays of these names and shapes one after the other; `ModelError` if nothing is to be trained."""
        held = tuple(frozen)
        if not parameters and any(each.is_parameter for each in held):
            raise ModelError(
                "all parameters of the model are frozen: expected requires_grad=True for at least one, since a job "
                "trains those"
            )
        if not parameters:
            raise ModelError("the model has no parameters: expected at least one layer that can learn")
        entries, offset = list[LayoutEntry](), 0
        for name, shape in (*parameters.items(), *statistics.items()):
            entries.append(LayoutEntry(name, tuple(shape), offset))
            offset += -(-entries[-1].size // alignment) * alignment
        return cls(tuple(entries[: len(parameters)]), tuple(entries[len(parameters) :]), alignment, held)

    @cached_property
    def parameter_size(self) -> int:
        """Number of values in the trained part of the vector, which comes first."""
        return self._end_of(self.parameters)

    @cached_property
    def size(self) -> int:
        """Number of values in the vector."""
        return self._end_of(self.statistics or self.parameters)

    @property
    def parameter_count(self) -> int:
        """Number of trained values, without the gaps between arrays."""
        return sum(entry.size for entry in self.parameters)

    def _end_of(self, entries: tuple[LayoutEntry, ...]) -> int:
        end = entries[-1].offset + entries[-1].size if entries else 0
        return -(-end // self.alignment) * self.alignment

    def new_vector(self) -> Vector:
        """Return a new vector of zeros, in which each array lies as in every other process."""
        return new_vector(self.size)

    def clear_gaps(self, vector: Vector) -> None:
        """Write zeros into the gaps between the arrays of a vector."""
        entries = (*self.parameters, *self.statistics)
        for entry, following in zip(entries, (*(each.offset for each in entries[1:]), self.size), strict=True):
            vector[entry.offset + entry.size : following] = 0.0

    def momenta(self, of: Iterable[float]) -> Vector:
        """Return the momentum of each value of the running statistics, given that of each statistic, in order."""
        momenta = np.zeros(self.size - self.parameter_size, np.float32)
        for entry, momentum in zip(self.statistics, of, strict=True):
            start = entry.offset - self.parameter_size
            momenta[start : start + entry.size] = momentum
        return momenta

    def name_at(self, position: int) -> str:
        """Return the name of the array that holds a position of the vector, or else lies before it."""
        entries = (*self.parameters, *self.statistics)
        return next(entry.name for entry in reversed(entries) if entry.offset <= position)

    @property
    def frozen_size(self) -> int:
        """Number of values of frozen parameters."""
        return sum(each.array.size for each in self.frozen if each.is_parameter)

    def digest(self) -> str:
        """Return the SHA-256 over names, shapes and offsets, and over the values of frozen arrays, in hex."""
        lines = [
            f"{kind} {entry.name} {entry.shape} {entry.offset}"
            for kind, entries in (("parameter", self.parameters), ("statistic", self.statistics))
            for entry in entries
        ]
        lines += [f"frozen {each.name} {each.array.shape} {each.array.dtype} {each.sha256}" for each in self.frozen]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def views(self, vector: Vector) -> dict[str, Vector]:
        """Return what lies in `vector` by name, as views."""
        return {entry.name: entry.view(vector) for entry in (*self.parameters, *self.statistics)}

    def read(self, vector: Vector) -> dict[str, NDArray[Any]]:
        """Return a state dict: views into `vector`, and the frozen arrays."""
        return {**self.views(vector), **{each.name: each.array for each in self.frozen}}

    def write(self, vector: Vector, state: Mapping[str, NDArray[Any]]) -> None:
        """Copy a state dict into `vector`; `ModelError` if a name or shape differs, or what it has of frozen values.

        PyTorch's `num_batches_tracked` is ignored, as `Module.load_state_dict` does.
        """
        entries = {entry.name: entry for entry in (*self.parameters, *self.statistics)}
        frozen = {each.name: each for each in self.frozen}
        given = {name for name in state if not is_counter(name, entries)} - frozen.keys()
        unmatched = sorted(entries.keys() ^ given)
        if unmatched:
            raise ModelError(f"weights do not fit the model: {unmatched[0]!r} is in only one of them")
        for name in frozen.keys() & state.keys():
            if not frozen[name].is_equal(state[name]):
                raise ModelError(f"weights do not fit the model: {name!r} is frozen, and has other values there")
        for name, entry in entries.items():
            if state[name].shape != entry.shape:
                raise ModelError(f"weights do not fit the model: {name!r} is {state[name].shape}, not {entry.shape}")
            entry.view(vector)[...] = state[name]


def trained_parameters(module: Module) -> dict[str, Parameter]:
    """Return the parameters that are not frozen, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def layout_of(module: Module) -> ParameterLayout:
    """Return the layout of a model, in the order of `named_parameters` and `named_buffers`. Raises `ModelError`."""
    for name, parameter in module.named_parameters():
        if parameter.data.dtype != np.float32:
            raise ModelError(
                f"the parameter {name!r} is {parameter.data.dtype}: expected float32, in which all weights are summed "
                "and updated; write nn.Parameter(values.astype(numpy.float32))"
            )
    return ParameterLayout.of(
        {name: parameter.shape for name, parameter in trained_parameters(module).items()},
        {name: each.value.shape for name, each in module.named_buffers()},
        (
            FrozenArray.of(name, parameter.data, is_parameter=True)
            for name, parameter in module.named_parameters()
            if not parameter.requires_grad
        ),
    )


def gather(module: Module, layout: ParameterLayout) -> Vector:
    """Return a new flat vector holding a copy of the model's trained parameters and statistics."""
    vector = np.empty(layout.size, dtype=np.float32)
    state = {name: parameter.data for name, parameter in trained_parameters(module).items()}
    state |= {name: statistic.value for name, statistic in module.named_buffers()}
    layout.write(vector, state)
    return vector


class Binding:
    """A model whose arrays are views into flat vectors: one of several for values, one of several for gradients.

    All vectors have the layout's size. Parameters and statistics become views into the one; gradients, and what a
    micro-batch observes of the statistics, are written into the other. The views are made once: switching a model to
    another vector takes a microsecond per parameter.
    """

    def __init__(
        self, module: Module, layout: ParameterLayout, weights: Sequence[Vector], sums: Sequence[Vector]
    ) -> None:
        #: In the layout's order.
        self.parameters = list(trained_parameters(module).values())
        self._statistics = list(module.buffers())
        self._values = [_views(layout, vector) for vector in weights]
        self._gradients = [_views(layout, vector) for vector in sums]
        self.read_from(0)
        self.write_to(0)

    def read_from(self, index: int) -> None:
        """Let the model compute with the weights vector of that index."""
        parameters, statistics = self._values[index]
        for parameter, view in zip(self.parameters, parameters, strict=True):
            parameter.data = view
        for statistic, view in zip(self._statistics, statistics, strict=True):
            statistic.value = view

    def write_to(self, index: int) -> None:
        """Let backward write into the sums vector of that index."""
        #: The arrays that backward writes now, one per parameter.
        self.gradients, observed = self._gradients[index]
        for parameter, view in zip(self.parameters, self.gradients, strict=True):
            parameter.grad_buffer = view
        for statistic, view in zip(self._statistics, observed, strict=True):
            statistic.observed = view


def _views(layout: ParameterLayout, vector: Vector) -> tuple[list[Vector], list[Vector]]:
    """Return the parameters and the statistics in a flat vector."""
    return (
        [entry.view(vector) for entry in layout.parameters],
        [entry.view(vector) for entry in layout.statistics],
    )


def weights_digest(vector: Vector) -> str:
    """Return the SHA-256 of a flat vector's little-endian float32 bytes, in hex."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").data).hexdigest()
