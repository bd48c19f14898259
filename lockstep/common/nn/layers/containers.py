"""Modules that hold others: in a chain, or as a list."""

from collections.abc import Iterable, Iterator
from typing import Self, overload

from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.layers.activations import ReLU
from lockstep.common.nn.layers.pooling import MaxPool1d, MaxPool2d
from lockstep.common.nn.module import Module, layer


class _Container(Module):
    """The common part of a chain and a list: the modules, in order."""

    def append(self, module: Module) -> Self:
        """Add a module at the end, named by its position, and return the container.

        Raises TypeError for anything but a module.
        """
        self.add_module(str(len(self)), _a_module(module))
        return self

    def __len__(self) -> int:
        return len(self._items())

    def __iter__(self) -> Iterator[Module]:
        return iter([module for _, module in self._items()])

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, self._item(index)[0], _a_module(module))

    def _items(self) -> list[tuple[str, Module]]:
        return list(self.named_children(remove_duplicate=False))

    def _item(self, index: int) -> tuple[str, Module]:
        items = self._items()
        if not -len(items) <= index < len(items):
            raise IndexError(f"index {index} is out of range: {type(self).__name__} holds {len(items)} modules")
        return items[index]


@layer(repeatable=True)
class Sequential(_Container):
    """Each module's output is the next one's input, whatever its shape.

    The modules are named `0`, `1`, ..., or by a dict's keys.

    `Sequential(Linear(784, 256), ReLU())`, or `Sequential({"hidden": Linear(784, 256), "active": ReLU()})`. Raises
    TypeError for anything but a module, such as a class or a list, and IndexError for a place that it does not have.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> model(Tensor([[1.0, 2.0, 3.0, 4.0]])).shape
    (1, 3)

    Differs from PyTorch: names come from a dict, not from an OrderedDict alone.
    """

    def __init__(self, *modules: Module | dict[str, Module]) -> None:
        super().__init__()
        for name, module in _named(modules):
            self.add_module(name, _a_module(module))

    def forward(self, x: Tensor) -> Tensor:
        for module in cheapest_order(self):
            x = module(x)
        return x

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> "Sequential": ...
    def __getitem__(self, index: int | slice) -> Module:
        """Return one module, or for a slice a Sequential of the same modules under the same names."""
        if isinstance(index, slice):
            return Sequential(dict(self._items()[index]))
        return self._item(index)[1]


@layer(repeatable=False)
class ModuleList(_Container):
    """A list of modules, so that their parameters are found among those of the owner. Named `0`, `1`, ...

    It has no forward, and so no shapes. Raises TypeError for anything but a module, IndexError for a place that it does
    not have.
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end, and return the list. Raises TypeError for anything but a module."""
        for module in modules:
            self.append(module)
        return self

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> "ModuleList": ...
    def __getitem__(self, index: int | slice) -> Module:
        """Return one module, or for a slice a ModuleList of them, named from `0`."""
        if isinstance(index, slice):
            return ModuleList([module for _, module in self._items()[index]])
        return self._item(index)[1]


def cheapest_order(modules: Iterable[Module]) -> Iterator[Module]:
    """Yield the modules with each ReLU after the max-pooling that follows it, where it has a quarter of the elements.

    Neither values nor gradients change. ReLU is monotonic, so the largest of a window stays the largest. The gradient
    goes to the same element: if the largest is positive, ReLU leaves it and its equals alone; if not, none passes.
    """
    held: Module | None = None
    for module in modules:
        if held is not None:
            if type(module) in (MaxPool1d, MaxPool2d):
                yield module
                continue
            yield held
            held = None
        if type(module) is ReLU:
            held = module
        else:
            yield module
    if held is not None:
        yield held


def _named(modules: tuple[Module | dict[str, Module], ...]) -> Iterator[tuple[str, object]]:
    match modules:
        case (dict() as named,):
            yield from named.items()
        case _:
            yield from ((str(i), module) for i, module in enumerate(modules))


def _a_module(value: object) -> Module:
    if isinstance(value, Module):
        return value
    if isinstance(value, type) and issubclass(value, Module):
        raise TypeError(f"{value.__name__} is a class: expected a module; write `{value.__name__}()`")
    if isinstance(value, list | tuple):
        raise TypeError("a list is not a module: write `Sequential(*modules)` or `ModuleList(modules)`")
    raise TypeError(f"{value!r} is not a module: expected an instance of Module")
