"""The parts of models: parameters, running statistics, and modules in a tree, named as in PyTorch; knows no layer.

The parts of a module are found among its attributes, in the order of their first assignment: no second registry
that could disagree with them. `__setattr__` refuses the assignments that would silently lose a parameter.
"""

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lockstep.common.autograd.tensor import Tensor
from lockstep.common.numerics.random import Purpose, Source, default_generator, generator

#: The count of PyTorch's BatchNorm for its `momentum=None`, which Lockstep lacks: in a state dict, never needed.
_COUNTER = "num_batches_tracked"


class IncompatibleKeys(NamedTuple):
    """The keys that `load_state_dict(strict=False)` ignored."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load(
    own: Mapping[str, NDArray[Any]], given: Mapping[str, ArrayLike], *, strict: bool, owner: str
) -> IncompatibleKeys:
    """Copy `given` into the arrays of `own` that have the same names; `owner` is what the error calls them.

    Raises RuntimeError, before anything is copied, that names every key whose shape differs and, if `strict`, every
    key that only one side has; TypeError if values are not numbers. PyTorch's `num_batches_tracked` is ignored.
    """
    missing = [key for key in own if key not in given]
    unexpected = [key for key in given if key not in own and not is_counter(key, own)]
    arrays = {
        key: np.asarray(given[key]).astype(own[key].dtype, casting="same_kind", copy=False)
        for key in own
        if key in given
    }
    problems = [
        f"{key!r} has shape {array.shape}, expected {own[key].shape}"
        for key, array in arrays.items()
        if array.shape != own[key].shape
    ]
    if strict:
        problems = [*_with_keys("missing keys", missing), *_with_keys("unexpected keys", unexpected), *problems]
    if problems:
        advice = "" if not strict else "; strict=False loads the keys that agree"
        raise RuntimeError(f"the state dict does not fit {owner}: {'; '.join(problems)}{advice}")
    for key, array in arrays.items():
        np.copyto(own[key], array)
    return IncompatibleKeys(missing, unexpected)


def is_counter(key: str, own: Mapping[str, object]) -> bool:
    """Tell whether a key is that of PyTorch's count of batches, next to a running mean of ours."""
    prefix, name = key[: -len(_COUNTER)], key[-len(_COUNTER) :]
    return name == _COUNTER and prefix + "running_mean" in own


def _with_keys(title: str, keys: list[str]) -> list[str]:
    return [f"{title}: {', '.join(map(repr, keys))}"] if keys else []


_Kind = TypeVar("_Kind")
_Layer = TypeVar("_Layer", bound=type["Module"])

#: `(qualified name, module, its output)`, called after each forward.
Observer = Callable[[str, "Module", Any], None]

#: The layers of this library by name: the only classes that a description may name. Importing `nn` fills it.
LAYERS: dict[str, type["Module"]] = {}
_REPEATABLE: set[type["Module"]] = set()


class Parameter(Tensor):
    """A `Tensor` that a `Module` registers when it is assigned to one of its attributes.

    `.data` is float32 unless float64 is given, of any shape. It may become a view into a flat vector at any time: to
    change a parameter's values, write into `.data` and never replace it. Raises RuntimeError for data that are not
    floats.
    """

    __slots__ = ("drawn",)

    #: The digest of the values that a module's `reset_parameters` left here last; None if none did.
    drawn: bytes | None

    def __init__(self, data: ArrayLike, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad=requires_grad)
        self.drawn = None

    def digest(self) -> bytes:
        """Return the SHA-256 of the values."""
        return hashlib.sha256(np.ascontiguousarray(self.data).data).digest()


class RunningStatistic:
    """An exponential average over batches, as BatchNorm's mean and variance (rule R8).

    A worker must not keep a statistic of its own: it would depend on which micro-batches the worker computed. There,
    `observed` is a view in the vector of results, and the server reduces it over the whole batch and calls `update`.
    """

    #: The average so far, float32; in the state dict, and changed in place only: it may be a view in a flat vector.
    value: NDArray[np.float32]
    #: The weight of a new batch, in [0, 1].
    momentum: float
    #: If set, it receives `statistic * count` of the micro-batch, of `value`'s shape, and `value` stays as it is.
    observed: NDArray[np.float32] | None

    def __init__(self, value: NDArray[np.float32], momentum: float) -> None:
        self.value = value
        self.momentum = momentum
        self.observed = None

    def observe(self, statistic: NDArray[Any], count: int) -> None:
        """Record the statistic of a micro-batch of `count` samples.

        With `observed` set, `statistic * count` replaces its values: sums and counts travel, and the server divides
        once (rule R1).
        """
        if self.observed is None:
            self.update(statistic)
        else:
            np.multiply(statistic, count, out=self.observed, casting="same_kind")

    def update(self, statistic: NDArray[Any]) -> None:
        """Move `value` towards the statistic of one whole batch: `value += momentum * (statistic - value)`."""
        self.value += self.momentum * (statistic - self.value)

    def __repr__(self) -> str:
        return f"RunningStatistic(shape={self.value.shape}, momentum={self.momentum})"


