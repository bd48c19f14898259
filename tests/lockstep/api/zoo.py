"""Models as a person may define them beside a call of `fit`: good ones, and each mistake that can be made."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from lockstep.common import nn as layers
from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.layers.linear import Linear
from lockstep.common.nn.module import Module
from tests.lockstep import api as cells

WIDTH = 12
SHAPES = {"hidden": (WIDTH, [1, 2])}
LIMIT = math.inf
ODD = {"infinite": math.inf}
SLOPES = np.ones(3)


def squash(x: Tensor) -> Tensor:
    """Uses a constant and a module."""
    return F.tanh(x * SHAPES["hidden"][0] / min(WIDTH, LIMIT))


def loud(kind: type[Any]) -> type[Any]:
    """Decorates nothing, and is needed all the same."""
    return kind


class Noisy(layers.Module):
    """Draws random numbers, of which each instance has a source of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.last = layers.Dropout(0.1), Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(x))


class Block(layers.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.linear(x))


Alias = Block


@loud
class Net(Module):
    """Uses all that can be gathered: decorators, aliases, functions, constants, comprehensions, installed modules."""

    def __init__(self) -> None:
        super().__init__()
        self.into = layers.Linear(784, WIDTH)
        self.blocks = layers.ModuleList([Alias(WIDTH) for _ in range(2)])
        self.out = layers.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = squash(self.into(x.reshape(x.shape[0], -1)))
        for block in self.blocks:
            x = block(x)
        return self.out(x * math.sqrt(1.0)) + np.float32(0.0)


def build() -> Module:
    return layers.Sequential(layers.Flatten(), layers.Linear(784, WIDTH), Block(WIDTH), layers.Linear(WIDTH, 10))


class Wide(Net):
    """Takes an argument that a new one would not get."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.out = layers.Linear(WIDTH, 10, bias=width > 7)
        self.width = width


class Tied(Net):
    """A net that begins with a value of its own."""

    def __init__(self) -> None:
        super().__init__()
        next(self.parameters()).data[...] = 0.25


class Needy(Net):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class Lost(Net):
    def forward(self, x: Tensor) -> Tensor:
        return nowhere(x)  # type: ignore[name-defined, no-any-return]  # noqa: F821


class Arrayed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(SLOPES[0])


class Foreign(Net):
    """Uses a module of our own folder, which workers do not have on their path."""

    def forward(self, x: Tensor) -> Tensor:
        return x * len(cells.__name__)


def infinite() -> Module:
    return layers.Sequential(layers.Linear(784, 10 if ODD["infinite"] else 9))


def local() -> type[Module]:
    class Local(Net):
        def forward(self, x: Tensor) -> Tensor:
            return x

    return Local


@dataclasses.dataclass
class Bare:
    """Has no function of its own text."""

    width: int = 3


class Barely(Net):
    def forward(self, x: Tensor) -> Tensor:
        return x * Bare().width


partial = functools.partial(Block, 3)
anonymous = lambda: Net()  # noqa: E731
several: list[Any] = [
    (lambda: [Net() for _ in range(2)][-1]), (lambda: Net()), (lambda: (lambda: Net())()), (lambda n=1: None),
]  # fmt: skip


def closed() -> Callable[[], Module]:
    width, factor = 5, 2
    doubled: Callable[[int], int] = lambda x: x * factor  # noqa: E731

    def build() -> Module:
        return Wide(doubled(width))

    return build


platform = sys.platform
