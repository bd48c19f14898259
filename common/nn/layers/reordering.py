"""The order in which neighbouring layers cost least, where it changes neither values nor gradients."""

from collections.abc import Iterable, Iterator

from common.nn.layers.activations import ReLU
from common.nn.layers.pooling import MaxPool1d, MaxPool2d
from common.nn.module import Module


def cheapest_order(modules: Iterable[Module]) -> Iterator[Module]:
    """Yield the modules, a ReLU before a max-pool after it: it then has a quarter of the elements or fewer.

    ReLU never falls, so the largest of a window is the same before and after it. The gradient goes to the same element
    too: where the largest is positive, ReLU changes it and its equals in nothing; where it is not, no gradient passes.
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
