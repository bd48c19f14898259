"""Looks on while a model computes: each module's arguments and output, and the primitives that it applied itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from common.autograd.graph import observe
from common.autograd.primitives.primitive import Array, Primitive
from common.autograd.tensor import Tensor
from common.nn.layers.containers import Sequential
from common.nn.module import Module


@dataclass
class Call:
    """One call of one module's forward."""

    name: str
    module: Module
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    output: Any = None
    #: Names and results of the primitives that the module applied itself, and not by a module below it.
    applied: list[tuple[str, Array]] = field(default_factory=list)

    @property
    def named(self) -> str:
        """How a person is told of the module: `3.1 (Linear)`."""
        return named(self.name, self.module)

    @property
    def is_plain_chain(self) -> bool:
        """Whether it computes nothing of its own."""
        return type(self.module) is Sequential


def named(name: str, module: Module) -> str:
    """Return how a person is told of the module of that qualified name."""
    kind = type(module).__name__
    return f"{name} ({kind})" if name else f"the model ({kind})"


@contextmanager
def watched(model: Module) -> Iterator[list[Call]]:
    """Give a list that each call of a module's forward is added to when it ends: inner modules before outer ones."""
    done: list[Call] = []
    under_way: list[Call] = []
    modules = list(model.named_modules())
    # The module's own observers are told of outputs only. As an attribute, the function stands before the class's.
    for name, module in modules:
        vars(module)["forward"] = partial(_watch, name, module, module.forward, under_way, done)
    try:
        with observe(partial(_note, under_way)):
            yield done
    finally:
        for _, module in modules:
            del vars(module)["forward"]


def _watch(
    name: str,
    module: Module,
    forward: Callable[..., Tensor],
    under_way: list[Call],
    done: list[Call],
    *arguments: Any,
    **options: Any,
) -> Tensor:
    call = Call(name, module, arguments, options)
    under_way.append(call)
    try:
        call.output = output = forward(*arguments, **options)
    finally:
        under_way.pop()
    done.append(call)
    return output


def _note(
    under_way: list[Call], primitive: Primitive, way: str, function: Callable[..., Any], *arrays: Any, **options: Any
) -> Any:
    result = function(*arrays, **options)
    if way == "forward" and under_way:
        under_way[-1].applied.append((primitive.name, result[0] if primitive.keeps else result))
    return result
