"""The base class of everything with parameters: a tree of modules, named as in PyTorch; knows no layer.

What a module consists of is found among its attributes, in the order of their first assignment: no second registry
that could disagree with them. `__setattr__` refuses the assignments that would silently lose a parameter.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.autograd.tensor import Tensor
from common.nn.layers.running_statistic import RunningStatistic
from common.nn.parameter import Parameter
from common.nn.seeding import default_generator
from common.nn.state_dict import IncompatibleKeys, load
from common.random import Purpose, generator

_Kind = TypeVar("_Kind")

#: `(qualified name, module, its output)`, called after each forward.
Observer = Callable[[str, "Module", Any], None]


class Module:
    """A function with parameters. A subclass assigns parameters and modules to attributes and defines `forward`.

    Three methods are there to be defined by a subclass: `forward`, `reset_parameters` and `extra_repr`.
    """

    #: Whether dropout drops and BatchNorm takes the batch's statistics; changed by `train` and `eval`.
    training: bool = True
    #: Called with each output; non-empty only inside `observe_outputs`.
    _observers: tuple[Callable[["Module", Any], None], ...] = ()

    def __init__(self) -> None:
        # Nothing to do. It is here so that `ReLU(3)` is a TypeError, and so that PyTorch's idiom works.
        super().__init__()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the output; every module that is called must define it."""
        name = type(self).__name__
        raise NotImplementedError(f"{name} has no forward: define `def forward(self, x)` in class {name}")

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Draw this module's own parameters again, not its children's; nothing where it has none."""

    def extra_repr(self) -> str:
        """Return what stands between the brackets of `repr`, on one line."""
        return ""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self.forward(*args, **kwargs)
        for observer in self._observers:
            observer(self, output)
        return output

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(vars(self).get(name), Parameter) and not isinstance(value, Parameter | None):
            raise TypeError(
                f"cannot replace parameter {name!r} by {type(value).__name__}: expected a Parameter or None; "
                f"to change its values, write `{name}.data[...] = values`"
            )
        if isinstance(value, list | tuple) and any(isinstance(item, Module | Parameter) for item in value):
            raise TypeError(
                f"cannot register what is in the {type(value).__name__} {name!r}: its parameters would never be "
                f"trained; write `self.{name} = nn.ModuleList([...])`"
            )
        super().__setattr__(name, value)

    # What the module consists of

    def add_module(self, name: str, module: "Module") -> None:
        """Register `module` under a name that need not be an identifier, as `"0"`; KeyError where it is taken."""
        if not name or "." in name or name in dir(self):
            raise KeyError(f"{name!r} cannot name a module: expected a name without dots that is not taken yet")
        setattr(self, name, module)

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, "Module"]]:
        """Yield qualified names and modules, itself first (name `prefix`), depth first.

        A module that is used in several places comes once, or with `remove_duplicate=False` once for each place.
        """
        places = self._places(prefix)
        return _without_duplicates(places) if remove_duplicate else places

    def named_children(self, remove_duplicate: bool = True) -> Iterator[tuple[str, "Module"]]:
        """Yield the modules directly below with their names; one in two places as `named_modules` does."""
        children = self._own(Module)
        return _without_duplicates(children) if remove_duplicate else children

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield qualified names and parameters, a module's own before its children's; a shared one comes once."""
        return _without_duplicates(self._all(Parameter))

    def named_buffers(self) -> Iterator[tuple[str, RunningStatistic]]:
        """Yield qualified names and running statistics; the arrays are their `.value`."""
        return _without_duplicates(self._all(RunningStatistic))

    def modules(self) -> Iterator["Module"]:
        """Yield this module and all below, depth first."""
        return (module for _, module in self.named_modules())

    def children(self) -> Iterator["Module"]:
        """Yield the modules directly below."""
        return (child for _, child in self.named_children())

    def parameters(self) -> Iterator[Parameter]:
        """Yield all parameters, in the order of `named_parameters`."""
        return (parameter for _, parameter in self.named_parameters())

    def buffers(self) -> Iterator[RunningStatistic]:
        """Yield all running statistics, in the order of `named_buffers`."""
        return (statistic for _, statistic in self.named_buffers())

    # State

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of all parameters and running statistics by qualified name.

        Copies, where PyTorch returns the live arrays: `best = model.state_dict()` then stays the best.
        """
        return {name: array.copy() for name, array in self._arrays().items()}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike], strict: bool = True) -> IncompatibleKeys:
        """Copy arrays of the same names and shapes into this module, in place.

        Raises RuntimeError that names every key that is missing, unexpected or of another shape, before anything is
        changed. With `strict=False` only shapes must agree; what was missing or unexpected is returned.
        """
        return load(self._arrays(), state_dict, strict=strict, owner=type(self).__name__)

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def train(self, mode: bool = True) -> Self:
        """Put this module and all below into training mode, or with `False` into evaluation mode."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Put this module and all below into evaluation mode."""
        return self.train(False)

    def apply(self, function: Callable[["Module"], object]) -> Self:
        """Call `function` on every module below, then on this one."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # Randomness: keyed by the module's place in the tree, never by what was drawn before (rule R2)

    def initialize(self, seed: int) -> Self:
        """Draw all parameters again; place i of the tree (see `named_modules`) gets the generator of layer i."""
        for i, (_, module) in enumerate(self._places()):
            module.reset_parameters(generator(seed, Purpose.INITIALISE, layer=i))
        return self

    def reseed(self, seed: int, step: int, micro_batch: int) -> None:
        """Give each stochastic module the generator of this piece of work and of its own place in the tree."""
        for i, (_, module) in enumerate(self._places()):
            if isinstance(module, Stochastic):
                module.rng = generator(seed, Purpose.DROPOUT, at=step, micro_batch=micro_batch, layer=i)

    # Observation

    @contextmanager
    def observe_outputs(self, observer: Observer) -> Iterator[None]:
        """Within the context, call `observer(name, module, output)` after each forward of this module or one below."""
        watched = list(self.named_modules())
        before = [module._observers for _, module in watched]
        for name, module in watched:
            module._observers = (*module._observers, _named(observer, name))
        try:
            yield
        finally:
            for (_, module), observers in zip(watched, before, strict=True):
                module._observers = observers

    def __repr__(self) -> str:
        children = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self._own(Module)]
        extra = self.extra_repr()
        if not children:
            return f"{type(self).__name__}({extra})"
        lines = [extra, *children] if extra else children
        return "\n  ".join([f"{type(self).__name__}(", *lines]) + "\n)"

    def _own(self, kind: type[_Kind]) -> Iterator[tuple[str, _Kind]]:
        """Yield the attributes of one kind."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, kind))

    def _places(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """Yield every place in the tree, a shared module once for each of its places."""
        yield prefix, self
        for name, child in self._own(Module):
            yield from child._places(_join(prefix, name))

    def _all(self, kind: type[_Kind]) -> Iterator[tuple[str, _Kind]]:
        """Yield all attributes of one kind in the whole tree."""
        for prefix, module in self._places():
            for name, value in module._own(kind):
                yield _join(prefix, name), value

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Return the live arrays of the state dict, in PyTorch's order."""
        arrays: dict[str, NDArray[Any]] = {}
        for prefix, module in self._places():
            arrays |= {_join(prefix, name): parameter.data for name, parameter in module._own(Parameter)}
            arrays |= {_join(prefix, name): statistic.value for name, statistic in module._own(RunningStatistic)}
        return arrays


class Stochastic(Module):
    """A module whose forward draws random numbers, all of them from `self.rng`: then a run's bits can be repeated."""

    #: `Module.reseed` replaces it for every piece of work.
    rng: np.random.Generator

    def __init__(self, rng: np.random.Generator | None = None) -> None:
        super().__init__()
        self.rng = rng or default_generator(Purpose.DROPOUT)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _without_duplicates(named: Iterable[tuple[str, _Kind]]) -> Iterator[tuple[str, _Kind]]:
    """Yield each thing once, under its first name."""
    seen: set[int] = set()
    for name, thing in named:
        if id(thing) not in seen:
            seen.add(id(thing))
            yield name, thing


def _named(observer: Observer, name: str) -> Callable[[Module, Any], None]:
    """Bind the name under which a module is observed."""
    return lambda module, output: observer(name, module, output)
