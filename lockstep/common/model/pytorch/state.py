"""The state that a model keeps from one call to the next besides parameters and buffers, wherever that is.

It may be in an attribute of a layer, in an object that one holds, in a class, in a global variable of the model's
files, in what a hook or a function has closed over, or in a generator of numbers. All of it is read and none of it is
called, so that looking changes nothing. Installed packages are not searched: only what layers hold of them.
"""

import array
import decimal
import fractions
import functools
import inspect
import io
import itertools
import operator
import sys
import sysconfig
import threading
import types
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lockstep.common.numerics.random import generator_state, shared_generators

#: The value at a place, as something that can be compared. Places are called as a user would write them.
State = dict[str, object]

#: A part of something, and what it is called.
Part = tuple[str, Any]

#: Objects that are looked at, at most: what a user's model holds is far less.
MOST = 100_000

#: The attributes of a layer that are a part of a run, or change with its mode.
_REGISTERED = ("_parameters", "_buffers", "_modules", "training")

#: Values that cannot change, and compare by what `repr` returns of them: NaN equals itself there.
_PLAIN = (bool, int, float, complex, str, bytes, type(None), slice, range, types.EllipsisType)

#: Iterators of Python, whose state is how much of them is left.
_ITERATORS: tuple[type, ...] = (
    *(type(iter([])), type(iter(())), type(iter("")), type(iter({})), type(iter(set()))),
    *(type(iter(range(0))), type(iter({}.values())), type(iter({}.items()))),
)

#: The folders of installed packages; and how such folders are called, of which another environment may have more.
_SITES = ("site-packages", "dist-packages")
_INSTALLED = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")}

#: Modules whose objects are full of things that come and go.
_IGNORED = ("logging", "weakref", "_weakref", "_weakrefset", "_thread", "_abc")

#: By kind, the value to compare; the parts of containers are looked at on their own.
_VALUES: tuple[tuple[Any, Callable[[Any], object]], ...] = (
    (np.ndarray, lambda array: (array.shape, repr(array.tolist()) if array.dtype == object else array.tobytes())),
    (np.generic, lambda number: number.tobytes()),
    ((bytearray, memoryview), bytes),
    (array.array, lambda values: (values.typecode, values.tobytes())),
    ((io.BytesIO, io.StringIO), lambda file: None if file.closed else (file.getvalue(), file.tell())),
    ((decimal.Decimal, fractions.Fraction), repr),
    ((dict, types.MappingProxyType, list, tuple, deque), len),
    ((set, frozenset), lambda values: (len(values), sorted(repr(each) for each in values if isinstance(each, _PLAIN)))),
    (torch.Generator, lambda generator: bytes_of(generator.get_state())),
    (itertools.count, repr),
    (_ITERATORS, operator.length_hint),
    (types.GeneratorType, lambda generator: generator.gi_frame and generator.gi_frame.f_lasti),
)


def _items(place: str, values: Any) -> Iterator[Part]:
    for key, item in list(values.items()):
        yield f"{place}[{key!r}]" if isinstance(key, _PLAIN) else f"{place}[…]", item


def _elements(place: str, values: Any) -> Iterator[Part]:
    return ((f"{place}[{number}]", item) for number, item in enumerate(list(values)))


def _named(*names: str) -> Callable[[str, Any], Iterator[Part]]:
    """Return a function that yields the attributes of these names, which a user does not see, at the same place."""
    return lambda place, value: ((place, getattr(value, name)) for name in names)


def _cell(place: str, cell: Any) -> Iterator[Part]:
    try:
        yield place, cell.cell_contents
    except ValueError:  # nothing is in it yet
        return


def _variable(place: str, variable: Any) -> Iterator[Part]:
    try:
        yield place, variable.get()
    except LookupError:  # it has no value yet
        return


def _frame(place: str, generator: Any) -> Iterator[Part]:
    return iter(generator.gi_frame.f_locals.items() if generator.gi_frame else ())


#: By kind, its parts.
_PARTS: tuple[tuple[Any, Callable[[str, Any], Iterator[Part]]], ...] = (
    ((dict, types.MappingProxyType), _items),
    ((list, tuple, deque), _elements),
    (types.MethodType, _named("__self__", "__func__")),
    (functools.partial, _named("func", "args", "keywords")),
    ((staticmethod, classmethod), _named("__func__")),
    (property, _named("fget", "fset")),
    (types.CellType, _cell),
    (types.GeneratorType, _frame),
    (ContextVar, _variable),
    (threading.local, lambda place, value: ((f"{place}.{key}", item) for key, item in vars(value).items())),
)