class Module:
    """A function with parameters. A subclass assigns parameters and modules to attributes and defines `forward`.

    A subclass may define four methods: `forward`, `reset_parameters`, `extra_repr`, and `count_values` if it is a layer
    of this library. Its docstring names the shapes that `forward` takes and returns. Raises TypeError if a parameter is
    replaced by something else, and if modules or parameters are assigned in a list or a tuple, where they would never
    be trained.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.hidden = nn.Linear(4, 8)
    ...         self.output = nn.Linear(8, 3)
    ...
    ...     def forward(self, x):
    ...         return self.output(self.hidden(x).relu())
    >>> [name for name, _ in Net().named_parameters()]
    ['hidden.weight', 'hidden.bias', 'output.weight', 'output.bias']

    Differs from PyTorch: there are no hooks but `observe_outputs`, no devices, and buffers are running statistics
    alone.
    """

    #: Whether dropout drops and BatchNorm takes the batch's statistics; changed by `train` and `eval`.
    training: bool = True
    #: Whether `reset_parameters` has been called.
    _is_drawn: bool = False
    #: Called with each output; non-empty only inside `observe_outputs`.
    _observers: tuple[Callable[["Module", Any], None], ...] = ()

    def __init__(self) -> None:
        # Nothing to do. It is here so that `ReLU(3)` is a TypeError, and so that PyTorch's idiom works.
        super().__init__()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the output; every module that is called must define it. Shapes are those that its class names.

        Raises NotImplementedError if it is not defined.
        """
        name = type(self).__name__
        raise NotImplementedError(f"{name} has no forward: define `def forward(self, x)` in class {name}")

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Draw this module's parameters again, and not those of its children."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Let each `reset_parameters` leave a digest of what it drew: see `own_initial_values`."""
        super().__init_subclass__(**options)
        if "reset_parameters" in vars(cls):
            # Here and not in `__init__`, where a class of the user's calls it.
            cls.reset_parameters = _recorded(cls.reset_parameters)  # type: ignore[assignment]

    @staticmethod
    def count_values(arguments: Mapping[str, Any]) -> int:
        """Return about how many values a layer holds that is built from these arguments, before any is allocated.

        The arguments come from an unchecked description: pass what should be a size to `volume`.
        """
        return 0

    def extra_repr(self) -> str:
        """Return the text between the brackets of `repr`, on one line: by default a layer's arguments."""
        return ", ".join(f"{name}={value!r}" for name, value in arguments_of(self).items())

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
                f"cannot register the modules in the {type(value).__name__} {name!r}: their parameters would never be "
                f"trained; write `self.{name} = nn.ModuleList([...])`"
            )
        super().__setattr__(name, value)

    # What the module consists of

    def add_module(self, name: str, module: "Module") -> None:
        """Register `module` under a name that need not be an identifier, as `"0"`.

        Raises KeyError if the name is taken, is empty, or has a dot.
        """
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
        """Yield the modules directly below with their names.

        A module in two places comes once, or with `remove_duplicate=False` twice.
        """
        children = self._own(Module)
        return _without_duplicates(children) if remove_duplicate else children

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield qualified names and parameters, a module's own before those of its children.

        A shared one comes once, under its first name.
        """
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

        Differs from PyTorch: they are copies and not the live arrays, so that `best = model.state_dict()` stays the
        best.
        """
        return {name: array.copy() for name, array in self._arrays().items()}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike], strict: bool = True) -> IncompatibleKeys:
        """Copy arrays of the same names and shapes into this module, in place.

        Raises RuntimeError that names every key that is missing, unexpected or of another shape, before anything is
        changed. With `strict=False` only shapes must agree; the missing and unexpected names are returned. Raises
        TypeError for values that are not numbers. PyTorch's `num_batches_tracked` is ignored.
        """
        return load(self._arrays(), state_dict, strict=strict, owner=type(self).__name__)

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def train(self, mode: bool = True) -> Self:
        """Put this module and all below into training mode, or with `False` into evaluation mode; return it.

        Dropout and BatchNorm act on the mode.
        """
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Put this module and all below into evaluation mode; return it."""
        return self.train(False)

    def apply(self, function: Callable[["Module"], object]) -> Self:
        """Call `function` on every module below, then on this one; return it. Raises what `function` raises."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # Randomness: keyed by the module's place in the tree, never by earlier draws (rule R2)

    def initialize(self, seed: int) -> Self:
        """Draw all parameters again; return the module.

        Place i of the tree (see `named_modules`) gets the generator of layer i: the same `seed`, in [0, 2**64), gives
        the same bits. Raises OverflowError for a seed out of that range.

        Differs from PyTorch: PyTorch draws from one generator in the order of construction.
        """
        for i, (_, module) in enumerate(self._places()):
            module.reset_parameters(generator(seed, Purpose.INITIALISE, layer=i))
        return self

    def own_initial_values(self) -> Iterator[tuple[str, Parameter]]:
        """Yield the parameters that were set after their modules drew them, and that `initialize` would lose.

        A parameter that a module draws counts as set if its values are others than the module's last draw, or if it was
        put into the place of another one.
        """
        drawn = ((prefix, module) for prefix, module in self._places() if module._is_drawn)
        own = ((_join(prefix, name), each) for prefix, module in drawn for name, each in module._own(Parameter))
        return ((name, each) for name, each in _without_duplicates(own) if each.drawn != each.digest())

    def reseed(self, seed: int, step: int, micro_batch: int) -> None:
        """Give each stochastic module the generator of this micro-batch and of its own place in the tree.

        All numbers count from 0 and are below 2**64. Raises OverflowError for others.
        """
        for i, (_, module) in enumerate(self._places()):
            if isinstance(module, Stochastic):
                module.rng = generator(seed, Purpose.DROPOUT, at=step, micro_batch=micro_batch, layer=i)

    # Observation

    @contextmanager
    def observe_outputs(self, observer: Observer) -> Iterator[None]:
        """Within the context, call `observer(name, module, output)` after each forward of this module or one below.

        Raises what `observer` raises.
        """
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
    """A module whose forward draws random numbers, all of them from `self.rng`: then a run's bits can be repeated.

    A layer of your own that draws has to be a subclass.

    Differs from PyTorch: PyTorch draws from a global generator.
    """

    def __init__(self, rng: np.random.Generator | None = None) -> None:
        super().__init__()
        #: Stays the same, so that what draws from it can be repeated with other numbers.
        self._source = Source(rng or default_generator(Purpose.DROPOUT))

    @property
    def rng(self) -> np.random.Generator:
        """The generator to draw from; `Module.reseed` replaces it for every micro-batch."""
        return self._source.rng

    @rng.setter
    def rng(self, rng: np.random.Generator) -> None:
        self._source.rng = rng


