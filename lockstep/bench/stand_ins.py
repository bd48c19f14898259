"""Models that stand in for one that computes, and their data: all else of a run is real.

One computes nothing, so that a step is only the exchange; the other waits instead, so that few cores can stand for
many. A module of its own, because worker processes import it as a model file does.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.tensor import Tensor, apply
from lockstep.common.nn.module import Module, Parameter, repeats

#: Classes of the data.
CLASSES = 2


def _fill(gradient: Array, saved: None, *_: Any, samples: int, out: Array) -> Array:
    """Fill the gradient of the weights, with the same value as the all-reduce of the PyTorch baseline."""
    out.fill(0.5)
    return out


#: Only with a derivative that takes `out`, because gradients of parameters always lie in a flat vector.
fill = Primitive(
    "fill", lambda weights, samples: np.zeros((samples, CLASSES), weights.dtype), (_fill,), reads=((),), writes=(0,)
)


class Filler(Module):
    """A number of parameters in one vector of zeros, which do not affect the output."""

    weights: Parameter

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.weights = Parameter(np.zeros(parameters, dtype=np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return apply(fill, self.weights, samples=x.shape[0])


def _sleep(weights: Array, x: Array, *, seconds: float) -> Array:
    """Return the first weights as the output for each sample, after so many seconds."""
    threading.Event().wait(seconds)
    return np.tile(weights[:CLASSES], (len(x), 1))


def _pull(
    gradient: Array, saved: object, weights: Array, x: Array, *, seconds: float, out: Array | None = None
) -> Array:
    """Fill the gradient of the weights with weights + the sum of the samples, which pulls them towards that sum.

    All values are written, in one pass over memory, and weights stay finite with any sensible rate.
    """
    pulled: Array = np.add(weights, x.sum(), out=out)
    return pulled


sleep = Primitive("sleep", _sleep, (_pull, None), reads=((0, 1), ()), writes=(0,), is_opaque=True)


@repeats
class Sleeper(Module):
    """A number of parameters in one vector, from -1 to 1 at first; forward sleeps for so many seconds."""

    weights: Parameter

    def __init__(self, parameters: int, seconds: float) -> None:
        super().__init__()
        self.weights = Parameter(np.linspace(-1.0, 1.0, parameters, dtype=np.float32))
        self._seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        return apply(sleep, self.weights, x, seconds=self._seconds)


def write_model(path: Path, kind: type[Module], *arguments: float) -> str:
    """Write a model file that builds such a stand-in, and return what a job calls it."""
    made = f"{kind.__name__}({', '.join(map(repr, arguments))})"
    source = f"from {__name__} import {kind.__name__}\n\n\ndef build():\n    return {made}\n"
    path.write_text(source, encoding="utf-8")
    return f"{path}:build"


def write_samples(path: Path, count: int) -> str:
    """Write data of so many samples of one byte, and return what a job calls it."""
    numbers = np.arange(count)
    samples, labels = (numbers % 251).astype(np.uint8).reshape(-1, 1), numbers % CLASSES
    np.savez(path, x_train=samples, y_train=labels, x_test=samples[:CLASSES], y_test=labels[:CLASSES])
    return str(path)


def sleeping(folder: Path, parameters: int, seconds: float, samples: int) -> dict[str, str]:
    """Return the values of a job that name a model that sleeps, and data of so many samples; write both."""
    data = write_samples(folder / f"samples-{samples}.npz", samples)
    return {"model": write_model(folder / f"sleep-{parameters}.py", Sleeper, parameters, seconds), "data": data}