def views_of(module: Any, memory: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield where a module keeps a tensor in the memory of one of these tensors, and that one's name."""
    kept = StateSearch.of(module).tensors
    for one, other in overlaps({**memory, **{f"\0{place}": tensor for place, tensor in kept.items()}}):
        places = [name for name in (one, other) if name.startswith("\0")]
        if len(places) == 1:
            yield places[0][1:], one if other == places[0] else other


def overlaps(tensors: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names of tensors that share memory with one before them: for each, with the one that ends last."""
    extents = sorted((*_extent(tensor), name) for name, tensor in tensors.items() if _is_in_memory(tensor))
    last_stop, last = 0, ""
    for start, stop, name in extents:
        if start < last_stop:
            yield last, name
        if stop > last_stop:
            last_stop, last = stop, name


def _is_in_memory(tensor: Any) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and bool(tensor.numel())


def _extent(tensor: Any) -> tuple[int, int]:
    """Return the addresses between which the values of a tensor are."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start: int = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def bytes_of(tensor: Any) -> bytes:
    """Return the bytes of a tensor's values, of any type and layout."""
    tensor = tensor.detach()
    if tensor.layout == torch.strided:
        whole = tensor.resolve_conj().resolve_neg().contiguous()
        # With a stride of 1, which a tensor of one element may lack though it counts as contiguous.
        data: bytes = whole.as_strided((whole.numel(),), (1,)).view(torch.uint8).numpy().tobytes()
        return data
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return bytes_of(tensor.indices()) + bytes_of(tensor.values())
    return bytes_of(tensor.to_dense())


@dataclass
class StateSearch:
    """Goes through what can be reached from a module, each object once."""

    found: State = field(default_factory=lambda: dict(shared_generators()))
    #: Tensors that are neither parameters nor buffers.
    tensors: dict[str, Any] = field(default_factory=dict)
    #: The global variables of the model's own functions, by identity.
    namespaces: dict[int, dict[str, Any]] = field(default_factory=dict)
    #: By place, the types of objects that cannot be looked into.
    opaque: dict[str, str] = field(default_factory=dict)
    #: By identity, to keep them alive: another object would get the identity of one that is gone.
    _seen: dict[int, object] = field(default_factory=dict)
    _classes: set[type] = field(default_factory=set)
    #: By place, the recorded value: two closures of one function, or globals of two files, have one place.
    _recorded: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, module: Any) -> "StateSearch":
        """Search a module."""
        search, layers = cls(), list(module.named_modules())
        for _, layer in layers:
            for each in (layer, *layer._parameters.values(), *layer._buffers.values()):
                search._seen[id(each)] = each
        for prefix, layer in layers:
            search._layer(prefix, layer)
        return search

    def _layer(self, place: str, layer: Any) -> None:
        """Look at what a layer has besides its registered tensors and layers."""
        start = f"{place}." if place else ""
        for name, tensor in layer._parameters.items():
            if tensor is not None:
                self._attributes(f"{start}{name}", tensor)
                self.look(f"a hook of {start}{name}", tensor._backward_hooks)
        for key, value in list(vars(layer).items()):
            if key.endswith("_hooks") and isinstance(value, dict):
                for hook in list(value.values()):
                    self.look(f"a hook of {place or 'the model'}", hook)
            elif key not in _REGISTERED:
                self.look(f"{start}{key}", value)
        self._class(type(layer))

    def _record(self, place: str, value: object) -> str:
        """Record a value, next to what else is called like its place; return what it is called."""
        number = self._recorded[place]
        self._recorded[place] += 1
        place += f"[{number} before]" if number else ""
        self.found[place] = value
        return place

    def look(self, place: str, value: Any) -> None:
        """Record the value at a place, and follow all that can be reached from there."""
        if isinstance(value, _PLAIN):
            self._record(place, repr(value))
        elif id(value) not in self._seen and len(self._seen) < MOST:
            self._seen[id(value)] = value
            self._look(place, value)

    def _look(self, place: str, value: Any) -> None:
        state = generator_state(value)
        if state is not None:
            self._record(place, state)
        elif isinstance(value, torch.Tensor):
            self._tensor(place, value)
        elif isinstance(value, torch.nn.Module):
            self._unregistered(place, value)
        elif isinstance(value, types.FunctionType):
            self._function(place, value)
        elif isinstance(value, type):
            self._class(value)
        else:
            self._value(place, value)

    def _value(self, place: str, value: Any) -> None:
        record = next((each for kind, each in _VALUES if isinstance(value, kind)), None)
        parts = next((each for kind, each in _PARTS if isinstance(value, kind)), None)
        if record is not None:
            self._record(place, record(value))
        if parts is not None:
            for name, part in parts(place, value):
                self.look(name, part)
        if record is None and parts is None and type(value).__module__ not in _IGNORED:
            if _is_opaque(type(value)):
                self._opaque(place, value)
            self._attributes(place, value)
            self._class(type(value))

    def _opaque(self, place: str, value: Any) -> None:
        """Look at what an object without attributes gives to `copy`, if it gives anything; nothing else can be read."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some iterators still give it, and will not
                self.look(place, value.__reduce_ex__(4)[1:])
        except Exception:  # noqa: BLE001  # of whatever kind
            self.opaque[place] = type(value).__name__

    def _tensor(self, place: str, tensor: Any) -> None:
        if tensor.device.type == "cpu":
            place = self._record(place, (tuple(tensor.shape), str(tensor.dtype), bytes_of(tensor)))
            self.tensors[place] = tensor

    def _unregistered(self, place: str, module: Any) -> None:
        """Look at a module that a layer holds in a list, a dictionary or an object."""
        for name, part in (*module._parameters.items(), *module._buffers.items(), *module._modules.items()):
            self.look(f"{place}.{name}", part)
        self._layer(place, module)

    def _attributes(self, place: str, value: Any) -> None:
        """Look at what an object has in its dictionary and in its slots."""
        if isinstance(value, types.ModuleType):
            return
        if isinstance(getattr(value, "__dict__", None), dict):
            for key, item in list(vars(value).items()):
                self.look(f"{place}.{key}", item)
        for kind in type(value).__mro__ if type(value).__module__ != "torch" else ():
            for key, member in vars(kind).items():
                if isinstance(member, types.MemberDescriptorType) and kind.__module__ != "builtins":
                    try:
                        self.look(f"{place}.{key}", member.__get__(value))
                    except AttributeError:  # it has no value yet
                        continue

    def _class(self, kind: type) -> None:
        for each in kind.__mro__:
            if each in self._classes or not _is_own(each.__module__):
                continue
            self._classes.add(each)
            for key, value in list(vars(each).items()):
                is_part = inspect.isfunction(value) or not key.startswith("__")
                if is_part and not isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
                    self.look(f"{each.__name__}.{key}", value)

    def _function(self, place: str, function: Any) -> None:
        """Look at what a function has closed over, its defaults and attributes, and the global variables it names."""
        name = function.__qualname__.rpartition("<locals>.")[2]
        name = place if name == "<lambda>" else name
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.look(f"{name}, {variable}", cell)
        self.look(f"{name}, a default", function.__defaults__)
        self.look(f"{name}, a default", function.__kwdefaults__)
        self._attributes(name, function)
        if _is_own(function.__module__):
            self._globals(function)

    def _globals(self, function: Any) -> None:
        self.namespaces[id(function.__globals__)] = function.__globals__
        names = set(_names(function.__code__))
        for name in names & function.__globals__.keys():
            value = function.__globals__[name]
            if not isinstance(value, types.ModuleType):
                self.look(name, value)
            elif _is_own(value.__name__):
                for other in names & vars(value).keys():
                    self.look(f"{name}.{other}", vars(value)[other])


def _is_opaque(kind: type) -> bool:
    """Tell whether objects of a type of the standard library or of PyTorch have neither a dictionary nor slots."""
    own = {key for each in kind.__mro__[:-1] for key in vars(each)}
    members = (vars(each).values() for each in kind.__mro__[:-1])
    has_members = any(isinstance(member, types.MemberDescriptorType) for each in members for member in each)
    return "__dict__" not in own and not has_members and not kind.__dictoffset__ and not issubclass(kind, type)


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names of the variables and attributes that a function uses."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


@functools.cache
def _is_own(name: str | None) -> bool:
    """Tell whether a module is a user's, and not of an installed package."""
    module = sys.modules.get(name or "")
    path = getattr(module, "__file__", None)
    if path is None or (name or "").partition(".")[0] in (*sys.stdlib_module_names, "lockstep"):
        return False
    place = Path(path)
    return not any(place.is_relative_to(folder) for folder in _INSTALLED) and not {*_SITES}.intersection(place.parts)
