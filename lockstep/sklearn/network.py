"""From an estimator's `model` to what a job can name, and back; rows, scaled by column and repeated by weight.

Knows nothing of scikit-learn, data or training.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.api.exported_model import ExportedModel, exported, is_described
from lockstep.common.errors import JobError, ModelError, nearest
from lockstep.common.job.job import SIZED
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.port import Model
from lockstep.common.model.source import is_torch_module, open_model, torch_model
from lockstep.common.nn.layers.activations import GELU, Identity, LeakyReLU, ReLU, Sigmoid, Tanh
from lockstep.common.nn.layers.containers import Sequential
from lockstep.common.nn.models import dense
from lockstep.common.nn.module import Module
from lockstep.runs.job_data import hidden_of, sized

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]
#: The mean of each column, and its deviation, 1 if that is 0.
ColumnMoments = tuple[Floats, Floats]

#: The shape of one sample, (features,) or (channels, height, width).
Shape = tuple[int, ...]

#: Rows whose squares are added at once.
BLOCK = 2**13
#: Times as many rows that repeating them may give: so weights may be as unequal as one to eight in any data.
MOST_ROWS = 8


def column_moments(rows: Rows | Floats) -> ColumnMoments:
    """Return the moments of the columns of rows, (n, columns)."""
    # In the order of rows, whatever the array's is: the bits must not depend on that.
    rows = rows if rows.flags.c_contiguous else rows.copy()
    mean = rows.mean(axis=0, dtype=np.float64)
    squares = np.zeros(len(mean))
    for begin in range(0, len(rows), BLOCK):
        squares += np.square(rows[begin : begin + BLOCK] - mean).sum(axis=0)
    deviation = np.sqrt(squares / len(rows))
    # Of equal values, only the rounding of their mean is left.
    return mean, np.where(deviation > 1e-7 * np.abs(mean), deviation, 1.0)


def scaled(rows: Rows | Floats, moments: ColumnMoments) -> Rows:
    """Return rows whose columns are scaled by these moments."""
    mean, deviation = moments
    found = np.empty(rows.shape, np.float32)
    for begin in range(0, len(rows), BLOCK):
        part = slice(begin, begin + BLOCK)
        found[part] = (rows[part] - mean) / deviation
    return found


def repetitions(weights: Floats) -> NDArray[np.int64]:
    """Return how often each row is learned from in an epoch, (n,), in proportion to its weight.

    Whole weights without a common factor are the numbers themselves. The number of others is rounded up or down, such
    that rows one after another have together what their weights say. `MOST_ROWS` times as many rows as there are
    weights are the most. Raises ValueError for weights below 0, or if none is above.
    """
    if (weights < 0).any():
        raise ValueError(f"sample_weight has the value {weights.min():g}: expected none below 0")
    if not weights.any():
        raise ValueError("sample_weight is 0 for every row: expected a row to learn from")
    is_whole = bool((weights == np.rint(weights)).all()) and weights.max() < 2**53
    unit = np.gcd.reduce(weights.astype(np.int64)) if is_whole else weights[weights > 0].min()
    with np.errstate(over="ignore"):
        copies = min(weights.sum() / unit, MOST_ROWS * len(weights))
    shares = weights / unit if copies < MOST_ROWS * len(weights) else weights * (copies / weights.sum())
    ends: Floats = np.rint(np.cumsum(shares))
    return np.diff(ends, prepend=0.0).astype(np.int64)


#: The sizes of hidden layers, the name of a model as a job has it, a model of ours or of PyTorch, or what builds one.
Network = Any

#: The layers that may be between those of a network that is given by its sizes.
ACTIVATIONS: dict[str, Callable[[], Module]] = {
    "relu": ReLU,
    "tanh": Tanh,
    "sigmoid": Sigmoid,
    "gelu": GELU,
    "leaky_relu": LeakyReLU,
    "identity": Identity,
}


def exported_network(network: Any, activation: str, sample: Shape, outputs: int) -> ExportedModel:
    """Return a network as a job can name it, for samples of a shape; `ModelError` or `JobError` if it is none.

    A function that builds it may have two parameters: the number of values of a sample, and the number of outputs.
    """
    if isinstance(network, str):
        is_sized = network in SIZED
        return exported(sized(network, sample, hidden_of(network), outputs)) if is_sized else ExportedModel(network)
    if not _is_model(network) and not callable(network):
        return exported(_of_sizes(_sizes(network), activation, sample, outputs))
    model = network if _is_model(network) else _built(network, sample, outputs)
    return exported(model if _wants_shape(network) or is_described(model) else network)


def opened_network(network: Any, value: str | dict[str, Any], sample: Shape, outputs: int, seed: int) -> Model:
    """Return a new model of a network that a job named as `value`; what builds it is called again if it must be."""
    if isinstance(value, dict) or isinstance(network, str):
        return open_model(value, seed)
    model = type(network)() if _is_model(network) else _built(network, sample, outputs)
    return AutogradModel(model) if isinstance(model, Module) else torch_model(model)


def _is_model(value: object) -> bool:
    return isinstance(value, Module) or is_torch_module(value)


def _of_sizes(hidden: Sequence[int], activation: str, sample: Shape, outputs: int) -> Sequential:
    """Return linear layers with an activation after each hidden one; without a hidden layer it is a linear model."""
    if activation not in ACTIVATIONS:
        raise JobError(
            f"activation = {activation!r}{nearest(str(activation), ACTIVATIONS)}: expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    return dense(sample, hidden, outputs, ACTIVATIONS[activation])


def _sizes(network: Any) -> list[int]:
    """Return the sizes of hidden layers, which a search may have drawn as NumPy's; one alone is a list of one."""
    try:
        sizes = [int(size) for size in (network if hasattr(network, "__len__") else [network])]
    except (TypeError, ValueError):
        sizes = [0]
    if any(size < 1 for size in sizes):
        raise ModelError(
            f"model = {network!r}: expected the sizes of hidden layers, as (100,), the name of a model, a Module, or "
            "a function that returns one"
        )
    return sizes


def _wants_shape(network: Callable[..., object]) -> bool:
    """Return whether what builds a network has two parameters without a default."""
    if _is_model(network):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(network).parameters.values()
    needed = [each.name for each in parameters if each.kind in kinds and each.default is each.empty]
    if len(needed) not in (0, 2):
        raise ModelError(
            f"model = {network!r} needs {', '.join(needed)}: expected a function of the numbers of inputs and outputs, "
            "or one without parameters"
        )
    return bool(needed)


def _built(network: Callable[..., object], sample: Shape, outputs: int) -> Any:
    built = network(math.prod(sample), outputs) if _wants_shape(network) else network()
    if not _is_model(built):
        raise ModelError(f"model = {network!r} returned {built!r}: expected a Module; does it end in `return model`?")
    return built
