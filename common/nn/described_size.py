"""How many values a described layer will hold, told from its arguments alone: before any of them is allocated."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from common.nn.module import Module

#: Values of a described model: half a GiB of float32. A description comes from elsewhere, and is a few bytes long.
MAX_VALUES = 2**27

#: By class, the product of sizes that its largest arrays have. Of arguments that are no sizes the layer itself tells.
_VALUES: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "Linear": lambda given: _size(given["in_features"]) * _size(given["out_features"]),
    "Conv1d": lambda given: _kernels(given, 1),
    "Conv2d": lambda given: _kernels(given, 2),
    "Embedding": lambda given: _size(given["num_embeddings"]) * _size(given["embedding_dim"]),
    "PositionalEmbedding": lambda given: _size(given["num_positions"]) * _size(given["embedding_dim"]),
    "BatchNorm1d": lambda given: 4 * _size(given["num_features"]),
    "BatchNorm2d": lambda given: 4 * _size(given["num_features"]),
    "LayerNorm": lambda given: 2 * _size(given["normalized_shape"]),
    "MultiheadAttention": lambda given: 4 * _size(given["embed_dim"]) ** 2,
    "TransformerEncoderLayer": lambda given: (
        4 * _size(given["d_model"]) ** 2 + 2 * _size(given["d_model"]) * _size(given["dim_feedforward"])
    ),
}


def values_of(kind: type[Module], args: list[Any], kwargs: Mapping[str, Any]) -> int:
    """Return about how many values a layer of these arguments holds; TypeError where they are not a layer's."""
    count = _VALUES.get(kind.__name__)
    if count is None:
        return 0
    bound = inspect.signature(kind).bind(*args, **kwargs)
    bound.apply_defaults()
    return count(bound.arguments)


def _kernels(given: Mapping[str, Any], axes: int) -> int:
    return _size(given["in_channels"]) * _size(given["out_channels"]) * _size(given["kernel_size"], axes)


def _size(value: object, axes: int = 1) -> int:
    """Return the product of sizes that are given one by one, or as one for all axes; 1 where they are none."""
    if isinstance(value, list | tuple):
        return math.prod(_size(size) for size in value)
    return max(1, value) ** axes if isinstance(value, int) else 1