def _recorded(reset: Callable[[Any, np.random.Generator], None]) -> Callable[[Any, np.random.Generator], None]:
    """Return a `reset_parameters` that records what it drew."""

    @functools.wraps(reset)
    def reset_and_record(module: Any, rng: np.random.Generator) -> None:
        reset(module, rng)
        module._is_drawn = True
        for _, parameter in module._own(Parameter):
            parameter.drawn = parameter.digest()

    return reset_and_record


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


def layer(*, repeatable: bool) -> Callable[[_Layer], _Layer]:
    """Register a layer of this library, so that any process can build it from its description.

    `repeatable` promises that its forward applies the same primitives with the same options to any batch of one shape
    and has no other effect, so that a capture may stand for it. Dropout and BatchNorm are, since what they draw from,
    and where they put what they observe, are options. It is not inherited: a subclass may do anything.
    """

    def register(kind: _Layer) -> _Layer:
        if not kind.__module__.startswith("lockstep.common.nn.layers.") or kind.__name__ in LAYERS:
            raise TypeError(f"{kind!r} cannot be registered: expected a layer of this library with a name of its own")
        LAYERS[kind.__name__] = kind
        return repeats(kind) if repeatable else kind

    return register


def repeats(kind: _Layer) -> _Layer:
    """Promise of a module what `layer` says of a repeatable one."""
    _REPEATABLE.add(kind)
    return kind


def arguments_of(module: Module) -> dict[str, Any]:
    """Return with what a layer of this library was constructed; it keeps each argument in the attribute of its name.

    Empty for other modules. A `bias` is a parameter or None if the argument was True or False.
    """
    kind = next((each for each in type(module).__mro__ if LAYERS.get(each.__name__) is each), Module)
    known = {name: vars(module)[name] for name in inspect.signature(kind).parameters if name in vars(module)}
    optional = (type(None), Parameter)
    return {name: value is not None if isinstance(value, optional) else value for name, value in known.items()}


def first_unrepeatable(model: Module) -> str | None:
    """Return the first module of which that is not known, as `"3.1 (Swish)"`, or None."""
    return next((place_of(name, each) for name, each in model.named_modules() if type(each) not in _REPEATABLE), None)


def place_of(name: str, module: Module) -> str:
    """Return a module with that qualified name as it is shown to the user: `3.1 (Linear)`."""
    return f"{name or 'the model'} ({type(module).__name__})"
