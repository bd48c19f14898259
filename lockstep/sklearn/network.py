"""From an estimator's `model` to what a job can name, and back to a model that predicts.

Knows nothing of scikit-learn, data or training.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lockstep.api.exported_model import ExportedModel, exported, is_described
from lockstep.common.errors import JobError, ModelError
from lockstep.common.files.did_you_mean import nearest
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.port import Model
from lockstep.common.model.source import is_torch_module, open_model, torch_model
from lockstep.common.nn.layers.activations import GELU, Identity, LeakyReLU, ReLU, Sigmoid, Tanh
from lockstep.common.nn.layers.containers import Sequential
from lockstep.common.nn.layers.linear import Flatten, Linear
from lockstep.common.nn.module import Module

#: The sizes of hidden layers, the name of a model as a job has it, a model of ours or of PyTorch, or what builds one.
Network = Any

#: What may stand between the layers of a network that is given by its sizes.
ACTIVATIONS: dict[str, Callable[[], Module]] = {
    "relu": ReLU,
    "tanh": Tanh,
    "sigmoid": Sigmoid,
    "gelu": GELU,
    "leaky_relu": LeakyReLU,
    "identity": Identity,
}


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """The shape of one sample, (features,) or (channels, height, width), and how many numbers come out for it."""

    sample: tuple[int, ...]
    outputs: int

    @property
    def inputs(self) -> int:
        return math.prod(self.sample)


def exported_network(network: Any, activation: str, shape: NetworkShape) -> ExportedModel:
    """Return a network as a job can name it; `ModelError` or `JobError` if it is none.

    A function that builds it may have two parameters: the number of values of a sample, and the number of outputs.
    """
    if isinstance(network, str):
        return ExportedModel(network)
    if not _is_model(network) and not callable(network):
        return exported(_of_sizes(_sizes(network), activation, shape))
    model = network if _is_model(network) else _built(network, shape)
    return exported(model if _wants_shape(network) or is_described(model) else network)


def opened_network(network: Any, value: str | dict[str, Any], shape: NetworkShape, seed: int) -> Model:
    """Return a new model of a network that a job named as `value`; what builds it is called again if it must be."""
    if isinstance(value, dict) or isinstance(network, str):
        return open_model(value, seed)
    model = type(network)() if _is_model(network) else _built(network, shape)
    return AutogradModel(model) if isinstance(model, Module) else torch_model(model)


def _is_model(value: object) -> bool:
    return isinstance(value, Module) or is_torch_module(value)


def _of_sizes(hidden: Sequence[int], activation: str, shape: NetworkShape) -> Sequential:
    """Return linear layers with an activation after each hidden one; without a hidden layer it is a linear model."""
    if activation not in ACTIVATIONS:
        raise JobError(
            f"activation = {activation!r}{nearest(str(activation), ACTIVATIONS)}: expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    layers: list[Module] = [Flatten()] if len(shape.sample) > 1 else []
    inputs = shape.inputs
    for size in hidden:
        layers += [Linear(inputs, size), ACTIVATIONS[activation]()]
        inputs = size
    return Sequential(*layers, Linear(inputs, shape.outputs))


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


def _built(network: Callable[..., object], shape: NetworkShape) -> Any:
    built = network(shape.inputs, shape.outputs) if _wants_shape(network) else network()
    if not _is_model(built):
        raise ModelError(f"model = {network!r} returned {built!r}: expected a Module; does it end in `return model`?")
    return built
